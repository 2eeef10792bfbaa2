"""Which errors a detector makes, where it makes them, and what each sort costs in AP50."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ml_debugger.core.detection.analysis import Analysis, Bins, class_bins, score_bins, thirds
from ml_debugger.core.detection.pairs import Floats
from ml_debugger.core.evaluation.frames import FrameKind, as_frame
from ml_debugger.object_detection.boxes import GEOMETRY, areas

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result

By = Literal["class", "size", "score"]

#: COCO's borders of small, medium and large boxes, as the side of a square in pixels.
_SIDES = (32.0, 96.0)
#: Where one size would hold more than this share of the true boxes, thirds of them are taken.
_LOPSIDED = 0.9


def error_types(result: "Result", by: By | None = None, as_: FrameKind = "pandas") -> Any:
    """Return how many errors of each type there are, and what each costs in AP50.

    The types: "class" (well placed, but of the wrong class), "place" (poorly placed, split or
    merged, whatever its class), "duplicate", "background" (no true box is there) and "missed" (a
    true box that no predicted one has found). To mend them means: a class is put right; of the
    poorly placed boxes of a true box the best of the right class becomes right and the others go;
    duplicates and boxes on background go; of missed boxes none is asked for any more. What AP50
    gains by mending all errors of one type alone is their cost; costs overlap, and do not add up.

    Args:
        result: A detector's.
        by: Count by the predicted "class" (that of the truth for what was missed), by "size" of
            the box, or by "score". Sizes are COCO's, with borders at 32 x 32 and 96 x 96 pixels;
            where one of these would hold more than nine in ten of the true boxes, thirds of the
            true boxes. Scores are five bins of equal width; what was missed has none.
        as_: The kind of frame.

    Returns:
        A frame with a row a type, of each group: `group` (where `by` is given), `type`, `kinds`,
        `n`, `of` (all boxes of the group; for missed the true ones), `share`, `mean_score`,
        `mean_error_proba` and `ap50_cost`. What is not defined is null.

    Raises:
        InputError: The result is no detector's, or `by` is something else.
    """
    return as_frame(analysis_of(result).error_types(by), as_)


def class_table(result: "Result", as_: FrameKind = "pandas") -> Any:
    """Return how a detector does on each class.

    Returns:
        A frame with a row a class that is predicted or true: `label`, `name`, `truths`, `found`
        (by a box that has to do with it, however poorly placed), `missed`, `boxes`, `right`,
        `precision` (of the boxes), `recall` (right boxes by truths), `ap50` and
        `mean_error_proba` (of the boxes). What is not defined is null.

    Raises:
        InputError: The result is no detector's.
    """
    return as_frame(analysis_of(result).class_table(), as_)


def image_table(result: "Result", as_: FrameKind = "pandas") -> Any:
    """Return how a detector does on each image, those with the most errors first.

    Returns:
        A frame with a row an image: `input_id`, `dataset_type`, `n_epoch`, `truths`, `boxes`,
        `wrong`, `missed`, `expected_wrong` and `expected_missed` (see `Result.inputs`). Ordered by
        wrong and missed boxes together, then by those expected.

    Raises:
        InputError: The result is no detector's.
    """
    return as_frame(analysis_of(result).image_table(), as_)


def analysis_of(result: "Result") -> Analysis:
    """Return what the tables have in common.

    Raises:
        InputError: The result is no detector's.
    """
    return Analysis(result, GEOMETRY, _BINS, ap="ap50")


def size_borders(sizes: Floats) -> Floats:
    """Return the sides of the squares that part small from medium from large boxes, in pixels.

    COCO's, or those of thirds where one of COCO's sizes would hold almost all boxes.

    Args:
        sizes: Areas of the true boxes in square pixels, shape (m,).
    """
    borders = np.array(_SIDES)
    shares = np.bincount(np.searchsorted(borders**2, sizes, "right"), minlength=3)
    if not len(sizes) or shares.max() <= _LOPSIDED * len(sizes):
        return borders
    return np.sqrt(thirds(sizes))


def _size_bins(analysis: Analysis) -> Bins:
    here, there = (areas(one.places) for one in (analysis.boxes.predicted, analysis.boxes.true))
    sides = size_borders(there[analysis.real])
    small, large = (f"{side:.0f}\u00b2" for side in sides)
    return Bins(
        (f"small (< {small} px)", "medium", f"large (\u2265 {large} px)"),
        np.searchsorted(sides**2, here, "right"),
        np.searchsorted(sides**2, there, "right"),
    )


_BINS = {"class": class_bins, "size": _size_bins, "score": score_bins}
