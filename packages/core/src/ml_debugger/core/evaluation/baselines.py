"""Known risk scores, judged on the same units and folds as ours.

A baseline is a function of a `Case`. Whatever it learns, it learns without the unit's own label
and fold, as ours does, so that the comparison is fair; a new one is a function and an entry in
`BASELINES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from scipy.linalg import solve_triangular  # type: ignore[import-untyped,unused-ignore]

from ml_debugger.core.evaluation import metrics
from ml_debugger.core.evaluation.error_model.discriminant import Moments
from ml_debugger.core.evaluation.error_model.evidence import Observations
from ml_debugger.core.evaluation.error_model.fitting import Units, prepare
from ml_debugger.core.evaluation.error_model.folds import FOLDS, choose_references
from ml_debugger.core.evaluation.error_model.head import fit_temperature, logistic, score_column
from ml_debugger.core.evaluation.error_model.layer import NEIGHBOURS, lengths, remoteness
from ml_debugger.core.evaluation.error_model.scaling import (
    Floats,
    Integers,
    Scaling,
    Singles,
    log_softmax,
)
from ml_debugger.core.evaluation.estimator import Estimates

_MOST_REFERENCES = 4096
_CHUNK = 256


@dataclass(frozen=True)
class Case:
    """Evaluated units as a baseline sees them: the finite ones, in the order of the fit.

    Attributes:
        score: Max softmax or box score, shape (n,), float32.
        logits: Class vectors, shape (n, K), float64, or None.
        features: Of the last layer, shape (n, d), or None without layers.
        units: Labels, errors, groups and folds; `units.rows` are positions among all units.
        n_class: K.
    """

    score: Singles
    logits: Floats | None
    features: Singles | None
    units: Units
    n_class: int

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
        last = list(usable.features.values())[-1:]
        return cls(
            score=usable.score[units.rows],
            logits=None if usable.logits is None else usable.logits[units.rows].astype(np.float64),
            features=last[0][units.rows].astype(np.float32) if last else None,
            units=units,
            n_class=n_class,
        )

    @cached_property
    def log_share(self) -> Floats | None:
        """Log softmax at the temperature that fits the other folds, shape (n, K)."""
        if self.logits is None:
            return None
        log_share = np.empty_like(self.logits)
        for fold in range(FOLDS):
            inside = self.units.folds == fold
            labels = np.where(self.units.labels < self.n_class, self.units.labels, -1)
            temperature = fit_temperature(self.logits[~inside], labels[~inside])
            log_share[inside] = log_softmax(self.logits[inside] / temperature)
        return log_share

    @cached_property
    def scaled(self) -> tuple[Scaling, Singles] | None:
        """Scaling of the last layer and its scaled features (n, d), or None without any."""
        if self.features is None:
            return None
        scaling = Scaling.fit(self.features, np.arange(len(self.features)))
        return (scaling, scaling(self.features)) if len(scaling.columns) else None


Baseline = Callable[[Case], Floats | None]


def max_softmax(case: Case) -> Floats:
    """Return the log-odds that the score leaves for an error (Hendrycks & Gimpel 2017)."""
    return score_column(case.score)


def temperature_scaled(case: Case) -> Floats | None:
    """Return the same of the max softmax at a fitted temperature (Guo et al. 2017)."""
    return None if case.log_share is None else score_column(np.exp(case.log_share.max(axis=1)))


def entropy(case: Case) -> Floats | None:
    """Return the entropy of the softmax at a fitted temperature (Shannon 1948)."""
    log_share = case.log_share
    return None if log_share is None else -(np.exp(log_share) * log_share).sum(axis=1)


def margin(case: Case) -> Floats | None:
    """Return minus the distance between the two largest shares (Scheffer et al. 2001)."""
    if case.log_share is None or case.n_class < 2:
        return None
    two = np.partition(np.exp(case.log_share), -2, axis=1)[:, -2:]
    difference: Floats = two[:, 0] - two[:, 1]
    return difference


def energy(case: Case) -> Floats | None:
    """Return the free energy of the logits (Liu et al. 2020)."""
    if case.logits is None:
        return None
    largest = case.logits.max(axis=1)
    free: Floats = -(largest + np.log(np.exp(case.logits - largest[:, None]).sum(axis=1)))
    return free


def knn_distance(case: Case) -> Floats | None:
    """Return the log distance to the tenth neighbour in the last layer (Sun et al. 2022)."""
    if case.scaled is None or len(case.units.rows) < 2:
        return None
    _, scaled = case.scaled
    chosen, _ = choose_references(case.units.wrong, _MOST_REFERENCES)
    directions = scaled[chosen] / lengths(scaled[chosen])[:, None]
    k = min(NEIGHBOURS, len(chosen) - 1)
    groups = case.units.groups
    return np.concatenate(
        [
            remoteness(
                scaled[start : start + _CHUNK] @ directions.T,
                scaled[start : start + _CHUNK],
                k,
                groups[start : start + _CHUNK, None] == groups[chosen],
            )
            for start in range(0, len(scaled), _CHUNK)
        ]
    )


def mahalanobis(case: Case) -> Floats | None:
    """Return the squared Mahalanobis distance to the nearest class (Lee et al. 2018)."""
    if case.scaled is None or case.features is None:
        return None
    scaling, scaled = case.scaled
    units, distance = case.units, np.empty(len(scaled))
    for fold in range(FOLDS):
        inside = units.folds == fold
        others = np.flatnonzero(~inside)
        moments = Moments.of(scaling, case.features, others, units.labels, case.n_class + 1)
        present = moments.count > 0
        present[-1] = False
        if not (inside.any() and present.any()):
            distance[inside] = 0
            continue
        mean, covariance = moments.shrunk()
        root = np.linalg.cholesky(covariance)
        white = solve_triangular(root, scaled[inside].T.astype(np.float64), lower=True).T
        centres = solve_triangular(root, mean[present].T, lower=True).T
        squared = (white**2).sum(axis=1)[:, None] - 2 * white @ centres.T
        distance[inside] = (squared + (centres**2).sum(axis=1)).min(axis=1)
    return distance


#: Functions of a `Case` that return risks (n,), larger = more likely wrong; None where the task
#: records nothing that they could look at.
BASELINES: dict[str, Baseline] = {
    "max_softmax": max_softmax,
    "temperature_scaled": temperature_scaled,
    "entropy": entropy,
    "margin": margin,
    "energy": energy,
    "knn_distance": knn_distance,
    "mahalanobis": mahalanobis,
}


def compare(
    observations: Observations,
    target: Integers,
    estimates: Estimates,
    *,
    seed: int = 0,
    groups: Integers | None = None,
    n_class: int | None = None,
) -> dict[str, dict[str, float]]:
    """Judge our error probability beside every baseline that applies.

    Args:
        observations: As given to `ErrorModel.fit`, like the arguments after the next.
        target: True classes, shape (n,).
        estimates: What the fit returned.
        seed: As given to the fit.
        groups: As given to the fit.
        n_class: As given to the fit.

    Returns:
        By method, "error_proba" (ours) first: `auroc`, `aurc`, `augrc`, `brier` and `ece`. A
        baseline is no probability; its Brier score and ECE are those of its Platt scaling
        (Platt 1999), fitted to the other folds. Units left out of the fit are not judged.
    """
    case = Case.of(observations, target, groups=groups, n_class=n_class, seed=seed)
    ours = estimates.error_proba[case.units.rows].astype(np.float64)
    table = {"error_proba": _judged(ours, ours, case.units)}
    for name, baseline in BASELINES.items():
        risk = baseline(case)
        if risk is not None:
            table[name] = _judged(risk, platt_scaled(risk, case.units), case.units)
    return table


def platt_scaled(risk: Floats, units: Units) -> Floats:
    """Return error probabilities out of risks (n,), fitted to the other folds (Platt 1999)."""
    spread = float(risk.std())
    column = ((risk - risk.mean()) / (spread if spread > 0 else 1.0))[:, None]
    wrong, proba = units.wrong.astype(np.float64), np.empty(len(risk))
    for fold in range(FOLDS):
        inside = units.folds == fold
        weights, intercept = logistic(
            column[~inside],
            wrong[~inside],
            np.ones(int((~inside).sum())),
            prior=np.zeros(1),
            ridge=0.1,
            usable=np.ones(1, np.bool_),
        )
        proba[inside] = 1 / (1 + np.exp(-(column[inside, 0] * weights[0] + intercept)))
    return proba


def _judged(risk: Floats, proba: Floats, units: Units) -> dict[str, float]:
    return {
        "auroc": metrics.auroc(risk, units.wrong),
        "aurc": metrics.aurc(risk, units.wrong),
        "augrc": metrics.augrc(risk, units.wrong),
        "brier": metrics.brier(proba, units.wrong),
        "ece": metrics.ece(proba, units.wrong),
    }
