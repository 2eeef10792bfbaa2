"""The ground truth of one image, and the checks that every format shares."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ml_debugger.core.errors import InputError
from ml_debugger.core.given import as_tensor, class_numbers, first
from ml_debugger.object_detection.output import Frame as Frame

#: Corners; a corner, width and height; centre, width and height.
BoxFormat = Literal["xyxy", "xywh", "cxcywh"]

#: Normalised boxes may pass the image by this share of it: a label is seldom clipped to the bit.
_SLACK = 0.01


@dataclass(frozen=True, slots=True)
class Truth:
    """What was true of one image. All tensors are copies, on the CPU.

    Attributes:
        boxes: Corners x1, y1, x2, y2 in pixels, shape (n, 4), float32. Width or height may be 0.
        labels: Classes as they were given, from 0, shape (n,), int64.
        ignored: Whether a box is a crowd or a region to ignore, shape (n,), bool.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def truth_of(boxes: Tensor, labels: Any, *ignored: Any) -> Truth:
    """Put one image together.

    Args:
        boxes: As `in_pixels` or `from_normalised` gives them, shape (n, 4).
        labels: Whole numbers from 0, shape (n,).
        ignored: Flags, shape (n,) each; a box is ignored where one of them is set. None is none.

    Raises:
        InputError: Labels or flags do not fit the boxes.
    """
    numbers = class_numbers(labels)
    if len(numbers) != len(boxes):
        raise InputError(f"{len(boxes)} boxes but {len(numbers)} labels; give each box one label")
    flags = torch.zeros(len(boxes), dtype=torch.bool)
    for given in ignored:
        if given is not None:
            flag = as_tensor(given, "ignore flags (such as 'iscrowd')")
            if flag.shape != flags.shape:
                raise InputError(
                    f"ignore flags (such as 'iscrowd') have shape {tuple(flag.shape)} for "
                    f"{len(boxes)} boxes; give each box one flag, or leave them out"
                )
            flags |= flag != 0
    return Truth(boxes.to(torch.float32), numbers, flags)


def in_pixels(values: Any, form: BoxFormat = "xyxy") -> Tensor:
    """Read boxes in pixels, any of the empty forms included; xyxy (n, 4), float64.

    Raises:
        InputError: They are no boxes, or they are normalised.
    """
    given = _rows(values)
    boxes = _corners(given, form)
    sides = boxes[:, 2:] - boxes[:, :2]
    if len(boxes) and boxes.abs().max() <= 1 and ((sides > 0) & (sides < 1)).any():
        raise InputError(
            f"all coordinates are at most 1 (box 0 is {_show(given[0])}), so the boxes look "
            "normalised; expected absolute pixels. Multiply x by the image's width and y by its "
            "height"
        )
    return boxes


def from_normalised(values: Any, size: tuple[int, int]) -> Tensor:
    """Read boxes cx, cy, w, h as shares of an image of size (height, width); xyxy (n, 4), float64.

    Raises:
        InputError: They are no boxes, or they are not normalised.
    """
    given = _rows(values)
    boxes = _corners(given, "cxcywh")
    large = given.amax(1) > 1 + _SLACK
    if large.any():
        raise InputError(
            f"box {first(large)} is {_show(given[large][0])}; this format has normalised boxes: "
            "centre x, centre y, width, height, in [0, 1]. Divide by the image's width and "
            "height, or give pixels as a dict with 'boxes' and 'labels' for each image"
        )
    height, width = size
    return boxes * torch.tensor([width, height, width, height])


def size_of(values: Any, what: str) -> tuple[int, int]:
    """Read a height and a width in pixels; channels after them are left out.

    Raises:
        InputError: They are not two positive numbers.
    """
    size = as_tensor(values, what)
    if size.ndim != 1 or len(size) < 2 or not (size[:2] > 0).all():
        raise InputError(f"{what} is {values}; expected height and width in pixels")
    return int(size[0]), int(size[1])


@contextmanager
def of_image(number: int) -> Iterator[None]:
    """Say in an `InputError` which image of the batch it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"ground truth of image {number}: {error}") from None


def _rows(values: Any) -> Tensor:
    boxes = as_tensor(values, "boxes").double()
    if boxes.shape == (0,):
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(
            f"boxes have shape {tuple(boxes.shape)}; expected (n, 4), a row a box, and (0, 4) for "
            "an image without objects"
        )
    wrong = ~torch.isfinite(boxes.to(torch.float32)).all(1)
    if wrong.any():
        raise InputError(
            f"box {first(wrong)} is {_show(boxes[wrong][0])}; coordinates must be finite. Repair "
            "it or leave it out"
        )
    return boxes


def _corners(given: Tensor, form: BoxFormat) -> Tensor:
    start, end = given[:, :2], given[:, 2:]
    turned = (end < start if form == "xyxy" else end < 0).any(1)
    if turned.any():
        box = f"box {first(turned)} is {_show(given[turned][0])}"
        if form == "xyxy":
            raise InputError(
                f"{box}, so x2 < x1 or y2 < y1; expected corners x1, y1, x2, y2. Are these xywh "
                "(corner, width, height)? Then boxes[:, 2:] += boxes[:, :2], or say "
                "'box_format': 'xywh' beside 'boxes' and 'labels'"
            )
        raise InputError(f"{box}; expected {form}, with width and height not below 0")
    if form == "xywh":
        return torch.cat([start, start + end], 1)
    if form == "cxcywh":
        return torch.cat([start - end / 2, start + end / 2], 1)
    return given


def _show(box: Tensor) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in box.tolist()) + "]"
