"""The evidence of all layers and of the class vector, gathered unit by unit."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.error_model import head, layer
from ml_debugger.core.evaluation.error_model.discriminant import Discriminant
from ml_debugger.core.evaluation.error_model.layer import Layer, References, View
from ml_debugger.core.evaluation.error_model.scaling import (
    Array,
    Floats,
    Integers,
    log_softmax,
    singles,
    slices,
)
from ml_debugger.core.evaluation.error_model.usual import Usual

# Every matrix product has this many rows, the last one padded, so that the rounding of a unit's
# evidence does not depend on which units are looked at together.
_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Observations:
    """What a model saw and said, one row a unit.

    Attributes:
        features: Features of each layer by alias, shape (n, d), any float dtype.
        prediction: Predicted class, shape (n,), int64.
        score: Max softmax, or a box's score, in [0, 1], shape (n,), float32.
        logits: Class vectors, shape (n, K), or None for tasks without.
        statistics: What else is known of each unit, shape (n, s), or None. Unlike other evidence
            it may count for a prediction as well as against; what is not finite says nothing.
        sound: False where something of a unit that is not here, such as its box, is not finite,
            shape (n,), bool; None: all are. See `recorded_as`.
    """

    features: Mapping[str, Array]
    prediction: Integers
    score: NDArray[np.float32]
    logits: Array | None = None
    statistics: Array | None = None
    sound: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.prediction)

    def recorded_as(self, finite: Array | None) -> "Observations":
        """Return the same, knowing which units were recorded as finite, shape (n,), or None.

        What is here is looked at by itself, since a layer may be left out; so a unit that was not
        recorded as finite is unsound only if all of it that is here is finite.
        """
        if finite is None or np.all(finite):
            return self
        rows = np.flatnonzero(~np.asarray(finite, np.bool_))
        sound = np.ones(len(self), np.bool_)
        sound[rows] = ~self.take(rows).finite(self.features, logits=True)
        return replace(self, sound=sound)

    def finite(self, layers: Iterable[str], *, logits: bool) -> NDArray[np.bool_]:
        """Tell which units are finite in some layers, the score and what is not here, shape (n,).

        Args:
            layers: Aliases of the layers.
            logits: Whether to look at the logits too, where there are any.
        """
        finite = np.isfinite(self.score)
        for alias in layers:
            finite &= finite_rows(self.features[alias])
        if logits and self.logits is not None:
            finite &= finite_rows(self.logits)
        return finite if self.sound is None else finite & self.sound

    def take(self, rows: Array) -> "Observations":
        """Return some units, by position (m,), int64, or by mask (n,), bool."""
        return Observations(
            features={alias: values[rows] for alias, values in self.features.items()},
            prediction=self.prediction[rows],
            score=self.score[rows],
            logits=None if self.logits is None else self.logits[rows],
            statistics=None if self.statistics is None else self.statistics[rows],
            sound=None if self.sound is None else self.sound[rows],
        )


def finite_rows(values: Array) -> NDArray[np.bool_]:
    """Tell which rows of (n, d) are finite in float32, shape (n,)."""
    finite = np.empty(len(values), np.bool_)
    for part in slices(len(values), values.shape[1]):
        finite[part] = np.isfinite(singles(values[part])).all(axis=1)
    return finite


class Evidence(NamedTuple):
    """The evidence about n units.

    Attributes:
        columns: Larger means more likely wrong, but for the statistics, which come last and may
            mean anything; shape (n, c), float64; see `Sources.names`.
        remoteness: How far each unit is from all references, by layer, shape (n, L), float64.
        unstable: Whether neighbours are split or layers disagree, shape (n,).
        shares: Plausibility of each class but the predicted one, shape (n, K), float32.
        plausible: Most plausible class of all by the features, shape (n,), int32.
    """

    columns: Floats
    remoteness: Floats
    unstable: NDArray[np.bool_]
    shares: NDArray[np.float32]
    plausible: NDArray[np.int32]


class Beliefs(NamedTuple):
    """What a block of units is taken to be: unstable (n,), shares (n, K), plausible (n,)."""

    unstable: NDArray[np.bool_]
    shares: Floats
    plausible: Integers


@dataclass(frozen=True)
class Sources:
    """Everything that gives evidence about a prediction.

    Attributes:
        layers: The layers in use, by alias.
        references: The evaluated units that others are compared with.
        n_class: Number of classes, K.
        temperature: By which class vectors are divided; None where there are none.
        has_score: Whether the score says something that the class vector does not.
        of_logits: Whether the predictions are the classes of the largest logits, and the scores
            their softmax, so that neither need be given beside the logits.
        usual: What is usual of each statistic of a unit; None where there are none.
    """

    layers: Mapping[str, Layer]
    references: References
    n_class: int
    temperature: float | None
    has_score: bool
    usual: Usual | None = None
    of_logits: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Name the columns of the evidence."""
        names = [f"{alias}.{column}" for alias in self.layers for column in layer.COLUMNS]
        names += [] if self.temperature is None else head.COLUMNS
        names += ["score"] if self.has_score else []
        width = 0 if self.usual is None else self.usual.width
        parts = ("", ".off", ".odd")  # see `Usual.columns`
        return (*names, *(f"statistic.{at}{part}" for part in parts for at in range(width)))

    @property
    def free(self) -> int:
        """How many of the last columns may mean anything."""
        return 0 if self.usual is None else 3 * self.usual.width

    @property
    def anchor(self) -> int:
        """The column that holds what the model itself claims."""
        return self.names.index("score" if self.has_score else head.COLUMNS[0])

    def check(self, observations: Observations) -> None:
        """Refuse observations of another model.

        Raises:
            InputError: A layer or the logits are missing or have another width.
        """
        for alias, one in self.layers.items():
            if alias not in observations.features:
                raise InputError(
                    f"features of layer {alias!r} are missing; the estimator was fitted with: "
                    f"{', '.join(self.layers)}"
                )
            width = observations.features[alias].shape[1]
            if width != one.scaling.width:
                raise InputError(
                    f"layer {alias!r} has {width} features, the estimator was fitted with "
                    f"{one.scaling.width}; evaluate this model anew"
                )
        logits = observations.logits
        if self.temperature is not None and (logits is None or logits.shape[1] != self.n_class):
            found = "none" if logits is None else f"{logits.shape[1]} columns"
            raise InputError(f"logits: expected {self.n_class} columns, got {found}")
        given = 0 if observations.statistics is None else observations.statistics.shape[1]
        if self.usual is not None and given != self.usual.width:
            raise InputError(f"statistics: expected {self.usual.width} columns, got {given}")

    def finite(self, observations: Observations) -> NDArray[np.bool_]:
        """Tell which units are finite in all that these sources look at, shape (n,)."""
        return observations.finite(self.layers, logits=self.temperature is not None)

    def gather(
        self,
        observations: Observations,
        rows: Integers,
        *,
        discriminants: Mapping[str, Discriminant] | None = None,
        groups: tuple[Integers, Integers] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Evidence:
        """Gather the evidence about some units, each by itself.

        Args:
            observations: What the model saw and said.
            rows: The units, shape (n,).
            discriminants: In place of the layers' own, for cross-fitting.
            groups: Group of each unit (all of them) and of each reference; references of a
                unit's own group are not compared with it.
            progress: Told the number of units done.
        """
        n = len(rows)
        found = Evidence(
            columns=np.zeros((n, len(self.names))),
            remoteness=np.zeros((n, len(self.layers))),
            unstable=np.zeros(n, np.bool_),
            shares=np.zeros((n, self.n_class), np.float32),
            plausible=np.zeros(n, np.int32),
        )
        for part, block in _blocks(rows):
            size = part.stop - part.start
            excluded = None if groups is None else groups[0][block][:, None] == groups[1]
            prediction = self._known(observations.prediction[block])
            views = [
                one.view(
                    observations.features[alias][block],
                    prediction,
                    self.references,
                    discriminant=None if discriminants is None else discriminants[alias],
                    excluded=excluded,
                )
                for alias, one in self.layers.items()
            ]
            columns = [view.columns for view in views]
            chances = None
            if self.temperature is not None and observations.logits is not None:
                logits = observations.logits[block].astype(np.float64)
                logits[~np.isfinite(singles(logits)).all(axis=1)] = 0
                scaled = logits / self.temperature
                columns.append(head.logit_columns(scaled, prediction))
                chances = log_softmax(scaled)
            if self.has_score:
                score = observations.score[block]
                score = np.where(np.isfinite(score), score, 0.5)
                columns.append(head.score_column(score)[:, None])
            if self.usual is not None and observations.statistics is not None:
                columns.append(self.usual.columns(observations.statistics[block], prediction))
            beliefs = self._beliefs(views, chances, prediction)
            found.columns[part] = np.hstack(columns)[:size]
            for number, view in enumerate(views):
                found.remoteness[part, number] = view.remoteness[:size]
            found.unstable[part] = beliefs.unstable[:size]
            found.shares[part] = beliefs.shares[:size]
            found.plausible[part] = beliefs.plausible[:size]
            if progress is not None:
                progress(size)
        return found

    def _known(self, prediction: Integers) -> Integers:
        """Map predictions of classes that the evaluated units do not know to `n_class`."""
        known = (prediction >= 0) & (prediction < self.n_class)
        return np.where(known, prediction, self.n_class).astype(np.int64)

    def _beliefs(self, views: list[View], chances: Floats | None, prediction: Integers) -> Beliefs:
        """Say what the units may be, if not what is predicted.

        The plausibility of a class is the geometric mean of two opinions: the votes of the
        neighbours, averaged over layers, and the discriminants and softmax, averaged likewise.
        """
        width, rows = self.n_class, np.arange(len(prediction))
        posteriors = [np.exp(view.log_posterior[:, :width]) for view in views]
        opinions = posteriors if chances is None else [*posteriors, np.exp(chances)]
        if views:
            polled = _mean_log([view.votes[:, :width] for view in views])
            features = polled + _judged(posteriors)
            evidence = polled + _judged(opinions)
            votes = np.mean([view.votes for view in views], axis=0)
            tops = np.stack([view.votes.argmax(axis=1) for view in views])
            unstable = (tops != tops[0]).any(axis=0) | _split(votes)
        elif chances is not None:
            features = evidence = 2 * _judged(opinions)
            unstable = _split(np.exp(chances))
        else:
            prior = self.references.prior[:width]
            features = evidence = np.tile(2 * np.log(prior), (len(rows), 1))
            unstable = np.zeros(len(rows), np.bool_)
        shares = 0.5 * evidence
        ours = prediction < width
        shares[rows[ours], prediction[ours]] = -np.inf
        top = shares.max(axis=1, keepdims=True)
        shares = np.exp(shares - np.where(np.isfinite(top), top, 0.0))
        total = shares.sum(axis=1, keepdims=True)
        shares /= np.where(total > 0, total, 1.0)
        return Beliefs(unstable, shares, features.argmax(axis=1))


def _blocks(rows: Integers) -> Iterator[tuple[slice, Integers]]:
    """Yield where each block lies, and its rows, the last of which may be repeated."""
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        yield slice(start, start + len(block)), np.pad(block, (0, _BLOCK - len(block)), "edge")


def _judged(opinions: list[Floats]) -> Floats:
    return _mean_log([0.98 * one + 0.02 / one.shape[1] for one in opinions])


def _split(votes: Floats) -> NDArray[np.bool_]:
    """Tell where the second most votes are at least half the most."""
    if votes.shape[1] < 2:
        return np.zeros(len(votes), np.bool_)
    two = np.partition(votes, -2, axis=1)[:, -2:]
    return two[:, 0] >= 0.5 * two[:, 1]


def _mean_log(values: list[Floats]) -> Floats:
    mean: Floats = np.mean([np.log(np.maximum(one, 1e-30)) for one in values], axis=0)
    return mean
