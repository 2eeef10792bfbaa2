"""How far boxes overlap: two lists of them, or the boxes of many images at once."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from ml_debugger.core.detection.pairs import (
    Bools,
    Floats,
    Geometry,
    Integers,
    Pairs,
    image_counts,
)
from ml_debugger.core.errors import InputError

#: Corners of a box, in pixels of the image that the model was given.
CORNERS = ("x1", "y1", "x2", "y2")

#: Pairs of boxes that are compared in one go: half a megabyte a number, which fits the cache.
_CELLS = 1 << 16
#: Most rows of an image in one go, so that an image with very many boxes fits as well.
_ROWS = 128


def sound(boxes: ArrayLike) -> Bools:
    """Tell which boxes (n, 4), corners x1, y1, x2, y2, are finite and have an area."""
    return _corners(boxes)[1] > 0


def areas(boxes: ArrayLike) -> Floats:
    """Return the areas of boxes (n, 4) in square pixels, shape (n,); 0 of those that have none."""
    return _corners(boxes)[1]


def iou(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return the intersection over union of each box of `a` with each of `b`.

    Args:
        a: Corners x1, y1, x2, y2, shape (n, 4).
        b: The same, shape (m, 4).

    Returns:
        Shape (n, m), in [0, 1]; 0 for a box that is not finite or has no area.

    Raises:
        InputError: The shapes are others.

    Example:
        >>> iou([[0, 0, 2, 2]], [[1, 0, 3, 2], [2, 2, 4, 4]]).round(3).tolist()
        [[0.333, 0.0]]
    """
    (a, area_a), (b, area_b) = _corners(a), _corners(b)
    inter = _intersection(a[:, :, None], b[:, None, :])
    return _divide(inter, area_a[:, None] + area_b - inter)


def covered(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return the share of each box of `a` that lies in each of `b`.

    Args:
        a: Corners x1, y1, x2, y2, shape (n, 4).
        b: The same, shape (m, 4).

    Returns:
        Intersection over the area of `a`, shape (n, m), in [0, 1]; 0 for a box that is not finite
        or has no area.

    Raises:
        InputError: The shapes are others.
    """
    (a, area), (b, _) = _corners(a), _corners(b)
    return _divide(_intersection(a[:, :, None], b[:, None, :]), area[:, None])


def overlaps(
    a: ArrayLike, a_counts: ArrayLike, b: ArrayLike, b_counts: ArrayLike, least: float = 0.0
) -> Pairs:
    """Find the overlapping boxes of many images; boxes of different images never overlap.

    Args:
        a: Corners x1, y1, x2, y2 of the boxes of all images, one image after the other, shape
            (n, 4).
        a_counts: How many of them each image has, shape (images,).
        b: The second list, shape (m, 4).
        b_counts: How many of those each image has, shape (images,).
        least: Least IoU of a pair that is returned, in [0, 1]; at 0 all that overlap at all.

    Returns:
        The pairs with an IoU above 0. Boxes that are not finite or have no area are in none.

    Raises:
        InputError: The shapes do not fit together.
    """
    (a, area_a), (b, area_b) = _corners(a), _corners(b)
    n_a, n_b = image_counts(a_counts, area_a), image_counts(b_counts, area_b)
    if len(n_a) != len(n_b):
        raise InputError(f"counts of {len(n_a)} and {len(n_b)} images; give one of each an image")
    # one box more, which overlaps nothing, fills up the images that have fewer than others
    a_filled, b_filled = (np.pad(corners, ((0, 0), (0, 1))) for corners in (a, b))
    found = []
    for rows, columns in _blocks(n_a, n_b):
        inside = _intersection(a_filled[:, rows][..., None], b_filled[:, columns][:, :, None])
        cell = np.flatnonzero(inside)
        image, row, column = np.unravel_index(cell, inside.shape)
        first, second, inter = rows[image, row], columns[image, column], inside.ravel()[cell]
        shared = inter / (area_a[first] + area_b[second] - inter)
        kept = (shared > 0) & (shared >= least)
        first, second, inter = first[kept], second[kept], inter[kept]
        shares = inter / area_a[first], inter / area_b[second]
        found.append((first, second, shared[kept], *shares))
    if not found:
        none = np.zeros(0, np.int64)
        return Pairs(none, none, none.astype(float), none.astype(float), none.astype(float))
    return Pairs(*(np.concatenate(one) for one in zip(*found, strict=True)))


def _corners(boxes: ArrayLike) -> tuple[Floats, Floats]:
    """Return corners, shape (4, n), and areas, shape (n,); both 0 for a box without an area."""
    corners = GEOMETRY.array(boxes).T.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        width, height = corners[2] - corners[0], corners[3] - corners[1]
        area: Floats = width * height
        # an infinite corner makes an infinite side; the sum of two areas must be finite, too
        right = (width > 0) & (height > 0) & (area > 0) & np.isfinite(2 * area)
    corners[:, ~right] = 0
    return corners, np.where(right, area, 0.0)


def _intersection(a: Floats, b: Floats) -> Floats:
    """Return the areas that corners (4, ...) share with others that they broadcast to."""
    width = np.minimum(a[2], b[2])
    width -= np.maximum(a[0], b[0])
    np.maximum(width, 0, out=width)
    height = np.minimum(a[3], b[3])
    height -= np.maximum(a[1], b[1])
    np.maximum(height, 0, out=height)
    area: Floats = np.multiply(width, height, out=width)
    return area


def _divide(inter: Floats, by: Floats) -> Floats:
    share: Floats = np.divide(inter, by, out=np.zeros_like(inter), where=inter > 0)
    return share


def _blocks(n_a: Integers, n_b: Integers) -> Iterator[tuple[Integers, Integers]]:
    """Yield positions of boxes to compare, shapes (g, p) and (g, q), for g images of a size.

    A position past the end, that is the number of all boxes, stands for none.
    """
    pieces = np.where(n_b > 0, -(-n_a // _ROWS), 0)
    image = np.repeat(np.arange(len(n_a)), pieces)
    skipped = (np.arange(len(image)) - (np.cumsum(pieces) - pieces)[image]) * _ROWS
    start_a = (np.cumsum(n_a) - n_a)[image] + skipped
    start_b = (np.cumsum(n_b) - n_b)[image]
    rows, columns = np.minimum(n_a[image] - skipped, _ROWS), n_b[image]
    order = np.lexsort((rows, columns))  # neighbours are of a size, so little is filled up
    at = 0
    while at < len(order):
        # sizes ascend in columns, so that the widest of a block is its last
        few = order[at : at + max(1, _CELLS // int(columns[order[at]] * rows[order[at]]))]
        size = rows[few].max() * columns[few].max()
        few = few[: max(1, _CELLS // int(size))]
        yield (
            _positions(start_a[few], rows[few], int(n_a.sum())),
            _positions(start_b[few], columns[few], int(n_b.sum())),
        )
        at += len(few)


def _positions(start: Integers, count: Integers, none: int) -> Integers:
    step = np.arange(count.max())
    return np.where(step < count[:, None], start[:, None] + step, none)


#: Boxes by their corners.
GEOMETRY = Geometry(CORNERS, sound, overlaps)
