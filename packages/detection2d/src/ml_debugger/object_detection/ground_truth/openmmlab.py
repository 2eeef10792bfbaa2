"""Data samples of MMDetection and its relatives."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ml_debugger.core.errors import InputError
from ml_debugger.core.given import as_tensor, class_numbers
from ml_debugger.object_detection.ground_truth.truth import (
    Frame,
    Truth,
    in_pixels,
    size_of,
    truth_of,
)


def fits(images: Sequence[Any]) -> bool:
    """Tell whether these are data samples."""
    return any(type(one).__name__ == "DetDataSample" or _has(one, "gt_instances") for one in images)


def read(sample: Any, frame: Frame) -> Truth:
    """Read one image: `gt_instances`, and `ignored_instances` as regions to ignore.

    In the original frame boxes are where `predict(rescale=True)` puts those of the model.

    MMDetection's pipelines for training load the annotations before they resize, those for
    testing afterwards, so that only the former scale the boxes. A sample does not say which it
    was; but only pipelines for training flip, and note that they did. So boxes are taken to be
    in the network's frame if the metainfo has `flip`, and else in the original one.
    """
    if not _has(sample, "gt_instances"):
        raise InputError(
            f"{type(sample).__name__} has no gt_instances; expected bboxes and labels in it. Add "
            "LoadAnnotations to the pipeline, before PackDetInputs"
        )
    parts = [_instances(sample.gt_instances, "gt_instances")]
    ignored = getattr(sample, "ignored_instances", None)
    if _has(ignored, "bboxes"):
        parts.append(_instances(ignored, "ignored_instances"))
    boxes = _in_frame(torch.cat([boxes for boxes, _ in parts]), sample, frame)
    labels = torch.cat([labels for _, labels in parts])
    return truth_of(boxes, labels, torch.arange(len(boxes)) >= len(parts[0][0]))


def _instances(instances: Any, name: str) -> tuple[Tensor, Tensor]:
    missing = [one for one in ("bboxes", "labels") if not _has(instances, one)]
    if missing:
        raise InputError(
            f"{name} has no {' and no '.join(missing)}; expected both. Load them with "
            "LoadAnnotations(with_bbox=True)"
        )
    boxes = getattr(instances.bboxes, "tensor", instances.bboxes)  # HorizontalBoxes, or a tensor
    boxes, labels = in_pixels(boxes), class_numbers(instances.labels)
    if len(boxes) != len(labels):
        raise InputError(f"{name} has {len(boxes)} bboxes but {len(labels)} labels; give as many")
    return boxes, labels


def _in_frame(boxes: Tensor, sample: Any, frame: Frame) -> Tensor:
    meta = getattr(sample, "metainfo", None) or {}
    if meta.get("scale_factor") is None:
        return boxes
    given: Frame = "network" if "flip" in meta else "original"
    shape = "img_shape" if given == "network" else "ori_shape"
    if meta.get(shape) is not None:
        height, width = size_of(meta[shape], shape)
        outside = (boxes[:, 0] >= width) | (boxes[:, 1] >= height)
        if outside.any():
            raise InputError(
                f"box {int(outside.nonzero()[0])} lies outside of the image, {shape} "
                f"{(height, width)}. Expected boxes that were scaled with the image where the "
                "metainfo has 'flip', and boxes of the original image where it has not: put "
                "LoadAnnotations before Resize, or after Resize"
            )
    scale = as_tensor(meta["scale_factor"], "scale_factor").flatten()
    if scale.shape not in ((1,), (2,), (4,)) or not (scale > 0).all():
        raise InputError(f"scale_factor is {meta['scale_factor']}; expected (width, height) ratios")
    if given == frame:
        return boxes
    scale = scale.repeat(4 // len(scale))
    return boxes / scale if frame == "original" else boxes * scale


def _has(holder: Any, name: str) -> bool:
    return getattr(holder, name, None) is not None
