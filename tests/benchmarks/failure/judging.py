"""Judge every method on one variant and seed."""

import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from failure.methods import METHODS, platt
from failure.variants import Run, Traced, run
from ml_debugger.core.evaluation import metrics
from ml_debugger.core.evaluation.drift import Evaluated
from ml_debugger.core.evaluation.estimator import ErrorModel, Estimates, Observations
from ml_debugger.core.evaluation.proof import Proof
from ml_debugger.core.evaluation.zones import ZONES, Zone, ZoneRules

OURS = "error_proba (ours)"
OURS_LAST = "ours, last layer only"
OURS_LOGITS = "ours, logits only"
FIGURES = ("auroc", "aurc", "augrc", "ap", "fpr95", "brier", "ece", "nll")
FEW = (5, 10, 20, 50, 100)
CALIBRATED = "max softmax, temperature, Platt"

Figures = dict[str, float]


class InZone(NamedTuple):
    """What lies in a zone, and what lies in the max-softmax region of the same size."""

    n: int
    errors: int
    score: float
    by_max_softmax: int
    flips: float | None


class InCodes(NamedTuple):
    """Errors of the pool whose true class is the model's, and how many codes name it."""

    n: int
    suggested: int
    runner_up: int
    listed: int
    length: int


@dataclass(frozen=True)
class Judged:
    """One run.

    Attributes:
        figures: By method and figure, on the pool.
        few: By number of evaluated errors: figures of the calibrated max softmax and of ours.
        zones: In the order of `ZONES`.
        codes: What the features suggest.
        pool_size: Inputs of the pool.
        error_rate: Of the pool.
        level: How far the mean error probability is from it.
        drift: Whether the flag is raised.
        seconds: Fit and scoring.
    """

    figures: dict[str, Figures]
    few: dict[int, tuple[Figures, Figures]]
    zones: list[InZone]
    codes: InCodes
    pool_size: int
    error_rate: float
    level: float
    drift: bool
    seconds: float


def observed(part: Traced) -> Observations:
    return Observations(part.features, part.prediction, part.score, part.logits)


def fitted(evaluation: Traced, pool: Traced) -> tuple[Estimates, Estimates]:
    """Return our estimates of the evaluated inputs and of the pool, as an evaluation makes them."""
    given, n_class = observed(evaluation), evaluation.logits.shape[1]
    model, own = ErrorModel.fit(given, evaluation.labels, n_class=n_class)
    proof = Proof.of(given, evaluation.labels, own.error_proba, n_class=n_class)
    if proof.substitute is not None:
        model, own = model.substituted(
            proof.substitute,
            given,
            own,
            rows=proof.rows,
            held_out=proof.scores[proof.used],
            note=proof.note or "",
        )
    return own, model.estimate(observed(pool))


def figures(risk: Any, proba: Any, wrong: Any) -> Figures:
    """Judge a risk; AURC and AUGRC in thousandths."""
    accepted = np.quantile(risk[~wrong], 0.95)
    return {
        "auroc": metrics.auroc(risk, wrong),
        "aurc": 1000 * metrics.aurc(risk, wrong),
        "augrc": 1000 * metrics.augrc(risk, wrong),
        "ap": float(average_precision_score(wrong, risk)),
        "fpr95": float((risk[wrong] <= accepted).mean()),
        "brier": metrics.brier(proba, wrong),
        "ece": metrics.ece(proba, wrong),
        "nll": metrics.nll(np.clip(proba, 1e-6, 1 - 1e-6), wrong),
    }


def judged(name: str, seed: int, retrained: int) -> Judged:
    """Train, trace, fit and judge."""
    torch.set_num_threads(1)
    traced = run(name, seed, retrained=retrained)
    evaluation, pool = traced.evaluation, traced.pool
    start = time.perf_counter()
    own, found = fitted(evaluation, pool)
    seconds = time.perf_counter() - start
    last = list(evaluation.features)[-1]
    table = {}
    for method, estimates in (
        (OURS, found),
        (OURS_LAST, fitted(evaluation.only(last), pool.only(last))[1]),
        (OURS_LOGITS, fitted(evaluation.only(), pool.only())[1]),
    ):
        proba = estimates.error_proba.astype(np.float64)
        table[method] = figures(proba, proba, pool.wrong)
    for method, function in METHODS.items():
        risks = function(evaluation, pool)
        table[method] = figures(risks.pool, platt(risks, evaluation.wrong), pool.wrong)
    return Judged(
        figures=table,
        few=few_errors(evaluation, pool, seed),
        zones=in_zones(traced, own, found),
        codes=in_codes(pool, found),
        pool_size=len(pool.labels),
        error_rate=float(pool.wrong.mean()),
        level=abs(float(found.error_proba.mean() - pool.wrong.mean())),
        drift=drifted(evaluation, own, pool, found),
        seconds=seconds,
    )


def drifted(evaluation: Traced, own: Estimates, pool: Traced, found: Estimates) -> bool:
    """Tell whether drift is stated of the pool, without its labels."""
    rules = ZoneRules.fit(own, evaluation.score, evaluation.wrong, evaluation.prediction)
    own = replace(own, error_proba=own.as_new)
    evaluated = Evaluated.of_units(
        evaluation.wrong,
        own.error_proba,
        own.outlier,
        rules.assign(own, evaluation.score, evaluation.prediction),
    )
    zones = rules.assign(found, pool.score, pool.prediction)
    stated = evaluated.drift(found.error_proba, found.outlier, zones)
    return stated is not None and stated.raised


def few_errors(evaluation: Traced, pool: Traced, seed: int) -> dict[int, tuple[Figures, Figures]]:
    """Judge fits to parts of the evaluation set with few errors, at its own error rate."""
    rng = np.random.default_rng(seed)
    wrong, right = (np.flatnonzero(evaluation.wrong == which) for which in (True, False))
    table = {}
    for errors in FEW:
        if errors > len(wrong):
            break
        others = round(errors * len(right) / len(wrong))
        rows = np.concatenate([rng.permutation(wrong)[:errors], rng.permutation(right)[:others]])
        part = evaluation.take(rows)
        theirs = METHODS[CALIBRATED](part, pool)
        proba = fitted(part, pool)[1].error_proba.astype(np.float64)
        table[errors] = (
            figures(theirs.pool, platt(theirs, part.wrong), pool.wrong),
            figures(proba, proba, pool.wrong),
        )
    return table


def in_zones(traced: Run, own: Estimates, found: Estimates) -> list[InZone]:
    """Fit the rules to the evaluation set and count the pool.

    The max-softmax region of a coverage zone are as many inputs, the safest first; of the
    critical zone the riskiest as many of those that are as confident; of another hot zone the
    riskiest as many of all.
    """
    evaluation, pool, flips = traced
    rules = ZoneRules.fit(own, evaluation.score, evaluation.wrong, evaluation.prediction)
    zones = rules.assign(found, pool.score, pool.prediction)
    confident = next(r.score for r in rules.rules if r.zone == Zone.CRITICAL_HOTSPOT)
    assert confident is not None  # the rule that makes it critical
    safest = np.argsort(-pool.score, kind="stable")
    counted, start = [], 0
    for number, zone in enumerate(ZONES):
        inside = zones == number
        n = int(inside.sum())
        if not zone.is_hot:
            region, start = safest[start : start + n], start + n
        else:
            among = safest
            if zone == Zone.CRITICAL_HOTSPOT:
                among = safest[pool.score[safest] >= confident[0]]
            region = among[len(among) - n :]
        counted.append(
            InZone(
                n=n,
                errors=int(pool.wrong[inside].sum()),
                score=float(pool.score[inside].mean()) if n else 0.0,
                by_max_softmax=int(pool.wrong[region].sum()),
                flips=None if flips is None or not n else float(flips[inside].mean()),
            )
        )
    return counted


def in_codes(pool: Traced, found: Estimates) -> InCodes:
    """Compare the classes that the features suggest, and the logits' second, with the truth."""
    rows = np.flatnonzero(pool.wrong & (pool.labels >= 0))
    truth, shares = pool.labels[rows], found.shares[rows]
    order = np.argsort(-shares, axis=1, kind="stable")[:, :3]
    listed = np.take_along_axis(shares, order, axis=1) >= 0.2
    listed[:, 0] = True
    second = np.argsort(-pool.logits[rows], axis=1, kind="stable")[:, 1]
    return InCodes(
        n=len(rows),
        suggested=int((order[:, 0] == truth).sum()),
        runner_up=int((second == truth).sum()),
        listed=int(((order == truth[:, None]) & listed).any(axis=1).sum()),
        length=int(listed.sum()),
    )
