"""Average precision: COCO's figures by faster-coco-eval, and AP at one IoU by our own arithmetic.

Ours is there since the cost of an error is a difference of two APs, of which dozens are needed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_debugger.core.detection.pairs import Array, Bools, Floats, Integers
from ml_debugger.object_detection.boxes import overlaps
from ml_debugger.object_detection.result_boxes import Boxes, ResultBoxes

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result

#: COCO looks at so many boxes of each class in an image, those with the highest scores.
LIMIT = 100
#: A prediction lies in an ignore region from this share of its area on.
_INSIDE = 0.5
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's figures, each in [0, 1]; None where no true box is of that kind.

    AP without a number is the mean over IoU thresholds from 0.5 to 0.95, AP50 and AP75 are at one.
    Small boxes are below 32 x 32 square pixels, large ones above 96 x 96. AR1, AR10 and AR100 are
    mean recalls with so many boxes an image and class.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None


@dataclass(frozen=True)
class MeanAveragePrecision(AveragePrecision):
    """The means of COCO's figures over the classes that have a true box.

    Attributes:
        per_class: The figures of each of these classes.
    """

    per_class: Mapping[int, AveragePrecision]


def mean_average_precision(result: "Result") -> MeanAveragePrecision:
    """Return COCO's figures for a result, by faster-coco-eval.

    Crowd and ignore regions are COCO's `iscrowd`. The size of a true box is that of the box.
    Memory grows with the boxes of the most frequent class, at about a kilobyte each.

    Raises:
        ImportError: faster-coco-eval is not installed.
        InputError: The result is no detector's.
    """
    boxes = ResultBoxes.of(result)
    return coco_figures(boxes.predicted, boxes.true)


def coco_figures(predicted: Boxes, true: Boxes) -> MeanAveragePrecision:
    """Return COCO's figures for some boxes; see `mean_average_precision`."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise ImportError(
            "mean average precision needs faster-coco-eval: "
            "pip install 'ml-debugger-detection2d[map]'"
        ) from error
    rows: dict[int, Array] = {}
    for label in np.unique(true.label[~true.ignored & (true.label >= 0)]).tolist():
        # COCO's means are means over classes, so one class at a time gives the same in less memory
        some, real = predicted[predicted.label == label], true[true.label == label]
        images = [{"id": one} for one in np.union1d(some.image, real.image).tolist()]
        kinds = [{"id": label, "name": str(label)}]
        data = [
            {"images": images, "categories": kinds, "annotations": list(_annotations(one))}
            for one in (real, some)
        ]
        judge = COCOeval_faster(*(COCO(one, use_deepcopy=False) for one in data), iouType="bbox")
        judge.run()
        stats = np.asarray(judge.stats, np.float64)
        rows[label] = np.where(stats < 0, np.nan, stats)
    table = np.stack(list(rows.values())) if rows else np.full((1, 12), np.nan)
    per_class = {label: AveragePrecision(**_known(row)) for label, row in rows.items()}
    known = ~np.isnan(table)
    mean = np.where(known, table, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
    return MeanAveragePrecision(**_known(mean), per_class=per_class)


def average_precision_50(
    predicted: Boxes, true: Boxes, *, iou: float = 0.5, limit: int = LIMIT
) -> dict[int, float]:
    """Return the average precision of each class that has a true box, at one IoU threshold.

    Interpolated at 101 recalls, as COCO does; the mean over classes is COCO's AP50.

    Args:
        predicted: The predicted boxes.
        true: The true boxes and ignore regions.
        iou: Least IoU of a box that is right, in (0, 1].
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
    images = int(max(predicted.image.max(initial=-1), true.image.max(initial=-1))) + 1
    n = np.bincount(predicted.image, minlength=images)

    real = np.flatnonzero(~true.ignored)
    pairs = overlaps(predicted.corners, n, *_corners_of(true[real], images), least=iou)
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
        pairs = overlaps(predicted.corners, n, *_corners_of(true[crowd], images))
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


def _corners_of(boxes: Boxes, images: int) -> tuple[Floats, Integers]:
    return boxes.corners, np.bincount(boxes.image, minlength=images)


def _first(values: Integers) -> Bools:
    """Tell where a value stands for the first time."""
    first = np.zeros(len(values), np.bool_)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def _annotations(boxes: Boxes) -> Iterator[dict[str, Any]]:
    sides = boxes.corners[:, 2:] - boxes.corners[:, :2]
    columns = (boxes.image, boxes.label, boxes.size, boxes.score, boxes.ignored.astype(np.int64))
    places = np.hstack([boxes.corners[:, :2], sides]).tolist()
    rows = zip(*(one.tolist() for one in columns), places, strict=True)
    for number, (image, label, area, score, crowd, place) in enumerate(rows, 1):
        yield {
            "id": number,  # 0 would mean "none"
            "image_id": image,
            "category_id": label,
            "bbox": place,
            "area": area,
            "score": score,
            "iscrowd": crowd,
        }


def _known(figures: Array) -> dict[str, float | None]:
    names = [one.name for one in fields(AveragePrecision)]  # in the order of COCO's statistics
    values = (None if np.isnan(one) else one for one in figures.tolist())
    return dict(zip(names, values, strict=True))
