"""How boxes overlap, whatever a box is: what the geometries of all detection tasks share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ml_debugger.core.errors import InputError
from ml_debugger.core.records import Units

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Pairs of the boxes of an image that have to be held at once: those of a group of images.
_GROUP = 1 << 21


@dataclass(frozen=True, slots=True)
class Pairs:
    """Boxes of two lists that overlap, in no particular order.

    Attributes:
        first: Position in the first list, shape (k,), int64.
        second: Position in the second list, shape (k,), int64.
        iou: Intersection over union, shape (k,), in (0, 1].
        share_first: Share of the first box that lies in the second, shape (k,), in (0, 1].
        share_second: Share of the second box that lies in the first, shape (k,), in (0, 1].
    """

    first: Integers
    second: Integers
    iou: Floats
    share_first: Floats
    share_second: Floats

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, which: Bools | Integers | slice) -> "Pairs":
        """Return some of the pairs, by mask or by position."""
        return Pairs(
            self.first[which],
            self.second[which],
            self.iou[which],
            self.share_first[which],
            self.share_second[which],
        )


class Overlaps(Protocol):
    """Finds the overlapping boxes of many images; boxes of different images never overlap."""

    def __call__(
        self, a: Array, a_counts: Integers, b: Array, b_counts: Integers, *, least: float = 0.0
    ) -> Pairs:
        """Find them.

        Args:
            a: The boxes of all images, one image after the other, shape (n, d).
            a_counts: How many of them each image has, shape (images,).
            b: The second list, shape (m, d).
            b_counts: How many of those each image has, shape (images,).
            least: Least IoU of a pair that is returned; at 0 all that overlap at all.
        """


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a box is in a task.

    Attributes:
        columns: The columns of a unit that make its box, d of them.
        sound: Tells which boxes (n, d) are finite and have an extent; others overlap nothing.
        overlaps: Finds those that overlap.
    """

    columns: tuple[str, ...]
    sound: Callable[[Array], Bools]
    overlaps: Overlaps

    def array(self, boxes: ArrayLike) -> Array:
        """Return boxes as an array of shape (n, d); an empty list has none.

        Raises:
            InputError: They have another shape.
        """
        found, width = np.asarray(boxes), len(self.columns)
        if found.shape == (0,):
            found = found.reshape(0, width)
        if found.ndim != 2 or found.shape[1] != width:
            raise InputError(
                f"boxes must have shape (n, {width}): {', '.join(self.columns)}; got {found.shape}"
            )
        return found

    def boxes_of(self, units: Units[Array]) -> Array:
        """Return the boxes of units, shape (n, d), float64."""
        return np.stack([np.asarray(units[name], np.float64) for name in self.columns], axis=1)


def image_counts(counts: ArrayLike, of: Array) -> Integers:
    """Return counts an image as int64, shape (images,), having checked that they add up.

    Raises:
        InputError: They are negative, or are not the counts of `of`.
    """
    found = np.asarray(counts, np.int64)
    if found.ndim != 1 or found.min(initial=0) < 0 or found.sum() != len(of):
        raise InputError(
            f"counts of shape {found.shape} that add up to {found.sum()} for {len(of)} boxes, "
            "scores or labels; give the number of boxes of each image, 0 for an image without one"
        )
    return found


def image_groups(n: Integers, m: Integers) -> Iterator[tuple[slice, slice, slice]]:
    """Cut many images into groups whose boxes are compared together, at least one.

    Args:
        n: How many boxes of a first list each image has, shape (images,).
        m: The same for a second list, which is compared with the first, as the first is with
            itself.

    Yields:
        Slices of the images, of the first list and of the second.
    """
    group = np.cumsum(n * (n + m)) // _GROUP
    starts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(n)]
    rows, columns = (np.append(0, np.cumsum(one)).tolist() for one in (n, m))
    for a, b in pairwise(starts):
        yield slice(a, b), slice(rows[a], rows[b]), slice(columns[a], columns[b])
