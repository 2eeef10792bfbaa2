"""Whether unlabelled units still are what an evaluation was made of, and how accurate they are."""

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import pyarrow as pa

from ml_debugger.core.evaluation.error_model.scaling import Array, Floats, Integers
from ml_debugger.core.evaluation.zoning import ZONES, assign_zones

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result

#: The p-value up to which a unit counts as an outlier.
OUTLIER = 0.05

#: About how often drift is stated of units where there is none.
FALSE_ALARM = 0.01

#: The fewest units, on either side, that a statement about drift is made from.
FEWEST = 20

_EXPECTED = 5  # the least expected count of a zone in a chi-square test (Cochran 1954)


class Drift(NamedTuple):
    """How unlike the evaluated units others are.

    Attributes:
        p_value: Of all three together, in [0, 1]: three times the smallest (Bonferroni).
        features: The p-value for units being farther from the evaluated ones than those are from
            each other: either more outliers, or smaller outlier p-values all along.
        error_proba: The p-value for another distribution of error probabilities.
        zones: The p-value for another mix of zones.
        distance: The largest difference found between two shares, in [0, 1]: of units up to some
            outlier p-value or error probability, or in some set of zones. So large a share of
            the units would have to be others for the two sides to be alike.
    """

    p_value: float
    features: float
    error_proba: float
    zones: float
    distance: float

    @property
    def raised(self) -> bool:
        """Whether this is more than chance explains, at a rate of false alarms of about 1 %."""
        return self.p_value <= FALSE_ALARM


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What others are compared with, made once a result.

    Attributes:
        error_proba: Of one evaluated unit an input, out of fold and as that of a new unit would
            be told, ascending, shape (n,), float64; see `SavedResult.as_new`.
        outlier: Their outlier p-values, ascending, shape (n,), float64.
        zones: How many of them are in each of `ZONES`, shape (6,), int64.
        level: Variance of the level of the probabilities; see `accuracy`.
        together: How much units of one input are right or wrong together, given their
            probabilities: their correlation, in [0, 1]; 0 where every input is one unit.
    """

    error_proba: Floats
    outlier: Floats
    zones: Integers
    level: float
    together: float

    @classmethod
    def of(cls, result: "Result") -> Self:
        """Take the evaluated units of a result."""
        keys = ["dataset_type", "n_epoch", "input_id"]
        units = result.to_arrow()
        changes = np.zeros(len(units), np.bool_)
        for name in keys:
            column = units.column(name).combine_chunks()
            codes = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
            place = np.asarray(codes.indices.fill_null(-1))
            changes[1:] |= place[1:] != place[:-1]
        names = ("score", "error_proba", "outlier", "unstable", "prediction", "wrong")
        columns = {name: np.asarray(units.column(name)) for name in names}
        if result.as_new is not None:
            columns["error_proba"] = result.as_new
        rules = result.rules.model_dump(mode="json")["rules"]
        return cls.of_units(
            columns["wrong"],
            columns["error_proba"],
            columns["outlier"],
            assign_zones(rules, columns, columns["prediction"]),
            np.cumsum(changes),
        )

    @classmethod
    def of_units(
        cls,
        wrong: Array,
        error_proba: Array,
        outlier: Array,
        zone: Array,
        owner: Integers | None = None,
    ) -> Self:
        """Take evaluated units.

        Args:
            wrong: Whether each was wrong, shape (n,).
            error_proba: Out of fold, as of a new unit (`Estimates.as_new`), shape (n,), in [0, 1].
            outlier: Outlier p-values, shape (n,), in (0, 1].
            zone: Positions in `ZONES` by the same probabilities, shape (n,).
            owner: The input of each, numbered from 0 in ascending order, shape (n,); None where
                each is one of its own.
        """
        proba = np.asarray(error_proba, np.float64)
        owner = np.arange(len(proba)) if owner is None else owner
        some = one_each(owner)
        residual = np.asarray(wrong, np.float64) - proba
        sizes = np.bincount(owner)
        squares = float((np.bincount(owner, residual) ** 2).sum())
        together = _together(residual, proba, owner)
        unseen = 1 + together * (float((sizes**2).sum()) / max(len(sizes), 1) - 1)
        return cls(
            error_proba=np.sort(proba[some]),
            outlier=np.sort(np.asarray(outlier, np.float64)[some]),
            zones=np.bincount(np.asarray(zone, np.int64)[some], minlength=len(ZONES)),
            level=(squares + unseen) / max(len(proba), 1) ** 2,
            together=together,
        )

    def drift(self, error_proba: Array, outlier: Array, zone: Array) -> Drift | None:
        """Compare other units, without labels, with the evaluated ones.

        A two-sample Kolmogorov-Smirnov test for error probabilities; its one-sided form and
        Fisher's exact test of the share of outliers for features; a chi-square test for zones,
        rare ones taken together. All of them know that the evaluated units are a sample too.
        They assume that the units are independent, so give one an input (`one_each`): boxes of
        an image, or the frames of a video, look like more evidence than they are.

        Args:
            error_proba: Shape (m,), in [0, 1].
            outlier: Outlier p-values, shape (m,), in (0, 1].
            zone: Positions in `ZONES`, shape (m,).

        Returns:
            None where either side has fewer than 20 units, which could not tell.
        """
        n, m = len(self.error_proba), len(error_proba)
        if min(n, m) < FEWEST:
            return None
        from scipy.special import kolmogorov
        from scipy.stats import hypergeom

        root = np.sqrt(n * m / (n + m))
        above, below = _apart(self.error_proba, error_proba)
        proba_apart = max(above, below)
        proba = float(kolmogorov(root * proba_apart))

        own = int(np.searchsorted(self.outlier, OUTLIER, side="right"))
        far = int((np.asarray(outlier, np.float64) <= OUTLIER).sum())
        more_outliers = float(hypergeom.sf(far - 1, n + m, own + far, m))
        farther, _ = _apart(self.outlier, outlier)
        smaller = float(np.exp(-2 * (root * farther) ** 2))
        features = min(1.0, 2 * min(more_outliers, smaller))

        counts = np.bincount(np.asarray(zone, np.int64), minlength=len(ZONES))
        zones = _mix_p_value(self.zones, counts)
        mix = float(np.abs(self.zones / n - counts / m).sum()) / 2
        return Drift(
            p_value=min(1.0, 3 * min(features, proba, zones)),
            features=features,
            error_proba=proba,
            zones=zones,
            distance=max(proba_apart, farther, mix),
        )

    def accuracy(
        self,
        error_proba: Array,
        confidence: float,
        drift: Drift | None = None,
        owner: Array | None = None,
    ) -> tuple[float, float]:
        """Return an interval for the accuracy on some unlabelled units.

        Two things are uncertain: which units are wrong, given their probabilities (the variance of
        a Poisson binomial count), and the level of the probabilities. The level is fitted to the
        evaluated units, so its variance is that of the mean out-of-fold residual,
        (1 + sum (wrong - error_proba)^2) / n^2; the 1 stands for the error that few units may not
        have shown yet. Units of one input may be right or wrong together, so residuals are summed
        within an input before they are squared (Liang & Zeger 1986), and counts vary more by the
        covariances within inputs, their correlation being that of the evaluated units (by moments,
        as in Ridout, Demetrio & Firth 1999). Both are taken as normal; half a unit is added for the
        count's being whole. Units unlike the evaluated ones may be wrong at any rate: where drift
        is raised, the interval reaches as much farther, on either side, as `Drift.distance`.

        Args:
            error_proba: Shape (m,), in [0, 1].
            confidence: How often the interval should hold the accuracy, in (0, 1).
            drift: Of the same units; None where it is not known.
            owner: The input of each, in any numbers, shape (m,); None where each is one of its own.
        """
        m = len(error_proba)
        if m == 0:
            return 0.0, 1.0
        proba = np.asarray(error_proba, np.float64)
        variance = proba * (1 - proba)
        counting = float(variance.sum()) / m**2
        if owner is not None:
            pairs = _pairs(np.sqrt(variance), np.unique(owner, return_inverse=True)[1])
            counting += self.together * pairs / m**2
        deviation = float(np.sqrt(counting + self.level))
        reach = NormalDist().inv_cdf((1 + confidence) / 2) * deviation + 0.5 / m
        if drift is not None and drift.raised:
            reach += drift.distance
        centre = 1 - float(proba.mean())
        return max(0.0, centre - reach), min(1.0, centre + reach)


def one_each(owner: Array) -> Integers:
    """Return the position of one unit of each input, drawn alike every time.

    Args:
        owner: The input that each unit belongs to, ascending or at least in one piece, shape (n,).
    """
    starts = np.flatnonzero(np.append(True, owner[1:] != owner[:-1])) if len(owner) else owner[:0]
    sizes = np.diff(np.append(starts, len(owner)))
    drawn = np.random.default_rng(0).random(len(starts)) * sizes
    return (starts + drawn.astype(np.int64)).astype(np.int64)


def _pairs(values: Floats, owner: Integers) -> float:
    """Return the sum of the products of each two values of one input, either way round."""
    together = float((np.bincount(owner, values) ** 2).sum())
    return together - float((values**2).sum())


def _together(residual: Floats, proba: Floats, owner: Integers) -> float:
    """Return the correlation of two units of one input, in [0, 1]; 1 where nothing tells."""
    if len(owner) == len(np.unique(owner)):
        return 0.0
    expected = _pairs(np.sqrt(proba * (1 - proba)), owner)
    if expected <= 0:
        return 1.0
    return float(np.clip(_pairs(residual, owner) / expected, 0.0, 1.0))


def _apart(ascending: Floats, others: Array) -> tuple[float, float]:
    """Return by how much the others' distribution function exceeds the first's, and conversely.

    Only the others are sorted: the evaluated units may be many, and windows too.
    """
    values, counts = np.unique(np.asarray(others, np.float64), return_counts=True)
    share = np.cumsum(counts) / counts.sum()
    at = np.searchsorted(ascending, values, side="right") / len(ascending)
    before = np.searchsorted(ascending, values, side="left") / len(ascending)
    above = float((share - at).max())
    below = float((before - np.append(0.0, share[:-1])).max())
    return max(above, 0.0), max(below, 0.0)


def _mix_p_value(first: Integers, second: Integers) -> float:
    """Return the p-value for two counts by category having different shares (chi-square)."""
    from scipy.special import chdtrc

    n, m = int(first.sum()), int(second.sum())
    table = np.stack([first, second])[:, np.argsort(first + second, kind="stable")]
    expected = table.sum(axis=0) * (min(n, m) / (n + m))
    enough = int(np.searchsorted(np.cumsum(expected), _EXPECTED)) + 1
    rare = max(enough, int(np.searchsorted(expected, _EXPECTED)))  # none of the others is rare
    table = np.column_stack([table[:, :rare].sum(axis=1), table[:, rare:]])
    if table.shape[1] < 2:
        return 1.0
    apart = table[0] * np.sqrt(m / n) - table[1] * np.sqrt(n / m)
    return float(chdtrc(table.shape[1] - 1, (apart**2 / table.sum(axis=0)).sum()))
