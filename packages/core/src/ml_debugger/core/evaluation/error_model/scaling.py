"""Features of one layer in comparable units, and the arrays that all evidence is made of."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Integers = NDArray[np.int64]

_WIDEST = 128
_AT_A_TIME = 2**20
_CLIP = 8.0


@dataclass(frozen=True)
class Scaling:
    """Brings one layer's features to comparable units.

    Attributes:
        columns: The features that vary, shape (d,), int64.
        mean: Their means over the evaluated units, shape (d,), float32.
        inverse: The inverse of their standard deviations, shape (d,), float32.
        projection: The directions of largest variance, shape (d, 128) or fewer, float32, or None
            where there are no more than 128 features.
        width: How many features there are as recorded.
    """

    columns: Integers
    mean: Singles
    inverse: Singles
    projection: Singles | None
    width: int

    @classmethod
    def fit(cls, values: Array, rows: Integers) -> Self:
        """Learn the units from some rows.

        Args:
            values: Features, shape (n, d), any float dtype.
            rows: The rows to learn from, all finite.

        Returns:
            A scaling; its `columns` are empty where no feature varies.
        """
        width = values.shape[1]
        total = np.zeros(width)
        for chunk in chunks(values, rows):
            total += chunk.sum(axis=0, dtype=np.float64)
        mean = total / len(rows)
        squares = np.zeros(width)
        for chunk in chunks(values, rows):
            squares += np.square(chunk - mean).sum(axis=0)
        deviation = np.sqrt(squares / len(rows))
        # A constant feature has a deviation of a rounding error, which would be blown up.
        columns = np.flatnonzero(deviation > 1e-7 * np.abs(mean))
        plain = cls(
            columns=columns,
            mean=mean[columns].astype(np.float32),
            inverse=(1 / deviation[columns]).astype(np.float32),
            projection=None,
            width=width,
        )
        if len(columns) <= _WIDEST:
            return plain
        return replace(plain, projection=_principal(plain, values, rows))

    @property
    def scaled_width(self) -> int:
        """How many numbers are left of each unit."""
        return len(self.columns) if self.projection is None else self.projection.shape[1]

    def __call__(self, values: Array) -> Singles:
        """Scale features of shape (n, d) to float32; a non-finite one counts as its mean."""
        chosen = singles(values[:, self.columns])
        scaled: Singles = np.clip((chosen - self.mean) * self.inverse, -_CLIP, _CLIP)
        scaled[~np.isfinite(chosen)] = 0
        if self.projection is None:
            return scaled
        return product(scaled, self.projection)


def product(left: Singles, right: Singles) -> Singles:
    """Multiply matrices in double precision, rounded to single.

    Where a row stands in a matrix can change the last bits of its product; those are cut off.
    """
    result: Singles = (left.astype(np.float64) @ right).astype(np.float32)
    return result


def chunks(values: Array, rows: Integers) -> Iterator[Singles]:
    """Yield some rows of (n, d) in float32, a few at a time."""
    for part in slices(len(rows), values.shape[1]):
        yield singles(values[rows[part]])


def slices(n: int, width: int) -> Iterator[slice]:
    """Cut n rows of some width into parts of about a million numbers, to bound memory."""
    size = min(max(_AT_A_TIME // max(width, 1), 16), 4096)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def singles(values: Array) -> Singles:
    """Return a copy in float32; what float32 cannot hold becomes infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _principal(scaling: Scaling, values: Array, rows: Integers) -> Singles:
    """Return the leading principal directions of scaled features, shape (d, 128)."""
    from scipy.linalg import eigh  # type: ignore[import-untyped,unused-ignore]

    width = len(scaling.columns)
    last = (width - _WIDEST, width - 1)
    if width <= 2048:
        scatter = np.zeros((width, width))
        for part in slices(len(rows), values.shape[1]):
            scaled = scaling(values[rows[part]])
            scatter += scaled.T @ scaled
        _, leading = eigh(scatter, subset_by_index=last)
        return np.ascontiguousarray(leading[:, ::-1], dtype=np.float32)
    # Wide layers: the same directions out of the products between a sample's rows, which keeps
    # both time and memory bounded. The rows come in random order, so the first are a sample.
    sample = scaling(values[rows[:2048]])
    products = (sample @ sample.T).astype(np.float64)
    first = max(len(sample) - _WIDEST, 0)
    size, weights = eigh(products, subset_by_index=(first, len(sample) - 1))
    # What is left beside a few directions is rounding, which must not be blown up.
    kept = size > 1e-5 * size[-1]
    directions: Singles = sample.T @ (weights[:, kept] / np.sqrt(size[kept])).astype(np.float32)
    return np.ascontiguousarray(directions[:, ::-1])


def log_softmax(values: Floats) -> Floats:
    """Return the logarithm of the softmax over the last axis, without overflow."""
    shifted = values - values.max(axis=-1, keepdims=True)
    normalised: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised
