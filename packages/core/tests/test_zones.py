"""Zones: borders against brute force, order of rules, and what is stored."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.estimator import Estimates
from ml_debugger.core.evaluation.zones import ZONES, Zone, ZoneRule, ZoneRules, zone_table


def estimates(p, outlier=0.5, *, unstable=False):
    p = np.atleast_1d(np.asarray(p, np.float32))
    n = len(p)
    return Estimates(
        p,
        np.broadcast_to(np.float32(outlier), n),
        np.broadcast_to(np.bool_(unstable), n),
        np.zeros((n, 2), np.float32),
        np.zeros(n, np.int32),
        p,
    )


@pytest.fixture
def evaluated():
    rng = np.random.default_rng(0)
    p = rng.beta(0.3, 1.5, 2000).astype(np.float32)
    wrong = rng.random(2000) < p
    score = np.clip(1 - 0.5 * p + rng.normal(size=2000) * 0.1, 0, 1)
    return p, wrong, score


@pytest.fixture
def rules(evaluated):
    p, wrong, score = evaluated
    return ZoneRules.fit(estimates(p), score, wrong)


def border(rules, zone, field="error_proba", end=0):
    return getattr(next(rule for rule in rules.rules if rule.zone == zone), field)[end]


def test_the_six_documented_names():
    assert [str(zone) for zone in ZONES] == [
        "stable_coverage",
        "operational_coverage",
        "hotspot",
        "recessive_hotspot",
        "critical_hotspot",
        "aleatoric_hotspot",
    ]
    assert [zone.is_hot for zone in ZONES] == [False, False, True, True, True, True]


def test_borders_are_the_best_by_brute_force(evaluated, rules):
    p, wrong, score = evaluated
    right = score[~wrong]

    def f1(border):
        hit = (wrong & (p >= border)).sum()
        return 2 * hit / ((p >= border).sum() + wrong.sum())

    hot = border(rules, Zone.CRITICAL_HOTSPOT)
    best = max(np.unique(p), key=f1)
    assert hot == pytest.approx(np.clip(best, wrong.mean(), 0.6))
    assert border(rules, Zone.CRITICAL_HOTSPOT, "score") == pytest.approx(np.quantile(right, 0.25))
    low = border(rules, Zone.STABLE_COVERAGE, "score")
    assert low == pytest.approx(np.quantile(right, 0.1))

    kept = [
        t
        for t in np.unique(p)
        if t < hot
        and ((wrong & (p <= t) & (score >= low)).sum() + 1)
        / (((p <= t) & (score >= low)).sum() + 1)
        <= 0.01
    ]
    stable = border(rules, Zone.STABLE_COVERAGE, end=1)
    assert stable == pytest.approx(max(kept))
    rest = (p > stable) | (score < low)
    cool = [t for t in np.unique(p[rest]) if t < hot and wrong[rest & (p <= t)].mean() <= 0.1]
    warm = border(rules, Zone.HOTSPOT)
    assert warm == pytest.approx(min(q for q in [*p[rest], hot] if q > max(cool)))
    assert stable < warm < hot


@pytest.mark.parametrize(
    ("zone", "p", "score", "outlier", "unstable"),
    [
        ("critical_hotspot", 0.9, 0.99, 0.001, True),
        ("aleatoric_hotspot", 0.0, 0.99, 0.005, False),
        ("aleatoric_hotspot", 0.9, 0.5, 0.05, True),
        ("operational_coverage", 0.08, 0.5, 0.05, True),
        ("hotspot", 0.9, 0.5, 0.5, True),
        ("recessive_hotspot", 0.9, 0.5, 0.5, False),
        ("stable_coverage", 0.0, 0.99, 0.5, True),
        ("operational_coverage", 0.0, 0.3, 0.5, False),
        ("operational_coverage", 0.0, float("nan"), 0.5, False),
        ("operational_coverage", 0.0, float("inf"), 0.5, False),
        ("hotspot", 0.9, float("nan"), 0.5, True),
        ("critical_hotspot", 0.9, 1.0000001, 0.5, True),
    ],
)
def test_first_rule_that_is_met_wins(rules, zone, p, score, outlier, unstable):
    [number] = rules.assign(estimates(p, outlier, unstable=unstable), np.array([score]))
    assert ZONES[number] == zone


def test_a_non_finite_score_is_never_stable_even_by_own_rules():
    rules = ZoneRules(rules=(ZoneRule(zone=Zone.STABLE_COVERAGE),))
    zones = rules.assign(estimates([0.0, 0.0]), np.array([np.nan, 0.5]))
    assert [ZONES[z] for z in zones] == ["operational_coverage", "stable_coverage"]


def test_ranges_include_both_ends_and_the_rest_is_operational():
    rules = ZoneRules(rules=(ZoneRule(zone=Zone.HOTSPOT, error_proba=(0.25, 0.5)),))
    zones = rules.assign(estimates([0.2499, 0.25, 0.5, 0.5001]), np.ones(4))
    assert [ZONES[z] == Zone.HOTSPOT for z in zones] == [False, True, True, False]
    assert ZONES[zones[0]] == Zone.OPERATIONAL_COVERAGE


def test_rules_survive_json(rules, evaluated):
    p, _, score = evaluated
    again = ZoneRules.model_validate(json.loads(json.dumps(rules.model_dump(mode="json"))))
    assert again == rules
    some = estimates(p, unstable=True)
    np.testing.assert_array_equal(again.assign(some, score), rules.assign(some, score))
    assert rules.version == 2
    assert rules.rules[-1] == ZoneRule(zone=Zone.OPERATIONAL_COVERAGE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"zone": "lukewarm"},
        {"zone": "hotspot", "colour": "red"},
        {"zone": "hotspot", "score": [0.9, 0.1]},
        {"zone": "hotspot", "score": [float("nan"), 1]},
        {"zone": "hotspot", "score": [0.5]},
    ],
)
def test_what_is_no_rule_is_refused(wrong):
    with pytest.raises(ValidationError):
        ZoneRules.model_validate({"rules": [wrong]})


def test_rules_are_described_one_by_one(rules):
    lines = rules.describe()
    assert len(lines) == len(rules.rules)
    assert lines[0].startswith("critical_hotspot: error probability ≥ 0.")
    assert "score ≥" in lines[0]
    assert lines[1] == "aleatoric_hotspot: outlier p-value ≤ 0.01"
    assert lines[-1] == "operational_coverage: everything else"


def test_no_stable_zone_is_said():
    rng = np.random.default_rng(1)
    p = rng.uniform(0.1, 0.4, 500)
    rules = ZoneRules.fit(estimates(p), rng.random(500), rng.random(500) < p)
    assert all(rule.zone != Zone.STABLE_COVERAGE for rule in rules.rules)
    assert rules.notes[0].startswith("no region keeps to an error rate of 0.01")


def test_few_units_cannot_prove_a_small_risk():
    rules = ZoneRules.fit(estimates(np.full(150, 0.01)), np.full(150, 0.9), np.zeros(150, bool))
    assert border(rules, Zone.STABLE_COVERAGE, end=1) == pytest.approx(0.01)
    assert "keeps to 0.02" in rules.notes[0]
    tiny = ZoneRules.fit(estimates(np.full(10, 0.01)), np.full(10, 0.9), np.zeros(10, bool))
    assert all(rule.zone != Zone.STABLE_COVERAGE for rule in tiny.rules)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.sampled_from([0.0, 0.3, 1.0]))
def test_any_evaluation_gives_usable_rules(seed, n, rate):
    rng = np.random.default_rng(seed)
    p, wrong = np.round(rng.random(n), 1), rng.random(n) < rate
    score = np.where(rng.random(n) < 0.1, np.nan, rng.random(n))
    some = estimates(p, unstable=True)
    rules = ZoneRules.fit(some, score, wrong)
    hot = border(rules, Zone.HOTSPOT)
    assert 0.1 <= hot <= border(rules, Zone.CRITICAL_HOTSPOT) <= 0.6
    zones = rules.assign(some, score)
    stable = zones == ZONES.index(Zone.STABLE_COVERAGE)
    assert np.isfinite(score[stable]).all()
    assert (p[stable] < hot).all()
    if stable.any():
        assert wrong[stable].mean() <= 0.05
    assert len(rules.describe()) == len(rules.rules)


def test_classes_with_enough_units_have_stable_borders_of_their_own():
    """Half of the units are of a class that is wrong ten times as often at the same p."""
    rng = np.random.default_rng(0)
    n = 6000
    classes, p = rng.integers(0, 2, n), rng.uniform(0, 0.2, n)
    wrong = rng.random(n) < p * np.where(classes == 1, 1.0, 0.1)
    score = np.full(n, 0.9)
    one = ZoneRules.fit(estimates(p), score, wrong)
    own = ZoneRules.fit(estimates(p), score, wrong, classes)
    rates = {}
    for name, rules in (("one", one), ("own", own)):
        stable = rules.assign(estimates(p), score, classes) == 0
        rates[name] = [wrong[stable & (classes == c)].mean() for c in (0, 1)]
    assert rates["one"][1] > 0.012
    assert max(rates["own"]) <= 0.01
    assert any("predicted 1" in line for line in own.describe())
    with pytest.raises(InputError, match="no predictions"):
        own.assign(estimates(p), score)
    few = ZoneRules.fit(estimates(p[:200]), score[:200], wrong[:200], classes[:200])
    assert all(rule.prediction is None for rule in few.rules)


def test_classes_with_borders_of_their_own_leave_the_others_alone():
    """The common border is fitted to the classes it is for, whatever the large ones could spare."""
    rng = np.random.default_rng(0)
    classes = np.concatenate([np.zeros(3000, np.int64), np.repeat([1, 2, 3], 60)])
    p = rng.uniform(0, 0.2, len(classes))
    wrong = rng.random(len(classes)) < np.where(classes == 0, 0.0, 0.05)
    score = np.full(len(classes), 0.9)
    rules = ZoneRules.fit(estimates(p), score, wrong, classes)
    stable = rules.assign(estimates(p), score, classes) == 0
    assert wrong[stable].mean() <= 0.01
    assert wrong[stable & (classes > 0)].sum() <= 0.01 * (classes > 0).sum()


def test_the_order_of_the_units_decides_nothing_even_among_equals():
    rng = np.random.default_rng(1)
    p = rng.choice([0.05, 0.2, 0.3], 400)
    wrong = rng.random(400) < p
    score, classes = rng.choice([0.5, 0.9], 400), rng.integers(0, 2, 400)
    first = ZoneRules.fit(estimates(p), score, wrong, classes)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(400)
        again = ZoneRules.fit(estimates(p[order]), score[order], wrong[order], classes[order])
        assert again == first


def test_a_risk_that_is_not_reached_is_said():
    rng = np.random.default_rng(2)
    p = rng.beta(0.5, 3, 3000)
    wrong = rng.random(3000) < p
    score = np.full(3000, 0.9)
    rules = ZoneRules.fit(estimates(p), score, wrong, operational_risk=0.001)
    assert any("not the 0.001 that was asked for" in note for note in rules.notes)
    zones = rules.assign(estimates(p), score)
    reached = wrong[zones == 1].mean()
    assert any(f"an error rate of {reached:.2g}" in note for note in rules.notes)


def test_few_units_are_said_to_be_too_few():
    rules = ZoneRules.fit(estimates([0.5]), np.array([0.9]), np.array([False]))
    assert "too few to set borders" in rules.notes[0]


def test_table_counts_every_zone():
    zones = np.array([0, 0, 0, 1, 4], np.int8)
    wrong = np.array([False, False, True, True, True])
    table = zone_table(zones, wrong, np.array([0.9, np.nan, 0.7, 0.5, 0.95]))
    assert [row["zone"] for row in table] == [str(zone) for zone in ZONES]
    assert sum(row["n"] for row in table) == 5
    first, _, empty = table[0], table[1], table[2]
    assert first["share"] == 0.6
    assert first["errors"] == 1
    assert first["error_rate"] == pytest.approx(1 / 3)
    assert first["low"] < 1 / 3 < first["high"]
    assert first["mean_score"] == pytest.approx(0.8)
    assert empty["n"] == 0
    assert empty["error_rate"] is None
    together = zone_table(zones, wrong, np.ones(5), np.array([0, 0, 0, 1, 1]))[0]
    assert together["low"] < first["low"]
    assert together["high"] > first["high"]
    json.dumps(table, allow_nan=False)
