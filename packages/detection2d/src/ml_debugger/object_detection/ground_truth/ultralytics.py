"""Batches of Ultralytics' data loaders."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ml_debugger.core.errors import InputError
from ml_debugger.core.given import as_tensor, keys_of, require
from ml_debugger.object_detection.ground_truth.truth import (
    Frame,
    Truth,
    from_normalised,
    of_image,
    size_of,
    truth_of,
)

_PER_IMAGE = ("im_file", "ori_shape", "resized_shape", "ratio_pad")


def fits(given: Any) -> bool:
    """Tell whether this is one dict for the whole batch, with the image of each box in it."""
    return isinstance(given, Mapping) and ("batch_idx" in given or {"cls", "bboxes"} <= set(given))


def read(batch: Mapping[str, Any], frame: Frame) -> list[Truth]:
    """Read a batch: `cls`, normalised `bboxes`, `batch_idx`, and what tells the images' sizes.

    In the original frame the letterbox is undone as `ratio_pad` tells; without it or `ori_shape`,
    and in the network's frame, boxes are in pixels of `img`, or else `resized_shape`, or else
    `ori_shape`. Augmentation (flips, mosaics) is not in `ratio_pad`, so it cannot be undone.
    """
    require(batch, "cls", "bboxes", "batch_idx")
    images = _images(batch)
    boxes, labels = as_tensor(batch["bboxes"], "bboxes"), as_tensor(batch["cls"], "cls")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    owner = as_tensor(batch["batch_idx"], "batch_idx")
    if not len(boxes) == len(labels) == len(owner) or owner.ndim != 1:
        raise InputError(
            f"bboxes, cls and batch_idx have shapes {tuple(boxes.shape)}, {tuple(labels.shape)} "
            f"and {tuple(owner.shape)}; expected (n, 4), (n, 1) and (n,), one entry a box"
        )
    if len(owner) and (owner.min() < 0 or owner.max() >= images or (owner != owner.floor()).any()):
        raise InputError(
            f"batch_idx runs from {owner.min().item():g} to {owner.max().item():g}; expected whole "
            f"numbers from 0 to {images - 1}, the batch has {images} images"
        )
    found = []
    for image in range(images):
        with of_image(image):
            mine = owner == image
            own = _boxes(batch, image, boxes[mine], frame)
            found.append(truth_of(own, labels[mine]))
    return found


def _images(batch: Mapping[str, Any]) -> int:
    counts = {name: len(batch[name]) for name in _PER_IMAGE if name in batch}
    if "img" in batch:
        shape = tuple(getattr(batch["img"], "shape", ()))
        if len(shape) != 4:
            raise InputError(
                f"img has shape {shape}; expected that of a batch, (images, channels, "
                "height, width). For one image pass img[None]"
            )
        counts["img"] = int(shape[0])
    if not counts:
        raise InputError(
            f"nothing tells how many images the batch has; found the keys {keys_of(batch)}. Add "
            "'img', or 'ori_shape' with (height, width) of each image"
        )
    if len(set(counts.values())) > 1:
        raise InputError(f"entries are for different numbers of images: {counts}; make them agree")
    return next(iter(counts.values()))


def _boxes(batch: Mapping[str, Any], image: int, normalised: Tensor, frame: Frame) -> Tensor:
    boxes = from_normalised(normalised, _network_size(batch, image))
    if frame == "network" or "ori_shape" not in batch or "ratio_pad" not in batch:
        return boxes
    ratio_pad = batch["ratio_pad"][image]
    try:
        (gain_h, gain_w), (left, top) = ratio_pad
        gains, pads = (gain_w, gain_h, gain_w, gain_h), (left, top, left, top)
        return (boxes - torch.tensor(pads)) / torch.tensor(gains, dtype=torch.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"ratio_pad is {ratio_pad}; expected ((gain of height, of width), (left, top)). Leave "
            "'ratio_pad' out of the batch for boxes in pixels of the network's image"
        ) from None


def _network_size(batch: Mapping[str, Any], image: int) -> tuple[int, int]:
    if "img" in batch:
        return size_of(batch["img"].shape[2:], "the size of img")
    if "resized_shape" in batch:
        return size_of(batch["resized_shape"][image], "resized_shape")
    if "ori_shape" not in batch or "ratio_pad" in batch:
        raise InputError(
            f"nothing tells the size of the network's image; found the keys {keys_of(batch)}. Add "
            "'img' or 'resized_shape'"
        )
    return size_of(batch["ori_shape"][image], "ori_shape")
