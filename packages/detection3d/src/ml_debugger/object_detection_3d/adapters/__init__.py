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
    MMDetection3DShapeAware,  # whose heads derive from the next one's
    MMDetection3DAnchor,
    MMDetection3DCenter,
    MMDetection3DSMOKE,
    MMDetection3DFCOS,
)

_LIBRARIES = {
    "mmdet3d": (
        "install mmcv, with torch at hand and its operators compiled, and then mmdet and mmdet3d; "
        "the guide of 3D detection has versions that go together, under Installing MMDetection3D"
    )
}

FAMILIES = Families("ml_debugger.detection3d_adapters", _OURS, _LIBRARIES)
