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
from ml_debugger.core.evaluation.error_model.search import Points, lengths, remoteness

__all__ = ["COLUMNS", "NEIGHBOURS", "Layer", "References", "View", "lengths", "remoteness"]

NEIGHBOURS = 10
COLUMNS = ("disagreement", "distance", "trust", "discriminant")

_PRIOR_VOTES = 0.5
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
        columns: Evidence as in `COLUMNS`, shape (n, 4), float64. NaN where there is none: no
            reference is of the predicted class.
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
    def _searched(self) -> Points:
        return Points.of(self.points)

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

        found = self._searched.search(scaled, references.labels, prediction, k, excluded)
        nearest, distance = found.nearest, found.distance
        seen = np.isfinite(distance)
        radius = np.where(seen, distance, 0).max(axis=1)
        radius = np.maximum(np.where(seen.any(axis=1), radius, 1.0), _NEAREST)
        weight = np.exp(-np.square(distance / radius[:, None])) * references.weights[nearest]
        labels = len(references.prior)
        slot = rows[:, None] * labels + references.labels[nearest]
        cast = np.bincount(slot.ravel(), weight.ravel(), len(rows) * labels)
        votes = cast.reshape(-1, labels) + _PRIOR_VOTES * references.prior
        votes /= votes.sum(axis=1, keepdims=True)
        # Where all references are of the predicted class, others are taken to be twice as far as
        # the neighbourhood reaches; where none is, nearness to it cannot be told.
        unheard = ~np.isfinite(found.same)
        same, other = (
            np.maximum(np.where(np.isfinite(one), one, 2 * radius), _NEAREST)
            for one in (found.same, found.other)
        )
        trust = np.clip(np.log(same / other), -4, 4)
        columns = np.column_stack([_against(votes, prediction), np.log(radius), trust, against])
        columns[unheard, 0] = columns[unheard, 2] = np.nan
        return View(columns, votes, log_posterior, found.remoteness)


def _against(votes: Floats, prediction: Integers) -> Floats:
    own = votes[np.arange(len(votes)), prediction]
    odds: Floats = np.log(np.maximum(votes.sum(axis=1) - own, 1e-12)) - np.log(own)
    return odds
