"""Labels for the detectors of Hugging Face transformers."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_debugger.core.errors import InputError
from ml_debugger.core.given import keys_of, require
from ml_debugger.object_detection.ground_truth.truth import (
    Frame,
    Truth,
    from_normalised,
    size_of,
    truth_of,
)


def fits(images: Sequence[Any]) -> bool:
    """Tell whether these are dicts, or `BatchFeature`, and class labels are in one of them."""
    return all(isinstance(one, Mapping) for one in images) and any(
        "class_labels" in one for one in images
    )


def read(one: Mapping[str, Any], frame: Frame) -> Truth:
    """Read one image: `class_labels`, normalised `boxes`, and a size.

    In the original frame boxes are in pixels of an image of `orig_size` (or else `size`), where
    `post_process_object_detection(target_sizes=orig_size)` puts those of the model. In the
    network's they are in pixels of `size`, which is that of `pixel_values`.

    Image processors that pad (DETR's) normalise boxes by the padded size. In a batch of images of
    different shapes, boxes in the original frame are then not where the objects are; those in
    the network's frame are.
    """
    require(one, "class_labels", "boxes")
    names = ("orig_size", "size") if frame == "original" else ("size",)
    name = next((name for name in names if name in one), None)
    if name is None:
        raise InputError(
            f"boxes are normalised, but the image's size is missing; found the keys {keys_of(one)}."
            f" Add {names[0]!r}: (height, width) in pixels"
        )
    boxes = from_normalised(one["boxes"], size_of(one[name], name))
    return truth_of(boxes, one["class_labels"], one.get("iscrowd"))
