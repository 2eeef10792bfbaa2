"""Our error probability beside the baselines, on the same held-out units, and which one is used.

The rule: a baseline takes the place of ours only where, on the held-out folds, it ranks errors
better (higher AUROC) and is the better probability (lower log-loss of its Platt scaling), both by
more than chance explains: paired, at a level of 5 % that the baselines share (Bonferroni). Of
several such the one with the highest AUROC is taken; without, ours stays, as it does where errors
or correct units come from fewer than thirty inputs, of which resamples vary too little for the
interval to be believed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.evaluation import metrics
from ml_debugger.core.evaluation.baselines import BASELINES, Case
from ml_debugger.core.evaluation.bootstrap import METRICS, Bootstrap, Score
from ml_debugger.core.evaluation.error_model.evidence import Observations
from ml_debugger.core.evaluation.error_model.scaling import Array, Floats, Integers
from ml_debugger.core.evaluation.substitute import Platt, Substitute

#: What ours is called beside the baselines.
OURS = "error_proba"

_FEW = 30

#: Normal quantiles of a two-sided 5 %, and of that shared by all baselines.
_SINGLE = NormalDist().inv_cdf(1 - 0.05 / 2)
_SHARED = NormalDist().inv_cdf(1 - 0.05 / 2 / len(BASELINES))


@dataclass(frozen=True)
class Proof:
    """How good ours and the baselines are on the same units.

    Attributes:
        table: By method, ours first: each of `METRICS` with its interval `<metric>_low` and
            `<metric>_high`, and `nll`; for a baseline, also ours minus it, `<metric>_gain`, with
            the paired interval `<metric>_gain_low` and `<metric>_gain_high`. A baseline is no
            probability; `brier`, `ece` and `nll` are those of its Platt scaling. nan where a
            figure is not defined.
        scores: Held-out risks and probabilities by method.
        wrong: Whether each of the judged units is wrong, shape (m,).
        rows: Their positions among the units given, shape (m,).
        used: The method to use, by the rule above.
        substitute: What to use in place of ours, or None where ours is used.
        note: What a user should know about it, or None.
    """

    table: dict[str, dict[str, float]]
    scores: dict[str, Score]
    wrong: NDArray[np.bool_]
    rows: Integers
    used: str = OURS
    substitute: Substitute | None = None
    note: str | None = None

    @classmethod
    def of(
        cls,
        observations: Observations,
        target: Integers,
        error_proba: Array,
        *,
        seed: int = 0,
        groups: Integers | None = None,
        n_class: int | None = None,
    ) -> Self:
        """Judge our error probability beside every baseline that applies.

        Args:
            observations: As given to `ErrorModel.fit`, like the arguments after the next.
            target: True classes, shape (n,).
            error_proba: What the fit said of these units, shape (n,). Units that it left out are
                not judged.
            seed: As given to the fit.
            groups: As given to the fit.
            n_class: As given to the fit.
        """
        case = Case.of(observations, target, groups=groups, n_class=n_class, seed=seed)
        units = case.units
        ours = error_proba[units.rows].astype(np.float64)
        scores = {OURS: Score(ours, ours)}
        for name, baseline in BASELINES.items():
            risk = baseline.held_out(case)
            if risk is not None:
                proba = Platt.held_out(risk, units.wrong, units.folds)
                scores[name] = Score(risk, proba)
        table = _table(scores, units.wrong, units.groups)
        used = _best(table, scores, units.wrong, units.groups)
        if used == OURS:
            return cls(table, scores, units.wrong, units.rows)
        substitute = _fitted(used, case, scores[used].risk)
        return cls(table, scores, units.wrong, units.rows, used, substitute, _note(used, table))


def _table(
    scores: Mapping[str, Score], wrong: Array, groups: Integers
) -> dict[str, dict[str, float]]:
    bootstrap = Bootstrap.of(scores, wrong, groups=groups)
    table: dict[str, dict[str, float]] = {}
    for name, score in scores.items():
        row = table[name] = {"nll": metrics.nll(score.proba, wrong)}
        for metric in METRICS:
            values = score.risk if metric in ("auroc", "aurc", "augrc") else score.proba
            row[metric] = getattr(metrics, metric)(values, wrong)
            row[f"{metric}_low"], row[f"{metric}_high"] = bootstrap.interval(name, metric)
            if name != OURS:
                row[f"{metric}_gain"] = table[OURS][metric] - row[metric]
                low, high = bootstrap.difference(OURS, name, metric)
                row[f"{metric}_gain_low"], row[f"{metric}_gain_high"] = low, high
    return table


def _best(
    table: Mapping[str, Mapping[str, float]],
    scores: Mapping[str, Score],
    wrong: NDArray[np.bool_],
    groups: Integers,
) -> str:
    """Return the method to use; see the rule at the top."""
    if min(len(np.unique(groups[which])) for which in (wrong, ~wrong)) < _FEW:
        return OURS
    better = [
        name
        for name, row in table.items()
        if name != OURS and _is_better(row) and _log_loss_gain(scores, name, wrong, groups) < 0
    ]
    return max(better, key=lambda name: table[name]["auroc"], default=OURS)


def _is_better(row: Mapping[str, float]) -> bool:
    """Tell whether a baseline's AUROC is above ours by more than chance, among all of them."""
    reach = (row["auroc_gain_high"] - row["auroc_gain"]) * _SHARED / _SINGLE
    return row["auroc_gain"] + reach < 0


def _log_loss_gain(
    scores: Mapping[str, Score], name: str, wrong: NDArray[np.bool_], groups: Integers
) -> float:
    """Return the largest plausible gain of ours over a baseline, minus its loss, in nats.

    Negative where the baseline's log-loss is lower by more than chance explains.
    """
    ours, theirs = (
        -np.log(np.where(wrong, p, 1 - p))
        for p in (np.clip(scores[one].proba, 1e-7, 1 - 1e-7) for one in (OURS, name))
    )
    member = np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(member, theirs - ours)  # units of one input are no independent evidence
    reach = _SHARED * float(np.sqrt(np.square(sums - sums.mean()).sum()))
    return float(sums.sum()) + reach


def _fitted(name: str, case: Case, risk: Floats) -> Substitute:
    baseline = BASELINES[name].fit(case, None)
    assert baseline is not None  # its held-out risks are there
    layer = case.layer if baseline.of_features else None
    return Substitute(baseline, layer, Platt.fit(risk, case.units.wrong))


def _note(name: str, table: Mapping[str, Mapping[str, float]]) -> str:
    row = table[name]
    low, high = -row["auroc_gain_high"], -row["auroc_gain_low"]
    return (
        f"{name} ranks errors better here (AUROC {row['auroc']:.3f} vs {table[OURS]['auroc']:.3f}, "
        f"difference {-row['auroc_gain']:.3f}, 95 % interval {low:.3f} to {high:.3f}) and is used "
        "in place of the evidence of layers and logits together"
    )
