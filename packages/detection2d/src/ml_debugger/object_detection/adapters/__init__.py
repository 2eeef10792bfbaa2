"""The families of detectors that are known, ours and those of other packages.

A package adds one by an entry point in the group `ml_debugger.detection2d_adapters` whose value
is a `DetectionAdapter` class; those are asked before ours.
"""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points

from torch import nn

from ml_debugger.object_detection.adapters.base import DetectionAdapter
from ml_debugger.object_detection.adapters.huggingface import HuggingFaceDETR
from ml_debugger.object_detection.adapters.mmdetection import MMDetectionDETR, MMDetectionRCNN
from ml_debugger.object_detection.adapters.mmdetection_dense import (
    MMDetectionDense,
    MMDetectionYOLOX,
)
from ml_debugger.object_detection.adapters.torchvision_dense import (
    TorchvisionFCOS,
    TorchvisionRetinaNet,
    TorchvisionSSD,
)
from ml_debugger.object_detection.adapters.torchvision_rcnn import TorchvisionRCNN
from ml_debugger.object_detection.adapters.ultralytics import Ultralytics

GROUP = "ml_debugger.detection2d_adapters"

_OURS: Sequence[type[DetectionAdapter]] = (
    TorchvisionRCNN,
    TorchvisionRetinaNet,
    TorchvisionFCOS,
    TorchvisionSSD,
    Ultralytics,
    HuggingFaceDETR,
    MMDetectionRCNN,
    MMDetectionDense,
    MMDetectionYOLOX,
    MMDetectionDETR,
)


@cache
def adapters() -> tuple[DetectionAdapter, ...]:
    """Return an instance of every known adapter, in the order in which they are asked."""
    others = [entry.load() for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name)]
    return tuple(make() for make in (*others, *_OURS))


def adapter_of(model: nn.Module) -> DetectionAdapter | None:
    """Return the first adapter that knows a model, or None."""
    return next((one for one in adapters() if one.detect(model)), None)
