"""The six zones: an ordered list of rules over score, error probability and outlier score."""

from enum import StrEnum
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict

from ml_debugger.core.evaluation.error_model.scaling import Array, Floats
from ml_debugger.core.evaluation.estimator import Estimates
from ml_debugger.core.evaluation.metrics import wilson_interval

_FEW = 5
_LARGEST_RISK = 0.05


class Zone(StrEnum):
    """How a unit stands to what the model knows; the hot zones are worth collecting data for."""

    STABLE_COVERAGE = "stable_coverage"
    OPERATIONAL_COVERAGE = "operational_coverage"
    HOTSPOT = "hotspot"
    RECESSIVE_HOTSPOT = "recessive_hotspot"
    CRITICAL_HOTSPOT = "critical_hotspot"
    ALEATORIC_HOTSPOT = "aleatoric_hotspot"

    @property
    def is_hot(self) -> bool:
        """Whether its units are to be looked at."""
        return self.value.endswith("hotspot")


#: The zones by the number that `ZoneRules.assign` gives them.
ZONES = tuple(Zone)


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
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    zone: Zone
    score: Range | None = None
    error_proba: Range | None = None
    outlier: Range | None = None
    unstable: bool | None = None

    def meets(self, estimates: Estimates, score: Floats) -> NDArray[np.bool_]:
        """Tell which units meet all conditions, shape (n,)."""
        met = np.ones(len(score), np.bool_)
        ranges = (self.score, self.error_proba, self.outlier)
        values: tuple[Array, ...] = (score, estimates.error_proba, estimates.outlier)
        for allowed, value in zip(ranges, values, strict=True):
            if allowed is not None:
                # A comparison with nan is false: an unknown value meets no condition.
                exact = value.astype(np.float64)
                met &= (exact >= allowed[0]) & (exact <= allowed[1])
        return met if self.unstable is None else met & (estimates.unstable == self.unstable)

    def describe(self) -> str:
        """Say the rule in a sentence, with rounded numbers."""
        names = {"error_proba": "error probability", "score": "score", "outlier": "outlier p-value"}
        parts = [_between(name, getattr(self, field)) for field, name in names.items()]
        if self.unstable is not None:
            parts.append("unstable" if self.unstable else "stable neighbours")
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

    version: int = 1
    rules: tuple[ZoneRule, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls, estimates: Estimates, score: Array, wrong: Array, *, stable_risk: float = 0.01
    ) -> Self:
        """Set the borders by evaluated units.

        Args:
            estimates: Of the evaluated units, each made without its own label.
            score: Max softmax or box score, shape (n,).
            wrong: Whether each prediction was wrong, shape (n,).
            stable_risk: The error rate that `stable_coverage` may have. Few units cannot tell a
                small one; the border then keeps to 3/n, at most 5 %.
        """
        p = estimates.error_proba.astype(np.float64)
        score, wrong = _score(score), np.asarray(wrong, np.bool_)
        known = np.isfinite(score)
        p, score, wrong = p[known], score[known], wrong[known]
        hot = _hot_border(p, wrong)
        right = score if wrong.all() else score[~wrong]
        low, high = (
            (float(v) for v in np.quantile(right, [0.1, 0.25])) if len(right) else (1.0,) * 2
        )
        risk = max(stable_risk, min(3 / max(len(p), 1), _LARGEST_RISK))
        accepted = score >= low
        stable = _stable_border(p[accepted], wrong[accepted], risk, below=hot)

        risky = (hot, 1.0)
        rules = [
            ZoneRule(zone=Zone.CRITICAL_HOTSPOT, error_proba=risky, score=(high, 1.0)),
            ZoneRule(zone=Zone.ALEATORIC_HOTSPOT, outlier=(0.0, 0.01)),
            ZoneRule(zone=Zone.ALEATORIC_HOTSPOT, error_proba=risky, outlier=(0.0, 0.1)),
            ZoneRule(zone=Zone.HOTSPOT, error_proba=risky, unstable=True),
            ZoneRule(zone=Zone.RECESSIVE_HOTSPOT, error_proba=risky),
        ]
        notes = []
        if stable is None:
            notes.append(
                f"no region keeps to an error rate of {risk:.2g}: stable_coverage is empty; "
                "evaluate more units, or accept a larger stable_risk"
            )
        else:
            rules.append(
                ZoneRule(zone=Zone.STABLE_COVERAGE, error_proba=(0.0, stable), score=(low, 1.0))
            )
            if risk > stable_risk:
                notes.append(
                    f"{len(p)} units are too few to tell an error rate of {stable_risk:.2g}: "
                    f"stable_coverage keeps to {risk:.2g}"
                )
        rules.append(ZoneRule(zone=Zone.OPERATIONAL_COVERAGE))
        return cls(rules=tuple(rules), notes=tuple(notes))

    def assign(self, estimates: Estimates, score: Array) -> NDArray[np.int8]:
        """Return the zone of each unit as a position in `ZONES`, shape (n,)."""
        score = _score(score)
        operational = ZONES.index(Zone.OPERATIONAL_COVERAGE)
        zones = np.full(len(score), operational, np.int8)
        free = np.ones(len(score), np.bool_)
        for rule in self.rules:
            met = free & rule.meets(estimates, score)
            zones[met] = ZONES.index(rule.zone)
            free &= ~met
        unknown = ~(np.isfinite(score) & np.isfinite(estimates.error_proba))
        zones[unknown & (zones == ZONES.index(Zone.STABLE_COVERAGE))] = operational
        return zones

    def describe(self) -> list[str]:
        """Say each rule in a sentence."""
        return [rule.describe() for rule in self.rules]


def zone_table(zones: Array, wrong: Array, score: Array) -> list[dict[str, Any]]:
    """Count units and errors by zone.

    Args:
        zones: Positions in `ZONES`, shape (n,).
        wrong: Whether each prediction was wrong, shape (n,).
        score: Max softmax or box score, shape (n,); those not finite are left out of the mean.

    Returns:
        One row for every zone, in the order of `ZONES`, also for one without units: `zone`, `n`,
        `share` of all units, `errors`, `error_rate` with its 95 % Wilson interval `low` and
        `high`, and `mean_score`. Rates and means of an empty zone are None.
    """
    rows: list[dict[str, Any]] = []
    for number, zone in enumerate(ZONES):
        inside = np.asarray(zones) == number
        n, errors = int(inside.sum()), int(np.asarray(wrong, np.bool_)[inside].sum())
        low, high = wilson_interval(errors, n)
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


def _score(score: Array) -> Floats:
    """Return scores as numbers in 0..1, which rounding may have left; nan where not finite."""
    score = np.asarray(score, np.float64)
    return np.where(np.isfinite(score), np.clip(score, 0.0, 1.0), np.nan)


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
    return float(np.clip(p[order][last][best], max(0.1, min(rate, 0.5)), 0.6))


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


def _between(name: str, allowed: tuple[float, float] | None) -> str:
    if allowed is None:
        return ""
    low, high = allowed
    if low <= 0:
        return f"{name} ≤ {high:.3g}"
    if high >= 1:
        return f"{name} ≥ {low:.3g}"
    return f"{name} from {low:.3g} to {high:.3g}"
