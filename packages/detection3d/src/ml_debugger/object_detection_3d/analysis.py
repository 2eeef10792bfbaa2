"""Which errors a 3D detector makes, where it makes them, and what each sort costs in AP."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from ml_debugger.core.detection.analysis import Analysis, Bins, class_bins, score_bins, thirds
from ml_debugger.core.detection.pairs import Bools, Floats, Integers
from ml_debugger.core.detection.result_boxes import Boxes, matched_pairs
from ml_debugger.core.evaluation.frames import FrameKind, as_frame, numbers, texts
from ml_debugger.object_detection_3d.geometry import Measure, geometry
from ml_debugger.object_detection_3d.statistics import SENSORS

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result

By = Literal["class", "distance", "points", "heading", "size", "score"]

#: Borders of distances in metres, of numbers of points, and of heading errors in degrees.
_DISTANCES = (10, 20, 30, 50)
_POINTS = (1, 5, 20, 100)
_HEADINGS = (10, 30, 90, 150)


def error_types(result: "Result", by: By | None = None, as_: FrameKind = "pandas") -> Any:
    """Return how many errors of each type there are, and what each costs in AP.

    The types: "class" (well placed, but of the wrong class), "place" (poorly placed, split or
    merged, whatever its class), "duplicate", "background" (no true box is there) and "missed" (a
    true box that no predicted one has found). To mend them means: a class is put right; of the
    poorly placed boxes of a true box the best of the right class becomes right and the others go;
    duplicates and boxes on background go; of missed boxes none is asked for any more. What AP
    gains by mending all errors of one type alone is their cost; costs overlap, and do not add up.
    AP is that at the overlap and the `aligned_iou` that the result was made with.

    Args:
        result: A 3D detector's.
        by: Count by the predicted "class" (that of the truth for what was missed), by "distance"
            from the sensor seen from above, by the number of "points" in the box, by "size" (thirds
            of the true boxes by the area seen from above), by "score" (five bins of equal width),
            or by "heading": how many degrees the yaw is off that of the true box. What was missed
            has no score and no heading; what is not known is in a group of its own.
        as_: The kind of frame.

    Returns:
        A frame with a row a type, of each group: `group` (where `by` is given), `type`, `kinds`,
        `n`, `of` (all boxes of the group; for missed the true ones), `share`, `mean_score`,
        `mean_error_proba` and `ap_cost`. What is not defined is null.

    Raises:
        InputError: The result is no 3D detector's, or `by` is something else.
    """
    return as_frame(analysis_of(result).error_types(by), as_)


def class_table(result: "Result", as_: FrameKind = "pandas") -> Any:
    """Return how a 3D detector does on each class.

    Returns:
        A frame with a row a class that is predicted or true: `label`, `name`, `truths`, `found`
        (by a box that has to do with it, however poorly placed), `missed`, `boxes`, `right`,
        `precision` (of the boxes), `recall` (right boxes by truths), `ap` (see `error_types`) and
        `mean_error_proba` (of the boxes). What is not defined is null.

    Raises:
        InputError: The result is no 3D detector's.
    """
    return as_frame(analysis_of(result).class_table(), as_)


def frame_table(result: "Result", as_: FrameKind = "pandas") -> Any:
    """Return how a 3D detector does on each frame, those with the most errors first.

    Returns:
        A frame with a row a frame: `input_id`, `dataset_type`, `n_epoch`, `truths`, `boxes`,
        `wrong`, `missed`, `expected_wrong` and `expected_missed` (see `Result.inputs`). Ordered by
        wrong and missed boxes together, then by those expected.

    Raises:
        InputError: The result is no 3D detector's.
    """
    return as_frame(analysis_of(result).image_table(), as_)


def analysis_of(result: "Result") -> Analysis:
    """Return what the tables have in common.

    Raises:
        InputError: The result is no 3D detector's.
    """
    how = geometry(cast(Measure, result.options["overlap"]))
    return Analysis(result, how, _BINS, iou=result.options["aligned_iou"])


def with_sensor(analysis: Analysis) -> Bools:
    """Tell in which frames the origin is a sensor, shape (frames,)."""
    return np.isin(texts(analysis.boxes.images, "frame"), SENSORS)


def heading_errors(analysis: Analysis) -> Floats:
    """Return how many degrees each predicted box's yaw is off that of the true box it belongs to.

    Shape (n,), in [0, 180]; NaN where it belongs to none.
    """
    boxes = analysis.boxes
    real, matched = boxes.true[analysis.real], np.flatnonzero(analysis.label >= 0)
    some = boxes.predicted[matched]
    pairs = matched_pairs(some, real, analysis.label[matched], analysis.shared[matched])
    off = some.places[pairs.first, 6] - real.places[pairs.second, 6]
    found = np.full(len(boxes.predicted), np.nan)
    found[matched[pairs.first]] = np.degrees(np.abs((off + np.pi) % (2 * np.pi) - np.pi))
    return found


def _distance_bins(analysis: Analysis) -> Bins:
    sensor = with_sensor(analysis)

    def places(boxes: Boxes) -> Integers:
        x, y = boxes.places[:, :2].T
        known = sensor[boxes.image] & boxes.places.any(1)
        return _places(np.where(known, np.hypot(x, y), np.nan), _DISTANCES)

    here, there = (places(one) for one in _both(analysis))
    return _bins(_names(_DISTANCES, " m"), "not known", here, there)


def _point_bins(analysis: Analysis) -> Bins:
    units, truths = (numbers(t, "points") for t in (analysis.boxes.units, analysis.boxes.truths))
    here, there = (_places(n, _POINTS) for n in (units, truths))
    names = ["0", *(f"{a} to {b - 1}" for a, b in pairwise(_POINTS))]
    return _bins([*names, f"{_POINTS[-1]} or more"], "not counted", here, there)


def _heading_bins(analysis: Analysis) -> Bins:
    here = _places(heading_errors(analysis), _HEADINGS)
    return _bins(_names((*_HEADINGS, 180), "\u00b0")[:-1], "no true box", here, None)


def _size_bins(analysis: Analysis) -> Bins:
    here, there = (one.places[:, 3:5].prod(1) for one in _both(analysis))
    real = there[analysis.real]
    borders = thirds(real) if len(real) else np.zeros(2)
    small, large = (f"{one:.2g} m\u00b2" for one in borders)
    names = (f"small (< {small})", "medium", f"large (\u2265 {large})")
    return Bins(names, *(np.searchsorted(borders, one, "right") for one in (here, there)))


def _both(analysis: Analysis) -> tuple[Boxes, Boxes]:
    return analysis.boxes.predicted, analysis.boxes.true


def _places(values: Floats, borders: Sequence[float]) -> Integers:
    """Return which bin each value is in; one more than there are bins where it is not known."""
    found: Integers = np.searchsorted(borders, values, "right")
    return np.where(np.isnan(values), len(borders) + 1, found)


def _bins(names: Sequence[str], unknown: str, here: Integers, there: Integers | None) -> Bins:
    """Return bins, with one of what is not known if there is any."""
    last = len(names)
    some = (here == last).any() or (there is not None and (there == last).any())
    return Bins([*names, unknown] if some else names, here, there)


def _names(borders: Sequence[float], unit: str) -> list[str]:
    pairs = pairwise((0, *borders))
    return [*(f"{a} to {b}{unit}" for a, b in pairs), f"{borders[-1]}{unit} or more"]


_BINS = {
    "class": class_bins,
    "distance": _distance_bins,
    "points": _point_bins,
    "heading": _heading_bins,
    "size": _size_bins,
    "score": score_bins,
}
