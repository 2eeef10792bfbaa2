"""The six zones: an ordered list of rules over score, error probability and outlier score."""

from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ml_debugger.core.evaluation.error_model.scaling import Array, Floats, Integers
from ml_debugger.core.evaluation.estimator import Estimates
from ml_debugger.core.evaluation.metrics import share_interval
from ml_debugger.core.evaluation.zoning import ZONES, Zone, assign_zones, finite_score

__all__ = ["ZONES", "Zone", "ZoneRule", "ZoneRules", "zone_table"]

_FEW = 5
_FEW_UNITS = 20
_LARGEST_RISK = 0.05
_LEAST_HOT = 0.1


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if not value[0] <= value[1]:
        raise ValueError(f"a range goes from low to high, got {value[0]} to {value[1]}")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]


class ZoneRule(BaseModel):
    """Conditions, all of which a unit of the zone meets; None asks nothing.

    Attributes:
        zone: The zone of the units that meet them.
        score: Lowest and highest score, both included.
        error_proba: Lowest and highest error probability, both included.
        outlier: Lowest and highest outlier p-value, both included; small means unlike all
            evaluated units.
        unstable: Whether the neighbours are split or the layers disagree.
        prediction: The predicted classes that the rule is about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    zone: Zone
    score: Range | None = None
    error_proba: Range | None = None
    outlier: Range | None = None
    unstable: bool | None = None
    prediction: tuple[int, ...] | None = Field(default=None, min_length=1)

    def describe(self) -> str:
        """Say the rule in a sentence, with rounded numbers."""
        names = {"error_proba": "error probability", "score": "score", "outlier": "outlier p-value"}
        parts = [_between(name, getattr(self, field)) for field, name in names.items()]
        if self.unstable is not None:
            parts.append("unstable" if self.unstable else "stable neighbours")
        if self.prediction is not None:
            parts.append(f"predicted {_listed(self.prediction)}")
        said = [part for part in parts if part]
        return f"{self.zone.value}: {' and '.join(said) if said else 'everything else'}"


class ZoneRules(BaseModel):
    """Rules in the order in which they apply: the first that a unit meets names its zone.

    A unit that meets none is `operational_coverage`; one whose score is not finite is never
    `stable_coverage`.

    Attributes:
        version: Of this format.
        rules: In order; several may name the same zone.
        notes: What a user should know about how they came about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[2] = 2
    rules: tuple[ZoneRule, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls,
        estimates: Estimates,
        score: Array,
        wrong: Array,
        prediction: Array | None = None,
        *,
        stable_risk: float = 0.01,
        operational_risk: float = 0.1,
    ) -> Self:
        """Set the borders by evaluated units.

        Hot is what is at least as likely wrong as the border that finds errors best (F1);
        where less than that would leave too many errors in `operational_coverage`, that border
        is lower, but for `critical_hotspot`. `stable_coverage` reaches as far as its risk
        allows, for each predicted class by itself where there are enough units of it: a common
        border would let classes that are often wrong exceed what the others save.

        Args:
            estimates: Of the evaluated units, each by a fit to the other folds.
            score: Max softmax or box score, shape (n,).
            wrong: Whether each prediction was wrong, shape (n,).
            prediction: Predicted classes, shape (n,); None sets no borders by class.
            stable_risk: The error rate that `stable_coverage` may have. Few units cannot tell a
                small one; the border then keeps to 3/n, at most 5 %.
            operational_risk: The error rate that `operational_coverage` may have.
        """
        p = estimates.error_proba.astype(np.float64)
        given, outcome = score, np.asarray(wrong, np.bool_)
        score, wrong = finite_score(score), outcome
        known = np.isfinite(score)
        p, score, wrong = p[known], score[known], wrong[known]
        hot = _hot_border(p, wrong)
        right = score if wrong.all() else score[~wrong]
        low, high = (
            (float(v) for v in np.quantile(right, [0.1, 0.25])) if len(right) else (1.0,) * 2
        )
        risk = max(stable_risk, min(3 / max(len(p), 1), _LARGEST_RISK))
        sure = score >= low
        own: dict[int, float | None] = {}
        common = sure
        if prediction is not None:
            classes = np.asarray(prediction)[known]
            own = _borders_by_class(p[sure], wrong[sure], classes[sure], risk, below=hot)
            common = sure & ~np.isin(classes, list(own))
        border = _stable_border(p[common], wrong[common], risk, below=hot)
        stable = _stable_rules(border, own, (low, 1.0))
        zones = assign_zones(
            [rule.model_dump(mode="json") for rule in stable],
            {"score": score, "error_proba": p, "outlier": p, "unstable": wrong},
            classes if own else None,
        )
        rest = zones != ZONES.index(Zone.STABLE_COVERAGE)
        least = max([_LEAST_HOT, *(end for end in (border, *own.values()) if end is not None)])
        warm = _operational_border(p[rest], wrong[rest], operational_risk, below=hot, least=least)

        rules = [
            ZoneRule(zone=Zone.CRITICAL_HOTSPOT, error_proba=(hot, 1.0), score=(high, 1.0)),
            ZoneRule(zone=Zone.ALEATORIC_HOTSPOT, outlier=(0.0, 0.01)),
            ZoneRule(zone=Zone.ALEATORIC_HOTSPOT, error_proba=(warm, 1.0), outlier=(0.0, 0.1)),
            ZoneRule(zone=Zone.HOTSPOT, error_proba=(warm, 1.0), unstable=True),
            ZoneRule(zone=Zone.RECESSIVE_HOTSPOT, error_proba=(warm, 1.0)),
            *stable,
            ZoneRule(zone=Zone.OPERATIONAL_COVERAGE),
        ]
        found = cls(rules=tuple(rules))
        zones = found.assign(estimates, given, prediction)
        operational = zones == ZONES.index(Zone.OPERATIONAL_COVERAGE)
        reached = float(outcome[operational].mean()) if operational.any() else 0.0
        notes = _stable_notes(rules, len(p), risk, stable_risk)
        if reached > operational_risk:
            notes.append(
                f"operational_coverage has an error rate of {reached:.2g}, not the "
                f"{operational_risk:.2g} that was asked for: no border of a hot zone reaches it"
            )
        return found.model_copy(update={"notes": tuple(notes)})

    def assign(
        self, estimates: Estimates, score: Array, prediction: Array | None = None
    ) -> NDArray[np.int8]:
        """Return the zone of each unit as a position in `ZONES`, shape (n,).

        Args:
            estimates: Of the units.
            score: Max softmax or box score, shape (n,).
            prediction: Predicted classes, shape (n,); needed where rules are about classes.

        Raises:
            InputError: Rules are about predicted classes, and there are none.
        """
        columns = {
            "score": score,
            "error_proba": estimates.error_proba,
            "outlier": estimates.outlier,
            "unstable": estimates.unstable,
        }
        return assign_zones(self._plain, columns, prediction)

    @cached_property
    def _plain(self) -> list[dict[str, Any]]:
        return [rule.model_dump(mode="json") for rule in self.rules]

    def describe(self) -> list[str]:
        """Say each rule in a sentence."""
        return [rule.describe() for rule in self.rules]


def zone_table(
    zones: Array, wrong: Array, score: Array, groups: Integers | None = None
) -> list[dict[str, Any]]:
    """Count units and errors by zone.

    Args:
        zones: Positions in `ZONES`, shape (n,).
        wrong: Whether each prediction was wrong, shape (n,).
        score: Max softmax or box score, shape (n,); those not finite are left out of the mean.
        groups: Units of one input, which are no independent evidence, shape (n,); None where each
            unit is an input of its own.

    Returns:
        One row for every zone, in the order of `ZONES`, also for one without units: `zone`, `n`,
        `share` of all units, `errors`, `error_rate` with its 95 % interval `low` and `high`
        (`share_interval`), and `mean_score`. Rates and means of an empty zone are None.
    """
    rows: list[dict[str, Any]] = []
    for number, zone in enumerate(ZONES):
        inside = np.asarray(zones) == number
        failed = np.asarray(wrong, np.bool_)[inside]
        n, errors = len(failed), int(failed.sum())
        low, high = share_interval(failed, None if groups is None else groups[inside])
        scores = np.asarray(score, np.float64)[inside]
        scores = scores[np.isfinite(scores)]
        rows.append(
            {
                "zone": zone.value,
                "n": n,
                "share": n / max(len(zones), 1),
                "errors": errors,
                "error_rate": errors / n if n else None,
                "low": low if n else None,
                "high": high if n else None,
                "mean_score": float(scores.mean()) if len(scores) else None,
            }
        )
    return rows


def _hot_border(p: Floats, wrong: Array) -> float:
    """Return the error probability from which on a unit is hot: the best F1 for errors.

    Kept between the base rate (at least 0.1) and 0.6; 0.5 where there are too few errors.
    """
    errors = int(wrong.sum())
    if errors < _FEW:
        return 0.5
    order = np.argsort(-p, kind="stable")
    last = np.append(p[order][1:] != p[order][:-1], True)
    found, flagged = np.cumsum(wrong[order])[last], np.arange(1, len(p) + 1)[last]
    best = int(np.argmax(2 * found / (flagged + errors)))
    rate = (errors + 0.5) / (len(p) + 1)
    return float(np.clip(p[order][last][best], max(_LEAST_HOT, min(rate, 0.5)), 0.6))


def _stable_border(p: Floats, wrong: Array, risk: float, *, below: float) -> float | None:
    """Return the largest error probability up to which the units keep to a risk, or None.

    Counts one more error than was seen, as conformal risk control does (Angelopoulos et al. 2022).
    Theirs is a guarantee for risks that grow with the border; an error rate need not, so this is
    a rule that holds where the error probability ranks well, and no proof.
    """
    if len(p) == 0:
        return None
    order = np.argsort(p, kind="stable")
    last = np.append(p[order][1:] != p[order][:-1], True)
    errors, n = np.cumsum(wrong[order])[last], np.arange(1, len(p) + 1)[last]
    border = p[order][last]
    kept = ((errors + 1) / (n + 1) <= risk) & (border < below)
    return float(border[kept].max()) if kept.any() else None


def _borders_by_class(
    p: Floats, wrong: Array, classes: Array, risk: float, *, below: float
) -> dict[int, float | None]:
    """Return the stable border of each class that has the units to tell its risk."""
    names, counts = np.unique(classes, return_counts=True)
    members = {int(c): classes == c for c, n in zip(names, counts, strict=True) if n >= 3 / risk}
    return {c: _stable_border(p[m], wrong[m], risk, below=below) for c, m in members.items()}


def _stable_rules(
    border: float | None, own: dict[int, float | None], score: tuple[float, float]
) -> list[ZoneRule]:
    """Write the stable zone down: classes with a border of their own, then all others."""
    rules = [
        ZoneRule(
            zone=Zone.STABLE_COVERAGE, error_proba=(0.0, end), score=score, prediction=(number,)
        )
        for number, end in own.items()
        if end is not None
    ]
    if border is not None:
        if own:  # the common border is for the others
            rules.append(ZoneRule(zone=Zone.OPERATIONAL_COVERAGE, prediction=tuple(own)))
        rules.append(ZoneRule(zone=Zone.STABLE_COVERAGE, error_proba=(0.0, border), score=score))
    return rules


def _operational_border(
    p: Floats, wrong: Array, risk: float, *, below: float, least: float
) -> float:
    """Return the lowest error probability of the hot zones: `below`, or less to keep to a risk.

    Not under `least`; and `below` where no border keeps to the risk.
    """
    values, counts = np.unique(p[p < below], return_counts=True)
    if len(values) == 0:
        return below
    place = np.searchsorted(values, p[p < below])
    errors = np.cumsum(np.bincount(place, wrong[p < below], len(values)))
    kept = np.flatnonzero(errors <= risk * np.cumsum(counts))
    if len(kept) == 0 or kept[-1] == len(values) - 1:
        return below
    # The first value beyond the last that keeps to the risk is the first that is hot.
    return min(max(float(values[kept[-1] + 1]), float(np.nextafter(least, 1.0))), below)


def _stable_notes(rules: list[ZoneRule], n: int, risk: float, wanted: float) -> list[str]:
    notes = []
    if n < _FEW_UNITS:
        notes.append(f"{n} units are too few to set borders by: take the zones as placeholders")
    if all(rule.zone != Zone.STABLE_COVERAGE for rule in rules):
        notes.append(
            f"no region keeps to an error rate of {risk:.2g}: stable_coverage is empty; "
            "evaluate more units, or accept a larger stable_risk"
        )
    elif risk > wanted:
        notes.append(
            f"{n} units are too few to tell an error rate of {wanted:.2g}: "
            f"stable_coverage keeps to {risk:.2g}"
        )
    return notes


def _listed(classes: tuple[int, ...]) -> str:
    some = ", ".join(map(str, classes[:10]))
    return some if len(classes) <= 10 else f"{some} or {len(classes) - 10} more classes"


def _between(name: str, allowed: tuple[float, float] | None) -> str:
    if allowed is None:
        return ""
    low, high = allowed
    if low <= 0:
        return f"{name} ≤ {high:.3g}"
    if high >= 1:
        return f"{name} ≥ {low:.3g}"
    return f"{name} from {low:.3g} to {high:.3g}"
