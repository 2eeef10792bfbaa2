"""Exact search for the nearest references, in memory that does not grow with their number.

References are searched in parts, and what was nearest so far is kept. There is no approximate
index: at the 4,096 references of a fit by default it would be no quicker, and at 200,000 less than
twice as quick, for evidence that is no longer exact (`tests/benchmarks/neighbour_index.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.evaluation.error_model.scaling import Floats, Integers, Singles

#: References searched at a time.
PART = 4096

# Neighbours are found by a matrix product, whose rounding could swap two that are equally far;
# a few more than needed are taken, and their distances computed exactly.
_SPARE = 6
_NEAREST = 1e-3


class Found(NamedTuple):
    """What a search found for each of n units; distances are infinite where there is none.

    Attributes:
        nearest: The k nearest references, nearest first, shape (n, k), int64.
        distance: Their distances, shape (n, k), float64.
        same: Distance to the nearest reference of the predicted class, shape (n,), float64.
        other: Distance to the nearest reference of any other class, shape (n,), float64.
        remoteness: Log distance by angle to the k-th nearest, shape (n,), float64.
    """

    nearest: Integers
    distance: Floats
    same: Floats
    other: Floats
    remoteness: Floats


class _Near(NamedTuple):
    """Positions of references, ascending in each row, and squared distances less a constant."""

    at: Integers
    squared: Singles

    def least(self, most: int) -> "_Near":
        """Keep the least distant of each row, the earliest where some are equally far."""
        if self.at.shape[1] <= most:
            return self
        if most == 1:
            kept = self.squared.argmin(axis=1)[:, None]
        else:
            kept = np.argpartition(self.squared, most - 1, axis=1)[:, :most]
            kept.sort(axis=1)
            # Which of several at the edge a partition keeps depends on the columns that other
            # units brought.
            edge = np.take_along_axis(self.squared, kept, axis=1).max(axis=1)[:, None]
            tied = np.count_nonzero(self.squared <= edge, axis=1) > most
            kept[tied] = _earliest(self.squared[tied], edge[tied], most)
        return _Near(
            np.take_along_axis(self.at, kept, axis=1),
            np.take_along_axis(self.squared, kept, axis=1),
        )

    def joined(self, other: "_Near") -> "_Near":
        """Append references that come after all of these."""
        return _Near(np.hstack([self.at, other.at]), np.hstack([self.squared, other.squared]))


@dataclass(frozen=True)
class Points:
    """References to search.

    Attributes:
        values: Their features, shape (m, d), float32.
        squares: Their squared lengths, shape (m,), float32.
        lengths: Their lengths, shape (m,), float32.
    """

    values: Singles
    squares: Singles
    lengths: Singles

    @classmethod
    def of(cls, values: Singles) -> Self:
        """Prepare features of shape (m, d), float32."""
        return cls(values, _squared(values), lengths(values))

    def search(
        self,
        units: Singles,
        labels: Integers,
        prediction: Integers,
        k: int,
        excluded: NDArray[np.bool_] | None = None,
    ) -> Found:
        """Find the nearest references of all, of the predicted class and of the others.

        Args:
            units: Scaled features, shape (n, d), float32.
            labels: Class of each reference, shape (m,).
            prediction: Predicted class of each unit, shape (n,).
            k: How many of all, 1 to m.
            excluded: References that each unit must not see, shape (n, m).
        """
        nothing = _Near(np.zeros((len(units), 0), np.int64), np.zeros((len(units), 0), np.float32))
        near = same = other = nothing
        close = np.zeros((len(units), 0), np.float32)
        far = np.float32(np.inf)
        for part in _parts(len(self.values)):
            hidden = None if excluded is None else excluded[:, part]
            # One product serves angles and distances: it is most of the time that this takes.
            # After the first part, only columns that could change a row are looked at closely.
            product = units @ self.values[part].T
            closeness = _seen(product / self.lengths[part], hidden, -far)
            if close.shape[1] == k:
                closeness = closeness[:, (closeness > close.min(axis=1)[:, None]).any(axis=0)]
            close = _largest(np.hstack([close, _largest(closeness, k)]), k)
            product *= -2
            product += self.squares[part]
            squared = _seen(product, hidden, far)
            at = np.broadcast_to(np.arange(part.start, part.stop), squared.shape)
            nearer = _Near(at, squared)
            if near.at.shape[1] == k + _SPARE:
                better = (squared < near.squared.max(axis=1)[:, None]).any(axis=0)
                nearer = _Near(at[:, better], squared[:, better])
            near = near.joined(nearer.least(k + _SPARE)).least(k + _SPARE)
            agrees = labels[part] == prediction[:, None]
            same = same.joined(_Near(at, np.where(agrees, squared, far)).least(1)).least(1)
            other = other.joined(_Near(at, np.where(agrees, far, squared)).least(1)).least(1)
        found = near.joined(same).joined(other)
        difference = self.values[found.at] - units[:, None, :]
        distance = np.sqrt(np.einsum("nkd,nkd->nk", difference, difference)).astype(np.float64)
        distance[~np.isfinite(found.squared)] = np.inf
        order = np.argsort(distance[:, :-2], axis=1, kind="stable")[:, :k]
        return Found(
            nearest=np.take_along_axis(found.at, order, axis=1),
            distance=np.take_along_axis(distance, order, axis=1),
            same=distance[:, -2],
            other=distance[:, -1],
            remoteness=_log_angle(close.min(axis=1), units),
        )


def remoteness(
    closeness: Singles, scaled: Singles, k: int, excluded: NDArray[np.bool_] | None
) -> Floats:
    """Return the log distance by angle of units to the k-th nearest reference.

    Args:
        closeness: Product of units and references, the latter at length 1, shape (n, m);
            overwritten.
        scaled: The units, shape (n, d).
        k: At most m.
        excluded: References that each unit must not see, shape (n, m).
    """
    seen = _seen(closeness, excluded, np.float32(-np.inf))
    return _log_angle(_largest(seen, k).min(axis=1), scaled)


def lengths(points: Singles) -> Singles:
    """Return the lengths of points (n, d), tiny ones taken as 1e-6."""
    found: Singles = np.maximum(np.sqrt(_squared(points)), np.float32(1e-6))
    return found


def _parts(m: int) -> Iterator[slice]:
    return (slice(start, min(start + PART, m)) for start in range(0, m, PART))


def _seen(values: Singles, hidden: NDArray[np.bool_] | None, otherwise: np.float32) -> Singles:
    if hidden is not None:
        values[hidden] = otherwise
    return values


def _earliest(squared: Singles, edge: Singles, most: int) -> Integers:
    """Return the columns below the edge of each row (n, m), and the first ones at it."""
    below, at = squared < edge, squared == edge
    room = most - below.sum(axis=1, keepdims=True)
    found: Integers = np.nonzero(below | (at & (at.cumsum(axis=1) <= room)))[1]
    return found.reshape(-1, most)


def _largest(values: Singles, k: int) -> Singles:
    """Return the k largest of each row (n, m), in any order; overwrites."""
    at = values.shape[1] - k
    if at > 0:
        values.partition(at, axis=1)
    return values[:, max(at, 0) :]


def _log_angle(closeness: Singles, units: Singles) -> Floats:
    # Angles, not lengths: a unit of a sort that was evaluated is then near its like even
    # where the model responds to it more weakly.
    cosine = closeness.astype(np.float64) / lengths(units)
    distance: Floats = 0.5 * np.log(np.maximum(2 - 2 * np.maximum(cosine, -1.0), _NEAREST**2))
    return distance


def _squared(points: Singles) -> Singles:
    squared: Singles = np.einsum("nd,nd->n", points, points)
    return squared
