"""Average precision at one IoU, by our own arithmetic, whatever a box is.

The cost of an error is a difference of two APs, of which dozens are needed.
"""

import numpy as np

from ml_debugger.core.detection.pairs import Bools, Floats, Integers
from ml_debugger.core.detection.result_boxes import Boxes

#: COCO looks at so many boxes of each class in an image, those with the highest scores.
LIMIT = 100
#: A prediction lies in an ignore region from this share of its area on.
_INSIDE = 0.5
_RECALLS = np.linspace(0, 1, 101)


def average_precisions(
    predicted: Boxes, true: Boxes, *, iou: float = 0.5, limit: int = LIMIT
) -> dict[int, float]:
    """Return the average precision of each class that has a true box, at one IoU threshold.

    Interpolated at 101 recalls, as COCO does; at 0.5 the mean over classes is COCO's AP50.

    Args:
        predicted: The predicted boxes.
        true: The true boxes and ignore regions.
        iou: Least IoU of a box that is right, in [0, 1]; at 0 it must be above.
        limit: Most boxes of each class and image that are looked at.
    """
    counted, right = judged(predicted, true, iou=iou, limit=limit)
    order = in_turn(predicted.score, counted)
    return precisions(predicted.label[order], right[order], class_counts(true))


def class_counts(true: Boxes, classes: int = 1) -> Integers:
    """Return how many true boxes each of at least `classes` has; ignore regions are none."""
    return np.bincount(true.label[~true.ignored & (true.label >= 0)], minlength=classes)


def judged(
    predicted: Boxes, true: Boxes, *, iou: float = 0.5, limit: int = LIMIT
) -> tuple[Bools, Bools]:
    """Match each class as COCO does, and tell which predicted boxes count and which are right.

    In the order of their scores, boxes take the free true box of their class with the largest
    IoU; of equal IoUs the last. One that takes none and lies in an ignore region of its class
    does not count, nor do those after the first `limit` of a class in an image.

    Returns:
        Whether each box counts and whether it is right, shapes (n,), bool.
    """
    turn = np.empty(len(predicted), np.int64)
    turn[in_turn(predicted.score)] = np.arange(len(predicted))
    counted = _place_in_group(turn, predicted.image, predicted.label) < limit
    right = np.zeros(len(predicted), np.bool_)
    real = np.flatnonzero(~true.ignored)
    pairs = predicted.overlaps(true[real], least=iou)
    second = real[pairs.second]
    own = (predicted.label[pairs.first] == true.label[second]) & counted[pairs.first]
    first, second, near = pairs.first[own], second[own], pairs.iou[own]
    order = np.lexsort((-second, -near, turn[first]))
    first, second = first[order], second[order]
    free = np.ones(len(true), np.bool_)
    while len(first):
        # a true box cannot be taken from the first that wants it, if it is also its best
        sure = _first(first) & _first(second)
        right[first[sure]], free[second[sure]] = True, False
        left = ~right[first] & free[second]
        first, second = first[left], second[left]

    crowd = np.flatnonzero(true.ignored)
    if len(crowd):
        pairs = predicted.overlaps(true[crowd])
        inside = pairs.share_first >= _INSIDE
        inside &= predicted.label[pairs.first] == true.label[crowd[pairs.second]]
        lost = np.zeros(len(predicted), np.bool_)
        lost[pairs.first[inside]] = True
        counted &= right | ~lost
    return counted, right


def precisions(label: Integers, right: Bools, truths: Integers) -> dict[int, float]:
    """Return the average precision of each class that has a true box.

    Args:
        label: Class of each predicted box, in the order of their scores, shape (n,).
        right: Whether it is right, shape (n,), bool.
        truths: How many true boxes each class has, shape (classes,).
    """
    found = {}
    order = np.argsort(label, kind="stable")
    label, right = label[order], right[order]
    for one in np.flatnonzero(truths).tolist():
        start, stop = np.searchsorted(label, [one, one + 1])
        at = np.flatnonzero(right[start:stop])
        hits = np.arange(1, len(at) + 1)
        # the best precision at this recall or a higher one, which a right box always has
        best = np.maximum.accumulate((hits / (at + 1))[::-1])[::-1]
        places = np.searchsorted(hits / truths[one], _RECALLS)
        found[one] = float(np.append(best, 0.0)[places].mean())
    return found


def in_turn(score: Floats, which: Bools | None = None) -> Integers:
    """Return positions by falling score, equal scores in their order; of some boxes, or of all."""
    chosen = np.arange(len(score)) if which is None else np.flatnonzero(which)
    order: Integers = chosen[np.argsort(-score[chosen], kind="stable")]
    return order


def _place_in_group(turn: Integers, *keys: Integers) -> Integers:
    """Return which place each box takes in its group, in their turn."""
    order = np.lexsort((turn, *keys))
    new = np.zeros(len(order), np.bool_)
    new[:1] = True
    for key in keys:
        new[1:] |= np.diff(key[order]) != 0
    starts = np.flatnonzero(new)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - starts[np.cumsum(new) - 1]
    return place


def _first(values: Integers) -> Bools:
    """Tell where a value stands for the first time."""
    first = np.zeros(len(values), np.bool_)
    first[np.unique(values, return_index=True)[1]] = True
    return first
