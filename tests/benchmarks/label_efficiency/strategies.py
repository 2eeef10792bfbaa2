"""Ways to pick the inputs to label next, from what the model says of them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from failure.variants import Staged, Traced, traced
from label_efficiency.settings import Setting
from numpy.typing import NDArray

from ml_debugger.core.evaluation.estimator import ErrorModel, Observations
from ml_debugger.core.query import rank
from ml_debugger.core.sampling import CANDIDATES, spread

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]


class Situation(NamedTuple):
    """What there is to choose by, in one round.

    Attributes:
        pool: What the model says of the unlabelled inputs.
        labelled: And of the labelled ones.
        error_proba: Gives the error probability of the unlabelled inputs; learnt when asked.
        rng: For what is drawn.
    """

    pool: Traced
    labelled: Traced
    error_proba: Callable[[], Floats]
    rng: np.random.Generator

    @property
    def shares(self) -> Floats:
        logits = torch.from_numpy(self.pool.logits).double()
        found: Floats = logits.softmax(1).numpy()
        return found


def situation(
    model: Staged, setting: Setting, free: Rows, taken: Rows, rng: np.random.Generator
) -> Situation:
    """Look at the pool with a model; `free` are the rows that may be chosen, `taken` the rest."""
    pool = traced(model, setting.pool)
    start = traced(model, setting.start)
    chosen = pool.take(taken)
    labelled = Traced(
        {
            name: np.concatenate([values, chosen.features[name]])
            for name, values in start.features.items()
        },
        np.concatenate([start.logits, chosen.logits]),
        np.concatenate([start.labels, chosen.labels]),
    )

    def error_proba() -> Floats:
        evaluation = traced(model, setting.evaluation)
        fitted, _ = ErrorModel.fit(_observed(evaluation), evaluation.labels, n_class=10)
        return fitted.estimate(_observed(pool.take(free))).error_proba.astype(np.float64)

    return Situation(pool.take(free), labelled, error_proba, rng)


def _observed(part: Traced) -> Observations:
    return Observations(part.features, part.prediction, part.score, part.logits)


def _last(part: Traced) -> Floats:
    return list(part.features.values())[-1].astype(np.float64)


def highest(values: Floats, n: int) -> Rows:
    """Return the n rows with the highest values, as a query does."""
    return rank(values, lambda rows: rows.astype(str).tolist(), n, descending=True)


def random(now: Situation, n: int) -> Rows:
    return now.rng.permutation(len(now.pool.logits))[:n]


def least_confidence(now: Situation, n: int) -> Rows:
    return highest(1 - now.shares.max(axis=1), n)


def entropy(now: Situation, n: int) -> Rows:
    return highest(-(now.shares * np.log(now.shares + 1e-12)).sum(axis=1), n)


def margin(now: Situation, n: int) -> Rows:
    two = np.partition(now.shares, -2, axis=1)[:, -2:]
    return highest(two[:, 0] - two[:, 1], n)


def k_centre(now: Situation, n: int) -> Rows:
    """Sener & Savarese 2018: greedily the input farthest from all that is labelled or chosen."""
    values, centres = _last(now.pool), _last(now.labelled)
    nearest = ((values[:, None] - centres[None]) ** 2).sum(axis=2).min(axis=1)
    chosen = []
    for _ in range(n):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((values - values[chosen[-1]]) ** 2).sum(axis=1))
    return np.array(chosen)


def badge(now: Situation, n: int) -> Rows:
    """Ash et al. 2020: k-means++ over the gradients of the last layer at the predicted class."""
    shares, values = now.shares, _last(now.pool)
    residual = shares.copy()
    residual[np.arange(len(shares)), shares.argmax(axis=1)] -= 1
    # |r x h|^2 factorises, so that the outer products need not be held
    size = (residual**2).sum(axis=1) * (values**2).sum(axis=1)
    chosen = [int(size.argmax())]
    nearest = np.full(len(shares), np.inf)
    while True:
        at = chosen[-1]
        apart = size + size[at] - 2 * (residual @ residual[at]) * (values @ values[at])
        nearest = np.minimum(nearest, np.maximum(apart, 0))
        nearest[chosen] = 0
        if len(chosen) == n:
            return np.array(chosen)
        chosen.append(int(now.rng.choice(len(shares), p=nearest / nearest.sum())))


def high_error_proba(now: Situation, n: int) -> Rows:
    """`query(n, "high_error_proba")`."""
    return highest(now.error_proba(), n)


def diverse(now: Situation, n: int) -> Rows:
    """`query(n, "high_error_proba", diverse=True)`."""
    proba = now.error_proba()
    worst = highest(proba, CANDIDATES * n)
    return worst[spread(_last(now.pool)[worst], proba[worst], n)]


Strategy = Callable[[Situation, int], Rows]

STRATEGIES: dict[str, Strategy] = {
    "random": random,
    "entropy": entropy,
    "least confidence": least_confidence,
    "margin": margin,
    "k-centre": k_centre,
    "BADGE": badge,
    "high_error_proba": high_error_proba,
    "diverse=True": diverse,
}
