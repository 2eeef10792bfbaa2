"""How far 3D boxes overlap: the boxes of many frames at once, by three measures.

Boxes are x, y, z, dx, dy, dz, yaw (columns after these are not looked at): centre of gravity and
sides in metres, the yaw in radians, counter-clockwise about z, which points up.

NumPy finds which boxes are near each other, since it searches in sorted frames at once; torch
computes what they share, in double precision on the CPU, as fast and with less memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ml_debugger.core.detection.pairs import (
    Bools,
    Floats,
    Geometry,
    Integers,
    Pairs,
    image_counts,
)
from ml_debugger.core.errors import InputError

#: What makes a box, by column.
BOX = ("x", "y", "z", "dx", "dy", "dz", "yaw")

#: Rectangles seen from above; volumes; how near the centres are, seen from above.
Measure = Literal["bev", "3d", "distance"]

#: Distance of centres in metres at which two boxes are still aligned: that of nuScenes' errors.
LIMIT = 2.0

#: Pairs whose nearness is looked at in one go: half a megabyte a number.
_NEAR = 1 << 16
#: Pairs whose overlap is computed in one go: a sixteenth of that, so that all of it fits the
#: cache.
_CLIPPED = 1 << 13
#: Boxes that share less than this part of the smaller one touch: what is left is rounding.
_TOUCH = 1e-9


def sound(boxes: ArrayLike | Tensor) -> Bools:
    """Tell which boxes (n, 7 or more) are finite and have a volume; the others overlap nothing."""
    found = _columns(boxes)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        area = found[3] * found[4]
        size = area * found[5]
        # what is summed of some areas or volumes must be finite, too
        finite = np.isfinite(found).all(0) & np.isfinite(8 * area) & np.isfinite(8 * size)
        right: Bools = finite & (found[3:6] > 0).all(0) & (area > 0) & (size > 0)
    return right


def iou(a: ArrayLike | Tensor, b: ArrayLike | Tensor, measure: Measure = "bev") -> Floats:
    """Return the overlap of each box of `a` (n, 7 or more) with each of `b` (m, 7 or more).

    Returns:
        Shape (n, m), in [0, 1]; 0 for a box that is not finite or has no volume.

    Raises:
        InputError: The shapes are others, or there is no such measure.

    Example:
        >>> car = [0, 0, 0, 4, 2, 2, 0]
        >>> iou([car], [[2, 0, 0, 4, 2, 2, 0], [0, 0, 1, 4, 2, 2, 3.14159265]]).round(3).tolist()
        [[0.333, 1.0]]
        >>> iou([car], [[0, 0, 1, 4, 2, 2, 0]], "3d").round(3).tolist()
        [[0.333]]
    """
    n, m = _columns(a).shape[1], _columns(b).shape[1]
    found = np.zeros((n, m))
    pairs = overlaps(a, [n], b, [m], measure)
    found[pairs.first, pairs.second] = pairs.iou
    return found


def overlaps(
    a: ArrayLike | Tensor,
    a_counts: ArrayLike,
    b: ArrayLike | Tensor,
    b_counts: ArrayLike,
    measure: Measure = "bev",
    *,
    least: float = 0.0,
    limit: float = LIMIT,
) -> Pairs:
    """Find the overlapping boxes of many frames; boxes of different frames never overlap.

    By `"distance"` a pair's `iou` and both shares are its nearness, `1 - d / (2 * limit)`, of the
    distance d of the centres seen from above. It falls evenly, so that it orders as distance does,
    and is one half at `limit`: the least IoU of aligned boxes, 0.5, then means what nuScenes'
    2 m does for its errors, 0.75 is 1 m, 0.875 is 0.5 m, and nothing is left at its widest, 4 m.
    As nearness is its own share, no box is ever found split (SP) or merged (SG).

    Args:
        a: Boxes of all frames, one frame after the other, shape (n, 7 or more).
        a_counts: How many of them each frame has, shape (frames,).
        b: The second list, shape (m, 7 or more).
        b_counts: How many of those each frame has, shape (frames,).
        measure: What of the boxes is compared.
        least: Least IoU of a pair that is returned, in [0, 1]; at 0 all that overlap at all.
        limit: Distance in metres at which nearness is one half.

    Returns:
        The pairs with an IoU above 0. Boxes that are not finite or have no volume are in none,
        and neither are those that only touch.

    Raises:
        InputError: The shapes do not fit together, or there is no such measure.
    """
    if measure not in get_args(Measure):
        raise InputError(f"measure is {measure!r}; expected one of {', '.join(get_args(Measure))}")
    if not limit > 0:
        raise InputError(f"limit is {limit}; expected a distance in metres above 0")
    one, other = _Boxes.of(a, a_counts), _Boxes.of(b, b_counts)
    if one.frames != other.frames:
        raise InputError(
            f"counts of {one.frames} and {other.frames} frames; give one of each a frame"
        )
    reach = limit if measure == "distance" else None
    found: list[tuple[Tensor, ...]] = []
    for rows, columns in _near(one, other, reach, measure == "3d"):
        for k in range(0, len(rows), _CLIPPED):
            row, column = rows[k : k + _CLIPPED], columns[k : k + _CLIPPED]
            of_one, of_other = one.table[:, row], other.table[:, column]
            values = (
                _compared(of_one, of_other, measure == "3d")
                if reach is None
                else _nearness(of_one, of_other, reach)
            )
            kept = (values[0] > 0) & (values[0] >= least)
            at = one.at[row[kept]], other.at[column[kept]]
            found.append((*at, *(value[kept] for value in values)))
    none = torch.zeros(0, dtype=torch.float64)
    fields = list(zip(*found, strict=True)) or [(none.long(),)] * 2 + [(none,)] * 3
    del found  # pairs can be many: each field's pieces go when it is put together
    return Pairs(*(torch.cat(fields.pop(0)).numpy() for _ in range(5)))


def geometry(measure: Measure) -> Geometry:
    """Return what a box is where overlap means this."""
    return Geometry(BOX, sound, partial(overlaps, measure=measure))


@dataclass(frozen=True, slots=True)
class _Boxes:
    """The sound boxes of one list, each frame's in the order of x.

    `at` is where they were, `key` frame + i·x. The table has rows x, y, z, half of dx, dy, dz, the
    yaw's cosine and sine, and half of the extents along x and y.
    """

    frames: int
    at: Tensor
    frame: Integers
    key: NDArray[np.complex128]
    table: Tensor

    @classmethod
    def of(cls, boxes: ArrayLike | Tensor, counts: ArrayLike) -> "_Boxes":
        found = _columns(boxes)
        number = image_counts(counts, found[0])
        at = np.flatnonzero(sound(boxes))
        frame = np.repeat(np.arange(len(number)), number)[at]
        key = frame + 1j * found[0, at]  # complex numbers sort by the real part first
        order = np.argsort(key, kind="stable")
        at, frame, key = at[order], frame[order], key[order]
        x, y, z, *sides, yaw = found[:, at]
        dx, dy, dz = (side / 2 for side in sides)
        cos, sin = np.cos(yaw), np.sin(yaw)
        along_x, along_y = abs(dx * cos) + abs(dy * sin), abs(dx * sin) + abs(dy * cos)
        rows = np.stack([x, y, z, dx, dy, dz, cos, sin, along_x, along_y])
        return cls(len(number), torch.from_numpy(at), frame, key, torch.from_numpy(rows))


def _near(
    one: _Boxes, other: _Boxes, reach: float | None, volume: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield positions (k,) of boxes whose extents, or squares of half side `reach`, overlap."""
    extents = [boxes.table[[8, 9, 5]] for boxes in (one, other)]
    if reach is not None:
        extents = [torch.full_like(half, reach) for half in extents]
    widest = np.zeros(one.frames)
    np.maximum.at(widest, other.frame, extents[1][0].numpy())
    around = 1j * (extents[0][0].numpy() + widest[one.frame])
    start = np.searchsorted(other.key, one.key - around, "left")
    count = np.searchsorted(other.key, one.key + around, "right") - start
    total = np.append(0, np.cumsum(count))
    at = 0
    while at < len(count):
        end = max(at + 1, int(np.searchsorted(total, total[at] + _NEAR, "right")) - 1)
        piece = torch.from_numpy(count[at:end])
        row = torch.repeat_interleave(torch.arange(at, end), piece)
        ahead = torch.from_numpy(start[at:end] - total[at:end] + total[at])
        column = torch.arange(len(row)) + ahead[row - at]
        near = torch.ones(len(row), dtype=torch.bool)
        for axis in range(3 if volume else 2):
            half = (
                (one.table[5], other.table[5])
                if axis == 2
                else (extents[0][axis], extents[1][axis])
            )
            apart = (one.table[axis][row] - other.table[axis][column]).abs_()
            near &= apart < half[0][row] + half[1][column]
        yield row[near], column[near]
        at = end


def _nearness(a: Tensor, b: Tensor, limit: float) -> tuple[Tensor, Tensor, Tensor]:
    near = 1 - torch.hypot(a[0] - b[0], a[1] - b[1]) / (2 * limit)
    return near, near, near


def _compared(a: Tensor, b: Tensor, volume: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return IoU and both shares of pairs of boxes, of tables (10, k)."""
    size_a, size_b = 4 * a[3] * a[4], 4 * b[3] * b[4]
    inter = torch.minimum(_shared_area(a, b), torch.minimum(size_a, size_b))
    inter[inter <= _TOUCH * torch.minimum(size_a, size_b)] = 0
    if volume:
        top = torch.minimum(a[2] + a[5], b[2] + b[5])
        height = top - torch.maximum(a[2] - a[5], b[2] - b[5])
        # the heights are of rounded numbers, so they may pass the boxes' own
        least = 2 * torch.minimum(a[5], b[5])
        height = torch.where(height > _TOUCH * least, torch.minimum(height, least), 0)
        size_a, size_b, inter = size_a * 2 * a[5], size_b * 2 * b[5], inter * height
    return inter / (size_a + size_b - inter), inter / size_a, inter / size_b


def _shared_area(a: Tensor, b: Tensor) -> Tensor:
    """Return the area (k,) that rectangles share, of tables (10, k).

    Seen from the first rectangle, whose sides are then the lines x = left, x = right, y = low and
    y = high, the area is the integral of x, held between left and right, along those parts of the
    second one's edges that run between low and high. It has no cases: boxes that share edges or
    corners are nothing special, and what rounding moves by a little changes the area by a little.
    """
    cos, sin = a[6], a[7]
    x, y = b[0] - a[0], b[1] - a[1]
    x, y = x * cos + y * sin, y * cos - x * sin  # of b's centre, where coordinates now begin
    left, right, low, high = -a[3] - x, a[3] - x, -a[4] - y, a[4] - y
    cos, sin = b[6] * cos + b[7] * sin, b[7] * cos - b[6] * sin
    front = (b[3] * cos, b[3] * sin)
    side = (-b[4] * sin, b[4] * cos)
    px, py = front[0] + side[0], front[1] + side[1]
    qx, qy = side[0] - front[0], side[1] - front[1]
    area = torch.zeros_like(x)
    corners = ((px, py), (qx, qy), (-px, -py), (-qx, -qy))
    for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
        start, end = y0.clamp(low, high), y1.clamp(low, high)
        slope = ((x1 - x0) / (y1 - y0)).nan_to_num_(0, 0, 0)  # a level edge has no part in it
        x_start, x_end = x0 + (start - y0) * slope, x0 + (end - y0) * slope
        held_start, held_end = x_start.clamp(left, right), x_end.clamp(left, right)
        inside = ((held_end - held_start) / (x_end - x_start)).nan_to_num_(0, 0, 0)
        held = held_start + held_end
        area += (end - start) * (held + inside * (x_start + x_end - held))
    return area.div_(2).clamp_(min=0)


def _columns(boxes: ArrayLike | Tensor) -> Floats:
    """Return the first seven columns of boxes, shape (7, n), float64; an empty list has none."""
    if isinstance(boxes, Tensor):
        boxes = boxes.detach().to("cpu", torch.float64).numpy()
    found = np.asarray(boxes)
    if found.shape == (0,):
        found = found.reshape(0, 7)
    if found.ndim != 2 or found.shape[1] < 7:
        raise InputError(
            "boxes must have shape (n, 7) or (n, 9): x, y, z, dx, dy, dz, yaw, vx, vy; got "
            f"{found.shape}"
        )
    return found[:, :7].T.astype(np.float64)
