"""What the features of one layer say about a prediction.

Every column is oriented so that larger means more likely wrong. The units that are evaluated are
compared with each other leaving out themselves, so that their evidence is distributed like that
of a unit never seen before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.evaluation.error_model.discriminant import Discriminant
from ml_debugger.core.evaluation.error_model.scaling import (
    Array,
    Floats,
    Integers,
    Scaling,
    Singles,
)

NEIGHBOURS = 10
COLUMNS = ("disagreement", "distance", "trust", "discriminant")

_PRIOR_VOTES = 0.5
# Neighbours are found by a matrix product, whose rounding could swap two that are equally far;
# a few more than needed are taken, and their distances computed exactly.
_SPARE = 6
_NEAREST = 1e-3


@dataclass(frozen=True)
class References:
    """The evaluated units that others are compared with.

    Attributes:
        labels: True class of each, shape (m,), int64; `n_class` stands for none of the classes.
        weights: How many evaluated units each stands for, mean 1, shape (m,), float64.
        prior: Smoothed share of each label among all evaluated units, shape (n_class + 1,).
    """

    labels: Integers
    weights: Floats
    prior: Floats


class View(NamedTuple):
    """What one layer says about n units.

    Attributes:
        columns: Evidence as in `COLUMNS`, shape (n, 4), float64.
        votes: Share of the neighbours' votes for each label, shape (n, n_class + 1).
        log_posterior: Of the discriminant, shape (n, n_class + 1).
        remoteness: Log distance to the tenth neighbour by angle, shape (n,).
    """

    columns: Floats
    votes: Floats
    log_posterior: Floats
    remoteness: Floats


@dataclass(frozen=True)
class Layer:
    """One layer of the model: its references in comparable units, and its discriminant.

    Attributes:
        scaling: From the features as recorded to comparable units.
        points: The references' features, shape (m, d), float32.
        discriminant: Fitted to all evaluated units.
    """

    scaling: Scaling
    points: Singles
    discriminant: Discriminant

    def arrays(self) -> dict[str, Array]:
        """Return its numbers, by name."""
        arrays: dict[str, Array] = {
            "columns": self.scaling.columns,
            "mean": self.scaling.mean,
            "inverse": self.scaling.inverse,
            "points": self.points,
            "weights": self.discriminant.weights,
            "bias": self.discriminant.bias,
        }
        if self.scaling.projection is not None:
            arrays["projection"] = self.scaling.projection
        return arrays

    @classmethod
    def restore(cls, arrays: Mapping[str, Array], width: int) -> Self:
        """Rebuild a layer of so many features from its `arrays`."""
        scaling = Scaling(
            columns=arrays["columns"],
            mean=arrays["mean"],
            inverse=arrays["inverse"],
            projection=arrays.get("projection"),
            width=width,
        )
        return cls(scaling, arrays["points"], Discriminant(arrays["weights"], arrays["bias"]))

    @cached_property
    def _squares(self) -> Singles:
        return _squared(self.points)

    @cached_property
    def _lengths(self) -> Singles:
        return lengths(self.points)

    def view(
        self,
        values: Array,
        prediction: Integers,
        references: References,
        *,
        discriminant: Discriminant | None = None,
        excluded: NDArray[np.bool_] | None = None,
    ) -> View:
        """Say what this layer knows about some units.

        The evidence against the predicted class is, in the order of `COLUMNS`: the log-odds of
        the distance-weighted votes of the ten nearest references (Papernot & McDaniel 2018), the
        log distance to the tenth (Sun et al. 2022), the log ratio of the distances to the nearest
        reference of the predicted and of any other class (trust score, Jiang et al. 2018), and
        the discriminant's log-odds (relative Mahalanobis distance, Ren et al. 2021).

        Args:
            values: Features as recorded, shape (n, d).
            prediction: Predicted class, shape (n,); `n_class` for one that was never evaluated.
            references: Labels and weights of `points`.
            discriminant: Another one in place of the layer's, for cross-fitting.
            excluded: References that each unit must not see, shape (n, m).
        """
        scaled = self.scaling(values)
        log_posterior = (discriminant or self.discriminant).log_posterior(scaled)
        rows = np.arange(len(scaled))
        rest = log_posterior.copy()
        rest[rows, prediction] = -np.inf
        against = np.clip(rest.max(axis=1) - log_posterior[rows, prediction], -20, 20)

        k = min(NEIGHBOURS, len(self.points) - 1)
        if k < 1:
            votes = np.tile(references.prior, (len(scaled), 1))
            none = np.zeros(len(scaled))
            columns = np.column_stack([_against(votes, prediction), none, none, against])
            return View(columns, votes, log_posterior, none)

        # One product serves distances and angles: it is most of the time that a view takes.
        product = scaled @ self.points.T
        remote = remoteness(product / self._lengths, scaled, k, excluded)
        nearest, distance, *others = self._search(
            product, scaled, prediction, references, k, excluded
        )
        seen = np.isfinite(distance)
        radius = np.where(seen, distance, 0).max(axis=1)
        radius = np.maximum(np.where(seen.any(axis=1), radius, 1.0), _NEAREST)
        weight = np.exp(-np.square(distance / radius[:, None])) * references.weights[nearest]
        labels = len(references.prior)
        slot = rows[:, None] * labels + references.labels[nearest]
        cast = np.bincount(slot.ravel(), weight.ravel(), len(rows) * labels)
        votes = cast.reshape(-1, labels) + _PRIOR_VOTES * references.prior
        votes /= votes.sum(axis=1, keepdims=True)
        # A class without any reference is taken to be twice as far as the neighbourhood reaches.
        same, other = (
            np.maximum(np.where(np.isfinite(one), one, 2 * radius), _NEAREST) for one in others
        )
        trust = np.clip(np.log(same / other), -4, 4)
        columns = np.column_stack([_against(votes, prediction), np.log(radius), trust, against])
        return View(columns, votes, log_posterior, remote)

    def _search(
        self,
        squared: Singles,
        scaled: Singles,
        prediction: Integers,
        references: References,
        k: int,
        excluded: NDArray[np.bool_] | None,
    ) -> tuple[Integers, Floats, Floats, Floats]:
        """Find the nearest references of all, of the predicted class and of the others.

        Args:
            squared: The product of `scaled` and the points, (n, m); overwritten.
            scaled: Scaled features, (n, d).
            prediction: Predicted class, (n,).
            references: Labels of the points.
            k: How many of all.
            excluded: References that each unit must not see, (n, m).

        Returns:
            The k nearest, (n, k); their distances, (n, k); the distances to the predicted class
            and to any other, (n,). Infinite where there is none.
        """
        squared *= -2
        squared += self._squares
        if excluded is not None:
            squared[excluded] = np.inf
        some = min(k + _SPARE, len(self.points))
        near = np.argpartition(squared, some - 1, axis=1)[:, :some]
        near.sort(axis=1)
        agrees = references.labels == prediction[:, None]
        far = np.float32(np.inf)
        same = np.where(agrees, squared, far).argmin(axis=1)
        other = np.where(agrees, far, squared).argmin(axis=1)
        near = np.column_stack([near, same, other])
        rows = np.arange(len(scaled))[:, None]
        difference = self.points[near] - scaled[:, None, :]
        distance = np.sqrt(np.einsum("nkd,nkd->nk", difference, difference)).astype(np.float64)
        if excluded is not None:
            distance[excluded[rows, near]] = np.inf
        to_same = np.where(agrees[rows[:, 0], same], distance[:, -2], np.inf)
        to_other = np.where(agrees[rows[:, 0], other], np.inf, distance[:, -1])
        order = np.argsort(distance[:, :some], axis=1, kind="stable")[:, :k]
        return near[rows, order], distance[rows, order], to_same, to_other


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
    # Angles, not lengths: a unit of a sort that was evaluated is then near its like even
    # where the model responds to it more weakly.
    if excluded is not None:
        closeness[excluded] = -np.inf
    at = closeness.shape[1] - k
    closeness.partition(at, axis=1)
    kth = closeness[:, at].astype(np.float64) / lengths(scaled)
    distance: Floats = 0.5 * np.log(np.maximum(2 - 2 * np.maximum(kth, -1.0), _NEAREST**2))
    return distance


def lengths(points: Singles) -> Singles:
    """Return the lengths of points (n, d), tiny ones taken as 1e-6."""
    found: Singles = np.maximum(np.sqrt(_squared(points)), np.float32(1e-6))
    return found


def _squared(points: Singles) -> Singles:
    squared: Singles = np.einsum("nd,nd->n", points, points)
    return squared


def _against(votes: Floats, prediction: Integers) -> Floats:
    own = votes[np.arange(len(votes)), prediction]
    odds: Floats = np.log(np.maximum(votes.sum(axis=1) - own, 1e-12)) - np.log(own)
    return odds
