"""Boxes and classes side by side: `supervision.Detections`, and pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_debugger.core.errors import InputError
from ml_debugger.object_detection.ground_truth.truth import Truth, in_pixels, truth_of


def fits_detections(images: Sequence[Any]) -> bool:
    """Tell whether these are like `supervision.Detections`."""
    return any(hasattr(one, "xyxy") and hasattr(one, "class_id") for one in images)


def read_detections(one: Any) -> Truth:
    """Read one image: `xyxy` in pixels, `class_id`, and `data["iscrowd"]` if it is there."""
    if not (hasattr(one, "xyxy") and hasattr(one, "class_id")):
        raise InputError(f"got {type(one).__name__}; expected 'xyxy' and 'class_id', as its like")
    boxes, labels = in_pixels(one.xyxy), one.class_id
    if labels is None and len(boxes):
        raise InputError(
            f"class_id is None for {len(boxes)} boxes; expected one class number a box. Set "
            "class_id to an array of them"
        )
    data = getattr(one, "data", None) or {}
    return truth_of(boxes, [] if labels is None else labels, data.get("iscrowd"))


def fits_pairs(images: Sequence[Any]) -> bool:
    """Tell whether these are pairs of boxes and labels."""
    return all(
        isinstance(one, (list, tuple))
        and len(one) == 2
        and not any(isinstance(each, Mapping) for each in one)
        for one in images
    )


def read_pair(one: Sequence[Any]) -> Truth:
    """Read one image: boxes, xyxy in pixels, and labels."""
    boxes, labels = one
    return truth_of(in_pixels(boxes), labels)
