"""Error codes of classes: what was meant, and what it was taken for.

    CLS3->7      annotated 3, predicted 7
    CLS3->3      annotated and predicted 3: correct
    CLS3->7|1    the features are unstable: 7 was predicted, and 1 is as easily taken for it
    CLS3->7**    the features, too, speak for 3: very likely truly wrong
    CLS-->7      predicted 7, and the truth is none of the model's classes
    CLS3->-      nothing was predicted

Lists and `**` exclude each other: units of the critical and the aleatoric zone are marked
certain or have the plain form.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.evaluation.error_model.scaling import Array, Integers
from ml_debugger.core.evaluation.estimator import Estimates
from ml_debugger.core.evaluation.zones import ZONES, Zone

_NUMBER = r"(?:0|[1-9][0-9]*)"
_CODE = re.compile(rf"CLS({_NUMBER}|-)->({_NUMBER}(?:\|{_NUMBER})*|-)(\*\*)?", re.ASCII)
_NONE = -1
_SURE = tuple(ZONES.index(zone) for zone in (Zone.CRITICAL_HOTSPOT, Zone.ALEATORIC_HOTSPOT))
_HOT = tuple(number for number, zone in enumerate(ZONES) if zone.is_hot)


@dataclass(frozen=True, slots=True)
class ClassCode:
    """An error code, taken apart; `str()` puts it together.

    Attributes:
        target: Annotated (or estimated) class; None for none of the model's classes.
        predicted: The predicted class, then those it is easily confused with; empty where
            nothing was predicted.
        certain: Whether the features speak for the annotation.

    Raises:
        ValueError: No unit can have such a code.
    """

    target: int | None
    predicted: tuple[int, ...]
    certain: bool = False

    def __post_init__(self) -> None:
        numbers = self.predicted if self.target is None else (self.target, *self.predicted)
        if any(number < 0 for number in numbers):
            raise ValueError(f"classes are numbered from 0, got {numbers}")
        if len(set(self.predicted)) < len(self.predicted) or self.target in self.predicted[1:]:
            raise ValueError(f"{self.target} cannot be confused with {self.predicted}")
        if self.certain and (self.target is None or len(self.predicted) != 1 or self.correct):
            raise ValueError("only one annotated class, predicted as one other, can be certain")

    @property
    def correct(self) -> bool:
        """Whether the prediction is the annotated class."""
        return self.target is not None and self.predicted[:1] == (self.target,)

    def __str__(self) -> str:
        target = "-" if self.target is None else str(self.target)
        predicted = "|".join(map(str, self.predicted)) or "-"
        return f"CLS{target}->{predicted}{'**' if self.certain else ''}"


def parse_code(text: str) -> ClassCode:
    """Take an error code apart; the inverse of `str(ClassCode)`.

    Raises:
        ValueError: It is not the error code of any unit.

    Example:
        >>> parse_code("CLS3->7|1").predicted
        (7, 1)
    """
    match = _CODE.fullmatch(text)
    if match is None:
        raise ValueError(f"not an error code: {text!r}; expected a form such as CLS3->7|1")
    target, predicted, certain = match.groups()
    return ClassCode(
        target=None if target == "-" else int(target),
        predicted=() if predicted == "-" else tuple(map(int, predicted.split("|"))),
        certain=certain is not None,
    )


def class_codes(
    prediction: Integers,
    target: Integers | None,
    zones: Array,
    estimates: Estimates,
    *,
    min_share: float = 0.2,
    most: int = 3,
) -> list[str]:
    """Return the error code of each unit.

    With a list: unstable units that are wrong or hot, outside the critical and the aleatoric
    zone. After the predicted class come those with a share of at least `min_share` other than
    the annotated one, by descending share, then by number. Marked `**`: units of the critical or
    aleatoric zone where prediction and annotation differ and the features speak for the latter.

    Args:
        prediction: Predicted classes, shape (n,); a negative one means nothing was predicted.
        target: Annotated classes, shape (n,); outside 0..K-1 means none of the model's. None
            without annotation: the left side is then an estimate, the most plausible class of a
            hot unit and the prediction of any other, and nothing is certain.
        zones: Positions in `ZONES`, shape (n,).
        estimates: Of these units.
        min_share: Least share of a class that is listed.
        most: Most classes in a list, the predicted one included.
    """
    n, n_class = estimates.shares.shape
    prediction = np.asarray(prediction, np.int64)
    hot, sure = np.isin(zones, _HOT), np.isin(zones, _SURE)
    if target is None:
        guess = estimates.shares.argmax(axis=1) if n_class else prediction
        known = hot & (estimates.shares.max(axis=1, initial=0) > 0)
        target, certain = np.where(known, guess, prediction), np.zeros(n, np.bool_)
    else:
        target = np.asarray(target, np.int64)
        target = np.where((target >= 0) & (target < n_class), target, _NONE)
        certain = sure & (target != prediction) & (estimates.plausible == target)
        certain &= (target >= 0) & (prediction >= 0)
    listed = estimates.unstable & ~sure & (hot | (target != prediction)) & (prediction >= 0)
    others = _confusions(estimates.shares, prediction, target, listed, min_share, most - 1)
    parts = np.column_stack([target, np.maximum(prediction, _NONE), certain, others])
    # There are few different codes; each is put together once.
    different, which = np.unique(parts, axis=0, return_inverse=True)
    texts = np.array([_text(row) for row in different.tolist()], dtype=object)
    codes: list[str] = texts[which.reshape(-1)].tolist()
    return codes


def _confusions(
    shares: NDArray[np.float32],
    prediction: Integers,
    target: Integers,
    listed: NDArray[np.bool_],
    min_share: float,
    most: int,
) -> Integers:
    """Return further classes of each unit, shape (n, most), filled up with -1."""
    found = np.full((len(shares), max(most, 0)), _NONE, np.int64)
    rows = np.flatnonzero(listed)
    if found.size == 0 or len(rows) == 0:
        return found
    left = shares[rows].astype(np.float64)
    left[left < min_share] = 0
    for said in (prediction[rows], target[rows]):
        inside = (said >= 0) & (said < shares.shape[1])
        left[np.flatnonzero(inside), said[inside]] = 0
    # A stable sort of the negated shares leaves equal ones in the order of their numbers.
    order = np.argsort(-left, axis=1, kind="stable")[:, :most]
    taken = np.take_along_axis(left, order, axis=1) > 0
    found[rows, : order.shape[1]] = np.where(taken, order, _NONE)
    return found


def _text(row: list[int]) -> str:
    target, prediction, certain, *others = row
    predicted = [number for number in (prediction, *others) if number != _NONE]
    return str(ClassCode(None if target == _NONE else target, tuple(predicted), bool(certain)))
