"""A monotone correction of probabilities, learnt from what they said of units of other folds."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.evaluation.error_model.folds import FOLDS
from ml_debugger.core.evaluation.error_model.scaling import Array, Floats, Integers

_KNOTS = 10
_PER_KNOT = 40  # errors and correct units, in the mean, that a knot has to stand on
_WEIGHT = 50.0  # units by which each knot is drawn to no correction
_LARGEST = 12.0  # log-odds; beyond, the correction of the last knot holds


@dataclass(frozen=True)
class Correction:
    """What to add to log-odds: straight lines between knots, and level beyond the outer ones.

    A logistic regression is straight in the log-odds; where evidence adds up in another way, its
    probabilities are right on average and off in places. After isotonic regression (Zadrozny &
    Elkan 2002), with few steps, drawn to the identity, and without ties.

    Attributes:
        at: Log-odds of the knots, ascending, shape (k,), float64.
        shift: What is added there, shape (k,), float64.
    """

    at: Floats
    shift: Floats

    @classmethod
    def fit(cls, proba: Array, wrong: Array) -> Self | None:
        """Learn from probabilities (n,) and outcomes (n,); None where these are too few."""
        least = min(int(np.sum(wrong)), len(wrong) - int(np.sum(wrong)))
        knots = min(_KNOTS, least // _PER_KNOT)
        if knots < 3:
            return None
        order = np.argsort(proba, kind="stable")
        parts = np.array_split(order, knots)
        given, outcome = np.asarray(proba, np.float64), np.asarray(wrong, np.float64)
        said = np.array([given[part].mean() for part in parts])
        size = np.array([len(part) for part in parts], np.float64)
        seen = np.array([outcome[part].sum() for part in parts])
        rate = _ascending((seen + _WEIGHT * said) / (size + _WEIGHT), size)
        at, kept = np.unique(log_odds(said), return_index=True)
        return cls(at, (log_odds(rate) - log_odds(said))[kept])

    @classmethod
    def held_out(
        cls, proba: Array, wrong: Array, folds: Integers, among: NDArray[np.bool_]
    ) -> NDArray[np.float32] | None:
        """Correct each fold's probabilities by the others; None where these are too few.

        Args:
            proba: Shape (n,).
            wrong: Outcomes, shape (n,).
            folds: Shape (n,).
            among: Which units have an outcome to learn from, shape (n,).
        """
        found = np.array(proba, np.float32)
        for fold in range(FOLDS):
            inside = folds == fold
            if not inside.any():
                continue
            others = among & ~inside
            one = cls.fit(proba[others], wrong[others])
            if one is None:
                return None
            found[inside] = one(proba[inside])
        return found

    def __call__(self, proba: Array) -> NDArray[np.float32]:
        """Return corrected probabilities, shape (n,), float32."""
        odds = log_odds(np.asarray(proba, np.float64))
        odds = odds + np.interp(odds, self.at, self.shift)
        corrected: NDArray[np.float32] = (1 / (1 + np.exp(-odds))).astype(np.float32)
        return corrected


def log_odds(proba: Floats) -> Floats:
    """Return the log-odds of probabilities, within ±12."""
    least = 1 / (1 + np.exp(_LARGEST))
    clipped = np.clip(proba, least, 1 - least)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def _ascending(values: Floats, weights: Floats) -> Floats:
    """Return the nearest values that do not descend (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n, i), (b, m, j) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m, i + j)]
    return np.repeat([value for value, _, _ in blocks], [count for _, _, count in blocks])
