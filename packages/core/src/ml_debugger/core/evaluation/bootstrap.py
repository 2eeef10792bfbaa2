"""How uncertain figures are: units drawn again with replacement, as weights in place of copies.

Sorting is what a figure costs most, and a resample holds the same risks in the same order. So each
score is sorted once, and every resample is a vector of weights and its cumulative sums.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from ml_debugger.core.evaluation.error_model.scaling import Array, Floats, Integers

#: The figures that are resampled, all of `metrics`.
METRICS = ("auroc", "aurc", "augrc", "brier", "ece")
RESAMPLES = 200
#: Most units that are resampled; of more, some are, and the interval is narrowed accordingly.
MOST = 50_000

_BINS = 15  # as `metrics.ece` has by default


class Score(NamedTuple):
    """A score that is judged.

    Attributes:
        risk: What units are ranked by, larger = more likely wrong, shape (n,).
        proba: The probability of an error that it stands for, in [0, 1], shape (n,).
    """

    risk: Array
    proba: Array


@dataclass(frozen=True)
class Bootstrap:
    """Figures of some scores over the same resamples, so that their differences are paired.

    Attributes:
        values: By score, the figures of each resample in the order of `METRICS`, (r, 5), float64;
            nan where one is not defined.
        figures: By score, the figures of all units, shape (5,).
        scale: By how much less all units vary than those that were resampled, in (0, 1].
    """

    values: dict[str, Floats]
    figures: dict[str, Floats]
    scale: float

    @classmethod
    def of(
        cls,
        scores: Mapping[str, Score],
        wrong: Array,
        *,
        groups: Integers | None = None,
        n: int = RESAMPLES,
        seed: int = 0,
    ) -> Self:
        """Resample units (Efron 1979), whole groups of them (Davison & Hinkley 1997, 3.8).

        Of a handful of errors a resample holds fewer different ones, so that intervals are too
        narrow; from some thirty on they cover about as often as they say.

        Args:
            scores: Scores of the same units by name.
            wrong: Whether each prediction is wrong, shape (n,).
            groups: Units of one group are drawn together, since they are no independent evidence,
                shape (n,); by default each unit is one.
            n: Number of resamples.
            seed: The same seed gives the same resamples.
        """
        size = len(wrong)
        judges = {name: _Judge(score, wrong) for name, score in scores.items()}
        figures = {name: judge(np.ones(size), _harmonic(size)) for name, judge in judges.items()}
        member = np.arange(size) if groups is None else np.unique(groups, return_inverse=True)[1]
        generator = np.random.default_rng(seed)
        n_groups = int(member.max(initial=-1)) + 1
        drawn = max(1, n_groups * MOST // max(size, 1))
        scale = 1.0
        if size > MOST and drawn < n_groups:
            kept = np.zeros(n_groups, np.bool_)
            kept[generator.permutation(n_groups)[:drawn]] = True
            rows = np.flatnonzero(kept[member])
            judges = {
                name: _Judge(Score(one.risk[rows], one.proba[rows]), wrong[rows])
                for name, one in scores.items()
            }
            member = np.unique(member[rows], return_inverse=True)[1]
            scale = float(np.sqrt(drawn / n_groups))
        values = {name: np.full((n, len(METRICS)), np.nan) for name in scores}
        for number, weights in enumerate(_draws(member, n, generator)):
            harmonic = _harmonic(int(weights.sum()))
            for name, judge in judges.items():
                values[name][number] = judge(weights, harmonic)
        return cls(values, figures, scale)

    def interval(self, name: str, metric: str) -> tuple[float, float]:
        """Return the 95 % interval of a score's figure; nan where it is undefined."""
        at = METRICS.index(metric)
        low, high = self._ends(self.values[name][:, at], self.figures[name][at])
        return max(low, 0.0), min(high, 1.0)

    def difference(self, name: str, other: str, metric: str) -> tuple[float, float]:
        """Return the 95 % interval of one score's figure minus another's, by resample."""
        at = METRICS.index(metric)
        return self._ends(
            self.values[name][:, at] - self.values[other][:, at],
            self.figures[name][at] - self.figures[other][at],
        )

    def _ends(self, values: Floats, figure: float) -> tuple[float, float]:
        """Return the 2.5 % and 97.5 % quantile, freed of what resampling itself adds.

        Drawing again adds noise to every bin, which makes calibration errors larger than they
        are; without the shift, the interval of a small one would leave it out.
        """
        values = values[np.isfinite(values)]
        if len(values) == 0:
            return float("nan"), float("nan")
        ends = figure + (np.quantile(values, [0.025, 0.975]) - values.mean()) * self.scale
        return float(ends[0]), float(ends[1])


def _draws(member: Integers, n: int, generator: np.random.Generator) -> Iterator[Floats]:
    """Yield how often each unit is drawn, shape (m,), in each of n resamples of its groups."""
    n_groups = int(member.max(initial=-1)) + 1
    for _ in range(n if n_groups else 0):
        drawn = generator.integers(0, n_groups, n_groups)
        yield np.bincount(drawn, minlength=n_groups)[member].astype(np.float64)


def _harmonic(n: int) -> Floats:
    """Return 1 + 1/2 + ... + 1/k for k = 0..n."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))])


class _Judge:
    """The figures of one score for any weights of its units."""

    def __init__(self, score: Score, wrong: Array) -> None:
        wrong = np.asarray(wrong, np.bool_)
        proba = np.clip(np.asarray(score.proba, np.float64), 0.0, 1.0)
        self._ranking = _Ranking(np.asarray(score.risk, np.float64), wrong)
        self._calibration = _Calibration(proba, wrong)
        self._square = (proba - wrong) ** 2

    def __call__(self, weights: Floats, harmonic: Floats) -> Floats:
        """Return `METRICS` where unit i counts weights[i] times, shape (5,)."""
        if len(weights) == 0:
            return np.full(len(METRICS), np.nan)
        brier = float(weights @ self._square) / weights.sum()
        return np.array([*self._ranking(weights, harmonic), brier, self._calibration(weights)])


class _Ranking:
    """Units by ascending risk, and where among them the errors and their ties lie."""

    def __init__(self, risk: Floats, wrong: Array) -> None:
        self._order = np.argsort(risk, kind="stable")
        risk = risk[self._order]
        self._errors = np.flatnonzero(wrong[self._order])
        ties, self._first = np.unique(risk[self._errors], return_index=True)
        self._starts = np.searchsorted(risk, ties, side="left")
        self._ends = np.searchsorted(risk, ties, side="right")

    def __call__(self, weights: Floats, harmonic: Floats) -> tuple[float, float, float]:
        """Return AUROC, AURC and AUGRC, each the mean over all orders of equal risks.

        Of e errors in a tie that ends with the n-th unit and holds s, those that follow count
        with full weight in every later risk, and those inside with j e/s in the j-th. Summed over
        all units, the undetected errors are e (N - n) + e (s + 1) / 2 for each tie, and the
        selective risks e (H(N) - H(n)) + e - (n - s) e/s (H(n) - H(n - s)), where N is the number
        of units and H are the harmonic numbers. So only ties with errors are looked at.
        """
        drawn = weights[self._order]
        accepted = np.concatenate([[0.0], np.cumsum(drawn)])
        total = accepted[-1]
        n, before = accepted[self._ends], accepted[self._starts]
        e = drawn[self._errors]
        if len(self._first) < len(e):
            e = np.add.reduceat(e, self._first)
        s, errors = n - before, e.sum()
        undetected = e @ (total - n + 0.5 * (s + 1))
        auroc = float("nan")
        if 0 < errors < total:
            correct_above = e @ (total - n + 0.5 * s) - 0.5 * errors**2
            auroc = 1 - correct_above / (errors * (total - errors))
        high, low = harmonic[n.astype(np.int64)], harmonic[before.astype(np.int64)]
        share = e / np.maximum(s, 1.0)
        risk = e @ (harmonic[-1] - high) + errors - (before * share) @ (high - low)
        return float(auroc), float(risk / total), float(undetected / total**2)


class _Calibration:
    """Units by ascending probability, and where those of equal probability end."""

    def __init__(self, proba: Floats, wrong: Array) -> None:
        self._order = np.argsort(proba, kind="stable")
        proba = proba[self._order]
        self._off = proba - wrong[self._order]
        self._ends = np.flatnonzero(np.append(proba[1:] != proba[:-1], True))

    def __call__(self, weights: Floats) -> float:
        """Return the calibration error over bins of equal size; a tie is spread evenly."""
        drawn = weights[self._order]
        n = np.concatenate([[0.0], np.cumsum(drawn)[self._ends]])
        off = np.concatenate([[0.0], np.cumsum(drawn * self._off)[self._ends]])
        total = int(n[-1])
        size = np.full(_BINS, total // _BINS)
        size[: total % _BINS] += 1
        edges = np.concatenate([[0], np.cumsum(size)])
        return float(np.abs(np.diff(np.interp(edges, n, off))).sum() / total)
