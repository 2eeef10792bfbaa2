"""How many things a model probably missed in an input, as the inputs with ground truth teach."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.evaluation.error_model.folds import FOLDS
from ml_debugger.core.records import Array, owners

Floats = NDArray[np.float64]

_RIDGE = 1.0
_LEAST = 20  # inputs; with fewer, the mean is all that can be said


@dataclass(frozen=True)
class Omissions:
    """A Poisson regression on what is known of an input.

    Attributes:
        names: The input columns that it looks at, beside what it makes of the units.
        centre: Mean of each predictor, shape (c,), float64.
        scale: Standard deviation of each, 1 for a constant one, shape (c,), float64.
        weights: Shape (c,), float64.
        intercept: Log of the number missed where every predictor is at its mean.
    """

    names: tuple[str, ...]
    centre: Floats
    scale: Floats
    weights: Floats
    intercept: float

    @classmethod
    def fit(
        cls, names: Sequence[str], predictors: Floats, missed: Array, groups: Array
    ) -> tuple[Self, Floats]:
        """Learn from inputs with ground truth.

        Args:
            names: The input columns among the predictors.
            predictors: As `predictors_of` gives them, shape (n, c).
            missed: How many were missed in each input, shape (n,).
            groups: Inputs of one group do not judge each other, shape (n,).

        Returns:
            The regression, and what fits to the other inputs say of each, shape (n,).
        """
        whole = cls._once(names, predictors, missed)
        found = whole(predictors)
        _, fold = np.unique(groups, return_inverse=True)
        fold = fold % FOLDS
        for one in range(FOLDS):
            inside = fold == one
            if inside.any() and not inside.all():
                found[inside] = cls._once(names, predictors[~inside], missed[~inside])(
                    predictors[inside]
                )
        return whole, found

    @classmethod
    def _once(cls, names: Sequence[str], predictors: Floats, missed: Array) -> Self:
        from scipy.optimize import minimize  # type: ignore[import-untyped,unused-ignore]

        centre, scale = predictors.mean(axis=0), predictors.std(axis=0)
        scale = np.where(scale > 1e-9, scale, 1.0)
        start = np.zeros(predictors.shape[1] + 1)
        start[-1] = np.log((float(np.sum(missed)) + 0.5) / (len(missed) + 1))
        if len(missed) < _LEAST:
            return cls(tuple(names), centre, scale, start[:-1], float(start[-1]))
        evidence = np.clip((predictors - centre) / scale, -4, 4)

        def loss(values: Floats) -> tuple[float, Floats]:
            log_rate = np.clip(evidence @ values[:-1] + values[-1], -20, 20)
            rate = np.exp(log_rate)
            value = float((rate - missed * log_rate).sum())
            value += 0.5 * _RIDGE * float(values[:-1] @ values[:-1])
            residual = rate - missed
            # one more input in which half of a thing was missed: none so far is not never
            level = np.exp(np.clip(values[-1], -20, 20))
            value += float(level - 0.5 * values[-1])
            slope = np.append(
                evidence.T @ residual + _RIDGE * values[:-1], residual.sum() + level - 0.5
            )
            return value, slope

        found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
        return cls(tuple(names), centre, scale, found[:-1], float(found[-1]))

    def __call__(self, predictors: Floats) -> Floats:
        """Return how many are expected to be missed in each input, shape (n,)."""
        evidence = np.clip((predictors - self.centre) / self.scale, -4, 4)
        odds = (evidence * self.weights).sum(axis=1) + self.intercept
        expected: Floats = np.exp(np.clip(odds, -20, 20))
        return expected

    def settings(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "names": list(self.names),
            "centre": self.centre.tolist(),
            "scale": self.scale.tolist(),
            "weights": self.weights.tolist(),
            "intercept": self.intercept,
        }

    @classmethod
    def restore(cls, settings: Mapping[str, Any]) -> Self:
        """Rebuild it from its settings."""
        return cls(
            names=tuple(settings["names"]),
            centre=np.asarray(settings["centre"], np.float64),
            scale=np.asarray(settings["scale"], np.float64),
            weights=np.asarray(settings["weights"], np.float64),
            intercept=settings["intercept"],
        )


def predictors_of(
    inputs: Mapping[str, Array], counts: Array, error_proba: Array, score: Array
) -> Floats:
    """Return what is known of inputs: their columns, and sums over their units.

    Args:
        inputs: Columns of the inputs, shape (n,) each; what is not finite counts as 0.
        counts: How many units each input has, shape (n,).
        error_proba: Of the units, in the order of their inputs.
        score: Of the units.

    Returns:
        Shape (n, c), float64. Sums and counts grow without bound, so their logarithm is taken.
    """
    owner = owners(counts, len(counts))
    right = np.bincount(owner, 1 - np.asarray(error_proba, np.float64), len(counts))
    columns = [counts, np.bincount(owner, error_proba, len(counts)), right]
    columns.append(np.bincount(owner, np.nan_to_num(score), len(counts)))
    known = [
        np.nan_to_num(np.asarray(one, np.float64), posinf=0, neginf=0) for one in inputs.values()
    ]
    return np.column_stack([np.log1p(np.maximum(one, 0)) for one in (*columns, *known)])


def chance_of_any(expected: Floats) -> Floats:
    """Return the probability that at least one was missed, where so many are expected."""
    return -np.expm1(-expected)
