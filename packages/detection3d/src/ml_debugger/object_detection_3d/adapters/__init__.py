"""The families of detectors that are known, ours and those of other packages.

A package adds one by an entry point in the group `ml_debugger.detection3d_adapters` whose value
is a `DetectionAdapter` class; those are asked before ours.
"""

from collections.abc import Sequence

from ml_debugger.core.detection.families import Families
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

_OURS: Sequence[type[DetectionAdapter]] = (
    MMDetection3DAnchor,
    MMDetection3DShapeAware,
    MMDetection3DCenter,
    MMDetection3DSMOKE,
    MMDetection3DFCOS,
)

FAMILIES = Families("ml_debugger.detection3d_adapters", _OURS)
