"""Dicts with boxes and labels, as torchvision and torchmetrics take them."""

from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from ml_debugger.core.detection.families import is_a
from ml_debugger.core.errors import InputError
from ml_debugger.core.given import require
from ml_debugger.object_detection.ground_truth.truth import BoxFormat, Truth, in_pixels, truth_of

_BOUNDING_BOXES = "torchvision.tv_tensors._bounding_boxes.BoundingBoxes"


def fits(images: Sequence[Any]) -> bool:
    """Tell whether these are dicts, and boxes or labels are in one of them."""
    return all(isinstance(one, Mapping) for one in images) and any(
        "boxes" in one or "labels" in one or _nothing(one) for one in images
    )


def read(one: Mapping[str, Any]) -> Truth:
    """Read one image: `boxes`, `labels`, and if there `box_format`, `iscrowd` and `ignore`.

    Boxes are xyxy in pixels, unless `box_format`, or else the format of a `BoundingBoxes`, says
    xywh or cxcywh.
    """
    if _nothing(one):
        return truth_of(in_pixels([]), [])
    require(one, "boxes", "labels")
    form = _format(one)
    if form not in get_args(BoxFormat):
        raise InputError(
            f"box_format is {form!r}; expected one of {', '.join(get_args(BoxFormat))}. Convert "
            "the boxes first"
        )
    boxes = in_pixels(one["boxes"], cast(BoxFormat, form))
    return truth_of(boxes, one["labels"], one.get("iscrowd"), one.get("ignore"))


def _format(one: Mapping[str, Any]) -> str:
    if "box_format" in one:
        return str(one["box_format"])
    if is_a(one["boxes"], _BOUNDING_BOXES):
        return str(one["boxes"].format.value).lower()
    return "xyxy"


def _nothing(one: Mapping[str, Any]) -> bool:
    # what torchvision's wrap_dataset_for_transforms_v2 gives for an image without annotations
    return set(one) == {"image_id"}
