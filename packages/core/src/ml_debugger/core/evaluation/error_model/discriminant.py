"""Linear discriminant analysis out of sums, so that leaving a fold out is a subtraction."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.evaluation.error_model.scaling import (
    Array,
    Floats,
    Integers,
    Scaling,
    Singles,
    log_softmax,
    product,
    slices,
)

_SHRINKAGE = 0.02
_NEVER = -1e4


@dataclass(frozen=True)
class Moments:
    """Sums over labelled features; those of disjoint rows can be added and subtracted.

    Attributes:
        count: Units of each class, shape (C,), float64.
        total: Sum of their features, shape (C, d), float64.
        scatter: Sum of the outer products of all features, shape (d, d), float64.
    """

    count: Floats
    total: Floats
    scatter: Floats

    @classmethod
    def of(cls, scaling: Scaling, values: Array, rows: Integers, labels: Integers, n: int) -> Self:
        """Sum up some rows of a layer, whose labels (n,) lie in 0..n-1."""
        width = scaling.scaled_width
        count, total = np.bincount(labels[rows], minlength=n), np.zeros((n, width))
        scatter = np.zeros((width, width))
        for part in slices(len(rows), values.shape[1]):
            chunk = rows[part]
            scaled = scaling(values[chunk])
            scatter += scaled.T @ scaled
            order = np.argsort(labels[chunk], kind="stable")
            present, first = np.unique(labels[chunk][order], return_index=True)
            total[present] += np.add.reduceat(scaled[order], first, axis=0, dtype=np.float64)
        return cls(count.astype(np.float64), total, scatter)

    def shrunk(self) -> tuple[Floats, Floats]:
        """Return class means (C, d) and their shared covariance (d, d), both shrunk.

        The means are drawn to the common mean by one pseudo-unit, the covariance to a multiple
        of the identity by 2 %, so that classes with few units, or none, do no harm.
        """
        n = max(self.count.sum(), 1.0)
        common = self.total.sum(axis=0) / n
        mean: Floats = (self.total + common) / (self.count + 1)[:, None]
        cross = self.total.T @ mean
        within = (self.scatter - cross - cross.T + (mean * self.count[:, None]).T @ mean) / n
        width = len(common)
        ridge = max(_SHRINKAGE * np.trace(within) / width, 1e-6)
        covariance: Floats = (1 - _SHRINKAGE) * within + ridge * np.eye(width)
        return mean, covariance

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.count + other.count, self.total + other.total, self.scatter + other.scatter
        )

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(
            self.count - other.count, self.total - other.total, self.scatter - other.scatter
        )


@dataclass(frozen=True)
class Discriminant:
    """Linear discriminant analysis with a shared covariance (Fisher 1936, Rao 1948).

    Attributes:
        weights: Shape (d, C), float32.
        bias: Shape (C,), float32.
    """

    weights: Singles
    bias: Singles

    @classmethod
    def fit(cls, moments: Moments, *, possible: NDArray[np.bool_]) -> Self:
        """Fit to sums; classes that are not `possible` (shape (C,)) are never found."""
        count = moments.count
        mean, covariance = moments.shrunk()
        weights = np.linalg.solve(covariance, mean.T)
        prior = np.log((count + 1) / (count.sum() + possible.sum()))
        bias = np.where(possible, prior - 0.5 * np.sum(mean * weights.T, axis=1), _NEVER)
        return cls(weights.astype(np.float32), bias.astype(np.float32))

    def log_posterior(self, scaled: Singles) -> Floats:
        """Return the log-probability of each class, shape (n, C), for features (n, d)."""
        odds = product(scaled, self.weights) + self.bias
        return log_softmax(odds.astype(np.float64))
