"""COCO annotations, also as torchvision's CocoDetection gives them."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_debugger.core.given import require
from ml_debugger.object_detection.ground_truth.truth import Truth, in_pixels, truth_of


def fits(images: Sequence[Any]) -> bool:
    """Tell whether these are lists of dicts."""
    return all(
        isinstance(one, (list, tuple)) and all(isinstance(each, Mapping) for each in one)
        for one in images
    )


def read(annotations: Sequence[Mapping[str, Any]]) -> Truth:
    """Read one image: `bbox` (xywh in pixels), `category_id`, `iscrowd` and `ignore` of each.

    Category ids stay as they are, with the gaps that COCO's have: a model that numbers its
    classes without gaps needs its own numbers here.
    """
    for annotation in annotations:
        require(annotation, "bbox", "category_id")
    return truth_of(
        in_pixels([one["bbox"] for one in annotations], "xywh"),
        [one["category_id"] for one in annotations],
        [one.get("iscrowd", 0) for one in annotations],
        [one.get("ignore", 0) for one in annotations],
    )
