"""What recording a detector costs: traced beside bare, in turns, all of it durable.

`uv run --group openmmlab pytest tests/benchmarks/test_detection_benchmark.py -s` prints the ratios.
Weights are random, but normalised and spread, so that scores differ as a trained detector's do;
the threshold is the score of the 50th best box of an image.
"""

import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import detection

from ml_debugger.core import Scope
from ml_debugger.training import ObjectDetectionTracer

SIZE, BATCH = 320, 4
EMPTY: dict[str, Any] = {"weights": None, "weights_backbone": None}


class Case(NamedTuple):
    """A detector and what it is called with."""

    model: nn.Module
    model_input: Any


@torch.no_grad()
def enliven(backbone: nn.Module, heads: Iterable[nn.Module], run: Callable[[], Any]) -> None:
    """Normalise by a batch's own statistics, and let logits spread like those of a trained model.

    Args:
        backbone: What sees the images.
        heads: Convolutions or linear layers that give the logits.
        run: Calls the model.
    """
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    backbone.train()
    backbone(torch.stack(images()))
    backbone.eval()
    outputs: dict[nn.Module, list[torch.Tensor]] = defaultdict(list)  # a head may see many levels
    handles = [
        head.register_forward_hook(lambda module, _, output: outputs[module].append(output))
        for head in heads
    ]
    run()
    for handle in handles:
        handle.remove()
    for head, seen in outputs.items():
        output = torch.cat([one.flatten() for one in seen])
        factor = 2 / output.std()
        head.weight.mul_(factor)
        head.bias.copy_(head.bias * factor - output.mean() * factor - 4)


def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, SIZE, SIZE, generator=generator) for _ in range(BATCH)]


def torchvision(name: str, **arguments: Any) -> Callable[[], Case]:
    def build() -> Case:
        model = getattr(detection, name)(**EMPTY, **arguments)
        head = getattr(model.eval(), "head", None)
        last = [model.roi_heads.box_predictor.cls_score] if head is None else _last(head)
        enliven(model.backbone, last, lambda: model(images()))
        return Case(model, images())

    return build


def _last(head: Any) -> list[nn.Module]:
    """Return what gives the logits in a one-stage detector."""
    found = head.classification_head
    levels = getattr(found, "module_list", None)
    return [found.cls_logits] if levels is None else [one[-1] for one in levels]


def detr() -> Case:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    config = DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        backbone_config=ResNetConfig(out_features=["stage4"]),
    )
    model = DetrForObjectDetection(config).eval()
    given = {"pixel_values": torch.stack(images())}
    return Case(model, given)


def yolo() -> Case:
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())
    ultralytics = pytest.importorskip("ultralytics")
    model = ultralytics.YOLO("yolov8n.yaml")
    model.overrides.update({"imgsz": SIZE, "verbose": False})
    pictures = [(255 * one.permute(1, 2, 0).numpy()).astype(np.uint8) for one in images()]
    network = model.model.eval()
    last = [branch[-1] for branch in network.model[-1].cv3]
    enliven(network, last, lambda: network(torch.stack(images())))
    return Case(model, pictures)


def mmdetection() -> Case:
    pytest.importorskip("mmcv.ops", exc_type=ImportError)
    mmdet: Any = pytest.importorskip("mmdet")
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    folder = Path(mmdet.__file__).parent / ".mim" / "configs"
    config = Config.fromfile(folder / "retinanet" / "retinanet_r18_fpn_1x_coco.py").model
    config.backbone.init_cfg = None
    model = MODELS.build(config).eval()
    about = {"ori_shape": (SIZE, SIZE), "img_shape": (SIZE, SIZE), "scale_factor": (1.0, 1.0)}
    samples = [DetDataSample(metainfo=about) for _ in range(BATCH)]
    given = {"inputs": [(255 * one).byte() for one in images()], "data_samples": samples}
    ready = model.data_preprocessor(given, False)
    case = Case(model, {**ready, "mode": "predict"})
    enliven(model.backbone, [model.bbox_head.retina_cls], lambda: model(**case.model_input))
    return case


FAMILIES: dict[str, Callable[[], Case]] = {
    "Faster R-CNN, mobilenet": torchvision(
        "fasterrcnn_mobilenet_v3_large_320_fpn", rpn_score_thresh=0.0
    ),
    "Faster R-CNN, resnet50": torchvision("fasterrcnn_resnet50_fpn", min_size=SIZE),
    "RetinaNet, resnet50": torchvision("retinanet_resnet50_fpn", min_size=SIZE),
    "FCOS, resnet50": torchvision("fcos_resnet50_fpn", min_size=SIZE),
    "SSDlite, mobilenet": torchvision("ssdlite320_mobilenet_v3_large"),
    "DETR, resnet50 (Hugging Face)": detr,
    "YOLOv8n (Ultralytics)": yolo,
    "RetinaNet, resnet18 (MMDetection)": mmdetection,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Leave a core to the writer, as a model on a GPU does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


@pytest.mark.filterwarnings("ignore")  # of libraries with a torch that is newer than they
@pytest.mark.parametrize("name", FAMILIES)
def test_traced_over_bare(name: str, tmp_path: Path, benchmark: Any) -> None:
    torch.manual_seed(0)
    model, model_input = FAMILIES[name]()
    truth = {"boxes": torch.tensor([[10.0, 10.0, 90.0, 90.0]] * 5), "labels": torch.ones(5).long()}
    with torch.inference_mode():
        with ObjectDetectionTracer(model, "m", "v", home=tmp_path, score_thresh=1e-6) as tracer:
            tracer(model_input, None, range(BATCH), "all", 0)
            tracer.flush()
            scores = tracer._recording.repository.records().column("predicted/score")
        thresh = float(np.sort(scores)[-min(50 * BATCH, len(scores))])
    with (
        ObjectDetectionTracer(model, "m", "v", home=tmp_path, score_thresh=thresh) as tracer,
        torch.inference_mode(),
    ):
        ids = range(BATCH)

        def bare() -> Any:
            return tracer.run_model(model_input)

        def traced() -> None:
            tracer(model_input, [truth] * BATCH, ids, "val", 0)
            tracer.flush()

        bare()
        traced()
        ratios = [1 / (seconds(bare) / seconds(traced)) for _ in range(9)]
        benchmark.pedantic(traced, rounds=3)
        one = statistics.median(seconds(bare) for _ in range(3))
        boxes = tracer._recording.repository.records(Scope(("val",))).units / BATCH
    print(
        f"\n{name}: {1e3 * one:.0f} ms a batch of {BATCH}, {boxes:.0f} boxes an image; traced / "
        f"bare {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )
