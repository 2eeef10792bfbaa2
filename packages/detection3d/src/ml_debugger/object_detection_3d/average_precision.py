"""Average precision of boxes in space, by any of the three measures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from ml_debugger.core.detection.average_precision import average_precisions
from ml_debugger.core.detection.result_boxes import ResultBoxes
from ml_debugger.core.errors import InputError
from ml_debugger.object_detection_3d.geometry import LIMIT, Measure, geometry

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result

#: Where a box counts as right: from which IoU on, or up to which distance in metres.
THRESHOLDS: Mapping[Measure, tuple[float, ...]] = {
    "bev": (0.5, 0.7),
    "3d": (0.5, 0.7),
    "distance": (0.5, 1.0, 2.0, 4.0),
}


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision by one measure, in [0, 1]; None where there is no true box.

    Attributes:
        measure: What of the boxes is compared.
        ap: Mean over classes and thresholds.
        at: Mean over classes by threshold, an IoU or a distance in metres.
        per_class: Of each class that has a true box, by threshold.
    """

    measure: Measure
    ap: float | None
    at: Mapping[float, float | None]
    per_class: Mapping[int, Mapping[float, float]]


def average_precision(result: "Result", measure: Measure | None = None) -> AveragePrecision:
    """Return the average precision of a result, as COCO works it out.

    It is interpolated at 101 recalls, of the 100 boxes of each class and frame with the highest
    scores. A box that is right is near enough to a true one of its class, of which each is taken
    once. Boxes that the result leaves out, because they lie in an ignored true box of whatever
    class, do not count.

    The thresholds are an IoU of 0.5 and of 0.7, or nuScenes' distances of centres, 0.5, 1, 2 and
    4 m. nuScenes' own figure differs: it leaves out what has a recall or precision below 0.1, does
    not take the best precision at a higher recall, and limits each class to a range.

    Args:
        result: A 3D detector's.
        measure: What of the boxes is compared; None for what the result was judged by.

    Raises:
        InputError: The result is no 3D detector's, or there is no such measure.
    """
    chosen = cast(Measure, result.options["overlap"] if measure is None else measure)
    if chosen not in [*THRESHOLDS]:
        raise InputError(f"measure is {chosen!r}; expected one of {', '.join(THRESHOLDS)}")
    boxes = ResultBoxes.of(result, geometry(chosen))
    found = {
        one: average_precisions(boxes.predicted, boxes.true, iou=_least(chosen, one))
        for one in THRESHOLDS[chosen]
    }
    at = {one: _mean(list(of_class.values())) for one, of_class in found.items()}
    labels = next(iter(found.values()))
    return AveragePrecision(
        chosen,
        _mean([one for one in at.values() if one is not None]),
        at,
        {label: {one: of_class[label] for one, of_class in found.items()} for label in labels},
    )


def _least(measure: Measure, threshold: float) -> float:
    """Return the least of what `geometry.overlaps` calls IoU."""
    return threshold if measure != "distance" else 1 - threshold / (2 * LIMIT)


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
