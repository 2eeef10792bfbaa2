"""What an evaluation costs: the fit, scoring a pool, and one row at a time.

`uv run pytest tests/benchmarks/test_evaluation_benchmark.py -s` prints the figures. One BLAS
thread, made-up features of three layers (64, 128 and 256 wide) and ten classes.
"""

import statistics
import time
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from ml_debugger.core.evaluation.estimator import ErrorModel, Observations


def made(n: int, seed: int) -> tuple[Observations, Any]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 10, n)
    centres = np.random.default_rng(0).normal(0, 2, (10, 256))
    features = {
        f"layer{width}": (centres[target, :width] + rng.normal(0, 3, (n, width))).astype(np.float32)
        for width in (64, 128, 256)
    }
    logits = (features["layer64"] @ centres[:, :64].T / 20).astype(np.float32)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    score = (odds.max(1) / odds.sum(1)).astype(np.float32)
    return Observations(features, logits.argmax(1), score, logits), target


def seconds(act: Any) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


@pytest.mark.filterwarnings("ignore")
def test_evaluation_cost(benchmark: Any) -> None:
    with threadpool_limits(1):
        fits = {
            n: seconds(lambda n=n: ErrorModel.fit(*made(n, 1))) for n in (5_000, 20_000, 80_000)
        }
        model, _ = ErrorModel.fit(*made(20_000, 1))
        pools = {n: made(n, 2)[0] for n in (10_000, 100_000)}
        scores = {n: seconds(lambda n=n: model.estimate(pools[n])) for n in pools}
        batch = pools[10_000].take(np.arange(32))
        one = pools[10_000].take(np.arange(1))
        live = statistics.median(seconds(lambda: model.estimate(batch)) for _ in range(50))
        single = statistics.median(seconds(lambda: model.estimate(one)) for _ in range(50))
        benchmark.pedantic(lambda: model.estimate(batch), rounds=10)
    growth = np.log(scores[100_000] / scores[10_000]) / np.log(10)
    print(
        "\nfit: "
        + ", ".join(f"{n:,} in {spent:.1f} s" for n, spent in fits.items())
        + "; score: "
        + ", ".join(f"{n:,} in {spent:.1f} s" for n, spent in scores.items())
        + f" (growth exponent {growth:.2f}); a batch of 32 in {1e3 * live:.1f} ms, "
        f"one row in {1e3 * single:.1f} ms"
    )
