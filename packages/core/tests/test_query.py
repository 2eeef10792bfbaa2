"""Strategies against a naive reading of the same rules."""

import math
import operator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_debugger.core.conditions import Condition
from ml_debugger.core.errors import StrategyError
from ml_debugger.core.pool import StoredPool
from ml_debugger.core.query import FilterConfig, rank, read_strategy
from ml_debugger.core.records import TaskSchema
from ml_debugger.core.sampling import SamplingConfig, spread

KINDS = (FilterConfig,)
ZONES = ["stable_coverage", "operational_coverage", "hotspot", "critical_hotspot"]
OPERATORS = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}
NUMBERS = st.floats(-2, 2, width=32) | st.just(math.nan)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "score": NUMBERS,
            "prediction": st.integers(-3, 3),
            "finite": st.booleans(),
            "camera": st.sampled_from(["front", "rear", "it's", None]),
            "zone": st.sampled_from(ZONES),
        }
    ),
    max_size=30,
)
COMPARISONS = st.one_of(
    st.tuples(st.just("score"), st.sampled_from(list(OPERATORS)), st.floats(-2, 2, width=32)),
    st.tuples(st.just("prediction"), st.sampled_from(list(OPERATORS)), st.integers(-3, 3)),
    st.tuples(st.just("camera"), st.sampled_from(["==", "!="]), st.sampled_from(["front", "it's"])),
)


def columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "score": np.array([row["score"] for row in rows], np.float32),
        "prediction": np.array([row["prediction"] for row in rows], np.int32),
        "finite": np.array([row["finite"] for row in rows], bool),
        "camera": pa.array([row["camera"] for row in rows], pa.string()),
        "zone": pa.array([row["zone"] for row in rows], pa.string()).dictionary_encode(),
    }


def holds(value: Any, op: str, wanted: Any) -> bool:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return not missing and bool(OPERATORS[op](value, wanted))


@settings(max_examples=200)
@given(
    rows=ROWS,
    zones=st.lists(st.sampled_from(ZONES), max_size=2),
    conditions=st.lists(st.lists(COMPARISONS, min_size=1, max_size=3), max_size=2),
)
def test_filters_mean_what_they_say(
    rows: list[dict[str, Any]], zones: list[str], conditions: list[list[tuple[str, str, Any]]]
) -> None:
    as_dicts = [{name: f"{op}{value}" for name, op, value in one} for one in conditions]
    if not zones and not as_dicts:
        return
    config = FilterConfig.read({"target_zones": zones or None, "conditions": as_dicts or None})
    last_of_each = [
        [next(c for c in reversed(one) if c[0] == name) for name in {c[0] for c in one}]
        for one in conditions
    ]
    expected = [
        row["zone"] in zones
        or any(all(holds(row[n], op, v) for n, op, v in one) for one in last_of_each)
        for row in rows
    ]
    table = columns(rows)
    assert config.matches(table.__getitem__).tolist() == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (">=0.8", [0, 1, 1, 0]),
        (" >= 0.8 ", [0, 1, 1, 0]),
        ("between 0.2 and 0.8", [1, 1, 0, 0]),
        ("in 0.2, 0.9", [1, 0, 1, 0]),
        ("not in (0.2, 0.9)", [0, 1, 0, 0]),
        ([0.2, 0.8], [1, 1, 0, 0]),
        (0.8, [0, 1, 0, 0]),
        (None, [0, 0, 0, 1]),
        ("is null", [0, 0, 0, 1]),
        ("NOT NULL", [1, 1, 1, 0]),
    ],
)
def test_conditions_on_numbers(given: Any, expected: list[int]) -> None:
    values = np.array([0.2, 0.8, 0.9, np.nan], np.float32)
    assert Condition.read("score", given).mask(values).tolist() == list(map(bool, expected))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("== front", [1, 0, 0]),
        ("=='front'", [1, 0, 0]),
        ("!= front", [0, 1, 0]),
        ("in front, rear", [1, 1, 0]),
        ("in 'front, left', \"rear\"", [0, 1, 0]),
        ("between 'a' and 'g'", [1, 0, 0]),
        (["rear"], [0, 1, 0]),
        (None, [0, 0, 1]),
        ("> g", [0, 1, 0]),
        ("is null", [0, 0, 1]),
        ("not null", [1, 1, 0]),
    ],
)
def test_conditions_on_text(given: Any, expected: list[int]) -> None:
    values = pa.array(["front", "rear", None])
    found = Condition.read("camera", given).mask(values).tolist()
    assert found == list(map(bool, expected))


def test_conditions_on_truth_and_time() -> None:
    truth = np.array([True, False])
    assert Condition.read("finite", "== true").mask(truth).tolist() == [True, False]
    assert Condition.read("finite", False).mask(truth).tolist() == [False, True]
    time = pa.array([0, 10**15], pa.timestamp("us", "UTC"))
    later = Condition.read("at", "> 1990-01-01T00:00:00+00:00").mask(time)
    assert later.tolist() == [False, True]


def test_quoted_values_may_hold_commas() -> None:
    values = pa.array(["a, b", "a", "b", "c", "it's", ""])
    for one, expected in {
        "in 'a, b', c": [1, 0, 0, 1, 0, 0],
        "not in ['a, b', \"it's\"]": [0, 1, 1, 1, 0, 1],
        "in it's, b": [0, 0, 1, 0, 1, 0],
        "in (c, '')": [0, 0, 0, 1, 0, 1],
    }.items():
        found = Condition.read("camera", one).mask(values)
        assert found.tolist() == list(map(bool, expected)), one


@pytest.mark.parametrize(
    "column",
    [
        np.array([0, 1, 2, 3], np.int32),
        pa.array([0, 1, 2, 3], pa.int64()),
        pa.chunked_array([[0], [1, 2, 3]], pa.int64()),
    ],
    ids=["numpy", "arrow", "chunked"],
)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("==1.0", [0, 1, 0, 0]),
        ("!=1.5", [1, 1, 1, 1]),
        (1.0, [0, 1, 0, 0]),
        ("in 0.5, 1.5", [0, 0, 0, 0]),
        ("not in 0.5, 1", [1, 0, 1, 1]),
        ([0.5, 2.0], [0, 0, 1, 0]),
        (">0.5", [0, 1, 1, 1]),
        ("<=1.5", [1, 1, 0, 0]),
        ("between 0.5 and 2.5", [0, 1, 1, 0]),
        ("<1e300", [1, 1, 1, 1]),
        (">=inf", [0, 0, 0, 0]),
        (f"in {10**30}", [0, 0, 0, 0]),
        ("is null", [0, 0, 0, 0]),
    ],
)
def test_conditions_on_whole_numbers(column: Any, given: Any, expected: list[int]) -> None:
    assert Condition.read("n", given).mask(column).tolist() == list(map(bool, expected))


@pytest.mark.parametrize("wrap", [np.array, pa.array])
def test_large_whole_numbers_compare_exactly(wrap: Any) -> None:
    first = 1_700_000_000_000_000_001  # as recorded_at; a float cannot tell it from the next
    values = wrap([first, first + 1])
    for one, expected in {
        f"=={first}": [True, False],
        first: [True, False],
        np.int64(first): [True, False],
        f">{first}": [False, True],
        f"<={first}": [True, False],
        f"in {first + 1}, 5": [False, True],
        f"between {first}.5 and {first + 1}": [False, True],
    }.items():
        assert Condition.read("recorded_at", one).mask(values).tolist() == expected, one


def test_a_date_without_a_zone_is_utc() -> None:
    time = pa.array(
        [datetime(2024, 1, 31, 23, 30, tzinfo=UTC), datetime(2024, 2, 1, tzinfo=UTC), None],
        pa.timestamp("us", "UTC"),
    )
    for one in (
        ">=2024-02-01",
        "== 2024-02-01T01:00+01:00",
        datetime(2024, 2, 1),
        np.datetime64("2024-02-01"),
        "between 2024-02-01 and 2024-02-02",
    ):
        assert Condition.read("at", one).mask(time).tolist() == [False, True, False], one
    for bad in (">=yesterday", 5, pd.NaT, "between 2024-02-02 and 2024-02-01"):
        with pytest.raises(StrategyError, match="'at'"):
            Condition.read("at", bad).mask(time)


def test_a_range_goes_upwards() -> None:
    with pytest.raises(StrategyError, match="'between 0.1 and 0.9'"):
        FilterConfig.read({"conditions": [{"score": "between 0.9 and 0.1"}]})
    with pytest.raises(StrategyError, match="nothing lies between"):
        Condition.read("camera", "between b and a").mask(pa.array(["a"]))


def test_unknown_zones_in_conditions_are_named_with_the_closest() -> None:
    for one in ("==hotspots", "in hotspot, hotspots", ["hotspots"]):
        with pytest.raises(StrategyError, match="stable_coverage.*closest is hotspot"):
            FilterConfig.read({"conditions": [{"zone": one}]})
    assert FilterConfig.validate_dict(
        {"conditions": [{"zone": "in hotspot"}, {"zone": None}]}
    ).valid


def test_reasons_are_those_that_hold() -> None:
    rows = [
        {"score": 0.5, "prediction": 1, "finite": True, "camera": None, "zone": "hotspot"},
        {"score": 0.9, "prediction": 0, "finite": True, "camera": "a", "zone": "hotspot"},
        {"score": 0.1, "prediction": 1, "finite": True, "camera": "a", "zone": "stable_coverage"},
    ]
    config = FilterConfig.read(
        {
            "target_zones": ["hotspot"],
            "conditions": [{"score": "<0.7", "prediction": 1}, {"camera": None}],
        }
    )
    assert config.describe(columns(rows).__getitem__) == [
        "zone hotspot or score <0.7 and prediction 1 or camera is null",
        "zone hotspot",
        "score <0.7 and prediction 1",
    ]


@pytest.mark.parametrize("bad", ["0.8", "=> 1", ">=", "~ 2", "between 1", "", ["a", None]])
def test_what_is_no_condition(bad: Any) -> None:
    with pytest.raises(StrategyError):
        FilterConfig.read({"conditions": [{"score": bad}]})


def test_strategies_are_sorts_or_filters() -> None:
    assert read_strategy("low_error_proba", KINDS, known=[]) == "low_error_proba"
    config = read_strategy({"target_zones": ["hotspot"]}, KINDS, known=["zone"])
    assert isinstance(config, FilterConfig)
    assert read_strategy(config, KINDS, known=["zone"]) is config
    with pytest.raises(StrategyError, match="there are a, b"):
        read_strategy({"conditions": [{"c": ">1"}]}, KINDS, known=["b", "a"])


def test_validate_dict_guides() -> None:
    assert FilterConfig.validate_dict({"target_zones": ["hotspot"]}).valid
    found = FilterConfig.validate_dict({"target_zone": ["hotspot"]})
    assert not found.valid
    assert "target_zones" in found.message


@settings(max_examples=200)
@given(
    values=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan]), max_size=40),
    n=st.integers(1, 45),
    descending=st.booleans(),
)
def test_rank_is_a_sort(values: list[float], n: int, descending: bool) -> None:
    ids = [f"{(at * 7919) % 1000:03d}" for at in range(len(values))]
    sign = -1 if descending else 1
    expected = sorted(
        range(len(values)),
        key=lambda at: (
            (math.isnan(values[at]), sign * values[at], ids[at])
            if not math.isnan(values[at])
            else (True, 0, ids[at])
        ),
    )[:n]
    found = rank(
        np.array(values, np.float32),
        lambda rows: [ids[at] for at in rows],
        n,
        descending=descending,
    )
    assert found.tolist() == expected


def test_rank_among_some() -> None:
    values = np.array([0.9, 0.1, 0.5])
    found = rank(values, lambda rows: rows.astype(str), 2, descending=True, among=np.array([1, 2]))
    assert found.tolist() == [2, 1]


def test_class_balanced_needs_no_rank_values_without_a_range() -> None:
    config = SamplingConfig(method="class_balanced", min_per_class=1)
    drawn = config.draw(np.full(4, np.nan), np.array([0, 0, 1, 1]), 3)
    assert drawn.tolist() == [0, 1, 2]


@given(
    classes=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    quota=st.integers(1, 5),
    n=st.integers(1, 70),
)
def test_class_balanced_fills_quotas_in_order(classes: list[int], quota: int, n: int) -> None:
    config = SamplingConfig(method="class_balanced", min_per_class=quota)
    given = np.array(classes)
    drawn = config.draw(np.linspace(1, 0, len(given)), given, n)
    assert len(drawn) == min(n, len(given))
    assert sorted(set(drawn.tolist())) == drawn.tolist()
    if n >= quota * len(set(classes)):
        for one in set(classes):
            wanted = min(quota, classes.count(one))
            assert (given[drawn] == one).sum() >= wanted
            first = np.flatnonzero(given == one)[:wanted]
            assert set(first) <= set(drawn.tolist())


@given(
    zones=st.lists(st.sampled_from(["hotspot", "critical_hotspot", "x"]), max_size=60),
    quota=st.integers(1, 5),
    n=st.integers(1, 20),
)
def test_zone_quotas_take_the_first_of_each_zone(zones: list[str], quota: int, n: int) -> None:
    per_zone = {"hotspot": quota, "critical_hotspot": 2}
    config = SamplingConfig.read({"method": "zone_quotas", "per_zone": per_zone})
    given = np.array(zones, object)
    drawn = config.draw(np.linspace(1, 0, len(given)), given, n).tolist()
    wanted = {zone: min(most, zones.count(zone)) for zone, most in per_zone.items()}
    assert len(drawn) == min(n, sum(wanted.values()))
    assert drawn == sorted(drawn)
    for zone, most in wanted.items():
        taken = [at for at in drawn if zones[at] == zone]
        assert taken == np.flatnonzero(given == zone)[: len(taken)].tolist()
        assert len(taken) >= min(most, n // 2)  # two zones take turns


def test_an_input_of_several_units_is_in_the_zone_of_the_worst() -> None:
    estimates = {
        "error_proba": np.array([0.1, 0.9, 0.2, 0.3, 0.8, 0.4], np.float32),
        "zone": np.array([0, 2, 1, 1, 4, 3], np.int8),
    }
    records = SimpleNamespace(
        counts=lambda _: np.array([2, 0, 3, 1]),
        names=list,
        estimates=lambda _, name: estimates[name],
    )
    pool = StoredPool(
        cast(Any, records), cast(Any, SimpleNamespace(result_name="r")), TaskSchema("t")
    )
    found = pool.zones(np.array([3, 0, 2]))
    assert found.tolist() == ["recessive_hotspot", "hotspot", "critical_hotspot"]


def test_random_draws_within_the_range_and_by_seed() -> None:
    values = np.linspace(1, 0, 101)
    config = SamplingConfig(method="random", min_value=0.3, max_value=0.7, seed=3)
    drawn = config.draw(values, np.zeros(101), 10)
    assert len(drawn) == 10
    assert ((values[drawn] >= 0.3) & (values[drawn] <= 0.7)).all()
    assert config.draw(values, np.zeros(101), 10).tolist() == drawn.tolist()
    other = config.model_copy(update={"seed": 4}).draw(values, np.zeros(101), 10)
    assert other.tolist() != drawn.tolist()


@pytest.mark.parametrize(
    "bad",
    [
        {"method": "best"},
        {"method": "random"},
        {"method": "random", "min_value": 1, "max_value": 0},
        {"method": "random", "min_value": 1, "min_per_class": 2},
        {"method": "random", "min_value": 0, "seed": -1},
        {"method": "class_balanced"},
        {"method": "class_balanced", "min_per_class": 0},
        {"method": "class_balanced", "min_per_class": 2, "per_zone": {"hotspot": 1}},
        {"method": "zone_quotas"},
        {"method": "zone_quotas", "per_zone": {}},
        {"method": "zone_quotas", "per_zone": {"hotspot": 0}},
        {"method": "zone_quotas", "per_zone": {"hotspt": 1}},
        "random",
    ],
)
def test_bad_sampling(bad: Any) -> None:
    with pytest.raises(StrategyError):
        SamplingConfig.read(bad)


def test_spread_covers_clusters_that_the_first_rows_miss() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10]])
    features = np.concatenate([c + rng.normal(0, 0.1, (25, 2)) for c in centres])
    chosen = spread(features, np.ones(100), 4)
    assert sorted((chosen // 25).tolist()) == [0, 1, 2, 3]
    assert 0 in chosen
    weights = np.where(np.arange(100) < 50, 1, 1e-6)  # two of the clusters are hardly wanted
    assert set((spread(features, weights, 10) // 25).tolist()) == {0, 1}
    assert spread(np.ones((9, 2)), np.ones(9), 4).tolist() == [0, 1, 2, 3]
    assert spread(features[:3], np.ones(3), 5).tolist() == [0, 1, 2]
    features[7] = math.inf
    assert len(spread(features, np.ones(100), 20)) == 20
