"""The adapters of torchvision's detectors read them to the last bit."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

from ml_debugger.core.detection.precision import as_computed
from ml_debugger.object_detection.adapters.base import DetectionAdapter
from ml_debugger.object_detection.adapters.torchvision_dense import (
    TorchvisionFCOS,
    TorchvisionRetinaNet,
    TorchvisionSSD,
)
from ml_debugger.object_detection.adapters.torchvision_rcnn import TorchvisionRCNN
from ml_debugger.object_detection.linking import link
from ml_debugger.object_detection.output import Detections, NMSConfig

from .adapter_contract import AdapterContract, noted, rows_of

CLASSES = 7
SIZES = [(80, 100), (90, 70)]
#: Arguments of the constructors, for the fields of `NMSConfig`.
ARGUMENTS = {
    "score_thresh": "score_thresh",
    "iou_thresh": "nms_thresh",
    "max_detections_per_image": "detections_per_img",
}


def images(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator) for size in SIZES]


def targets(n: int) -> list[dict[str, Tensor]]:
    """Return something to learn, of all that any of torchvision's detectors could ask for."""
    return [
        {
            "boxes": torch.tensor([[10.0, 10.0, 50.0, 60.0]]),
            "labels": torch.tensor([1]),
            "masks": torch.ones(1, *size, dtype=torch.uint8),
            "keypoints": torch.tensor([[[20.0, 20.0, 1.0]]]).repeat(1, 17, 1),
        }
        for size in SIZES[:n]
    ]


@torch.no_grad()
def spread(model: nn.Module) -> None:
    """Scale every layer to outputs of deviation 1: untrained, they all but vanish on the way."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    done = set()

    def scale(layer: Any, args: Any, output: Tensor) -> Tensor | None:
        if layer in done or not len(output):
            return None
        done.add(layer)
        deviation = output.std()
        layer.weight /= deviation
        return output / deviation

    handles = []
    for layer in layers:
        if layer.bias is not None:
            layer.bias.zero_()
        handles.append(layer.register_forward_hook(scale))
    model.eval()(images(1))
    for handle in handles:
        handle.remove()


class TorchvisionContract(AdapterContract):
    """What torchvision's detectors have in common."""

    built: ClassVar[str]  # name of the function that builds the model
    usual: ClassVar[dict[str, Any]] = {}
    # under autocast: many a CPU has no bfloat16, and is slow at it
    quick: ClassVar[dict[str, Any]] = {"min_size": 32, "max_size": 48}

    def model(self, **settings: Any) -> nn.Module:
        wishes = {self.argument(name): value for name, value in settings.items()}
        return self.built_with(self.usual | wishes)

    def built_with(self, arguments: dict[str, Any]) -> nn.Module:
        model = self.build(**arguments)
        model.load_state_dict(spread_weights(type(self)))
        return model.eval()

    def build(self, **settings: Any) -> nn.Module:
        model: nn.Module = getattr(detection, self.built)(
            weights=None, weights_backbone=None, num_classes=CLASSES, **settings
        )
        return model

    def argument(self, name: str) -> str:
        return ARGUMENTS[name]

    def model_input(self) -> list[Tensor]:
        return images()

    def sizes(self, model_input: list[Tensor]) -> list[tuple[int, int]]:
        return SIZES

    def seen(self, output: Any, model_input: Any, config: NMSConfig) -> list[Detections]:
        return [Detections(one["boxes"], one["scores"], one["labels"]) for one in output]

    def training_output(self, model: nn.Module, model_input: Any) -> Any:
        return model(model_input, targets(len(model_input)))

    def test_links_under_autocast(self, detector: nn.Module, given: Any) -> None:
        model = self.built_with(self.usual | self.quick)
        super().test_links_under_autocast(model, given)

    def others(self) -> Sequence[nn.Module]:
        return [model for adapter, model in tiny_models() if adapter is not type(self.adapter)]


@cache
def spread_weights(family: type[TorchvisionContract]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = family().build(**family.usual)
    spread(model)
    return model.state_dict()


class RCNNContract(TorchvisionContract):
    adapter = TorchvisionRCNN()
    quick = TorchvisionContract.quick | {
        "rpn_post_nms_top_n_test": 8,
        "box_detections_per_img": 2,
    }
    usual: ClassVar[dict[str, Any]] = {
        "min_size": 96,
        "max_size": 128,
        "rpn_post_nms_top_n_test": 40,
        "box_score_thresh": 0.2,
        "box_detections_per_img": 20,
        "box_batch_size_per_image": 8,
    }
    stricter = NMSConfig(score_thresh=0.48, iou_thresh=0.05, max_detections_per_image=3)

    def argument(self, name: str) -> str:
        return f"box_{ARGUMENTS[name]}"

    def recomputed_scores(self, model: Any, model_input: Any, image: int, logits: Tensor) -> Tensor:
        odds = logits.exp()
        return (odds / odds.sum(1, keepdim=True)).index_fill(1, torch.tensor([0]), 0.0)

    def recomputed_features(
        self, model: Any, model_input: Any, image: int, rows: Tensor
    ) -> Mapping[str, Tensor]:
        batch, _ = model.transform(model_input)
        maps = model.backbone(batch.tensors)
        proposals, _ = model.rpn(batch, maps)
        pooled = model.roi_heads.box_roi_pool(maps, proposals, batch.image_sizes)
        before = sum(map(len, proposals[:image]))
        return {"box": model.roi_heads.box_head(pooled)[before + rows]}


class TestFasterRCNNMobileNet(RCNNContract):
    built = "fasterrcnn_mobilenet_v3_large_320_fpn"
    usual = RCNNContract.usual | {"rpn_score_thresh": 0.7}  # so the images have not equally many
    quick: ClassVar[dict[str, Any]] = {}


class TestFasterRCNNv2(RCNNContract):
    built = "fasterrcnn_resnet50_fpn_v2"
    stricter = NMSConfig(score_thresh=0.37, iou_thresh=0.05, max_detections_per_image=3)


class TestMaskRCNN(RCNNContract):
    built = "maskrcnn_resnet50_fpn"


class TestKeypointRCNN(RCNNContract):
    usual = RCNNContract.usual | {"box_detections_per_img": 5}  # its keypoint head is slow
    quick = RCNNContract.quick | {"box_detections_per_img": 1}
    built = "keypointrcnn_resnet50_fpn"


class DenseContract(TorchvisionContract):
    usual: ClassVar[dict[str, Any]] = {"min_size": 96, "max_size": 128}
    stricter = NMSConfig(score_thresh=0.95, iou_thresh=0.05, max_detections_per_image=3)

    def places(self, model: Any, maps: list[Tensor]) -> list[tuple[int, int, int]]:
        """Return level, row and column of the cell of each anchor."""
        return [
            (level, y, x)
            for level, n in enumerate(model.anchor_generator.num_anchors_per_location())
            for y in range(maps[level].shape[2])
            for x in range(maps[level].shape[3])
            for _ in range(n)
        ]

    def maps(self, model: Any, model_input: Any) -> list[Tensor]:
        batch, _ = model.transform(model_input)
        return list(model.backbone(batch.tensors).values())

    def towered(self, model: Any, maps: list[Tensor]) -> list[Tensor]:
        return [model.head.classification_head.conv(level) for level in maps]

    def recomputed_scores(self, model: Any, model_input: Any, image: int, logits: Tensor) -> Tensor:
        return 1 / (1 + (-logits).exp())

    def recomputed_features(
        self, model: Any, model_input: Any, image: int, rows: Tensor
    ) -> Mapping[str, Tensor]:
        maps = self.towered(model, self.maps(model, model_input))
        width = max(level.shape[1] for level in maps)
        places = self.places(model, maps)
        found = []
        for row in rows.tolist():
            level, y, x = places[row]
            vector = maps[level][image, :, y, x]
            found.append(nn.functional.pad(vector, (0, width - len(vector))))
        return {"cls": torch.stack(found)}


class TestRetinaNet(DenseContract):
    adapter = TorchvisionRetinaNet()
    built = "retinanet_resnet50_fpn"


class TestRetinaNetV2(TestRetinaNet):
    built = "retinanet_resnet50_fpn_v2"


class TestFCOS(DenseContract):
    adapter = TorchvisionFCOS()
    built = "fcos_resnet50_fpn"

    def recomputed_scores(self, model: Any, model_input: Any, image: int, logits: Tensor) -> Tensor:
        said = model.head(self.maps(model, model_input))
        central = 1 / (1 + (-said["bbox_ctrness"][image]).exp())
        return (super().recomputed_scores(model, model_input, image, logits) * central) ** 0.5


class SSDContract(DenseContract):
    adapter = TorchvisionSSD()
    usual: ClassVar[dict[str, Any]] = {}
    quick: ClassVar[dict[str, Any]] = {}
    stricter = NMSConfig(score_thresh=0.55, iou_thresh=0.05, max_detections_per_image=3)

    def recomputed_scores(self, model: Any, model_input: Any, image: int, logits: Tensor) -> Tensor:
        odds = logits.exp()
        return (odds / odds.sum(1, keepdim=True)).index_fill(1, torch.tensor([0]), 0.0)


class TestSSDlite(SSDContract):
    built = "ssdlite320_mobilenet_v3_large"

    def towered(self, model: Any, maps: list[Tensor]) -> list[Tensor]:
        heads = model.head.classification_head.module_list
        return [head[0](level) for head, level in zip(heads, maps, strict=True)]


class Levels(nn.ModuleList):
    """A backbone of two levels, of different widths as those of SSD300."""

    out_channels = (16, 24)

    def __init__(self) -> None:
        super().__init__([nn.Conv2d(3, 16, 3, 8, 1), nn.Conv2d(16, 24, 3, 2, 1)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self[0](x).relu()
        return {"0": first, "1": self[1](first).relu()}


class TestSSD(SSDContract):
    """A small one; SSD300 itself takes seconds for what this does in a blink."""

    def build(self, **settings: Any) -> nn.Module:
        anchors = DefaultBoxGenerator([[2], [2, 3]], scales=[0.1, 0.3, 0.6])
        model: nn.Module = SSD(Levels(), anchors, (64, 96), CLASSES, **settings)
        return model

    def towered(self, model: Any, maps: list[Tensor]) -> list[Tensor]:
        return maps


class Tiny(nn.Sequential):
    """A backbone of one level, which returns a tensor and no mapping."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 32, 3, stride=16, padding=1), nn.ReLU())


def tiny_models() -> list[tuple[type[DetectionAdapter], nn.Module]]:
    torch.manual_seed(0)
    anchors = AnchorGenerator(((16, 32),), ((0.5, 1.0),))
    small: dict[str, Any] = {"min_size": 64, "max_size": 128}
    one_level: Any = Tiny()
    one_level.out_channels = [32]
    found = [
        (
            TorchvisionRCNN,
            detection.FasterRCNN(Tiny(), CLASSES, rpn_anchor_generator=anchors, **small),
        ),
        (
            TorchvisionRetinaNet,
            detection.RetinaNet(Tiny(), CLASSES, anchor_generator=anchors, **small),
        ),
        (
            TorchvisionFCOS,
            detection.FCOS(
                Tiny(), CLASSES, anchor_generator=AnchorGenerator(((16,),), ((1.0,),)), **small
            ),
        ),
        (TorchvisionSSD, SSD(one_level, DefaultBoxGenerator([[2]]), (64, 64), CLASSES)),
    ]
    return [(adapter, model.eval()) for adapter, model in found]


@pytest.mark.parametrize(("adapter", "model"), tiny_models())
def test_reads_a_backbone_of_one_level(adapter: type[DetectionAdapter], model: nn.Module) -> None:
    spread(model)
    reader = adapter()
    with torch.no_grad(), noted(model, reader) as calls:
        output = model(images=images())
    for one, image in zip(
        output, reader.parse(model, output, calls, reader.nms(model)), strict=True
    ):
        assert len(one["scores"]) > 0
        found = link(image.seen, rows_of(image))
        assert torch.equal(rows_of(image).scores[found, one["labels"]], one["scores"])


@pytest.mark.parametrize("which", [TorchvisionRetinaNet, TorchvisionFCOS])
def test_scores_are_exact_where_tensors_end(which: Any) -> None:
    # the model scores level by level; on a CPU the last bit may depend on where a tensor ends
    model: Any = dict(tiny_models())[which]
    everything = NMSConfig(score_thresh=0.0, iou_thresh=1.0, max_detections_per_image=10**6)
    which().apply_nms(model, everything)
    levels = range(1, 61, 2)
    said = {
        "cls_logits": 3 * torch.randn(1, sum(levels), CLASSES),
        "bbox_ctrness": 3 * torch.randn(1, sum(levels), 1),
        "bbox_regression": torch.zeros(1, sum(levels), 4),
    }
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(sum(levels), 1)
    (found,) = model.postprocess_detections(
        {name: list(values.split(list(levels), 1)) for name, values in said.items()},
        [list(anchors.split(list(levels)))],
        [(64, 64)],
    )
    (scores,) = which()._scores(said, levels)
    assert torch.equal(found["scores"].sort().values, scores.flatten().sort().values)


def test_computes_in_the_precision_of_the_model() -> None:
    model = nn.Linear(2, 2)
    with as_computed(model, torch.zeros(1, dtype=torch.bfloat16)):
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") is torch.bfloat16
    with as_computed(model, torch.zeros(1)):
        assert not torch.is_autocast_enabled("cpu")
    with as_computed(model.bfloat16(), torch.zeros(1, dtype=torch.bfloat16)):
        assert not torch.is_autocast_enabled("cpu")


def test_reads_ssd300() -> None:
    torch.manual_seed(0)
    model = detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=CLASSES)
    reader = TorchvisionSSD()
    with torch.no_grad(), noted(model.eval(), reader) as calls:
        output = model(images()[:1])
    (image,) = reader.parse(model, output, calls, reader.nms(model))
    assert len(image.seen) == 200
    rows = rows_of(image)
    found = link(image.seen, rows)
    assert torch.equal(rows.scores[found, image.seen.labels], output[0]["scores"])
    assert len(rows.scores) == 8732
    # the first level has 38 x 38 cells of 4 anchors and 512 channels, the second 1024, the last 256
    first, second, last = rows.features(torch.tensor([0, 38 * 38 * 4, 8731]))["cls"]
    assert len(first) == len(second) == len(last) == 1024
    assert first[:512].any()
    assert second[512:].any()
    assert last[:256].any()
    assert not first[512:].any()
    assert not last[256:].any()


def test_reads_an_image_without_proposals() -> None:
    model = tiny_models()[0][1]
    model.rpn.score_thresh = 1.0
    reader = TorchvisionRCNN()
    with torch.no_grad(), noted(model, reader) as calls:
        output = model(images())
    for image in reader.parse(model, output, calls, reader.nms(model)):
        rows = rows_of(image)
        assert rows.scores.shape == (0, CLASSES)
        assert rows.boxes.shape == (0, CLASSES, 4)
        assert rows.features(torch.arange(0))["box"].shape == (0, 1024)
        assert link(image.seen, rows).shape == (0,)
