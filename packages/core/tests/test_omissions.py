"""How many things were probably missed in an input."""

import json

import numpy as np
import pytest

from ml_debugger.core.evaluation.omissions import Omissions, chance_of_any, predictors_of


def made(n=600, seed=0):
    """Return predictors of images in which hidden candidates tell what is missed."""
    rng = np.random.default_rng(seed)
    hidden = rng.gamma(1.5, 1.0, n)
    counts = rng.integers(0, 5, n)
    boxes = int(counts.sum())
    predictors = predictors_of(
        {"hidden": hidden}, counts, rng.uniform(0, 1, boxes), rng.uniform(0, 1, boxes)
    )
    return predictors, rng.poisson(0.4 * hidden), hidden


def test_the_number_missed_is_foretold():
    predictors, missed, hidden = made()
    groups = np.arange(len(missed))
    omissions, found = Omissions.fit(("hidden",), predictors, missed, groups)
    assert found.sum() == pytest.approx(missed.sum(), rel=0.05)
    assert np.corrcoef(found, 0.4 * hidden)[0, 1] > 0.9
    others, _, true = made(seed=1)
    assert np.corrcoef(omissions(others), 0.4 * true)[0, 1] > 0.9
    again = Omissions.restore(json.loads(json.dumps(omissions.settings())))
    np.testing.assert_array_equal(again(others), omissions(others))


@pytest.mark.parametrize("n", [5, 19, 20, 200])
def test_none_so_far_is_not_never(n):
    predictors, _, _ = made(n)
    omissions, _ = Omissions.fit(("hidden",), predictors, np.zeros(n), np.arange(n))
    chance = chance_of_any(omissions(predictors))
    assert (chance > 0.1 / n).all()
    assert (chance < 0.3).all()


def test_what_is_not_finite_counts_as_nothing():
    found = predictors_of({"hidden": np.array([np.nan, np.inf])}, np.array([0, 1]), [0.5], [np.nan])
    assert np.isfinite(found).all()
