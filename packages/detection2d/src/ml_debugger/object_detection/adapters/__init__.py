"""The families of detectors that are known, ours and those of other packages.

A package adds one by an entry point in the group `ml_debugger.detection2d_adapters` whose value
is a `DetectionAdapter` class; those are asked before ours.
"""

from collections.abc import Sequence

from ml_debugger.core.detection.families import Families
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

FAMILIES = Families("ml_debugger.detection2d_adapters", _OURS)
