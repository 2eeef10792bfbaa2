"""The same units give the same estimates, in any process, order and company."""

import os
import subprocess
import sys

import numpy as np
import pytest

from ml_debugger.core.evaluation.estimator import ErrorModel, Observations

FIT = """
import hashlib
import numpy as np
from ml_debugger.core.evaluation.estimator import ErrorModel, Observations

rng = np.random.default_rng(0)
n, target = 1500, rng.integers(0, 10, 1500)
centres = rng.normal(0, 2, (10, 192))
features = {
    f"layer{width}": (centres[target, :width] + rng.normal(0, 3, (n, width))).astype(np.float32)
    for width in (24, 192)
}
logits = (features["layer24"] @ centres[:, :24].T / 10).astype(np.float32)
odds = np.exp(logits - logits.max(1, keepdims=True))
score = (odds.max(1) / odds.sum(1)).astype(np.float32)
given = Observations(features, logits.argmax(1), score, logits)
model, own = ErrorModel.fit(given.take(np.arange(1000)), target[:1000])
found = model.estimate(given.take(np.arange(1000, n)))
said = hashlib.sha256()
for estimates in (own, found):
    for name in ("error_proba", "outlier", "unstable", "shares", "plausible"):
        said.update(getattr(estimates, name).tobytes())
for name, values in sorted(model.arrays().items()):
    said.update(name.encode() + values.tobytes())
print(said.hexdigest())
"""


def fitted() -> str:
    # as many threads each time, since a sum in other pieces rounds otherwise
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FIT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_two_processes_give_the_same_to_the_last_bit():
    assert fitted() == fitted()


def made(n: int, classes: int, seed: int, noise: float = 0.9) -> tuple[Observations, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, n)
    centres = np.random.default_rng(0).normal(0, 1, (classes, 32))
    features = (centres[target] + rng.normal(0, noise, (n, 32))).astype(np.float32)
    logits = (features @ centres.T / 4).astype(np.float32)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    score = (odds.max(1) / odds.sum(1)).astype(np.float32)
    return Observations({"layer": features}, logits.argmax(1), score, logits), target


@pytest.mark.parametrize("classes", [2, 1000])
def test_few_and_many_classes(classes):
    noise = 4.0 if classes == 2 else 0.9
    evaluated, target = made(3000, classes, 1, noise)
    model, own = ErrorModel.fit(evaluated, target)
    pool, truth = made(2000, classes, 2, noise)
    found = model.estimate(pool)
    assert own.shares.shape == (3000, classes)
    wrong = pool.prediction != truth
    assert 0.02 < wrong.mean() < 0.98
    assert abs(found.error_proba.mean() - wrong.mean()) < 0.05
    assert found.error_proba[wrong].mean() > found.error_proba[~wrong].mean() + 0.05


@pytest.mark.parametrize("seed", range(3))
def test_order_company_and_doubling_hardly_matter(seed):
    evaluated, target = made(800, 5, seed)
    pool, _ = made(300, 5, seed + 10)
    model, own = ErrorModel.fit(evaluated, target)
    found = model.estimate(pool)
    rng = np.random.default_rng(seed)

    order = rng.permutation(800)
    other, shuffled = ErrorModel.fit(evaluated.take(order), target[order])
    np.testing.assert_allclose(shuffled.error_proba, own.error_proba[order], atol=1e-6)
    np.testing.assert_allclose(other.estimate(pool).error_proba, found.error_proba, atol=1e-6)

    pieces = np.array_split(np.arange(300), rng.integers(2, 50))
    parts = [model.estimate(pool.take(rows)).error_proba for rows in pieces]
    assert np.concatenate(parts).tobytes() == found.error_proba.tobytes()

    twice = np.tile(np.arange(800), 2)
    doubled, _ = ErrorModel.fit(evaluated.take(twice), target[twice])
    assert np.abs(doubled.estimate(pool).error_proba - found.error_proba).mean() < 0.03
