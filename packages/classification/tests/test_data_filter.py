"""Querying a pool and flagging it live, with a real evaluation of a model that is really wrong."""

import time
import uuid
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from ml_debugger.core import ModelVersion, Store
from ml_debugger.core.errors import ArchitectureMismatchError, EpochError, InputError, StrategyError
from ml_debugger.core.evaluation.codes import parse_code
from ml_debugger.core.evaluation.zones import ZONES
from ml_debugger.core.pool import StoredPool
from ml_debugger.data_filter import ClassificationDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.monitoring import ClassificationLogger
from ml_debugger.training import ClassificationTracer


def network() -> nn.Module:
    """Return a model that tells the sign of the first of three values."""
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(8, 3) * 0.3)
        model[0].weight[:2] = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
        model[0].bias.zero_()
        model[2].weight.zero_()
        model[2].weight[:, :2] = torch.tensor([[-2.0, 2], [2, -2]])
        model[2].bias.zero_()
    return model


def truth(points: Tensor) -> Tensor:
    """Return the classes: the sign of the first value, but for a corner of the space."""
    labels = (points[:, 0] > 0).long()
    corner = (points[:, 1] > 0.5) & (points[:, 2] > 0.5)
    return torch.where(corner, 1 - labels, labels)


torch.manual_seed(1)
POINTS = torch.randn(1600, 3)
VAL, POOL = POINTS[:800], POINTS[800:]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    with ClassificationTracer(network(), "net", "v1", home=folder) as tracer, torch.no_grad():
        for epoch in (0, 1):
            tracer(VAL, truth(VAL), range(800), "val", n_epoch=epoch)
    Evaluator("net", "v1", home=folder).request_evaluation(result_name="r")
    return folder


def make(home: Path, **options: Any) -> ClassificationDataFilter:
    options = {"result_name": "r", "home": home} | options
    return ClassificationDataFilter(network(), "net", "v1", **options)


@pytest.fixture(scope="module")
def pool(home: Path) -> Any:
    fields = [{"name": "camera", "type": "str"}]
    with make(home, additional_fields=fields) as data_filter, torch.no_grad():
        for ids in torch.arange(800).split(64):
            cameras = ["front" if i % 3 else "rear" for i in ids.tolist()]
            output, flags = data_filter(POOL[ids], ids, camera=cameras)
            assert torch.equal(output, network()(POOL[ids]))
            assert flags == [None] * len(ids)
        yield data_filter


def test_the_worst_are_mostly_wrong(pool: Any) -> None:
    wrong = network()(POOL).argmax(1) != truth(POOL)
    worst = pool.query(60, "high_error_proba", type_cast=int)
    best = pool.query(200, "low_error_proba", type_cast=int)
    assert wrong[worst].float().mean() > 0.7 > 5 * wrong.float().mean() > 0
    assert wrong[best].float().mean() < 0.02


def test_sorts_are_each_others_reverse_and_explained(pool: Any) -> None:
    high = pool.query(800, "high_error_proba", explain=True)
    low = pool.query(800, "low_error_proba", explain=True)
    assert list(high.columns) == ["input_id", "rank_value", "zone", "estimated_code", "reason"]
    assert all(parse_code(code) for code in high["estimated_code"])
    hot = high[high["zone"].str.endswith("hotspot")]
    assert (hot["estimated_code"].map(lambda code: parse_code(code).correct)).mean() < 0.5
    assert high["rank_value"].is_monotonic_decreasing
    assert low["rank_value"].is_monotonic_increasing
    assert set(high["input_id"]) == set(low["input_id"]) == {str(i) for i in range(800)}
    assert high["reason"].iloc[0] == "highest error_proba, place 1"
    ties = high.groupby("rank_value", sort=False)["input_id"]
    assert all(list(ids) == sorted(ids) for _, ids in ties)


def test_zones_and_conditions_select_what_they_name(pool: Any) -> None:
    everything = pool.query(800, "high_error_proba", explain=True).set_index("input_id")
    zones = ["hotspot", "critical_hotspot", "aleatoric_hotspot"]
    by_zone = pool.query(800, {"target_zones": zones})
    assert set(by_zone) == set(everything.index[everything["zone"].isin(zones)])
    assert len(by_zone) > 10
    likely = pool.query(800, {"conditions": [{"error_proba": ">=0.5"}]})
    assert likely == list(everything.index[everything["rank_value"] >= 0.5])
    either = pool.query(
        800, {"target_zones": ["stable_coverage"], "conditions": [{"error_proba": ">=0.5"}]}
    )
    stable = set(everything.index[everything["zone"] == "stable_coverage"])
    assert set(either) == set(likely) | stable
    both = pool.query(800, {"conditions": [{"error_proba": ">=0.5", "score": "<0.9"}]})
    assert set(both) < set(likely)
    assert len(pool.query(3, {"target_zones": zones})) == 3


def test_additional_fields_can_be_asked_for(pool: Any) -> None:
    rear = pool.query(800, {"conditions": [{"camera": "== rear"}]}, type_cast=int)
    assert sorted(rear) == [i for i in range(800) if i % 3 == 0]
    some = pool.query(800, {"conditions": [{"input_id": "in 5, 7"}]}, explain=True)
    assert sorted(some["input_id"]) == ["5", "7"]
    assert set(some["reason"]) == {"input_id in 5, 7"}
    assert pool.query(5, {"conditions": [{"camera": "== side"}]}) == []


def test_live_flags_are_what_a_query_would_say(pool: Any, home: Path) -> None:
    config = {"target_zones": ["hotspot"], "conditions": [{"error_proba": ">=0.3"}]}
    expected = set(pool.query(800, config, type_cast=int))
    with make(home, filter_config=config) as live, torch.no_grad():
        flags: list[bool | None] = []
        for ids in torch.arange(800).split(50):
            flags += live(POOL[ids], ids, dataset_type="live")[1]
    assert {i for i, flag in enumerate(flags) if flag} == expected
    assert set(flags) == {True, False}


def test_sampling_and_spreading(pool: Any) -> None:
    drawn = pool.query(
        20, "high_error_proba", sampling={"method": "random", "min_value": 0.2, "seed": 1}
    )
    high = pool.query(800, "high_error_proba", explain=True).set_index("input_id")
    assert len(drawn) == 20
    assert (high.loc[drawn, "rank_value"] >= 0.2).all()
    balanced = pool.query(
        20,
        "high_error_proba",
        type_cast=int,
        sampling={"method": "class_balanced", "min_per_class": 10},
    )
    counts = torch.bincount(network()(POOL[balanced]).argmax(1), minlength=2)
    assert counts.tolist() == [10, 10]
    plain = pool.query(30, "high_error_proba", type_cast=int)
    spread = pool.query(30, "high_error_proba", type_cast=int, diverse=True)
    assert len(set(spread)) == 30

    def nearest(ids: list[int]) -> float:
        distances = torch.cdist(POOL[ids], POOL[ids]) + 10 * torch.eye(len(ids))
        return float(distances.min(1).values.mean())

    assert nearest(spread) > nearest(plain)


def test_zone_quotas(pool: Any, home: Path) -> None:
    quotas = {"method": "zone_quotas", "per_zone": {"stable_coverage": 3, "critical_hotspot": 2}}
    found = pool.query(20, "high_error_proba", sampling=quotas, explain=True)
    assert found["zone"].value_counts().to_dict() == {"stable_coverage": 3, "critical_hotspot": 2}
    critical = pool.query(2, {"target_zones": ["critical_hotspot"]})
    assert found["input_id"][found["zone"] == "critical_hotspot"].tolist() == critical
    with pytest.raises(StrategyError, match="diverse=True keeps to no quota"):
        pool.query(20, "high_error_proba", sampling=quotas, diverse=True)
    with make(home, result_name=None) as plain, torch.no_grad():
        plain(POOL[:9], range(9), "no result")
        with pytest.raises(StrategyError, match="needs an evaluation"):
            plain.query(5, {"conditions": [{"score": ">0"}]}, "no result", sampling=quotas)


def test_evaluated_samples_keep_their_honest_values(home: Path) -> None:
    result = Evaluator("net", "v1", home=home).get_result("r")
    own = result.to_pandas().set_index("input_id")["error_proba"]
    with make(home) as data_filter:
        queried = data_filter.query(800, "high_error_proba", "val", explain=True)
    found = queried.set_index("input_id")["rank_value"]
    np.testing.assert_allclose(found.loc[own.index], own, rtol=0, atol=0)


def test_leftovers_of_a_killed_evaluation_are_not_believed(tmp_path: Path) -> None:
    with ClassificationTracer(network(), "net", "v1", home=tmp_path) as tracer, torch.no_grad():
        for split in ("val", "test"):
            tracer(VAL[:200], truth(VAL[:200]), range(200), split, n_epoch=0)
    with Store(tmp_path) as store:
        records = store.open(ModelVersion("net", "v1")).records()
        made_up = np.full(records.units, 0.123, np.float32)
        records.write_estimates("r", {"error_proba": made_up, "zone": np.zeros(400, np.int8)})
    options = {"dataset_type": "val"}
    Evaluator("net", "v1", home=tmp_path).request_evaluation(result_name="r", options=options)
    with make(tmp_path) as data_filter:
        for split in ("val", "test"):
            found = data_filter.query(200, "high_error_proba", split, explain=True)
            assert found["rank_value"].nunique() > 50


def test_a_query_sees_what_other_processes_recorded(pool: Any, home: Path) -> None:
    with make(home) as other:
        assert other.query(40, "high_error_proba") == pool.query(40, "high_error_proba")


def test_two_runs_over_the_same_pool_warn_and_count_once(home: Path) -> None:
    runs = []
    for _ in range(2):
        with make(home) as data_filter, torch.no_grad():
            data_filter(POOL[:50], range(50), dataset_type="twice")
            runs.append(data_filter.run)
    with make(home) as data_filter:
        with pytest.warns(UserWarning, match=f"{runs[0]}.*{runs[1]}|{runs[1]}.*{runs[0]}"):
            assert len(data_filter.query(800, "high_error_proba", "twice")) == 50
        assert len(data_filter.query(800, "high_error_proba", "twice", run=runs[0])) == 50


def test_runs_do_not_mix_silently_even_without_a_common_id(home: Path) -> None:
    runs = []
    for first in (0, 50):
        with make(home) as data_filter, torch.no_grad():
            data_filter(POOL[first : first + 50], range(first, first + 50), dataset_type="mixed")
            runs.append(data_filter.run)
    with make(home) as data_filter:
        with pytest.warns(UserWarning, match=f"{runs[0]}, {runs[1]}.*no id was replaced") as caught:
            assert len(data_filter.query(800, "high_error_proba", "mixed")) == 100
        assert caught[0].filename == __file__
        assert len(data_filter.query(800, "high_error_proba", "mixed", run=runs[1])) == 50


def test_null_fields_are_flagged_as_they_are_queried(home: Path) -> None:
    fields = [
        {"name": "view", "type": "str", "nullable": True},
        {"name": "lane", "type": "int", "nullable": True},
        {"name": "seen", "type": "datetime", "nullable": True},
    ]
    conditions = [
        {"view": "== rear"},
        {"view": None, "lane": "== 2.0"},
        {"lane": "in 3, 4.5", "seen": ">=2024-02-01"},
    ]
    config = {"conditions": conditions}
    values: dict[str, list[Any]] = {
        "view": [None, None, "rear", "it's, front", None, None],
        "lane": [None, 2, None, None, 3, 3],
        "seen": [None, None, None, None, "2024-01-31T23:59", "2024-02-01"],
    }
    with make(home, additional_fields=fields, filter_config=config) as live, torch.no_grad():
        flags = []
        for i in range(6):  # one an input: fields with nothing but None in their batch
            given = {name: [column[i]] for name, column in values.items()}
            flags += live(POOL[i : i + 1], [i], "nulls", **given)[1]
        found = live.query(6, config, "nulls", type_cast=int)
        assert live(POOL[:0], [], "nulls", view=[], lane=[], seen=[])[1] == []
    assert flags == [False, True, True, False, False, True]
    assert sorted(found) == [i for i in range(6) if flags[i]]


@pytest.mark.parametrize(
    "condition",
    [
        {"score": ">=abc"},
        {"n_epoch": ">=abc"},
        {"finite": "== maybe"},
        {"camera": "== bad\ud800"},
        {"zone": "==hotspots"},
        {"error_proba": "between 0.9 and 0.1"},
    ],
)
def test_filters_that_cannot_be_judged_are_refused_before_any_call(
    home: Path, condition: dict[str, str]
) -> None:
    config = {"conditions": [condition]}
    fields = [{"name": "camera", "type": "str"}]
    with pytest.raises(StrategyError, match=next(iter(condition))):
        make(home, filter_config=config, additional_fields=fields)
    with (
        make(home, additional_fields=fields) as data_filter,
        pytest.raises(StrategyError, match=next(iter(condition))),
    ):
        data_filter.query(5, config, "nothing here")


def test_explaining_reads_each_column_once(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    column = StoredPool.column

    def counted(self: StoredPool, name: str) -> Any:
        read.append(name)
        return column(self, name)

    monkeypatch.setattr(StoredPool, "column", counted)
    config = {"conditions": [{"score": ">=0"}, {"camera": "== rear", "score": "<2"}]}
    found = pool.query(800, config, explain=True)
    assert len(found) == 800
    assert len(read) <= 6  # to match: score, camera, score; to explain: zone, score, camera
    rear = found["reason"].str.endswith("or camera == rear and score <2")
    assert rear.tolist() == [int(i) % 3 == 0 for i in found["input_id"]]


def test_the_epoch_is_the_results(home: Path) -> None:
    with make(home) as data_filter:
        assert data_filter.n_epoch == 1
    with make(home, n_epoch=0) as data_filter:
        assert data_filter.n_epoch == 0
        assert data_filter.query(5, "high_error_proba") == []  # the pool is of epoch 1
    with make(home, result_name=None) as data_filter:
        assert data_filter.n_epoch == 1
    with pytest.raises(EpochError, match="one epoch"):
        make(home, n_epoch="all")


def test_a_result_fits_its_model_only(home: Path) -> None:
    other = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 2))
    with pytest.raises(ArchitectureMismatchError, match="another architecture"):
        ClassificationDataFilter(other, "net", "v1", "r", home=home)
    with pytest.raises(InputError, match="is not recorded here"):
        make(home, target_layers={"only": "0"})


@pytest.mark.parametrize(
    "strategy", ["worst", None, 3, [], {"target_zones": ["hot"]}, {"conditions": [{"x": ">1"}]}]
)
def test_invalid_strategies_are_value_errors(pool: Any, strategy: Any) -> None:
    with pytest.raises(ValueError, match="."):
        pool.query(5, strategy)


def test_a_filter_without_a_result_can_still_filter_by_score(home: Path) -> None:
    with make(home, result_name=None) as data_filter, torch.no_grad():
        data_filter(POOL[:20], range(20), dataset_type="plain")
        found = data_filter.query(20, {"conditions": [{"score": "<0.9"}]}, "plain", type_cast=int)
        scores = network()(POOL[:20]).softmax(1).max(1).values
        assert sorted(found) == torch.nonzero(scores < 0.9).flatten().tolist()
        with pytest.raises(StrategyError, match="needs an evaluation"):
            data_filter.query(5, "high_error_proba", "plain")


def test_logging_without_a_result(home: Path) -> None:
    with ClassificationLogger(network(), "net", "v1", n_epoch=None, home=home) as logger:
        with torch.no_grad():
            for batch in POOL[:500].split(50):
                assert torch.equal(logger(batch), network()(batch))
        health = logger.health(window=200)
    assert health["n"].tolist() == [200, 200, 100]
    assert list(health.columns) == ["start", "end", "inputs", "n", "mean_score", "not_finite"]
    with torch.no_grad():
        scores = network()(POOL[:200]).softmax(1).max(1).values
    assert health["mean_score"][0] == pytest.approx(float(scores.mean()), abs=1e-6)
    assert (health["end"] >= health["start"]).all()


def test_logging_with_a_result_estimates_accuracy(home: Path) -> None:
    with ClassificationLogger(network(), "net", "v1", result_name="r", home=home) as logger:
        with torch.no_grad():
            for batch in POOL.split(100):
                logger(batch)
        health = logger.health(window=400)
    right = (network()(POOL).argmax(1) == truth(POOL)).float().reshape(2, 400).mean(1)
    for window in range(2):
        row = health.iloc[window]
        assert row["low"] <= right[window] <= row["high"]
        assert row["estimated_accuracy"] == pytest.approx(float(right[window]), abs=0.06)
        assert row["estimated_errors"] == pytest.approx(
            400 * (1 - row["estimated_accuracy"]), abs=1
        )
        assert 0 <= row["estimated_critical_errors"] <= row["estimated_errors"]
        assert not row["drift"]


def test_logging_notices_data_unlike_what_was_evaluated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 3)).eval()
    plane = torch.randn(4, 64) / 2

    def usual(n: int) -> Tensor:
        return torch.randn(n, 4) @ plane

    x = usual(600)
    labels = (model(x) + 0.5 * torch.randn(600, 3)).argmax(1)
    with torch.no_grad():
        with ClassificationTracer(model, "net", "v1", home=tmp_path) as tracer:
            tracer(x, labels, range(600), "val")
        result = Evaluator("net", "v1", home=tmp_path).request_evaluation()
        with ClassificationLogger(model, "net", "v1", result.result_name, home=tmp_path) as logger:
            logger(usual(300))
            logger(torch.randn(300, 64))
            health = logger.health(window=300)
            few = logger.health(window=590)
    assert health["drift"].tolist() == [False, True]
    assert health["drift_p"][0] > 0.01 > health["drift_p"][1]
    assert health["feature_drift_p"][1] < 0.001
    assert health["outlier_share"][0] < 0.15
    assert health["outlier_share"][1] > 0.5
    assert (health["high"] - health["low"])[1] > 0.3  # an estimate that may be far off says so
    zones = [str(zone) for zone in ZONES]
    assert health[zones].sum(axis=1).tolist() == pytest.approx([1, 1])
    assert health["aleatoric_hotspot"][0] < 0.2 < 0.3 < health["aleatoric_hotspot"][1]
    assert few["drift"].isna().tolist() == [False, True]  # ten inputs cannot tell
    assert np.isnan(few["drift_p"][1])


def test_ids_that_a_logger_makes_up_are_unique_and_sorted_by_time() -> None:
    from ml_debugger.monitoring.logger import unique_ids

    ids = unique_ids(100)
    assert len(set(ids)) == 100
    assert all(one[14] == "7" and one[19] in "89ab" for one in ids)
    time.sleep(0.005)
    assert max(one[:13] for one in ids) < min(one[:13] for one in unique_ids(3))


def test_made_up_ids_are_in_order_within_a_millisecond_too() -> None:
    from ml_debugger.monitoring.logger import unique_ids

    ids = [one for n in range(1, 200) for one in unique_ids(n)][:10_000]
    assert len(ids) == 10_000
    assert all(a < b for a, b in pairwise(ids))
    parsed = [uuid.UUID(one) for one in ids]
    assert {(one.version, one.variant) for one in parsed} == {(7, uuid.RFC_4122)}
    stamps = [one.int >> 80 for one in parsed]
    assert len(set(stamps)) < 5_000  # many share a millisecond, or this tells nothing
    assert abs(stamps[-1] / 1000 - time.time()) < 60


class Texts(nn.Module):
    """Takes a list of texts."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)

    @override
    def forward(self, texts: list[str]) -> Tensor:
        return self.head(torch.tensor([[len(one), one.count("a")] for one in texts]).float())


def test_logging_inputs_that_are_no_tensors(tmp_path: Path) -> None:
    fields: list[dict[str, Any]] = [
        {"name": "camera", "type": "str"},
        {"name": "lane", "type": "int", "default": 1},
        {"name": "tags", "type": "json", "nullable": True},
    ]
    options: dict[str, Any] = {"additional_fields": fields, "home": tmp_path}
    with ClassificationLogger(Texts(), "texts", "v1", **options) as logger:
        logger(["a", "bb", "ccc"], camera=["x", "y", "z"], tags=[["a"], [], ["b", "c"]])
        logger({"texts": ["a", "bb"]}, camera="x")
        with pytest.raises(InputError, match="2 values for 3 inputs"):
            logger(["a", "bb", "ccc"], camera=["x", "y"])
        logger.model.head.forward = None  # type: ignore[method-assign,assignment]  must not run
        for wrong in ({"camera": 3}, {}, {"camera": "x", "lens": "wide"}):
            with pytest.raises(InputError, match="camera|lens"):
                logger(["a", "bb"], **wrong)
        logger.flush()
        records = logger._pool("deploying").records
        assert records.column("input/camera").to_pylist() == ["x", "y", "z", "x", "x"]
        assert len(set(records.ids().to_pylist())) == 5
    with pytest.raises(InputError, match="closed"):
        logger(["a"], camera="x")


def test_health_of_several_runs_is_no_surprise(home: Path) -> None:
    for _ in range(2):  # a service that was started again
        with ClassificationLogger(network(), "net", "v1", home=home) as logger, torch.no_grad():
            logger(POOL[:10], dataset_type="restarted")
    with ClassificationLogger(network(), "net", "v1", home=home) as logger:
        assert logger.health(dataset_type="restarted")["n"].tolist() == [20]


def test_health_says_what_it_needs(home: Path) -> None:
    with ClassificationLogger(network(), "net", "v1", home=home) as logger:
        for window in (0, 1.5, True):
            with pytest.raises(InputError, match="window"):
                logger.health(window=window)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="confidence"):
            logger.health(confidence=1)
        assert len(logger.health(dataset_type="nothing here")) == 0
