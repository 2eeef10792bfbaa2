"""Drift and estimated accuracy of units without labels."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy import stats

from ml_debugger.core.evaluation.drift import Drift, Evaluated, _apart, one_each
from ml_debugger.core.evaluation.estimator import Observations
from ml_debugger.core.evaluation.folder import ARRAYS, AS_NEW
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.records import Units


def units(n: int, rng: np.random.Generator, *, risk: float = 0.1) -> tuple[np.ndarray, ...]:
    """Return whether units are wrong, their error probability, outlier p-value and zone."""
    proba = rng.beta(risk * 2, (1 - risk) * 2, n)
    zone = np.digitize(proba, [0.02, 0.1, 0.3, 0.6, 0.8])
    return rng.random(n) < proba, proba, rng.integers(1, 101, n) / 100, zone


def evaluated(n: int = 600, seed: int = 0) -> Evaluated:
    return Evaluated.of_units(*units(n, np.random.default_rng(seed)))


def test_false_alarms_are_as_rare_as_stated() -> None:
    rng = np.random.default_rng(0)
    found = [
        Evaluated.of_units(*units(300, rng)).drift(*units(size, rng)[1:])
        for size in (20, 80, 500)
        for _ in range(300)
    ]
    assert np.mean([one is not None and one.raised for one in found]) <= 0.015


@pytest.mark.parametrize("what", ["features", "error_proba", "zones"])
def test_each_kind_of_drift_is_noticed_by_itself(what: str) -> None:
    rng = np.random.default_rng(1)
    _, proba, outlier, zone = units(400, rng)
    if what == "features":
        outlier[:80] = 0.01  # a fifth that is like nothing evaluated
    elif what == "error_proba":
        proba = np.sqrt(proba)
    else:
        zone = rng.permutation(np.where(zone == 0, 5, zone))
    drift = evaluated().drift(proba, outlier, zone)
    assert drift is not None
    assert drift.raised
    assert getattr(drift, what) == min(drift[1:4]) < 0.001
    assert sum(one < 0.01 for one in drift[1:4]) == 1
    assert drift.distance > 0.1


def test_fewer_outliers_are_no_drift() -> None:
    rng = np.random.default_rng(2)
    _, proba, outlier, zone = units(400, rng)
    drift = evaluated().drift(proba, np.sqrt(outlier), zone)
    assert drift is not None
    assert drift.features > 0.1


def test_zones_are_taken_together_until_none_is_rare() -> None:
    # The two rarest are expected 5 times together, but each of the next two is still rare.
    own, others = [100, 90, 2, 2, 3, 3], [100, 85, 6, 5, 2, 2]
    alike = np.linspace(0, 1, 200)
    fitted = Evaluated.of_units(alike < 0.1, alike, alike, np.repeat(np.arange(6), own))
    drift = fitted.drift(alike, alike, np.repeat(np.arange(6), others))
    together = stats.chi2_contingency([[100, 90, 10], [100, 85, 15]], correction=False)
    assert drift is not None
    assert drift.zones == pytest.approx(together.pvalue)


def test_too_few_units_cannot_tell() -> None:
    rng = np.random.default_rng(3)
    for own, others, known in ((600, 19, False), (600, 20, True), (19, 600, False), (0, 50, False)):
        drift = evaluated(own).drift(*units(others, rng)[1:])
        assert (drift is not None) == known


@given(
    own=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    others=st.lists(st.integers(0, 9), min_size=1, max_size=30),
)
def test_distance_is_that_of_kolmogorov_and_smirnov(own: list[int], others: list[int]) -> None:
    found = _apart(np.sort(np.array(own, float)), np.array(others))
    for side, one in zip(("greater", "less"), found, strict=True):
        expected = stats.ks_2samp(others, own, alternative=side, method="asymp").statistic
        assert one == pytest.approx(max(expected, 0))


def test_interval_covers_without_drift() -> None:
    rng = np.random.default_rng(4)
    held = []
    for _ in range(400):
        fitted = Evaluated.of_units(*units(300, rng))
        wrong, proba, _, _ = units(200, rng)
        # what a fit to 300 units gets wrong: the level, on the scale of log-odds
        off = rng.normal(0, 1 / np.sqrt((proba * (1 - proba)).mean() * 300))
        odds = np.log(proba + 1e-9) - np.log(1 - proba + 1e-9) + off
        low, high = fitted.accuracy(1 / (1 + np.exp(-odds)), 0.9)
        held.append(low <= 1 - wrong.mean() <= high)
    assert 0.87 <= np.mean(held) <= 0.96


def test_interval_widens_with_drift_alone() -> None:
    proba = np.full(200, 0.3)
    low, high = evaluated().accuracy(proba, 0.95)
    calm = Drift(0.5, 0.5, 0.5, 0.5, distance=0.2)
    assert evaluated().accuracy(proba, 0.95, calm) == (low, high)
    wide = evaluated().accuracy(proba, 0.95, calm._replace(p_value=0.001))
    assert wide == pytest.approx((low - 0.2, high + 0.2))
    assert evaluated().accuracy(proba[:0], 0.95) == (0, 1)
    assert evaluated(0).accuracy(proba, 0.95) == (0, 1)
    sure = Evaluated.of_units(np.zeros(100), np.zeros(100), np.ones(100), np.zeros(100))
    low, high = sure.accuracy(np.zeros(1000), 0.95)
    assert 0.97 < low < 0.99  # no error in 100 units is no proof that there is none
    assert high == 1


def test_boxes_of_an_image_are_one_piece_of_evidence():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(400), rng.integers(1, 12, 400))

    def boxes():
        level = rng.normal(size=400)[owner] * 2
        proba = 1 / (1 + np.exp(-(level + rng.normal(size=len(owner)))))
        return (
            rng.random(len(owner)) < proba,
            proba,
            rng.random(len(owner)),
            np.zeros(len(owner), int),
        )

    alarms = {"all": 0, "one each": 0}
    for _ in range(60):
        (wrong, *first), (_, *second) = boxes(), boxes()
        some = one_each(owner)
        assert len(np.unique(owner[some])) == len(some) == 400
        every = Evaluated.of_units(wrong, *first).drift(*second)
        each = Evaluated.of_units(wrong, *first, owner).drift(*(one[some] for one in second))
        alarms["all"] += every.raised
        alarms["one each"] += each.raised
    assert alarms["all"] > 10
    assert alarms["one each"] <= 3


@pytest.mark.parametrize("correlation", [0, 0.3, 1])
def test_interval_covers_where_boxes_of_an_image_are_wrong_together(correlation):
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(40), 25)

    def boxes():
        proba = rng.beta(0.5, 2.5, 1000)
        own, shared = rng.normal(size=1000), rng.normal(size=40)[owner]
        score = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
        return stats.norm.cdf(score) < proba, proba

    held, alone = [], []
    for _ in range(200):
        wrong, proba = boxes()
        rest = np.ones(1000), np.zeros(1000, int)
        off = (wrong - proba).mean()  # a fit has the level of its own units
        new_wrong, new = boxes()
        new, truth = np.clip(new + off, 0, 1), 1 - new_wrong.mean()
        low, high = Evaluated.of_units(wrong, proba, *rest, owner).accuracy(new, 0.95, None, owner)
        held.append(low <= truth <= high)
        low, high = Evaluated.of_units(wrong, proba, *rest).accuracy(new, 0.95)
        alone.append(low <= truth <= high)
    assert np.mean(held) >= 0.93
    assert correlation == 0 or np.mean(alone) < 0.8  # what is mended


def test_inputs_of_one_unit_have_the_interval_they_had():
    wrong, proba, outlier, zone = units(300, np.random.default_rng(5))
    alone = Evaluated.of_units(wrong, proba, outlier, zone)
    each = Evaluated.of_units(wrong, proba, outlier, zone, np.arange(300))
    assert alone.level == each.level == (((wrong - proba) ** 2).sum() + 1) / 300**2
    assert alone.together == each.together == 0
    assert alone.accuracy(proba, 0.9) == each.accuracy(proba, 0.9, None, np.arange(300))


def stepped(n, rng):
    """Return units whose risk goes up in steps, so that it takes a correction, and the truth."""
    certainty = rng.normal(size=n)
    wrong = rng.random(n) < np.select([certainty < 0.3, certainty < 1], [0.06, 0.3], 0.35)
    prediction = rng.integers(0, 2, n)
    logits = (2.5 - certainty)[:, None] * np.eye(2)[prediction]
    prediction = logits.argmax(1)
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    observations = Observations(
        features={
            alias: rng.normal(size=(n, width)).astype(np.float32)
            for alias, width in (("early", 6), ("hidden", 8))
        },
        prediction=prediction,
        score=share.max(1).astype(np.float32),
        logits=logits.astype(np.float32),
    )
    return observations, np.where(wrong, 1 - prediction, prediction)


@pytest.fixture
def corrected(recorder, made):
    """A result whose probabilities were corrected, and new units of the same kind."""
    rng = np.random.default_rng(3)
    observations, label = stepped(1500, rng)
    columns = {
        "prediction": torch.from_numpy(observations.prediction).int(),
        "score": torch.from_numpy(observations.score),
        "finite": torch.ones(1500, dtype=torch.bool),
        "logits": torch.from_numpy(observations.logits),
        **{f"feature.{k}": torch.from_numpy(v) for k, v in observations.features.items()},
    }
    batch = dataclasses.replace(
        made(1500).batch, predicted=Units(columns), actual=Units({"label": torch.from_numpy(label)})
    )
    recorder.repository.write(recorder.run(), [batch])
    return recorder.evaluate(), stepped(1500, rng)[0]


def test_a_correction_is_no_drift(corrected):
    result, new = corrected
    found = result.estimator.estimate(new)
    zones = result.rules.assign(found, new.score, new.prediction)
    drift = Evaluated.of(result).drift(found.error_proba, found.outlier, zones)
    assert drift.error_proba > 0.05
    assert drift.zones > 0.05
    own = result.to_pandas()["error_proba"]
    assert stats.ks_2samp(own, found.error_proba).pvalue < 1e-6  # corrected by the other folds
    np.testing.assert_array_equal(found.as_new, found.error_proba)


def test_a_result_of_an_earlier_version_is_compared_by_what_it_holds(corrected):
    result, _ = corrected
    now = Evaluated.of(result)
    arrays = load_file(result.folder / ARRAYS)
    del arrays[AS_NEW]
    save_file(arrays, result.folder / ARRAYS)
    earlier = Result.load(result.folder)
    assert earlier.as_new is None
    own = np.sort(result.to_pandas()["error_proba"].to_numpy(np.float64))
    np.testing.assert_array_equal(Evaluated.of(earlier).error_proba, own)
    assert not np.array_equal(now.error_proba, own)
