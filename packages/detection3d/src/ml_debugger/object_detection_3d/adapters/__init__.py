"""The families of detectors that are known, ours and those of other packages.

A package adds one by an entry point in the group `ml_debugger.detection3d_adapters` whose value
is a `DetectionAdapter` class; those are asked before ours.
"""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points

from torch import nn

from ml_debugger.object_detection_3d.adapters.base import DetectionAdapter
from ml_debugger.object_detection_3d.adapters.mmdetection3d_anchor import (
    MMDetection3DAnchor,
    MMDetection3DShapeAware,
)
from ml_debugger.object_detection_3d.adapters.mmdetection3d_center import MMDetection3DCenter
from ml_debugger.object_detection_3d.adapters.mmdetection3d_mono import (
    MMDetection3DFCOS,
    MMDetection3DSMOKE,
)

GROUP = "ml_debugger.detection3d_adapters"

_OURS: Sequence[type[DetectionAdapter]] = (
    MMDetection3DAnchor,
    MMDetection3DShapeAware,
    MMDetection3DCenter,
    MMDetection3DSMOKE,
    MMDetection3DFCOS,
)


@cache
def adapters() -> tuple[DetectionAdapter, ...]:
    """Return an instance of every known adapter, in the order in which they are asked."""
    others = [entry.load() for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name)]
    return tuple(make() for make in (*others, *_OURS))


def adapter_of(model: nn.Module) -> DetectionAdapter | None:
    """Return the first adapter that knows a model, or None."""
    return next((one for one in adapters() if one.detect(model)), None)
