"""Known risk scores, judged on the same units and folds as ours, and usable in its place.

A baseline is what a known score has learnt from evaluated units; applied to any units it gives
risks. Each learns without the unit's own label and fold, as ours does, so that the comparison is
fair. A new one is a class and an entry in `BASELINES`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from ml_debugger.core.evaluation.error_model.discriminant import Moments
from ml_debugger.core.evaluation.error_model.evidence import Observations
from ml_debugger.core.evaluation.error_model.fitting import Units, prepare
from ml_debugger.core.evaluation.error_model.folds import FOLDS
from ml_debugger.core.evaluation.error_model.head import fit_temperature, score_column
from ml_debugger.core.evaluation.error_model.layer import NEIGHBOURS, lengths, remoteness
from ml_debugger.core.evaluation.error_model.scaling import (
    Array,
    Floats,
    Integers,
    Scaling,
    Singles,
    log_softmax,
    product,
    singles,
)

_MOST_REFERENCES = 4096
# Every computation has this many rows, the last ones padded, so that the rounding of a unit's
# risk does not depend on which units are looked at together.
_BLOCK = 64


@dataclass(frozen=True)
class Said:
    """What baselines look at, one row a unit.

    Attributes:
        score: Max softmax or box score, shape (n,).
        logits: Class vectors, shape (n, K), or None for tasks without.
        features: Of one layer, shape (n, d), or None without layers.
    """

    score: Array
    logits: Array | None
    features: Array | None

    @classmethod
    def of(cls, observations: Observations, layer: str | None) -> Self:
        """Take what is looked at out of observations, without a copy."""
        features = None if layer is None else observations.features[layer]
        return cls(observations.score, observations.logits, features)

    def __len__(self) -> int:
        return len(self.score)

    def take(self, rows: Array) -> "Said":
        """Return some units, by position (m,), int64, or by mask (n,), bool."""
        return Said(
            score=self.score[rows],
            logits=None if self.logits is None else self.logits[rows],
            features=None if self.features is None else self.features[rows],
        )

    def blocks(self) -> Iterator[tuple[slice, "Said"]]:
        """Yield where units lie, and a finite block of them whose last may be repeated."""
        for start in range(0, len(self), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(self)))
            block = self.take(np.pad(rows, (0, _BLOCK - len(rows)), "edge"))
            yield slice(start, start + len(rows)), block.repaired()

    def repaired(self) -> "Said":
        """Replace what is not finite by what says nothing, as the error model does."""
        logits = self.logits
        if logits is not None:
            logits = logits.astype(np.float64)
            logits[~np.isfinite(singles(logits)).all(axis=1)] = 0
        score = np.where(np.isfinite(self.score), self.score, 0.5)
        return Said(score, logits, self.features)  # a scaling takes care of the features


@dataclass(frozen=True)
class Case:
    """Evaluated units as baselines see them: the finite ones, in the order of the fit.

    Attributes:
        said: What the model said of them.
        units: Labels, errors, groups and folds; `units.rows` are positions among all units.
        n_class: K.
        layer: Alias of the last layer, whose features `said` holds; None without layers.
    """

    said: Said
    units: Units
    n_class: int
    layer: str | None

    @classmethod
    def of(
        cls,
        observations: Observations,
        target: Integers,
        *,
        groups: Integers | None = None,
        n_class: int | None = None,
        seed: int = 0,
    ) -> Self:
        """Choose the units and folds that `ErrorModel.fit` chooses for the same arguments."""
        usable, units, n_class, _ = prepare(
            observations, np.asarray(target, np.int64), groups, n_class=n_class, seed=seed
        )
        layer = next(reversed(list(usable.features)), None)
        return cls(Said.of(usable, layer).take(units.rows), units, n_class, layer)

    def outside(self, fold: int | None) -> Integers:
        """Return the positions of the units that are not in a fold; all for None, shape (m,)."""
        return np.flatnonzero(self.units.folds != (-1 if fold is None else fold))

    def temperature(self, fold: int | None) -> float:
        """Return the temperature that fits the units outside a fold."""
        if fold not in self._temperatures:
            assert self.said.logits is not None  # asked for by baselines that saw logits
            rows = self.outside(fold)
            labels = np.where(self.units.labels < self.n_class, self.units.labels, -1)
            self._temperatures[fold] = fit_temperature(self.said.logits[rows], labels[rows])
        return self._temperatures[fold]

    @cached_property
    def _temperatures(self) -> dict[int | None, float]:
        return {}

    @cached_property
    def scaling(self) -> Scaling | None:
        """Scaling of the last layer, or None without any; it takes no label to learn."""
        if self.said.features is None:
            return None
        scaling = Scaling.fit(self.said.features, np.arange(len(self.said)))
        return scaling if len(scaling.columns) else None


class Baseline(ABC):
    """What a known score learnt; called with units, it returns their risks."""

    name: ClassVar[str]
    of_features: ClassVar[bool] = False  # whether it looks at a layer

    @classmethod
    @abstractmethod
    def fit(cls, case: Case, fold: int | None) -> Self | None:
        """Learn from the units outside a fold, from all for None.

        Returns:
            The baseline, or None where the task records nothing that it could look at.
        """

    @abstractmethod
    def of_block(self, block: Said) -> Floats:
        """Return the risk of each unit of a finite block, larger = more likely wrong."""

    def __call__(self, said: Said) -> Floats:
        """Return risks, shape (n,), float64, each dependent on that unit alone."""
        risk = np.empty(len(said))
        for part, block in said.blocks():
            risk[part] = self.of_block(block)[: part.stop - part.start]
        return risk

    @classmethod
    def held_out(cls, case: Case) -> Floats | None:
        """Return the risk of each evaluated unit by what units of other folds teach, (n,)."""
        risk = np.empty(len(case.said))
        for fold in range(FOLDS):
            inside = case.units.folds == fold
            if not inside.any():
                continue
            fitted = cls.fit(case, fold)
            if fitted is None:
                return None
            risk[inside] = fitted(case.said.take(inside))
        return risk

    def arrays(self) -> dict[str, Array]:
        """Return all that was learnt, by name."""
        return {}

    @classmethod
    def restore(cls, arrays: Mapping[str, Array]) -> Self:
        """Rebuild a baseline out of its `arrays`; its risks equal the original's to the bit."""
        return cls()


class _MaxSoftmax(Baseline):
    """The log-odds that the score leaves for an error (Hendrycks & Gimpel 2017)."""

    name = "max_softmax"

    @classmethod
    def fit(cls, case: Case, fold: int | None) -> Self:
        return cls()

    def of_block(self, block: Said) -> Floats:
        return score_column(block.score)


class _Energy(Baseline):
    """The free energy of the logits (Liu et al. 2020)."""

    name = "energy"

    @classmethod
    def fit(cls, case: Case, fold: int | None) -> Self | None:
        return None if case.said.logits is None else cls()

    def of_block(self, block: Said) -> Floats:
        assert block.logits is not None  # see `Substitute.__call__`
        largest = block.logits.max(axis=1)
        free: Floats = -(largest + np.log(np.exp(block.logits - largest[:, None]).sum(axis=1)))
        return free


@dataclass(frozen=True)
class _Tempered(Baseline):
    """A score of the softmax at a fitted temperature."""

    temperature: float

    @classmethod
    def fit(cls, case: Case, fold: int | None) -> Self | None:
        return None if case.said.logits is None else cls(case.temperature(fold))

    def of_block(self, block: Said) -> Floats:
        assert block.logits is not None  # see `Substitute.__call__`
        return self.of_log_share(log_softmax(block.logits / self.temperature))

    @abstractmethod
    def of_log_share(self, log_share: Floats) -> Floats:
        """Return the risk for the log softmax, shape (n, K)."""

    def arrays(self) -> dict[str, Array]:
        return {"temperature": np.array([self.temperature])}

    @classmethod
    def restore(cls, arrays: Mapping[str, Array]) -> Self:
        return cls(float(arrays["temperature"][0]))


class _TemperatureScaled(_Tempered):
    """The log-odds that the max softmax leaves at a fitted temperature (Guo et al. 2017)."""

    name = "temperature_scaled"

    def of_log_share(self, log_share: Floats) -> Floats:
        return score_column(np.exp(log_share.max(axis=1)))


class _Entropy(_Tempered):
    """The entropy of the softmax at a fitted temperature (Shannon 1948)."""

    name = "entropy"

    def of_log_share(self, log_share: Floats) -> Floats:
        entropy: Floats = -(np.exp(log_share) * log_share).sum(axis=1)
        return entropy


class _Margin(_Tempered):
    """Minus the distance between the two largest shares (Scheffer et al. 2001)."""

    name = "margin"

    @classmethod
    def fit(cls, case: Case, fold: int | None) -> Self | None:
        return None if case.n_class < 2 else super().fit(case, fold)

    def of_log_share(self, log_share: Floats) -> Floats:
        two = np.partition(np.exp(log_share), -2, axis=1)[:, -2:]
        difference: Floats = two[:, 0] - two[:, 1]
        return difference


@dataclass(frozen=True)
class _KnnDistance(Baseline):
    """The log distance by angle to the tenth neighbour in the last layer (Sun et al. 2022).

    Attributes:
        scaling: Of that layer.
        directions: Evaluated units of length 1, the first of their canonical order, which are a
            sample, shape (m, d), float32.
    """

    name = "knn_distance"
    of_features = True
    scaling: Scaling
    directions: Singles

    @classmethod
    def fit(cls, case: Case, fold: int | None) -> Self | None:
        if case.scaling is None or case.said.features is None or len(case.said) < 2:
            return None
        points = case.scaling(case.said.features[:_MOST_REFERENCES])
        return cls(case.scaling, points / lengths(points)[:, None])

    @classmethod
    def held_out(cls, case: Case) -> Floats | None:
        """See `Baseline`; it learns from no label, so units leave out their own group, not fold."""
        fitted = cls.fit(case, None)
        if fitted is None:
            return None
        groups, risk = case.units.groups, np.empty(len(case.said))
        for part, block in case.said.blocks():
            size = part.stop - part.start
            own = np.pad(groups[part], (0, len(block) - size), "edge")
            risk[part] = fitted.distance(block, own[:, None] == groups[:_MOST_REFERENCES])[:size]
        return risk

    def of_block(self, block: Said) -> Floats:
        return self.distance(block, None)

    def distance(self, block: Said, excluded: Array | None) -> Floats:
        assert block.features is not None  # see `Substitute.__call__`
        scaled = self.scaling(block.features)
        closeness = product(scaled, self._columns)
        return remoteness(closeness, scaled, min(NEIGHBOURS, len(self.directions) - 1), excluded)

    @cached_property
    def _columns(self) -> Singles:
        return np.ascontiguousarray(self.directions.T)

    def arrays(self) -> dict[str, Array]:
        return {**_scaling_arrays(self.scaling), "directions": self.directions}

    @classmethod
    def restore(cls, arrays: Mapping[str, Array]) -> Self:
        return cls(_restored_scaling(arrays), arrays["directions"])


@dataclass(frozen=True)
class _Mahalanobis(Baseline):
    """The squared Mahalanobis distance to the nearest class in the last layer (Lee et al. 2018).

    Attributes:
        scaling: Of that layer.
        whitening: By which scaled features have the identity as covariance, (d, d), float64.
        centres: Whitened class means, shape (c, d), float64; without classes, all risks are 0.
    """

    name = "mahalanobis"
    of_features = True
    scaling: Scaling
    whitening: Floats
    centres: Floats

    @classmethod
    def fit(cls, case: Case, fold: int | None) -> Self | None:
        scaling, features = case.scaling, case.said.features
        if scaling is None or features is None:
            return None
        labels, n_class = case.units.labels, case.n_class
        moments = Moments.of(scaling, features, case.outside(fold), labels, n_class + 1)
        present = moments.count > 0
        present[-1] = False
        mean, covariance = moments.shrunk()
        whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
        return cls(scaling, whitening, mean[present] @ whitening)

    def of_block(self, block: Said) -> Floats:
        assert block.features is not None  # see `Substitute.__call__`
        if len(self.centres) == 0:
            return np.zeros(len(block))
        white = self.scaling(block.features) @ self.whitening
        squared = (white**2).sum(axis=1)[:, None] - 2 * white @ self.centres.T
        nearest = (squared + (self.centres**2).sum(axis=1)).min(axis=1)
        # Rounded, for the last bits of a product depend on where in the block a unit stands.
        rounded: Floats = nearest.astype(np.float32).astype(np.float64)
        return rounded

    def arrays(self) -> dict[str, Array]:
        own = {"whitening": self.whitening, "centres": self.centres}
        return {**_scaling_arrays(self.scaling), **own}

    @classmethod
    def restore(cls, arrays: Mapping[str, Array]) -> Self:
        return cls(_restored_scaling(arrays), arrays["whitening"], arrays["centres"])


def _scaling_arrays(scaling: Scaling) -> dict[str, Array]:
    arrays: dict[str, Array] = {
        "columns": scaling.columns,
        "mean": scaling.mean,
        "inverse": scaling.inverse,
        "width": np.array([scaling.width]),
    }
    return arrays if scaling.projection is None else arrays | {"projection": scaling.projection}


def _restored_scaling(arrays: Mapping[str, Array]) -> Scaling:
    return Scaling(
        columns=arrays["columns"],
        mean=arrays["mean"],
        inverse=arrays["inverse"],
        projection=arrays.get("projection"),
        width=int(arrays["width"][0]),
    )


_ALL: tuple[type[Baseline], ...] = (
    _MaxSoftmax,
    _TemperatureScaled,
    _Entropy,
    _Margin,
    _Energy,
    _KnnDistance,
    _Mahalanobis,
)
#: By name, in the order in which they are listed.
BASELINES: dict[str, type[Baseline]] = {one.name: one for one in _ALL}
