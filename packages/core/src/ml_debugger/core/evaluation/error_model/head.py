"""From evidence to a calibrated probability."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.evaluation.error_model.calibration import Correction
from ml_debugger.core.evaluation.error_model.folds import FOLDS
from ml_debugger.core.evaluation.error_model.scaling import Array, Floats, Integers, log_softmax
from ml_debugger.core.evaluation.metrics import nll

#: The evidence of a class vector; "larger means more likely wrong", as everywhere.
COLUMNS = ("max_softmax", "margin", "entropy")

_CLIP = 4.0


def fit_temperature(logits: Array, labels: Integers) -> float:
    """Return the temperature that fits class vectors best (Guo et al. 2017).

    Args:
        logits: Class vectors, shape (n, K), finite.
        labels: True classes, shape (n,); rows with labels outside 0..K-1 are not used.

    Returns:
        The T that minimises the mean log-loss of softmax(logits / T), drawn to 1 a little;
        1.0 with fewer than five usable rows.
    """
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped,unused-ignore]

    rows = np.flatnonzero((labels >= 0) & (labels < logits.shape[1]))
    if len(rows) < 5:
        return 1.0
    chosen, own = logits[rows].astype(np.float64), labels[rows]

    def loss(log_temperature: float) -> float:
        likelihood = log_softmax(chosen / np.exp(log_temperature))
        return float(1e-3 * log_temperature**2 - likelihood[np.arange(len(own)), own].mean())

    found = minimize_scalar(loss, bounds=(-2.5, 5), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def logit_columns(scaled: Floats, prediction: Integers) -> Floats:
    """Return the evidence of class vectors against the predicted classes.

    Args:
        scaled: Class vectors divided by the temperature, shape (n, K), finite.
        prediction: Predicted classes, shape (n,); those outside 0..K-1 count as given no chance.

    Returns:
        Log-odds of any other class (Hendrycks & Gimpel 2017), minus the margin between the
        two largest, and the entropy, shape (n, 3).
    """
    n, width = scaled.shape
    log_share = log_softmax(scaled)
    share = np.exp(log_share)
    rows, known = np.arange(n), prediction < width
    column = np.where(known, prediction, 0)
    own = np.where(known, log_share[rows, column], -15.0)
    rest = log_share.copy()
    rest[rows[known], column[known]] = -np.inf
    top = rest.max(axis=1)
    finite = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        others = finite + np.log(np.exp(rest - finite[:, None]).sum(axis=1))
    odds = np.clip(others - own, -15, 15)
    margin = np.zeros(n)
    if width > 1:
        two = np.partition(scaled, width - 2, axis=1)[:, -2:]
        margin = np.clip(-np.abs(two[:, 1] - two[:, 0]), -20, 0)
    return np.column_stack([odds, margin, -(share * log_share).sum(axis=1)])


def score_column(score: Array) -> Floats:
    """Return the log-odds of being wrong that scores in [0, 1] claim, shape (n,)."""
    score = np.clip(score.astype(np.float64), 1e-7, 1 - 1e-7)
    odds: Floats = np.clip(np.log1p(-score) - np.log(score), -15, 15)
    return odds


@dataclass(frozen=True)
class Head:
    """A logistic regression on robustly scaled evidence.

    Attributes:
        centre: Median of each column, shape (c,), float64.
        inverse: Inverse of each standard deviation, shape (c,); 0 for a constant column.
        weights: Shape (c,), float64, never negative but for statistics: evidence against a
            prediction may count little, but not in its favour.
        intercept: The log-odds of an error at the median of the evidence.
        correction: Of the probabilities, or None.
    """

    centre: Floats
    inverse: Floats
    weights: Floats
    intercept: float
    correction: Correction | None = None

    @classmethod
    def scaled_to(cls, columns: Floats) -> Self:
        """Return a head without weights that scales evidence of shape (n, c)."""
        heard = np.where(np.isnan(columns).all(axis=0), 0.0, columns)
        deviation = np.nanstd(heard, axis=0)
        constant = deviation <= 1e-9 * np.maximum(np.nanmax(np.abs(heard), axis=0), 1)
        inverse = np.where(constant, 0.0, 1 / np.where(constant, 1.0, deviation))
        centre = np.nanmedian(heard, axis=0)
        return cls(centre, inverse, np.zeros(columns.shape[1]), 0.0)

    def scale(self, columns: Floats) -> Floats:
        """Return evidence in units of its own spread, within ±4; 0 where there is none."""
        scaled: Floats = np.clip((columns - self.centre) * self.inverse, -_CLIP, _CLIP)
        return np.nan_to_num(scaled, copy=False)

    def fit(
        self, columns: Floats, wrong: Array, *, anchor: int, only_anchor: bool, free: int = 0
    ) -> "Head":
        """Fit the weights: ridge logistic regression around a prior, weights >= 0.

        The prior lets the max softmax speak with half of its own slope and everything else
        hardly at all, under 20 errors less still; errors have to support more, and the fewer
        there are, the more firmly the prior holds. This is what keeps few errors from doing harm.

        Args:
            columns: Evidence, shape (n, c), float64.
            wrong: Whether each unit is an error, shape (n,).
            anchor: The column that holds the max softmax (or score) evidence.
            only_anchor: Leave every other column out and add half an error and half a correct
                unit (Jeffreys' prior): for data that cannot support more.
            free: How many of the last columns may have any weight; their prior is 0.
        """
        evidence, outcome = self.scale(columns), wrong.astype(np.float64)
        errors = max(float(wrong.sum()), 1.0)
        prior = np.full(columns.shape[1], 0.05 * min(1.0, errors / 20))
        slope = 1 / self.inverse[anchor] if self.inverse[anchor] > 0 else 0.0
        prior[anchor] = max(0.05, 0.5 * min(slope, _CLIP))
        signed = np.arange(len(prior)) < len(prior) - free
        prior[~signed] = 0.0
        rows = np.ones(len(outcome))
        usable = self.inverse > 0
        if only_anchor:
            usable &= np.arange(len(prior)) == anchor
            evidence = np.vstack([evidence, np.zeros((2, len(prior)))])
            outcome, rows = np.append(outcome, [0.0, 1.0]), np.append(rows, [0.5, 0.5])
        ridge = 5 * max(1.0, 50 / errors)
        weights, intercept = logistic(
            evidence,
            outcome,
            rows,
            prior=np.where(usable, prior, 0.0),
            ridge=ridge,
            usable=usable,
            signed=signed,
        )
        return Head(self.centre, self.inverse, weights, intercept)

    def __call__(self, columns: Floats) -> NDArray[np.float32]:
        """Return the probability of an error for evidence of shape (n, c)."""
        # Summed by column: a matrix product may round differently for another number of rows.
        odds = np.sum(self.scale(columns) * self.weights, axis=1) + self.intercept
        proba: NDArray[np.float32] = (1 / (1 + np.exp(-np.clip(odds, -30, 30)))).astype(np.float32)
        return proba if self.correction is None else self.correction(proba)

    def cross_fit(
        self,
        columns: Floats,
        wrong: NDArray[np.bool_],
        folds: Integers,
        *,
        anchor: int,
        only_anchor: bool,
        free: int,
        among: NDArray[np.bool_] | None = None,
    ) -> "CrossFitted":
        """Fit to all units, and tell of each what heads say that were fitted to other folds.

        Probabilities are corrected where that makes those of other folds more likely.

        Args:
            columns: Evidence, shape (n, c), float64.
            wrong: Whether each unit is an error, shape (n,).
            folds: Fold of each unit, shape (n,).
            anchor: As in `fit`.
            only_anchor: As in `fit`.
            free: As in `fit`.
            among: Which units have an outcome to learn from, shape (n,); None for all.
        """
        among = np.ones(len(wrong), np.bool_) if among is None else among
        known: dict[str, Any] = {"anchor": anchor, "only_anchor": only_anchor, "free": free}
        whole = self.fit(columns[among], wrong[among], **known)
        proba = np.empty(len(wrong), np.float32)
        for fold in range(FOLDS):
            inside = folds == fold
            others = among & ~inside
            if inside.any():
                proba[inside] = self.fit(columns[others], wrong[others], **known)(columns[inside])
        corrected = None if only_anchor else Correction.held_out(proba, wrong, folds, among)
        outcome = wrong[among]
        if corrected is None or nll(corrected[among], outcome) >= nll(proba[among], outcome):
            return CrossFitted(whole, proba, proba)
        correction = Correction.fit(proba[among], outcome)
        assert correction is not None  # there are enough outcomes without a fold, too
        return CrossFitted(replace(whole, correction=correction), corrected, correction(proba))

    def arrays(self) -> dict[str, Array]:
        """Return what was learnt, by name; `intercept` is all there is beside it."""
        found = {"weights": self.weights}
        if self.correction is not None:
            found["correction"] = np.stack([self.correction.at, self.correction.shift])
        return found

    def with_learnt(self, arrays: Mapping[str, Array], intercept: float) -> "Head":
        """Return a head that scales as this one, with what another has learnt."""
        curve = arrays.get("correction")
        return Head(
            self.centre,
            self.inverse,
            arrays["weights"],
            intercept,
            None if curve is None else Correction(curve[0], curve[1]),
        )


class CrossFitted(NamedTuple):
    """A head, and what heads fitted to the other folds say of the units that it was fitted to.

    Attributes:
        head: Fitted to all units.
        proba: Of each unit, corrected by the other folds, shape (n,), float32.
        as_new: The same, corrected as that of a new unit would be, shape (n,), float32. What two
            corrections make of the same units is not alike, so only this compares with new ones.
    """

    head: Head
    proba: NDArray[np.float32]
    as_new: NDArray[np.float32]


def logistic(
    evidence: Floats,
    outcome: Floats,
    rows: Floats,
    *,
    prior: Floats,
    ridge: float,
    usable: NDArray[np.bool_],
    signed: NDArray[np.bool_] | None = None,
) -> tuple[Floats, float]:
    """Return weights and intercept of a ridge logistic regression around a prior.

    Args:
        evidence: Shape (n, c), float64.
        outcome: 1 for an error, else 0, shape (n,).
        rows: Weight of each row in the log-loss, shape (n,).
        prior: Where the ridge draws the weights to, shape (c,).
        ridge: How firmly it does.
        usable: Columns whose weight may differ from 0, shape (c,).
        signed: Columns whose weight must not be negative, shape (c,); None for all.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped,unused-ignore]

    def loss(values: Floats) -> tuple[float, Floats]:
        weights, intercept = values[:-1], values[-1]
        odds = evidence @ weights + intercept
        off = weights - prior
        value = rows @ (np.logaddexp(0, odds) - outcome * odds)
        value += 0.5 * ridge * off @ off + 0.5e-2 * intercept**2
        # The derivative of logaddexp(0, x), in the form that cannot overflow.
        residual = rows * (0.5 * (1 + np.tanh(0.5 * odds)) - outcome)
        slope = np.append(evidence.T @ residual + ridge * off, residual.sum() + 1e-2 * intercept)
        return float(value), slope

    base = (rows @ outcome + 0.5) / (rows.sum() + 1)
    start = np.append(prior, np.log(base / (1 - base)))
    signed = np.ones(len(usable), np.bool_) if signed is None else signed
    bounds: list[tuple[float | None, float | None]] = [
        (0.0 if sign or not use else None, None if use else 0.0)
        for use, sign in zip(usable, signed, strict=True)
    ]
    bounds.append((None, None))
    # The tolerance is far below what a probability is read to, so that rows in another order,
    # which only round differently, end at the same weights.
    found = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 500, "ftol": 1e-13, "gtol": 1e-7},
    )
    return found.x[:-1], float(found.x[-1])
