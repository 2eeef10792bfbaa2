"""What is true of predicted boxes, and what their errors are called."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.detection.codes import CODE_KINDS, box_codes
from ml_debugger.core.detection.matching import KINDS, match_boxes
from ml_debugger.core.detection.pairs import Geometry
from ml_debugger.core.records import Array, Units
from ml_debugger.core.task import Verdict

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.estimator import Estimates

ALIGNED = KINDS.index("A")


def judge(
    geometry: Geometry,
    predicted: Units[Array],
    actual: Units[Array],
    aligned: float = 0.5,
    matched: float = 0.1,
) -> Verdict:
    """Match the boxes of some images, and say of each what it should have been.

    A box is right if it is aligned with a true box of its class. One that is aligned with a true
    box of another class should have been that; anything else should not be there as it is.

    Args:
        geometry: What a box is.
        predicted: The boxes that the user sees.
        actual: The true boxes of the same images.
        aligned: See `ml_debugger.core.detection.matching.match`.
        matched: Likewise.
    """
    crowd = np.asarray(actual["ignored"], np.bool_)
    prediction = np.asarray(predicted["prediction"], np.int64)
    labels = np.asarray(actual["label"], np.int64)
    found = match_boxes(
        geometry,
        geometry.boxes_of(predicted),
        predicted["score"],
        prediction,
        _counts(predicted),
        geometry.boxes_of(actual),
        labels,
        _counts(actual),
        crowd,
        aligned=aligned,
        matched=matched,
    )
    truth = np.append(labels, -1)[found.truth]
    placed = found.kind == ALIGNED
    return Verdict(
        target=np.where(placed, truth, -1),
        label=truth,
        judged=~found.ignored,
        aspects={
            "det": (~placed).astype(np.int8),
            "cls": np.where(placed, truth != prediction, -1).astype(np.int8),
        },
        kind=found.kind,
        columns={"iou": found.iou},
        missed=~found.found & ~crowd & ~found.undecidable,
    )


def codes(
    prediction: NDArray[np.int64],
    verdict: Verdict | None,
    estimates: "Estimates",
    error_proba_thresh: float,
) -> Sequence[str]:
    """Name each box's error; without a verdict, what the features suggest."""
    answers = estimates.answers
    assert answers is not None  # the schema names aspects
    assert answers.kinds is not None  # and kinds
    proba = answers.kinds
    if verdict is None or verdict.kind is None:
        kind = proba.argmax(axis=1).astype(np.int8)
        doubtful = answers.aspects["cls"] >= 0.5
        label = np.where(doubtful, estimates.plausible, prediction).astype(np.int64)
    else:
        kind = verdict.kind
        label = verdict.target if verdict.label is None else verdict.label
    alone = np.isin(kind, [KINDS.index(one) for one in ("ON", "N", "U")])
    of_kind = proba[np.arange(len(kind)), kind]
    return box_codes(kind, of_kind, np.where(alone, -1, label), prediction, error_proba_thresh)


def missed_codes(label: NDArray[np.int64]) -> Sequence[str]:
    """Name the true boxes that nothing was predicted for."""
    kind = np.full(len(label), CODE_KINDS.index("no_prediction"))
    nothing = np.full(len(label), -1)
    return box_codes(kind, np.full(len(label), np.nan), label, nothing)


def _counts(units: Units[Array]) -> Array:
    return np.ones(len(units), np.int64) if units.counts is None else units.counts
