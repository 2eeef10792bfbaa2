"""Which boxes of two versions are about the same thing: a true object, or a place with none."""

import numpy as np

from ml_debugger.core.detection.matching import KINDS, match_boxes, one_to_one
from ml_debugger.core.detection.pairs import Bools, Geometry, Integers, Pairs
from ml_debugger.core.records import Array, Units, owners
from ml_debugger.core.task import NOTHING, RIGHT, Things

#: What can become of a true object: right, of the wrong class, in the wrong place or missed; and of
#: a place without one: a second box of an object, a box on background, or nothing.
OUTCOMES = (RIGHT, "class", "place", "missed", "duplicate", "background", NOTHING)

#: True boxes of a class are the same from this IoU on, so that rounding does not make two of one.
_SAME = 0.95


def follow(
    geometry: Geometry,
    predicted: Units[Array],
    actual: Units[Array],
    other_predicted: Units[Array],
    other_actual: Units[Array],
    aligned: float = 0.5,
    matched: float = 0.1,
) -> Things:
    """Tell what became of each true object, and of each box beside them, in two versions.

    Both versions are matched with the true boxes of the newer one. A true object is followed from
    the best box of the one version to that of the other. The boxes that are no object's best, all
    of them errors, are the same thing where their IoU is at least `aligned`: one to one, whatever
    their class, the largest IoU first. Those without a partner have appeared or vanished.

    Args:
        geometry: What a box is.
        predicted: The boxes of some images in the older version.
        actual: The true boxes there.
        other_predicted: The boxes of the same images in the newer version.
        other_actual: The true boxes there.
        aligned: See `ml_debugger.core.detection.matching.match`.
        matched: Likewise.
    """
    true = _True(geometry, other_actual)
    this, other = (
        _Version(geometry, one, true, aligned, matched) for one in (predicted, other_predicted)
    )
    here, there = _partners(
        geometry, this.boxes[this.rest], this.n_rest, other.boxes[other.rest], other.n_rest, aligned
    )
    here, there = np.append(this.rest, -1)[here], np.append(other.rest, -1)[there]
    # a false alarm lies where the newer version has it, or else the older one
    newer, which = there >= 0, np.where(there >= 0, there, here)
    image = np.where(newer, _at(other.image, which), _at(this.image, which))
    boxes = np.where(newer[:, None], _at(other.boxes, which), _at(this.boxes, which))
    owner = np.concatenate([true.image[true.real], image])
    order = np.argsort(owner, kind="stable")
    boxes = np.concatenate([true.boxes[true.real], boxes])[order]
    pairs = ((this, here), (other, there))
    units = [np.concatenate([one.found.by[true.real], rows])[order] for one, rows in pairs]
    outcome = [np.concatenate([one.of_true(true), one.of_rest(rows)])[order] for one, rows in pairs]
    return Things(
        owner=owner[order],
        label=np.concatenate([true.label[true.real], np.full(len(here), -1)])[order],
        units=(units[0], units[1]),
        outcomes=OUTCOMES,
        outcome=(outcome[0], outcome[1]),
        columns={name: boxes[:, at] for at, name in enumerate(geometry.columns)},
        relabelled=_relabelled(geometry, _True(geometry, actual), true),
    )


class _True:
    """The true boxes of some images.

    Attributes:
        counts: How many each image has, ignore regions included, shape (images,).
        image: The image of each, shape (m,).
        boxes: Shape (m, d).
        label: Their classes, shape (m,).
        crowd: Which are ignore regions, shape (m,), bool.
        real: Those that are none and have an area, ascending, shape (k,).
    """

    def __init__(self, geometry: Geometry, units: Units[Array]) -> None:
        self.counts = _counts(units)
        self.image = owners(self.counts, len(self.counts))
        self.boxes = geometry.boxes_of(units)
        self.label = np.asarray(units["label"], np.int64)
        self.crowd = np.asarray(units["ignored"], np.bool_)
        self.real = np.flatnonzero(~self.crowd & geometry.sound(self.boxes))


class _Version:
    """The boxes of one version, matched with the true ones.

    Attributes:
        image: The image of each, shape (n,).
        boxes: Shape (n, d).
        prediction: Their classes, shape (n,).
        found: What the matching made of them.
        rest: Those that count and are the best of no true box, ascending, shape (k,).
        n_rest: How many of those each image has, shape (images,).
    """

    def __init__(
        self, geometry: Geometry, units: Units[Array], true: _True, aligned: float, matched: float
    ) -> None:
        counts = _counts(units)
        self.image = owners(counts, len(counts))
        self.boxes = geometry.boxes_of(units)
        self.prediction = np.asarray(units["prediction"], np.int64)
        self.found = match_boxes(
            geometry,
            self.boxes,
            units["score"],
            self.prediction,
            counts,
            true.boxes,
            true.label,
            true.counts,
            true.crowd,
            aligned=aligned,
            matched=matched,
        )
        left = ~self.found.ignored
        left[self.found.by[self.found.by >= 0]] = False
        self.rest = np.flatnonzero(left)
        self.n_rest = np.bincount(self.image[self.rest], minlength=len(counts))

    def of_true(self, true: _True) -> Array:
        """Return what became of true boxes, as places in `OUTCOMES`, shape (real,)."""
        by = self.found.by[true.real]
        placed = _at(self.found.kind, by) == KINDS.index("A")
        right = _at(self.prediction, by) == true.label[true.real]
        return _outcome(missed=by < 0, place=~placed, right=right, else_="class")

    def of_rest(self, rows: Integers) -> Array:
        """Return what became of places beside true boxes; a row of -1 has no predicted box."""
        again = _at(self.found.truth, rows) >= 0
        return _outcome(nothing=rows < 0, duplicate=again, else_="background")


def _outcome(*, else_: str, **conditions: Bools) -> Array:
    """Return the place in `OUTCOMES` of the first condition that holds."""
    places = [OUTCOMES.index(name) for name in conditions]
    return np.select([*conditions.values()], places, OUTCOMES.index(else_)).astype(np.int8)


def _at(values: Array, rows: Integers) -> Array:
    """Return some rows; what is returned for a row that is not there means nothing."""
    filled = np.concatenate([values, np.zeros((1, *values.shape[1:]), values.dtype)])
    return filled[np.clip(rows, -1, len(values))]


def _partners(
    geometry: Geometry, a: Array, a_counts: Integers, b: Array, b_counts: Integers, least: float
) -> tuple[Integers, Integers]:
    """Put boxes of two lists side by side: those with a partner, and those with none.

    Returns:
        Places in either list, -1 for none, shape (k,); every box is in it once.
    """
    pairs = geometry.overlaps(a, a_counts, b, b_counts, least=least)
    pairs = one_to_one(pairs[_by_iou(pairs)])
    # boxes without an area overlap nothing: they are taken in their order, so that a version
    # does not differ from itself
    odd = [np.flatnonzero(~geometry.sound(one)) for one in (a, b)]
    image, other = (
        owners(counts, len(counts))[rows]
        for counts, rows in zip((a_counts, b_counts), odd, strict=True)
    )
    _, i, j = np.intersect1d(_numbered(image), _numbered(other), return_indices=True)
    first = np.concatenate([pairs.first, odd[0][i]])
    second = np.concatenate([pairs.second, odd[1][j]])
    gone, new = _others(len(a), first), _others(len(b), second)
    return (
        np.concatenate([first, gone, np.full(len(new), -1)]),
        np.concatenate([second, np.full(len(gone), -1), new]),
    )


def _others(n: int, rows: Integers) -> Integers:
    left = np.ones(n, np.bool_)
    left[rows] = False
    return np.flatnonzero(left)


def _numbered(image: Integers) -> Array:
    """Return a different number for each box of an image, the same in every list of boxes."""
    start = np.searchsorted(image, image)
    return image * (1 << 32) + np.arange(len(image)) - start


def _relabelled(geometry: Geometry, this: _True, other: _True) -> int:
    """Count the true boxes that have no equal in the other version."""
    images = len(this.counts)
    counts = [np.bincount(one.image[one.real], minlength=images) for one in (this, other)]
    pairs = geometry.overlaps(
        this.boxes[this.real], counts[0], other.boxes[other.real], counts[1], least=_SAME
    )
    same = this.label[this.real][pairs.first] == other.label[other.real][pairs.second]
    pairs = one_to_one(pairs[same][_by_iou(pairs[same])])
    equal = np.bincount(this.image[this.real][pairs.first], minlength=images)
    return int((np.maximum(*counts) - equal).sum())


def _by_iou(pairs: Pairs) -> Integers:
    """Return the order of pairs with the largest IoU first."""
    return np.lexsort((pairs.second, pairs.first, -pairs.iou))


def _counts(units: Units[Array]) -> Integers:
    assert units.counts is not None  # Task.follow is always given them
    return np.asarray(units.counts, np.int64)
