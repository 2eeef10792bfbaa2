"""Metrics against brute force and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_debugger.core.evaluation import bootstrap, metrics
from ml_debugger.core.evaluation.bootstrap import METRICS, Bootstrap, Score

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
    assert len(metrics.reliability_curve(none, none).size) == 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([-3.0, 0.0, 0.2, 5.0]),  # the risk
            st.sampled_from([0.0, 0.1, 0.5, 1.0]),  # the probability
            st.booleans(),
            st.integers(0, 5),  # the group
        ),
        min_size=1,
        max_size=40,
    ),
    st.booleans(),
)
def test_resamples_have_the_figures_of_copied_rows(rows, grouped):
    risk, proba, wrong, groups = (np.array(column) for column in zip(*rows, strict=True))
    member = np.unique(groups, return_inverse=True)[1] if grouped else np.arange(len(rows))
    found = Bootstrap.of(
        {"it": Score(risk, proba)}, wrong, groups=groups if grouped else None, n=4, seed=5
    ).values["it"]
    generator = np.random.default_rng(5)
    for values in found:
        drawn = generator.integers(0, member.max() + 1, member.max() + 1)
        copies = np.concatenate([np.flatnonzero(member == group) for group in drawn])
        for name, value in zip(METRICS, values, strict=True):
            judged = risk if name in ("auroc", "aurc", "augrc") else proba
            expected = getattr(metrics, name)(judged[copies], wrong[copies])
            assert value == pytest.approx(expected, nan_ok=True), name


def scored(n, generator, strength=1.0):
    """Risks whose true AUROC is Phi(strength / sqrt 2), and what is wrong."""
    wrong = generator.random(n) < 0.3
    risk = strength * wrong + generator.normal(size=n)
    return Score(risk, 1 / (1 + np.exp(1.35 - risk))), wrong


def test_bootstrap_intervals_cover_the_truth():
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(40):
        score, wrong = scored(300, rng)
        low, high = Bootstrap.of({"it": score}, wrong).interval("it", "auroc")
        inside += low <= 0.7602 <= high
    assert inside >= 34


def test_a_difference_is_surer_than_its_parts():
    rng = np.random.default_rng(4)
    score, wrong = scored(2000, rng)
    nearly = Score(score.risk + 0.1 * rng.normal(size=2000), score.proba)
    found = Bootstrap.of({"one": score, "other": nearly}, wrong)
    low, high = found.difference("one", "other", "auroc")
    own = found.interval("one", "auroc")
    assert high - low < 0.3 * (own[1] - own[0])
    back = found.difference("other", "one", "auroc")
    assert back == pytest.approx((-high, -low))


def test_an_interval_holds_its_figure():
    # Resampling makes a small calibration error larger, which must not move its interval away.
    rng = np.random.default_rng(5)
    score, _ = scored(3000, rng)
    wrong = rng.random(3000) < score.proba
    found = Bootstrap.of({"it": score}, wrong)
    for name in METRICS:
        judged = score.risk if name in ("auroc", "aurc", "augrc") else score.proba
        low, high = found.interval("it", name)
        assert low <= getattr(metrics, name)(judged, wrong) <= high, name


def test_copies_are_no_evidence():
    score, wrong = scored(200, np.random.default_rng(6))
    copied = Score(np.tile(score.risk, 5), np.tile(score.proba, 5))
    plain = Bootstrap.of({"it": score}, wrong).interval("it", "auroc")
    groups = np.tile(np.arange(200), 5)
    again = Bootstrap.of({"it": copied}, np.tile(wrong, 5), groups=groups).interval("it", "auroc")
    assert again == pytest.approx(plain)
    naive = Bootstrap.of({"it": copied}, np.tile(wrong, 5)).interval("it", "auroc")
    assert naive[1] - naive[0] < 0.6 * (plain[1] - plain[0])


@pytest.mark.parametrize("grouped", [False, True])
def test_a_sample_of_many_units_gives_about_the_same_interval(grouped, monkeypatch):
    score, wrong = scored(8000, np.random.default_rng(7))
    groups = np.arange(8000) // 2 if grouped else None
    whole = Bootstrap.of({"it": score}, wrong, groups=groups)
    monkeypatch.setattr(bootstrap, "MOST", 1000)
    part = Bootstrap.of({"it": score}, wrong, groups=groups)
    assert part.interval("it", "auroc") == pytest.approx(whole.interval("it", "auroc"), abs=5e-3)


def test_figures_that_are_never_defined_have_no_interval():
    right = np.zeros(10, bool)
    found = Bootstrap.of({"it": Score(np.arange(10.0), np.zeros(10))}, right)
    assert all(math.isnan(end) for end in found.interval("it", "auroc"))
    assert found.interval("it", "brier") == (0, 0)
    none = np.zeros(0)
    empty = Bootstrap.of({"it": Score(none, none)}, none.astype(bool))
    assert all(math.isnan(end) for name in METRICS for end in empty.interval("it", name))


def test_wilson_interval_of_known_cases():
    low, high = metrics.wilson_interval(10, 100)
    assert (low, high) == (pytest.approx(0.05523, abs=1e-4), pytest.approx(0.17437, abs=1e-4))
    assert metrics.wilson_interval(0, 20)[0] == 0
    assert metrics.wilson_interval(20, 20)[1] == 1
    assert metrics.wilson_interval(0, 0) == (0, 1)


def together(rng, correlation, inputs, size, share):
    """Return units that are right or wrong together within an input, and the input of each."""
    owner = np.repeat(np.arange(inputs), size)
    level = np.full(inputs, share)
    if correlation == 1:
        level = (rng.random(inputs) < share).astype(float)
    elif correlation:
        a = (1 - correlation) / correlation
        level = rng.beta(share * a, (1 - share) * a, inputs)
    return rng.random(len(owner)) < level[owner], owner


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("correlation", [0, 0.3, 1])
def test_the_interval_of_a_share_covers_it_where_units_go_together(correlation, share):
    rng = np.random.default_rng(0)
    held, alone = [], []
    for _ in range(300):
        hits, owner = together(rng, correlation, 40, 25, share)
        low, high = metrics.share_interval(hits, owner)
        held.append(low <= share <= high)
        low, high = metrics.share_interval(hits)
        alone.append(low <= share <= high)
    assert 0.9 <= np.mean(held) <= 0.985
    assert correlation == 0 or np.mean(alone) < 0.6  # what is mended


@given(hits=st.lists(st.booleans(), max_size=50), seed=st.integers(0, 9))
def test_the_interval_of_independent_units_is_wilsons_to_the_bit(hits, seed):
    alone = np.random.default_rng(seed).permutation(len(hits))
    wilson = metrics.wilson_interval(sum(hits), len(hits))
    assert metrics.share_interval(np.array(hits, bool)) == wilson
    assert metrics.share_interval(np.array(hits, bool), alone) == wilson


def test_units_tell_no_more_than_that_many_and_no_less_than_one():
    hits = np.arange(100) % 10 == 0
    by_ten = np.arange(100) // 10  # one hit in each: as even as can be
    assert 50 < metrics.effective_size(hits, by_ten) < 100  # few degrees of freedom
    assert metrics.effective_size(np.ones(100), by_ten) == pytest.approx(10)
    assert metrics.effective_size(hits, np.zeros(100, int)) == pytest.approx(1)
    assert metrics.effective_size(by_ten < 1, by_ten) == pytest.approx(10, rel=0.4)
    assert metrics.share_interval(np.zeros(0), np.zeros(0, int)) == (0, 1)
    assert metrics.share_interval(np.ones(100), by_ten)[1] == 1


def test_bins_of_reliability_know_which_units_go_together():
    rng = np.random.default_rng(0)
    wrong, owner = together(rng, 1, 40, 25, 0.3)
    proba = rng.random(1000)
    alone = metrics.reliability_curve(proba, wrong, 2)
    curve = metrics.reliability_curve(proba, wrong, 2, owner)
    np.testing.assert_array_equal(curve.observed, alone.observed)
    assert ((curve.high - curve.low) > 2 * (alone.high - alone.low)).all()
    each = metrics.reliability_curve(proba, wrong, 2, np.arange(1000))
    for one, other in zip(each, alone, strict=True):
        np.testing.assert_array_equal(one, other)
