"""How good error probabilities are: ranking and probability.

Throughout, `proba` is a risk of being wrong, shape (n,), larger = more likely wrong, and `wrong`
tells whether each prediction was, shape (n,). Units with equal risk count as if every order of
them were equally likely, so no metric depends on the order of the rows. `bootstrap` says how
uncertain they are.
"""

from typing import NamedTuple

import numpy as np

from ml_debugger.core.evaluation.error_model.scaling import Array, Floats, Integers

_NORMAL_95 = 1.959963984540054


class ReliabilityCurve(NamedTuple):
    """Predicted against observed error, in bins of equal numbers of units.

    Attributes:
        predicted: Mean error probability of each bin, shape (b,), float64, ascending.
        observed: Share of errors in it.
        low: Lower end of the 95 % interval of `observed`; see `share_interval`.
        high: Its upper end.
        size: Units in it, int64.
    """

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    size: Array


class RiskCoverageCurve(NamedTuple):
    """Risk when only the units with the least estimated risk are accepted.

    Attributes:
        coverage: Share of units accepted, 1/n to 1, shape (n,), float64.
        risk: Share of errors among the accepted (selective risk).
        undetected: Share of accepted errors among all units (generalised risk).
    """

    coverage: Floats
    risk: Floats
    undetected: Floats


def auroc(proba: Array, wrong: Array) -> float:
    """Return how often an error is ranked above a correct prediction, in [0, 1].

    The failure-AUROC of Hendrycks & Gimpel (2017); nan without errors or without correct units.
    """
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped,unused-ignore]

    wrong = np.asarray(wrong, bool)
    if wrong.all() or not wrong.any():
        return float("nan")
    return float(roc_auc_score(wrong, np.asarray(proba, np.float64)))


def aurc(proba: Array, wrong: Array) -> float:
    """Return the mean selective risk over all coverages, in [0, 1], lower is better.

    Geifman et al. (2019), as used by FD-Shifts (Jaeger et al. 2023). nan without units.
    """
    return _mean(risk_coverage_curve(proba, wrong).risk)


def augrc(proba: Array, wrong: Array) -> float:
    """Return the mean generalised risk over all coverages, in [0, 1], lower is better.

    The average risk of an undetected failure (Traub et al. 2024). Even where every unit is wrong
    it nears 0.5 as units grow many; one wrong unit alone gives 1. nan without units.
    """
    return _mean(risk_coverage_curve(proba, wrong).undetected)


def brier(proba: Array, wrong: Array) -> float:
    """Return the mean squared error of the probability, in [0, 1] (Brier 1950)."""
    from sklearn.metrics import brier_score_loss  # type: ignore[import-untyped,unused-ignore]

    if len(wrong) == 0:
        return float("nan")
    return float(brier_score_loss(np.asarray(wrong, int), _probability(proba), pos_label=1))


def nll(proba: Array, wrong: Array) -> float:
    """Return the mean negative log-likelihood in nats; probabilities are kept off 0 and 1."""
    from sklearn.metrics import log_loss  # type: ignore[import-untyped,unused-ignore]

    if len(wrong) == 0:
        return float("nan")
    kept = np.clip(_probability(proba), 1e-7, 1 - 1e-7)
    return float(log_loss(np.asarray(wrong, int), kept, labels=[0, 1]))


def ece(proba: Array, wrong: Array, bins: int = 15) -> float:
    """Return the expected calibration error over bins of equal mass, in [0, 1].

    Naeini et al. (2015), with quantile bins (Nixon et al. 2019), of the error probability.
    """
    curve = reliability_curve(proba, wrong, bins)
    if len(curve.size) == 0:
        return float("nan")
    return float(np.abs(curve.predicted - curve.observed) @ curve.size / curve.size.sum())


def reliability_curve(
    proba: Array, wrong: Array, bins: int = 15, groups: Integers | None = None
) -> ReliabilityCurve:
    """Return predicted and observed error in at most `bins` bins of equal mass.

    Units of one group, shape (n,), are no independent evidence; None where each is one.
    """
    proba = np.asarray(proba, np.float64)
    order = np.argsort(proba, kind="stable")
    ordered, outcome = proba[order], _over_ties(proba[order], np.asarray(wrong)[order])
    size = np.array([len(part) for part in np.array_split(ordered, bins)], np.int64)
    size = size[size > 0]
    if len(size) == 0:
        return ReliabilityCurve(*(np.zeros(0),) * 4, size)
    first = np.concatenate([[0], np.cumsum(size)[:-1]])
    errors = np.add.reduceat(outcome, first)
    told: Floats = size.astype(np.float64)
    if groups is not None:
        wrong = np.asarray(wrong, np.float64)
        parts = [order[at : at + n] for at, n in zip(first, size, strict=True)]
        told = np.array([effective_size(wrong[part], groups[part]) for part in parts])
    low, high = _wilson(errors * (told / size), told)
    predicted = np.add.reduceat(ordered, first) / size
    return ReliabilityCurve(predicted, errors / size, low, high, size)


def risk_coverage_curve(proba: Array, wrong: Array) -> RiskCoverageCurve:
    """Return the risk at every coverage, accepting units by ascending `proba`."""
    proba = np.asarray(proba, np.float64)
    order = np.argsort(proba, kind="stable")
    errors = np.cumsum(_over_ties(proba[order], np.asarray(wrong)[order]))
    n = len(proba)
    accepted = np.arange(1, n + 1)
    return RiskCoverageCurve(accepted / max(n, 1), errors / accepted, errors / max(n, 1))


def wilson_interval(k: float, n: float) -> tuple[float, float]:
    """Return the 95 % interval of a share of k in n (Wilson 1927); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    low, high = _wilson(np.array([float(k)]), np.array([n]))
    return float(low[0]), float(high[0])


def share_interval(hits: Array, groups: Integers | None = None) -> tuple[float, float]:
    """Return the 95 % interval of a share, of units that may not be independent.

    That of Wilson (1927), of as many units as tell as much of the share if they are independent
    (Rao & Scott 1992; for Wilson's interval, Dean & Pagano 2015). Where each group is one unit it
    is Wilson's own. (0, 1) without units.

    Args:
        hits: Which units count, shape (n,).
        groups: Units of one group are no independent evidence, shape (n,); None where each is one.
    """
    n = len(hits)
    hits = np.asarray(hits, np.float64)
    told = effective_size(hits, groups)
    return wilson_interval(float(hits.sum()) * (told / n) if n else 0.0, told)


def effective_size(hits: Array, groups: Integers | None = None) -> float:
    """Return how many independent units tell as much of a share as these do.

    The number of units by the design effect (Kish 1965), which is the variance of the share over
    that of independent units. The variance is that of the jackknife which leaves one group out at a
    time (Wolter 2007), and it has as many degrees of freedom as there are groups but one (Korn &
    Graubard 1998). Never more than there are units. Where all are alike, nothing tells how they go
    together, and they count as if each group were right or wrong as a whole.

    Args:
        hits: Which units count, shape (n,).
        groups: Numbers of their groups, shape (n,); None where each unit is one.
    """
    n = len(hits)
    if groups is None or n == 0:
        return n
    owner = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(owner).astype(np.float64)
    m = len(sizes)
    if m == n:
        return n
    hits = np.asarray(hits, np.float64)
    share = float(hits.mean())
    if m == 1 or share in (0.0, 1.0):
        return n**2 / float((sizes**2).sum())
    from scipy.special import stdtrit

    moved = np.bincount(owner, hits - share) / (n - sizes)  # by how much, without a group
    variance = (m - 1) / m * float((moved**2).sum())
    wider = float(stdtrit(m - 1, 0.975) / stdtrit(n - 1, 0.975)) ** 2
    independent = share * (1 - share)
    return independent / max(variance, independent / n) / wider


def _wilson(k: Floats, n: Array) -> tuple[Floats, Floats]:
    share, z2 = k / n, _NORMAL_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _NORMAL_95 * np.sqrt(share * (1 - share) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    low = np.where(k <= 0, 0.0, np.maximum(centre - half, 0.0))
    return low, np.where(k >= n, 1.0, np.minimum(centre + half, 1.0))


def _over_ties(ordered: Floats, wrong: Array) -> Floats:
    """Give each unit the share of errors among the units that have the same risk."""
    if len(ordered) == 0:
        return np.zeros(0)
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    size = np.diff(np.append(first, len(ordered)))
    share: Floats = np.add.reduceat(wrong.astype(np.float64), first) / size
    return np.repeat(share, size)


def _probability(proba: Array) -> Floats:
    return np.clip(np.asarray(proba, np.float64), 0.0, 1.0)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")
