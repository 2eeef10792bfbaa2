"""Ground truth in the formats in use: the same scene is the same truth, and mistakes are named."""

from dataclasses import FrozenInstanceError, dataclass, field, fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.tv_tensors import BoundingBoxes
from transformers import DetrImageProcessor
from transformers.models.detr.modeling_detr import DetrObjectDetectionOutput

from ml_debugger.core.errors import InputError
from ml_debugger.object_detection.ground_truth import Truth, read_ground_truth

BOX = [10.0, 20.0, 40.0, 80.0]


# Stand-ins for libraries that are not installed: only what the connectors look at.


@dataclass
class SupervisionDetections:
    xyxy: np.ndarray
    class_id: np.ndarray | None
    data: dict = field(default_factory=dict)


@dataclass
class HorizontalBoxes:
    tensor: Tensor


@dataclass
class DetDataSample:
    gt_instances: Any = None
    ignored_instances: Any = None
    metainfo: dict = field(default_factory=dict)


# One scene, written in every format


@dataclass
class Scene:
    """An image: its size, xyxy boxes in float64, labels and crowd flags; and how it is resized."""

    height: int
    width: int
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    gain: tuple[float, float]
    pad: tuple[int, int]

    def resized(self) -> Tensor:
        return self.boxes * torch.tensor(self.gain * 2, dtype=torch.float64)

    def metainfo(self) -> dict:
        shape = (round(self.height * self.gain[1]) + 1, round(self.width * self.gain[0]) + 1)
        return {
            "ori_shape": (self.height, self.width),
            "img_shape": shape,
            "scale_factor": self.gain,
        }


@st.composite
def scenes(draw: Any) -> Scene:
    height, width = draw(st.integers(32, 640)), draw(st.integers(32, 640))
    n = draw(st.integers(0, 4))
    share = st.floats(0, 1, width=32, allow_subnormal=False)
    boxes = torch.zeros((n, 4), dtype=torch.float64)
    for box in boxes:
        for start, side in ((0, width), (1, height)):
            length = draw(st.just(0.0) | share.map(lambda s, side=side: 2 + s * (side - 5)))
            box[start] = 2 + draw(share) * (side - length - 3)
            box[start + 2] = box[start] + length
    gains = st.floats(0.5, 2, width=32, allow_subnormal=False)
    return Scene(
        height,
        width,
        boxes,
        torch.tensor(draw(st.lists(st.integers(0, 90), min_size=n, max_size=n))).long(),
        torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n))).bool(),
        (draw(gains), draw(gains)),
        (draw(st.integers(0, 64)), draw(st.integers(0, 64))),
    )


def normalised(boxes: Tensor, height: float, width: float) -> Tensor:
    scale = torch.tensor([width, height, width, height], dtype=torch.float64)
    return box_convert(boxes / scale, "xyxy", "cxcywh").float()


def torchvision_dicts(batch):
    return [{"boxes": s.boxes, "labels": s.labels, "iscrowd": s.crowd.int()} for s in batch]


def torchvision_arrays(batch):
    return [
        {"boxes": s.boxes.numpy(), "labels": s.labels.numpy(), "ignore": s.crowd.numpy()}
        for s in batch
    ]


def torchvision_lists(batch):
    return [
        {"boxes": s.boxes.tolist(), "labels": s.labels.tolist(), "iscrowd": s.crowd.tolist()}
        for s in batch
    ]


def torchvision_tv_tensors(batch):
    out = []
    for index, s in enumerate(batch):
        form = ("xyxy", "xywh", "cxcywh")[index % 3]
        boxes = BoundingBoxes(
            box_convert(s.boxes, "xyxy", form),
            format=form.upper(),
            canvas_size=(s.height, s.width),
        )
        out.append({"boxes": boxes, "labels": s.labels, "iscrowd": s.crowd})
    return out


def torchmetrics(form):
    def write(batch):
        return [
            {
                "boxes": box_convert(s.boxes, "xyxy", form),
                "labels": s.labels,
                "iscrowd": s.crowd,
                "box_format": form,
            }
            for s in batch
        ]

    return write


def coco(batch):
    return [
        [
            {"bbox": box, "category_id": label, "iscrowd": int(crowd)}
            for box, label, crowd in zip(
                box_convert(s.boxes, "xyxy", "xywh").tolist(),
                s.labels.tolist(),
                s.crowd.tolist(),
                strict=True,
            )
        ]
        for s in batch
    ]


def huggingface(batch):
    return [
        {
            "boxes": normalised(s.boxes, s.height, s.width),
            "class_labels": s.labels,
            "iscrowd": s.crowd,
            "orig_size": torch.tensor([s.height, s.width]),
            "size": torch.tensor([7, 7]),
        }
        for s in batch
    ]


def ultralytics(batch):
    """Letterboxed to one size, as the validation loader writes it."""
    height, width = 1500, 1400
    boxes = [s.resized() + torch.tensor(s.pad * 2) for s in batch]
    return {
        "img": torch.zeros(len(batch), 3, 1, 1).expand(-1, -1, height, width),
        "bboxes": torch.cat([normalised(b, height, width) for b in boxes]),
        "cls": torch.cat([s.labels for s in batch])[:, None].float(),
        "batch_idx": torch.cat(
            [torch.full((len(s.labels),), float(i)) for i, s in enumerate(batch)]
        ),
        "ori_shape": tuple((s.height, s.width) for s in batch),
        "resized_shape": tuple((height, width) for _ in batch),
        "ratio_pad": tuple(((s.gain[1], s.gain[0]), s.pad) for s in batch),
        "im_file": tuple("x.png" for _ in batch),
    }


def openmmlab_testing(batch):
    return [_sample(s, s.boxes, s.metainfo()) for s in batch]


def openmmlab_training(batch):
    return [_sample(s, s.resized(), {**s.metainfo(), "flip": False}) for s in batch]


def _sample(s, boxes, metainfo):
    parts = [
        SimpleNamespace(bboxes=HorizontalBoxes(boxes[mask]), labels=s.labels[mask])
        for mask in (~s.crowd, s.crowd)
    ]
    return DetDataSample(*parts, metainfo)


def supervision(batch):
    return [
        SupervisionDetections(s.boxes.numpy(), s.labels.numpy(), {"iscrowd": s.crowd.numpy()})
        for s in batch
    ]


def pairs(batch):
    return [(s.boxes, s.labels) for s in batch]


FLAGGED = [
    torchvision_dicts,
    torchvision_arrays,
    torchvision_lists,
    torchvision_tv_tensors,
    torchmetrics("xyxy"),
    torchmetrics("xywh"),
    torchmetrics("cxcywh"),
    coco,
    huggingface,
    supervision,
]


def same(found: list[Truth], batch: list[Scene], *, flags: bool) -> None:
    assert len(found) == len(batch)
    for truth, s in zip(found, batch, strict=True):
        assert truth.boxes.dtype == torch.float32
        assert truth.boxes.shape == (len(s.labels), 4)
        assert torch.allclose(truth.boxes.double(), s.boxes, rtol=0, atol=1e-3)
        assert truth.labels.dtype == torch.int64
        assert torch.equal(truth.labels, s.labels)
        assert torch.equal(truth.ignored, s.crowd if flags else torch.zeros_like(s.crowd))


@settings(max_examples=40, deadline=None)
@given(st.lists(scenes(), min_size=1, max_size=3))
def test_the_same_scene_in_every_format_is_the_same_truth(batch: list[Scene]) -> None:
    for write in FLAGGED:
        same(read_ground_truth(write(batch), len(batch)), batch, flags=True)
    for write in (pairs, ultralytics):
        same(read_ground_truth(write(batch), len(batch)), batch, flags=False)
    last = [s.crowd.long().argsort(stable=True) for s in batch]  # regions to ignore come last
    sorted_batch = [
        Scene(s.height, s.width, s.boxes[o], s.labels[o], s.crowd[o], s.gain, s.pad)
        for s, o in zip(batch, last, strict=True)
    ]
    for write in (openmmlab_testing, openmmlab_training):
        same(read_ground_truth(write(batch), len(batch)), sorted_batch, flags=True)


@settings(max_examples=20, deadline=None)
@given(scenes())
def test_in_the_networks_frame_boxes_are_resized(s: Scene) -> None:
    def boxes(written: Any) -> Tensor:
        return read_ground_truth(written, 1, frame="network")[0].boxes.double()

    padded = s.resized() + torch.tensor(s.pad * 2)
    assert torch.allclose(boxes(ultralytics([s])), padded, rtol=0, atol=1e-3)
    in_order = torch.cat([s.resized()[~s.crowd], s.resized()[s.crowd]])
    for write in (openmmlab_testing, openmmlab_training):
        assert torch.allclose(boxes(write([s])), in_order, rtol=0, atol=1e-3)
    size = torch.tensor([7, 7, 7, 7])
    expected = s.boxes / torch.tensor([s.width, s.height] * 2) * size
    assert torch.allclose(boxes(huggingface([s])), expected, rtol=0, atol=1e-3)


# Real objects


def annotations(image_id: int, *boxes: list[float]) -> dict:
    return {
        "image_id": image_id,
        "annotations": [
            {"bbox": box, "category_id": 3, "area": box[2] * box[3], "iscrowd": 0} for box in boxes
        ],
    }


def processed(shapes: list[tuple[int, int]], targets: list[dict]) -> Any:
    images = [np.zeros((*shape, 3), np.uint8) for shape in shapes]
    size = {"shortest_edge": 80, "longest_edge": 133}
    return DetrImageProcessor()(images=images, annotations=targets, size=size, return_tensors="pt")


def test_labels_of_a_real_image_processor() -> None:
    encoded = processed(
        [(48, 64), (48, 64)], [annotations(1, [4, 6, 20, 30], [0, 0, 64, 48]), annotations(2)]
    )
    first, second = read_ground_truth(encoded["labels"], 2)
    assert torch.allclose(first.boxes, torch.tensor([[4.0, 6, 24, 36], [0, 0, 64, 48]]), atol=1e-3)
    assert first.labels.tolist() == [3, 3]
    assert second.boxes.shape == (0, 4)


def test_padded_labels_lie_where_the_librarys_own_post_processing_puts_boxes() -> None:
    encoded = processed(
        [(48, 64), (80, 40)], [annotations(1, [0, 0, 64, 48]), annotations(2, [4, 8, 30, 60])]
    )
    labels = encoded["labels"]
    answer = DetrObjectDetectionOutput(
        logits=torch.tensor([[[0.0, 9, 0]], [[0.0, 9, 0]]]),
        pred_boxes=torch.stack([one["boxes"] for one in labels]),
    )
    sizes = torch.stack([one["orig_size"] for one in labels])
    theirs = DetrImageProcessor().post_process_object_detection(answer, target_sizes=sizes)
    for truth, one in zip(read_ground_truth(labels, 2), theirs, strict=True):
        assert torch.allclose(truth.boxes, one["boxes"], atol=1e-3)
    # the first image is 80 x 106 of the 133 x 106 pixels of pixel_values, and all of it is object
    assert encoded["pixel_mask"][0].any(1).sum() == 80
    first, _ = read_ground_truth(labels, 2, frame="network")
    assert torch.allclose(first.boxes, torch.tensor([[0.0, 0, 106, 80]]), atol=1e-3)


def test_real_supervision_detections() -> None:
    sv = pytest.importorskip("supervision")
    found = sv.Detections(xyxy=np.array([BOX]), class_id=np.array([2]))
    with_box, without = read_ground_truth([found, sv.Detections.empty()], 2)
    assert with_box.boxes.tolist() == [BOX]
    assert without.boxes.shape == (0, 4)
    with pytest.raises(InputError, match="wrap it in a list"):
        read_ground_truth(found, 1)


def test_real_mmdetection_samples() -> None:
    structures = pytest.importorskip("mmdet.structures")
    instances = pytest.importorskip("mmengine.structures")
    boxes = pytest.importorskip("mmdet.structures.bbox").HorizontalBoxes
    sample = structures.DetDataSample(metainfo={"scale_factor": (2.0, 4.0), "flip": True})
    with pytest.raises(InputError, match="no gt_instances"):
        read_ground_truth([sample], 1)
    sample.gt_instances = instances.InstanceData(
        bboxes=boxes(torch.tensor([BOX])), labels=torch.tensor([1])
    )
    sample.ignored_instances = instances.InstanceData()
    assert read_ground_truth([sample], 1)[0].boxes.tolist() == [[5, 5, 20, 20]]


def test_a_real_ultralytics_batch(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "config"))
    data = pytest.importorskip("ultralytics.data.dataset")
    image = pytest.importorskip("PIL.Image")
    shapes, boxes = [(48, 64), (90, 31)], [torch.tensor([[4.0, 6, 24, 36]]), torch.zeros(0, 4)]
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number, ((height, width), mine) in enumerate(zip(shapes, boxes, strict=True)):
        image.new("RGB", (width, height)).save(tmp_path / "images" / f"{number}.png")
        rows = normalised(mine.double(), height, width).tolist()
        lines = [" ".join(map(str, [5, *row])) for row in rows]
        (tmp_path / "labels" / f"{number}.txt").write_text("\n".join(lines))
    dataset = data.YOLODataset(
        img_path=str(tmp_path / "images"),
        data={"names": {i: str(i) for i in range(6)}, "channels": 3},
        task="detect",
        imgsz=160,
        augment=False,
        rect=True,
        batch_size=2,
        pad=0.5,
    )
    batch = dataset.collate_fn([dataset[0], dataset[1]])
    found = {
        path.rsplit("/", 1)[-1]: truth
        for path, truth in zip(batch["im_file"], read_ground_truth(batch, 2), strict=True)
    }
    assert torch.allclose(found["0.png"].boxes, boxes[0], atol=1e-3)
    assert found["0.png"].labels.tolist() == [5]
    assert len(found["1.png"]) == 0


def test_a_bounding_box_tensor_with_a_format_of_its_own_yields_to_the_key() -> None:
    boxes = BoundingBoxes([[10, 20, 30, 60]], format="XYWH", canvas_size=(99, 99))
    assert read_ground_truth([{"boxes": boxes, "labels": [1]}], 1)[0].boxes.tolist() == [BOX]
    told = {"boxes": boxes, "labels": [1], "box_format": "xyxy"}
    assert read_ground_truth([told], 1)[0].boxes.tolist() == [[10, 20, 30, 60]]


# What is accepted


@pytest.mark.parametrize(
    "nothing",
    [
        {"boxes": [], "labels": []},
        {"boxes": torch.zeros(0), "labels": torch.zeros(0)},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int32)},
        {"boxes": np.zeros((0, 4)), "labels": np.zeros(0), "iscrowd": []},
        {"image_id": 7},  # torchvision's wrapper for transforms v2, for an image without any
        {"class_labels": [], "boxes": [], "orig_size": (4, 5)},
        [],
        ([], []),
        SupervisionDetections(np.zeros((0, 4)), None),
        DetDataSample(SimpleNamespace(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))),
    ],
)
def test_an_image_without_objects(nothing: Any) -> None:
    (found,) = read_ground_truth([nothing], 1)
    assert found.boxes.shape == (0, 4)
    assert found.boxes.dtype == torch.float32
    assert found.labels.dtype == torch.int64
    assert found.ignored.dtype == torch.bool
    assert len(found) == 0


def test_an_empty_batch_and_one_of_unknown_length() -> None:
    assert read_ground_truth([], 0) == []
    assert len(read_ground_truth([([], [])] * 3, None)) == 3


def test_values_are_copies_off_the_graph() -> None:
    boxes, labels = torch.tensor([BOX]).requires_grad_(), torch.tensor([1])
    crowd = torch.tensor([True])
    (found,) = read_ground_truth([{"boxes": boxes, "labels": labels, "iscrowd": crowd}], 1)
    with torch.no_grad():
        boxes.zero_()
    labels.zero_()
    crowd.zero_()
    assert found.boxes.tolist() == [BOX]
    assert found.labels.tolist() == [1]
    assert found.ignored.tolist() == [True]
    assert not any(getattr(found, one.name).requires_grad for one in fields(found))
    assert type(found.boxes) is Tensor
    with pytest.raises(FrozenInstanceError):
        found.boxes = boxes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_tensors_come_to_the_cpu() -> None:
    boxes = torch.tensor([BOX], device="cuda", requires_grad=True)
    for written in (
        {"boxes": boxes, "labels": torch.tensor([1], device="cuda")},
        {"boxes": list(boxes), "labels": [torch.tensor(1, device="cuda")]},
    ):
        (found,) = read_ground_truth([written], 1)
        assert found.boxes.tolist() == [BOX]
        assert {getattr(found, one.name).device.type for one in fields(found)} == {"cpu"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int32, torch.uint8])
def test_other_number_types_and_lists_of_tensors(dtype: torch.dtype) -> None:
    boxes = torch.tensor([BOX]).to(dtype)
    assert read_ground_truth([(boxes, [1.0])], 1)[0].boxes.tolist() == [BOX]
    assert read_ground_truth([(list(boxes), [torch.tensor(1)])], 1)[0].boxes.tolist() == [BOX]


def test_degenerate_boxes_are_kept() -> None:
    (found,) = read_ground_truth([([[5, 5, 5, 9], [3, 3, 3, 3]], [0, 1])], 1)
    assert found.boxes.tolist() == [[5, 5, 5, 9], [3, 3, 3, 3]]


def test_class_labels_tell_hugging_face_apart_even_beside_labels() -> None:
    one = {"class_labels": [1], "labels": [9], "boxes": [[0.5, 0.5, 0.5, 0.5]], "size": (80, 40)}
    (found,) = read_ground_truth([one], 1)
    assert found.boxes.tolist() == [[10, 20, 30, 60]]
    assert found.labels.tolist() == [1]


def test_coco_ignore_flag_and_sparse_ids() -> None:
    one = {"bbox": [10, 20, 30, 60], "category_id": 90, "ignore": 1}
    (found,) = read_ground_truth([[one]], 1)
    assert (found.boxes.tolist(), found.labels.tolist()) == ([BOX], [90])
    assert found.ignored.tolist() == [True]


def yolo(**changes: Any) -> dict:
    batch = {
        "cls": torch.tensor([[1.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.25]]),
        "batch_idx": torch.tensor([1.0]),
        "img": torch.zeros(2, 3, 80, 40),
        **changes,
    }
    return {name: value for name, value in batch.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "box"),
    [
        ({}, [10, 30, 30, 50]),
        ({"img": None, "resized_shape": [(80, 40)] * 2}, [10, 30, 30, 50]),
        ({"img": None, "ori_shape": [(80, 40)] * 2}, [10, 30, 30, 50]),
        ({"ratio_pad": [((2, 2), (0, 0))] * 2}, [10, 30, 30, 50]),
        (
            {"ori_shape": [(15, 20)] * 2, "ratio_pad": [((2.0, 1.0), (5, 25))] * 2},
            [5, 2.5, 25, 12.5],
        ),
    ],
)
def test_frames_of_an_ultralytics_batch(changes: dict, box: list) -> None:
    first, second = read_ground_truth(yolo(**changes), 2)
    assert len(first) == 0
    assert second.boxes.tolist() == [box]


# What is refused

SAMPLE = SimpleNamespace(bboxes=torch.tensor([BOX]), labels=torch.tensor([1]))
META = {"scale_factor": (2.0, 2.0), "ori_shape": (9, 9), "img_shape": (18, 18)}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        # how many
        ([], ["ground truth of 0 images for 1 images", "each image"]),
        ([([], []), ([], [])], ["ground truth of 2 images for 1 images"]),
        ([([BOX], [1, 2])], ["image 0", "1 boxes but 2 labels"]),
        ([{"boxes": [BOX], "labels": [1], "iscrowd": [0, 1]}], ["iscrowd", "(2,)", "1 boxes"]),
        # boxes
        ([(BOX, [1])], ["shape (4,)", "expected (n, 4)"]),
        ([(torch.zeros(1, 5), [1])], ["shape (1, 5)", "expected (n, 4)"]),
        ([(torch.zeros(1, 1, 4), [1])], ["shape (1, 1, 4)"]),
        ([([BOX, [1, 2]], [1, 1])], ["boxes must be numbers", "inhomogeneous"]),
        ([([["a", "b", "c", "d"]], [1])], ["boxes must be numbers", "list of <U1"]),
        ([([BOX, [100, 50, 20, 30]], [1, 1])], ["box 1", "x2 < x1", "xywh", "box_format"]),
        ([([[0, 0, float("nan"), 3]], [1])], ["box 0", "nan", "finite"]),
        ([([[0, 0, float("inf"), 3]], [1])], ["inf", "finite"]),
        ([([[0, 0, 1e300, 3]], [1])], ["1e+300", "finite"]),
        ([([[0.1, 0.2, 0.5, 0.9]], [1])], ["normalised", "pixels", "Multiply"]),
        ([{"boxes": None, "labels": [1]}], ["boxes must be numbers", "NoneType"]),
        ([[{"bbox": [5, 5, -2, 9], "category_id": 1}]], ["box 0", "xywh", "not below 0"]),
        ([[{"bbox": [0.1, 0.1, 0.2, 0.2], "category_id": 1}]], ["normalised"]),
        (
            [{"boxes": [BOX], "labels": [1], "box_format": "yxyx"}],
            ["box_format is 'yxyx'", "xyxy, xywh, cxcywh"],
        ),
        # labels
        ([([BOX], [1.5])], ["label 0 is 1.5", "whole numbers"]),
        ([([BOX], [float("nan")])], ["nan", "whole numbers"]),
        ([([BOX], [1e30])], ["whole numbers"]),
        ([([BOX], [-1])], ["label 0 is -1", "from 0"]),
        ([([BOX], [[1]])], ["labels have shape (1, 1)", "(n,)"]),
        ([([BOX], ["cat"])], ["labels must be numbers"]),
        # keys
        ([{"boxes": [BOX], "classes": [1]}], ["missing 'labels'", "'classes'"]),
        ([{"bboxes": [BOX], "labels": [1]}], ["missing 'boxes'", "'bboxes'"]),
        ([{"class_labels": [1]}], ["missing 'boxes'", "'class_labels'"]),
        ([{"class_labels": [1], "boxes": [[0.5] * 4]}], ["orig_size", "normalised", "keys"]),
        ([[{"bbox": BOX}]], ["missing 'category_id'", "'bbox'"]),
        ([{"image_id": 1, "bbox": BOX, "category": 2}], ["'image_id', 'bbox'", "no format known"]),
        # Hugging Face
        (
            [{"class_labels": [1], "boxes": [BOX], "orig_size": (90, 90)}],
            ["normalised", "in [0, 1]"],
        ),
        (
            [{"class_labels": [1], "boxes": [[0.5] * 4], "orig_size": (0, 90)}],
            ["orig_size is (0, 90)", "height and width"],
        ),
        # types
        (None, ["NoneType", "not a list"]),
        ("boxes.json", ["str", "not a list"]),
        (torch.zeros(1, 4), ["Tensor", "not a list"]),
        ([None], ["NoneType", "no format known"]),
        ([torch.zeros(1, 4)], ["Tensor", "no format known"]),
        ({"boxes": [BOX], "labels": [1]}, ["dict", "wrap it in a list"]),
        ({"class_labels": [1], "boxes": [[0.5] * 4], "size": (9, 9)}, ["wrap it in a list"]),
        (DetDataSample(SAMPLE), ["DetDataSample", "wrap it in a list"]),
        ({"pixel_values": 0, "labels": [{"class_labels": []}]}, ["batch['labels']"]),
        ([{"bbox": BOX, "category_id": 1}], ["annotations of one image", "wrap them in a list"]),
        ([yolo()], ["not in a list"]),
        # supervision, OpenMMLab
        ([SupervisionDetections(np.array([BOX]), None)], ["class_id is None", "1 boxes"]),
        ([DetDataSample()], ["no gt_instances", "LoadAnnotations"]),
        ([DetDataSample(SimpleNamespace(bboxes=[BOX]))], ["gt_instances has no labels"]),
        (
            [DetDataSample(SAMPLE, SimpleNamespace(bboxes=[BOX]))],
            ["ignored_instances has no labels"],
        ),
        ([DetDataSample(SAMPLE, None, META)], ["outside", "ori_shape (9, 9)", "after Resize"]),
        ([DetDataSample(SAMPLE, None, META | {"flip": 0})], ["outside", "img_shape (18, 18)"]),
        (
            [DetDataSample(SAMPLE, None, {"scale_factor": (1, 2, 3), "flip": False})],
            ["scale_factor is (1, 2, 3)"],
        ),
        # Ultralytics
        (yolo(cls=None), ["missing 'cls'", "'bboxes'"]),
        (yolo(batch_idx=None), ["missing 'batch_idx'"]),
        (yolo(img=None), ["how many images", "'img'"]),
        (yolo(img=torch.zeros(3, 8, 8)), ["(3, 8, 8)", "img[None]"]),
        (yolo(img=None, im_file=["a", "b"]), ["size of the network's image", "'resized_shape'"]),
        (yolo(ori_shape=[(9, 9)]), ["different numbers of images", "'ori_shape': 1"]),
        (yolo(batch_idx=torch.tensor([2.0])), ["batch_idx", "0 to 1"]),
        (yolo(batch_idx=torch.tensor([0.5])), ["batch_idx", "whole"]),
        (yolo(batch_idx=torch.tensor([0.0, 1])), ["one entry a box", "(2,)"]),
        (yolo(bboxes=torch.tensor([BOX])), ["image 1", "normalised"]),
        (yolo(cls=torch.tensor([[0.5]])), ["image 1", "whole numbers"]),
        (
            yolo(ori_shape=[(9, 9)] * 2, ratio_pad=[(1.0, 1.0)] * 2),
            ["ratio_pad is (1.0, 1.0)", "Leave 'ratio_pad' out"],
        ),
    ],
)
def test_mistakes_are_named(bad: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        read_ground_truth(bad, 1)
    for word in words:
        assert word in str(error.value)


def test_the_image_with_the_mistake_is_named() -> None:
    with pytest.raises(InputError, match="image 2.*1 boxes but 0 labels"):
        read_ground_truth([([], []), ([BOX], [1]), ([BOX], [])], 3)


def test_the_networks_frame_of_hugging_face_needs_its_size() -> None:
    one = {"class_labels": [], "boxes": [], "orig_size": (8, 8)}
    with pytest.raises(InputError, match="Add 'size'"):
        read_ground_truth([one], 1, frame="network")


def test_an_entry_of_another_format_is_named():
    dicts = {"boxes": [[0, 0, 5, 5]], "labels": [1]}
    for odd in (None, [{"bbox": [0, 0, 5, 5], "category_id": 1}]):
        with pytest.raises(InputError, match=r"entry 2 of ground_truth is a .*not of the same"):
            read_ground_truth([dicts, dicts, odd, dicts], 4)
