"""The anchors and queries of Ultralytics' detectors, against what `predict` returns."""

import copy
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

# at import it looks for a network, and writes settings in the user's home
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())
ultralytics = pytest.importorskip("ultralytics")

from ml_debugger.core.errors import UnsupportedModelError  # noqa: E402
from ml_debugger.object_detection.adapters.ultralytics import Ultralytics  # noqa: E402
from ml_debugger.object_detection.linking import link  # noqa: E402
from ml_debugger.object_detection.output import Detections, NMSConfig  # noqa: E402

from . import adapter_contract  # noqa: E402
from .adapter_contract import AdapterContract, Run, rows_of  # noqa: E402

SIZES = [(90, 120), (100, 64)]
SIDE = 96  # of the square that the network gets


def pictures() -> list[Any]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def batch_of(model: Any) -> Tensor:
    """Return what the network got when the pictures were last predicted."""
    batch: Tensor = model.predictor.preprocess(model.predictor.dataset.im0)
    return batch


@torch.no_grad()
def enliven(network: nn.Module) -> None:
    """Normalise by a batch's own statistics: without, a new network sees the same everywhere."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(torch.rand(4, 3, SIDE, SIDE))
    network.eval()


@torch.no_grad()
def spread(convolution: Any, inputs: Tensor, mean: float) -> None:
    """Let logits (..., class) of given inputs have deviation 2: in new models all are the same."""
    weight = convolution.weight.flatten(1)
    logits = inputs @ weight.T
    factor = 2 / logits.std(0)
    shape = (-1, *[1] * (convolution.weight.ndim - 1))
    convolution.weight.mul_(factor.view(shape))
    convolution.bias.copy_(mean - logits.mean(0) * factor)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Let two models of one seed be equal to the last bit: their statistics are sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class UltralyticsContract(AdapterContract):
    adapter = Ultralytics()
    built: ClassVar[str] = "YOLO"
    name: ClassVar[str]
    usual: ClassVar[dict[str, Any]] = {}

    def model(self, **settings: Any) -> nn.Module:
        torch.manual_seed(0)
        model: Any = getattr(ultralytics, self.built)(self.name)
        model.overrides |= {"imgsz": SIDE, "verbose": False, **self.usual}
        enliven(model.model)
        self.calibrate(model)
        # what a user writes there by hand, and what can be given by the adapter only
        names = {"iou_thresh": "iou", "max_detections_per_image": "max_det"}
        model.overrides |= {names[k]: v for k, v in settings.items() if k in names}
        if "score_thresh" in settings:
            self.adapter.apply_nms(model, NMSConfig(score_thresh=settings["score_thresh"]))
        return model

    def calibrate(self, model: Any) -> None:
        head = model.model.model[-1]
        with torch.no_grad():
            _, raw = model.model(torch.rand(2, 3, SIDE, SIDE))
        for branches in (head.cv3, getattr(head, "one2one_cv3", None) or ()):
            for level, branch in enumerate(branches):
                feats = raw.get("one2many", raw)["feats"][level]
                maps = branch[:-1](feats).detach()
                spread(branch[-1], maps.movedim(1, -1).flatten(0, 2), mean=-3)

    def model_input(self) -> Any:
        return pictures()

    def sizes(self, model_input: Any) -> list[tuple[int, int]]:
        return SIZES

    def seen(self, output: Any, model_input: Any, config: NMSConfig) -> list[Detections]:
        found = [one.boxes.data for one in output]
        return [Detections(one[:, :4], one[:, 4], one[:, 5]) for one in found]

    def recomputed_scores(
        self, model: nn.Module, model_input: Any, image: int, logits: Tensor
    ) -> Tensor:
        return 1 / (1 + (-logits).exp())

    def recomputed_features(
        self, model: Any, model_input: Any, image: int, rows: Tensor
    ) -> dict[str, Tensor]:
        network: Any = self.adapter.running(model).model
        head = network.model[-1]
        _, raw = network(batch_of(model))
        branches = head.one2one_cv3 if head.end2end else head.cv3
        feats = raw.get("one2one", raw)["feats"]
        maps = [branch[:-1](one)[image] for branch, one in zip(branches, feats, strict=True)]
        return {"class": torch.cat([one.flatten(1) for one in maps], 1).T[rows]}

    def tensors(self, output: Any) -> list[Tensor]:
        return [one.boxes.data for one in output]

    def others(self) -> list[nn.Module]:
        model: Any = self.model()
        return [model.model, *map(ultralytics.YOLO, ("yolov8n-cls.yaml", "yolov8n-seg.yaml"))]

    def test_names_modules_that_run(self, detector: nn.Module) -> None:
        running = self.adapter.running(detector)
        for path in [
            *self.adapter.layers(detector).values(),
            *self.adapter.taps(detector).values(),
        ]:
            running.get_submodule(path)

    def test_says_where_the_pictures_lie(self, detector: Any, given: Any, hooked: Run) -> None:
        batch = batch_of(detector)
        for picture, image, (height, width), square in zip(
            given, hooked.images, SIZES, batch, strict=True
        ):
            assert image.placement is not None
            (x, y), (left, top) = image.placement.scale, image.placement.offset
            assert image.placement.size == tuple(square.shape[1:])
            placed = square[:, round(top) : round(top + y * height)]
            placed = placed[:, :, round(left) : round(left + x * width)]
            resized = Image.fromarray(picture[..., ::-1].copy()).resize(
                placed.shape[:0:-1], Image.Resampling.BILINEAR
            )
            mine = torch.from_numpy(np.array(resized)).movedim(-1, 0) / 255
            # the two libraries resize differently: alike, but not the same
            together = torch.stack([mine.flatten(), placed.flatten()])
            assert torch.corrcoef(together)[0, 1] > 0.9

    # Training is not a mode of this model, but a method

    def test_refuses_what_is_not_for_inference(self, given: Any) -> None:
        model: Any = self.model()
        with pytest.raises(UnsupportedModelError, match="stream=True"):
            self.pass_of(model, {"source": given, "stream": True})
        with pytest.raises(UnsupportedModelError, match="embed="):
            self.pass_of(model, {"source": given, "embed": [1]})

    def run(self, model: nn.Module, model_input: Any) -> Any:
        return model(**model_input) if isinstance(model_input, dict) else model(model_input)

    # Ultralytics

    def test_the_users_model_stays_as_it_was(self, given: Any) -> None:
        untouched, model = self.model(), self.model()
        overrides = copy.deepcopy(model.overrides)
        old = self.adapter.nms(model)
        callbacks = copy.deepcopy(model.callbacks)  # the library added its own
        output = self.pass_of(model, given).output
        self.assert_same(self.run(untouched, given), output)
        with self.under(model, self.stricter):
            assert model.overrides != overrides
            assert model.callbacks != callbacks
            self.run(model, given)
        assert model.overrides == overrides
        assert model.callbacks == callbacks
        assert self.adapter.nms(model) == old
        mine, theirs = (one.model.state_dict() for one in (model, untouched))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert [*dict(model.named_modules())] == [*dict(untouched.named_modules())]

    def test_a_confidence_is_that_of_predict(self, given: Any) -> None:
        model: Any = self.model()
        theirs = model(given, conf=0.4)
        with self.under(model, NMSConfig(score_thresh=0.4)):
            self.assert_same(model(given), theirs)
            self.assert_same(model(given, conf=0.3), self.model()(given, conf=0.3))

    def test_pictures_one_by_one(self, detector: Any, given: Any, tmp_path: Path) -> None:
        for at, picture in enumerate(given):
            Image.fromarray(picture).save(tmp_path / f"{at}.png")
        run = self.pass_of(detector, tmp_path)
        assert len(run.calls["network"]) == 2
        assert [image.size for image in run.images] == SIZES
        for image, result in zip(run.images, run.output, strict=True):
            assert torch.equal(image.seen.boxes, result.boxes.xyxy)
            assert len(image.seen) == len(link(image.seen, rows_of(image))) > 0

    def test_a_tensor(self, detector: Any) -> None:
        batch = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        for image in self.pass_of(detector, batch).images:
            assert image.size == (64, 96)
            assert len(link(image.seen, rows_of(image))) > 0

    def test_earlier_passes_are_left_out(self, detector: Any, given: Any, hooked: Run) -> None:
        """As the first call on a GPU has: the network is warmed up with the first picture."""
        with adapter_contract.noted(detector, self.adapter) as calls:
            detector.predictor.model.model(torch.rand(2, 3, SIDE, SIDE))
            output = self.run(detector, given)
        assert len(calls["network"]) == 2
        images = self.adapter.parse(detector, output, calls, self.adapter.nms(detector))
        for image, same in zip(images, hooked.images, strict=True):
            assert torch.equal(rows_of(image).scores, rows_of(same).scores)
            assert torch.equal(rows_of(image).boxes, rows_of(same).boxes)

    def test_refuses_another_copy_of_the_network(self, given: Any) -> None:
        model: Any = self.model()
        with pytest.raises(UnsupportedModelError, match="saw 0 images"):
            self.pass_of(model, {"source": given, "device": "cpu"})
        model = self.model()
        model.overrides["device"] = "cpu"
        assert len(self.pass_of(model, {"source": given, "device": "cpu"}).images) == 2


class AnchorContract(UltralyticsContract):
    stricter = NMSConfig(score_thresh=0.4, iou_thresh=0.1, max_detections_per_image=5)
    one_label_a_row = True


class TestYolov8(AnchorContract):
    name = "yolov8n.yaml"

    def test_refuses_augmented_pictures(self, detector: Any, given: Any) -> None:
        with pytest.raises(UnsupportedModelError, match="augment=True"):
            self.pass_of(detector, {"source": given, "augment": True})


class TestYolov10(AnchorContract):
    name = "yolov10n.yaml"


class TestYolo11(AnchorContract):
    name = "yolo11n.yaml"


class TestYolo26(AnchorContract):
    name = "yolo26n.yaml"


class WithoutSuppression(UltralyticsContract):
    stricter = NMSConfig(score_thresh=0.9, max_detections_per_image=5)

    def test_has_no_overlap_to_set(self, detector: nn.Module) -> None:
        assert self.adapter.nms(detector).iou_thresh is None
        with pytest.raises(UnsupportedModelError, match="no iou_thresh"):
            self.adapter.apply_nms(detector, NMSConfig(iou_thresh=0.5))


class TestYolo26EndToEnd(WithoutSuppression):
    name = "yolo26n.yaml"
    usual: ClassVar[dict[str, Any]] = {"nms": False}
    stricter = NMSConfig(score_thresh=0.98, max_detections_per_image=5)


class TestRTDETR(WithoutSuppression):
    built = "RTDETR"
    name = "rtdetr-l.yaml"

    def calibrate(self, model: Any) -> None:
        head = model.model.model[-1]
        last = head.dec_score_head[head.decoder.eval_idx]
        spread(last, embeddings(model.model, torch.rand(2, 3, SIDE, SIDE)).flatten(0, 1), mean=-3)

    def recomputed_features(
        self, model: Any, model_input: Any, image: int, rows: Tensor
    ) -> dict[str, Tensor]:
        return {
            "query": embeddings(self.adapter.running(model).model, batch_of(model))[image][rows]
        }


@torch.no_grad()
def embeddings(network: Any, batch: Tensor) -> Tensor:
    """Return the queries (b, q, d) that the class head of a RT-DETR gets, by having none."""
    network = copy.deepcopy(network).eval()
    head = network.model[-1]
    head.dec_score_head = nn.ModuleList(nn.Identity() for _ in head.dec_score_head)
    head.nc = head.hidden_dim
    _, (_, queries, *_) = network(batch)
    return queries[-1]


@pytest.mark.parametrize(
    ("source", "images"),
    [
        (np.zeros((8, 8, 3), np.uint8), 1),
        (torch.zeros(3, 32, 32), 1),
        (torch.zeros(4, 3, 32, 32), 4),
        ([np.zeros((8, 8, 3), np.uint8)] * 3, 3),
        (["a.jpg", "b.jpg"], 2),
        (Image.new("RGB", (8, 8)), 1),
        ("street.JPG", 1),
        (Path("street.png"), 1),
        ("street.mp4", None),
        ("pictures/*.png", None),
        (Path("pictures"), None),
        ({"source": torch.zeros(4, 3, 32, 32), "conf": 0.1}, 4),
    ],
)
def test_counts_images(source: Any, images: int | None) -> None:
    assert Ultralytics().images(source) == images
