"""What is usual of a class: four metres are short for a lorry, and long for a car."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from ml_debugger.core.evaluation.error_model.scaling import Array, Floats, Integers

#: A class counts as so many units of its own, and this many that are like all others.
_LIKE_ALL = 10.0
#: What lies beyond these quantiles of all counts as if it lay there.
_ENDS = (0.001, 0.999)
#: Deviations of a statistic from what is usual, at most.
_CLIP = 4.0


@dataclass(frozen=True)
class Usual:
    """Mean and deviation of each statistic among the predictions of a class.

    Attributes:
        centre: Shape (K + 1, s), float64; the last row is of all classes.
        spread: Likewise, above 0.
        ends: Least and largest value of each that is not out of all measure, shape (2, s).
    """

    centre: Floats
    spread: Floats
    ends: Floats

    @classmethod
    def fit(cls, values: Array, prediction: Integers, n_class: int) -> Self:
        """Learn it from statistics (n, s), NaN where unknown, and predicted classes (n,)."""
        known = np.isfinite(values)
        number = np.where((prediction >= 0) & (prediction < n_class), prediction, n_class)
        given = np.where(known, values, 0.0).astype(np.float64)
        ends = np.zeros((2, values.shape[1]))
        for at, there in enumerate(known.T):
            if there.any():
                ends[:, at] = np.quantile(given[there, at], _ENDS)
        given = np.clip(given, *ends)  # one outlier must not make everything else usual
        middle = given.sum(axis=0, where=known) / np.maximum(known.sum(axis=0), 1)
        off = np.where(known, given - middle, 0.0)
        sums = np.zeros((3, n_class + 1, values.shape[1]))
        for at, part in enumerate((known.astype(np.float64), off, off**2)):
            np.add.at(sums[at], number, part)
        whole = sums.sum(axis=1, keepdims=True)
        like_all = _LIKE_ALL * whole / np.maximum(whole[:1], 1.0)
        sums[:, n_class] = whole[:, 0]
        count, first, second = sums + like_all
        count = np.maximum(count, 1e-9)
        mean = first / count
        spread = np.sqrt(np.maximum(second / count - mean**2, 0.0))
        return cls(middle + mean, np.where(spread > 1e-9, spread, np.inf), ends)

    @property
    def width(self) -> int:
        """How many statistics there are of a unit."""
        return int(self.centre.shape[1])

    def columns(self, values: Array, prediction: Integers) -> Floats:
        """Return what statistics say: themselves, and how far they are off, with sign and without.

        Args:
            values: Shape (n, s).
            prediction: Classes, K where a class is not known, shape (n,).

        Returns:
            Shape (n, 3 * s), NaN where a statistic is not known.
        """
        known = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
        off = np.clip((known - self.centre[prediction]) / self.spread[prediction], -_CLIP, _CLIP)
        return np.hstack([np.clip(known, *self.ends), off, np.abs(off)])

    def arrays(self) -> dict[str, Array]:
        """Return what was learnt, by name."""
        return {"centre": self.centre, "spread": self.spread, "ends": self.ends}

    @classmethod
    def restore(cls, arrays: Mapping[str, Array]) -> Self:
        """Undo `arrays`."""
        return cls(arrays["centre"], arrays["spread"], arrays["ends"])
