"""Metrics against brute force and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_debugger.core.evaluation import metrics
from ml_debugger.core.evaluation.baselines import BASELINES, Case, compare
from ml_debugger.core.evaluation.estimator import ErrorModel, Observations

risks = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans()),
    min_size=1,
    max_size=12,
)


def expected_area(proba, wrong, *, generalised):
    """Average over random orders of tied units, by definition."""
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(400):
        order = np.lexsort((rng.random(len(proba)), proba))
        errors, n = 0, len(proba)
        values = []
        for accepted, row in enumerate(order, start=1):
            errors += wrong[row]
            values.append(errors / (n if generalised else accepted))
        areas.append(sum(values) / n)
    return np.mean(areas), np.std(areas) / 20


@settings(max_examples=25, deadline=None)
@given(risks)
def test_areas_are_the_definitions_averaged_over_ties(pairs):
    proba, wrong = (np.array(column) for column in zip(*pairs, strict=True))
    for metric, generalised in ((metrics.aurc, False), (metrics.augrc, True)):
        value, error = expected_area(proba, wrong, generalised=generalised)
        assert metric(proba, wrong) == pytest.approx(value, abs=5 * error + 1e-9)


def test_areas_of_a_worked_example():
    proba, wrong = np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, True, False, True])
    assert metrics.aurc(proba, wrong) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert metrics.augrc(proba, wrong) == pytest.approx((0 + 1 + 1 + 2) / 16)
    assert metrics.auroc(proba, wrong) == pytest.approx(3 / 4)


def test_augrc_of_errors_alone_nears_a_half_from_above():
    for n, expected in ((1, 1.0), (2, 0.75), (1000, 0.5005)):
        assert metrics.augrc(np.zeros(n), np.ones(n, bool)) == pytest.approx(expected)


def test_augrc_is_what_auroc_and_accuracy_make_it():
    # Traub et al. 2024, up to the discrete sum: (1 - AUROC) a (1 - a) + (1 - a)^2 / 2.
    rng = np.random.default_rng(0)
    wrong = rng.random(20_000) < 0.2
    proba = np.clip(0.3 * wrong + rng.random(20_000) * 0.7, 0, 1)
    a = 1 - wrong.mean()
    expected = (1 - metrics.auroc(proba, wrong)) * a * (1 - a) + (1 - a) ** 2 / 2
    assert metrics.augrc(proba, wrong) == pytest.approx(expected, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(risks, st.randoms())
def test_no_metric_depends_on_the_order_of_rows(pairs, random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    one, other = ([np.array(c) for c in zip(*p, strict=True)] for p in (pairs, shuffled))
    for metric in (
        metrics.auroc,
        metrics.aurc,
        metrics.augrc,
        metrics.brier,
        metrics.ece,
        metrics.nll,
    ):
        assert metric(*one) == pytest.approx(metric(*other), nan_ok=True)


def test_probability_metrics_against_scikit_learn():
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import log_loss

    rng = np.random.default_rng(1)
    proba = rng.random(3000)
    wrong = rng.random(3000) < proba**1.3
    assert metrics.brier(proba, wrong) == pytest.approx(np.mean((proba - wrong) ** 2))
    assert metrics.nll(proba, wrong) == pytest.approx(log_loss(wrong, proba))
    observed, predicted = calibration_curve(wrong, proba, n_bins=15, strategy="quantile")
    curve = metrics.reliability_curve(proba, wrong)
    np.testing.assert_allclose(curve.predicted, predicted, atol=1e-3)
    np.testing.assert_allclose(curve.observed, observed, atol=0.01)
    assert curve.size.tolist() == [200] * 15
    assert metrics.ece(proba, wrong) == pytest.approx(np.abs(observed - predicted).mean(), abs=2e-3)
    assert (curve.low <= curve.observed).all()
    assert (curve.observed <= curve.high).all()


def test_a_calibrated_probability_has_almost_no_ece():
    rng = np.random.default_rng(2)
    proba = rng.random(50_000)
    wrong = rng.random(50_000) < proba
    assert metrics.ece(proba, wrong) < 0.01
    assert metrics.ece(np.sqrt(proba), wrong) > 0.1


@pytest.mark.parametrize("wrong", [np.zeros(4, bool), np.ones(4, bool)])
def test_one_sided_outcomes(wrong):
    proba = np.array([0.1, 0.2, 0.2, 0.9])
    assert math.isnan(metrics.auroc(proba, wrong))
    for metric in (metrics.aurc, metrics.augrc, metrics.brier, metrics.nll, metrics.ece):
        assert math.isfinite(metric(proba, wrong))


def test_no_units_have_no_metrics():
    none = np.zeros(0)
    for metric in (
        metrics.auroc,
        metrics.aurc,
        metrics.augrc,
        metrics.brier,
        metrics.nll,
        metrics.ece,
    ):
        assert math.isnan(metric(none, none))
    assert all(math.isnan(v) for v in metrics.bootstrap_interval(metrics.aurc, none, none))
    assert len(metrics.reliability_curve(none, none).size) == 0


def test_bootstrap_covers_the_truth_and_repeats_itself():
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(40):
        wrong = rng.random(300) < 0.3
        proba = wrong + rng.normal(size=300)  # true AUROC: Phi(1 / sqrt 2) = 0.7602
        low, high = metrics.bootstrap_interval(metrics.auroc, proba, wrong, n=100)
        inside += low <= 0.7602 <= high
    assert inside >= 33
    again = metrics.bootstrap_interval(metrics.auroc, proba, wrong, n=100)
    assert again == (low, high)


def test_wilson_interval_of_known_cases():
    low, high = metrics.wilson_interval(10, 100)
    assert (low, high) == (pytest.approx(0.05523, abs=1e-4), pytest.approx(0.17437, abs=1e-4))
    assert metrics.wilson_interval(0, 20)[0] == 0
    assert metrics.wilson_interval(20, 20)[1] == 1
    assert metrics.wilson_interval(0, 0) == (0, 1)


@pytest.fixture
def observed():
    rng = np.random.default_rng(4)
    target = rng.integers(0, 4, 500)
    features = rng.normal(size=(4, 12))[target] + rng.normal(size=(500, 12))
    logits = (3 * np.eye(4)[target] + rng.normal(size=(500, 4)) * 2).astype(np.float32)
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    return Observations(
        {"a": features[:, :3].astype(np.float32), "last": features.astype(np.float32)},
        logits.argmax(axis=1),
        share.max(axis=1).astype(np.float32),
        logits,
    ), target


def test_compare_lists_every_baseline_and_ours(observed):
    observations, target = observed
    _, estimates = ErrorModel.fit(observations, target)
    table = compare(observations, target, estimates)
    assert list(table) == ["error_proba", *BASELINES]
    assert all(set(row) == {"auroc", "aurc", "augrc", "brier", "ece"} for row in table.values())
    assert table["error_proba"]["auroc"] > max(
        row["auroc"] for name, row in table.items() if name != "error_proba"
    )
    wrong = target != observations.prediction
    assert table["max_softmax"]["auroc"] == pytest.approx(
        metrics.auroc(-observations.score, wrong), abs=1e-6
    )
    # Platt scaling makes even a distance a fair probability.
    assert table["knn_distance"]["brier"] <= wrong.mean() * (1 - wrong.mean()) + 0.01


def test_baselines_that_do_not_apply_are_left_out(observed):
    observations, target = observed
    bare = Observations({}, observations.prediction, observations.score)
    _, estimates = ErrorModel.fit(bare, target)
    assert list(compare(bare, target, estimates)) == ["error_proba", "max_softmax"]


def test_distance_baselines_against_scikit_learn(observed):
    from sklearn.neighbors import NearestNeighbors

    observations, target = observed
    case = Case.of(observations, target)
    points = observations.features["last"][case.units.rows].astype(np.float64)
    points = (points - points.mean(axis=0)) / points.std(axis=0)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    distance = NearestNeighbors(n_neighbors=11).fit(unit).kneighbors(unit)[0][:, 10]
    np.testing.assert_allclose(BASELINES["knn_distance"](case), np.log(distance), atol=1e-3)

    far = np.argsort(BASELINES["mahalanobis"](case))[-1]
    labels = case.units.labels
    within = np.cov((points - np.stack([points[labels == c].mean(0) for c in range(4)])[labels]).T)
    inverse = np.linalg.inv(within)
    squared = [
        (points[far] - points[labels == c].mean(0))
        @ inverse
        @ (points[far] - points[labels == c].mean(0))
        for c in range(4)
    ]
    assert BASELINES["mahalanobis"](case)[far] == pytest.approx(min(squared), rel=0.15)
