"""The pillar detector of the examples, trained for real, and what records it."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from ml_debugger.object_detection_3d.adapters import FAMILIES
from ml_debugger.object_detection_3d.adapters.base import Calls, DetectionAdapter
from ml_debugger.object_detection_3d.clouds import count_frames
from ml_debugger.object_detection_3d.frames import to_mmdet3d
from ml_debugger.object_detection_3d.output import Detections, FrameOutput, HeadRows, NMSConfig
from ml_debugger.object_detection_3d.scenes import CLASSES, Scene
from ml_debugger.training import ObjectDetection3DTracer

ROOT = Path(__file__).parents[3]


def load(path: str) -> Any:
    """Import a file of the repository that is in no package."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load("examples/detection3d_pillars.py")


def train(scenes: Sequence[Scene], epochs: int, seed: int = 0) -> Any:
    """Train a detector and return it in evaluation mode."""
    torch.manual_seed(seed)
    model = example.Pillars()
    for _ in example.learn(model, scenes, epochs):
        pass
    return model


class PillarAdapter(DetectionAdapter):
    """Knows the same detector, and all that its head says."""

    family = "pillars"

    @override
    def detect(self, model: nn.Module) -> bool:
        return isinstance(model, example.Pillars)

    @override
    def n_class(self, model: nn.Module) -> int:
        return len(CLASSES)

    @override
    def layers(self, model: nn.Module) -> dict[str, str]:
        return {"trunk": "trunk"}

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        return {"model": "", "heat": "heat", "shape": "shape"}

    @override
    def parse(self, model: Any, output: Any, calls: Calls, config: NMSConfig) -> list[FrameOutput]:
        trunk = calls["heat"][-1].args[0]
        heat, shape = (calls[name][-1].output for name in ("heat", "shape"))
        at = torch.arange(example.CELLS**2)
        cells = torch.stack([torch.zeros_like(at), at // example.CELLS, at % example.CELLS], 1)
        found = []
        for one, *maps in zip(output, trunk, heat, shape, strict=True):
            vectors, logits = (values.flatten(1).T for values in maps[:2])
            rows = HeadRows(
                scores=logits.sigmoid(),
                boxes=to_mmdet3d(model.decoded(maps[2], at), "lidar"),
                logits=logits,
                cells=cells,
                features=lambda rows, vectors=vectors: {"trunk": vectors[rows]},
            )
            boxes = to_mmdet3d(one["boxes"], "lidar")
            seen = Detections(boxes, one["scores"], one["labels"])
            found.append(FrameOutput(seen, rows, "lidar"))
        return found

    @override
    def nms(self, model: Any) -> NMSConfig:
        return NMSConfig(score_thresh=model.score_thresh, max_detections_per_frame=model.most)

    @override
    def apply_nms(self, model: Any, config: NMSConfig) -> None:
        if config.score_thresh is not None:
            model.score_thresh = config.score_thresh
        if config.max_detections_per_frame is not None:
            model.most = config.max_detections_per_frame

    @override
    def images(self, model_input: Any) -> int | None:
        return count_frames(model_input)


ADAPTERS = (PillarAdapter(),)


def trace(model: nn.Module, frames: Sequence[Any], kind: str, *, adapter: bool) -> None:
    """Record a detector's boxes and the truth, in "adapter" or in "subclass"; ids count from 0.

    Args:
        model: The detector.
        frames: As `example.batches` gives them.
        kind: The data set's type.
        adapter: Whether the tracer is that of an adapter, or the one that the example derives.
    """
    FAMILIES.known = ADAPTERS if adapter else ()
    maker = ObjectDetection3DTracer if adapter else example.PillarsTracer
    name = "adapter" if adapter else "subclass"
    layers = None if adapter else {"trunk": "trunk"}
    with maker(model, name, "v1", layers) as tracer, torch.no_grad():
        for ids, clouds, truths in frames:
            tracer(clouds, truths, [f"{one:05d}" for one in ids], kind)
