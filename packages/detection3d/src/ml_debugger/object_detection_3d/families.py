"""Recognising parts of other libraries without importing these."""

from collections.abc import Mapping

from ml_debugger.core.detection.families import is_a
from ml_debugger.object_detection_3d.frames import Convention

#: Classes of boxes of MMDetection3D, and whose axes they are in.
BOXES: Mapping[str, Convention] = {
    "mmdet3d.structures.bbox_3d.lidar_box3d.LiDARInstance3DBoxes": "lidar",
    "mmdet3d.structures.bbox_3d.cam_box3d.CameraInstance3DBoxes": "camera",
    "mmdet3d.structures.bbox_3d.depth_box3d.DepthInstance3DBoxes": "depth",
}


def convention_of(boxes: object) -> Convention | None:
    """Return whose axes boxes of MMDetection3D are in; None if they are none of its classes."""
    return next((kind for name, kind in BOXES.items() if is_a(boxes, name)), None)


def changed(part: object, owner: str, *methods: str) -> list[str]:
    """Return which methods of a part are not those of the class of that name, but another's."""
    return [
        name
        for name in methods
        if getattr(getattr(type(part), name, None), "__qualname__", "") != f"{owner}.{name}"
    ]
