"""Recording a classifier: runs, epochs, ids, fields, and code that calls the model itself."""

import copy
import gc
import os
import subprocess
import sys
import threading
import warnings
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ml_debugger.classification.tracer import logits_of
from ml_debugger.core import ModelVersion, Scope, Store
from ml_debugger.core.errors import (
    ArchitectureMismatchError,
    EndpointError,
    EpochError,
    InputError,
    StrategyError,
    SyncError,
    UnsupportedModelError,
)
from ml_debugger.core.service import uploader
from ml_debugger.data_filter import ClassificationDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.training import ClassificationTracer


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


X = torch.linspace(-1, 1, 40).reshape(10, 4)
Y = torch.arange(10) % 3


def records(home: Path, version: str = "v1", **scope: Any) -> Any:
    store = Store(home)
    found = store.open(ModelVersion("net", version)).records(Scope(**scope))
    return {
        "ids": found.ids().to_pylist(),
        "logits": found.column("predicted/logits") if found.inputs else None,
        "replaced": found.replaced,
        "runs": found.runs,
        "found": found,
    }


def tracer(home: Path, **options: Any) -> ClassificationTracer:
    return ClassificationTracer(network(), "net", "v1", home=home, **options)


def test_the_same_id_again_replaces_within_epoch_and_split(tmp_path: Path) -> None:
    with tracer(tmp_path) as t, torch.no_grad():
        t(X[:2], Y[:2], ["a", "b"], "val", 0)
        t(X[2:4], Y[2:4], ["b", "c"], "val", 0)
        t(X[4:5], Y[4:5], ["a"], "val", 1)
        t(X[5:6], Y[5:6], ["a"], "test", 0)
    val = records(tmp_path, dataset_types=("val",), n_epoch=0)
    assert val["ids"] == ["a", "b", "c"]
    assert val["replaced"] == 1
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(val["logits"][1]), network()(X[2:3])[0])
    assert records(tmp_path)["found"].replaced >= 1
    assert records(tmp_path, n_epoch=1)["ids"] == ["a"]


def test_latest_is_the_epoch_written_last(tmp_path: Path) -> None:
    with tracer(tmp_path) as t, torch.no_grad():
        for epoch in (7, 8, 0):
            t(X, Y, range(10), "val", epoch)
            t.flush()
    store = Store(tmp_path)
    assert store.open(ModelVersion("net", "v1")).latest_epoch() == 0
    store.close()


def test_every_tracer_is_a_run(tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        with tracer(tmp_path) as t, torch.no_grad():
            t(X, Y, range(10), "val", 0)
            runs.append(t.run)
    assert len(set(runs)) == 2
    both = records(tmp_path, n_epoch=0)
    assert both["replaced"] == 10
    assert set(both["runs"]) == set(runs)
    assert records(tmp_path, runs=(runs[0],))["replaced"] == 0


def test_dropping_epochs_and_versions(tmp_path: Path) -> None:
    with tracer(tmp_path) as t, torch.no_grad():
        t(X, Y, range(10), "val", 0)
        t(X, None, range(10), "pool", 0)
        t(X, Y, range(10), "val", 1)
        assert t.drop_epoch_data(0) == {"extracted_feature": 20, "ground_truth": 10}
        assert t.drop_epoch_data(0) == {"extracted_feature": 0, "ground_truth": 0}
        t.flush()
        assert records(tmp_path)["ids"] == [str(i) for i in range(10)]
        t(X[:1], Y[:1], ["never seen again"], "val", 1)
        t.drop_version_data()
        t(X[:1], Y[:1], ["after"], "val", 2)
    assert records(tmp_path)["ids"] == ["after"]


def test_no_ground_truth_counts_no_ground_truth(tmp_path: Path) -> None:
    with tracer(tmp_path) as t, torch.no_grad():
        t(X, None, range(10), "pool", 0)
        assert t.drop_epoch_data(0) == {"extracted_feature": 10}


def test_force_table_recreate_starts_empty(tmp_path: Path) -> None:
    with tracer(tmp_path) as t, torch.no_grad():
        t(X, Y, range(10))
    with tracer(tmp_path, force_table_recreate=True) as t, torch.no_grad():
        t(X[:1], Y[:1], ["new"])
    assert records(tmp_path)["ids"] == ["new"]


def test_a_name_stands_for_an_architecture(tmp_path: Path) -> None:
    with tracer(tmp_path):
        pass
    other = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))
    with pytest.raises(ArchitectureMismatchError, match="9x4"):
        ClassificationTracer(other, "net", "v2", home=tmp_path)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in other.modules())
    ClassificationTracer(other, "net", "v1", force_table_recreate=True, home=tmp_path).close()


def test_fields_are_columns(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "additional_fields": [{"name": "camera", "type": "str"}, {"name": "lux", "type": "float"}],
        "additional_label_fields": [{"name": "annotator", "type": "str", "nullable": True}],
    }
    with tracer(tmp_path, **options) as t, torch.no_grad():
        t(X[:2], Y[:2], [0, 1], camera=["front", "it's; DROP"], lux=2, annotator=None)
        t(X[2:3], None, [2], camera="rear", lux=torch.tensor([0.5]))
    found = records(tmp_path)["found"]
    assert found.column("input/camera").to_pylist() == ["front", "it's; DROP", "rear"]
    assert np.asarray(found.column("input/lux")).tolist() == [2, 2, 0.5]
    assert found.column("label/annotator").to_pylist()[:2] == [None, None]


def test_attached_records_what_other_code_calls(tmp_path: Path) -> None:
    with tracer(tmp_path) as t, torch.no_grad():
        with t.attached(Y, [f"i{i}" for i in range(10)], "val", 4):
            for batch in X.split(4):
                t.model(batch)
        t.model(X)  # outside: nothing is recorded
    found = records(tmp_path, n_epoch=4)["found"]
    assert found.ids().to_pylist() == [f"i{i}" for i in range(10)]
    assert found.column("actual/label").tolist() == Y.tolist()


def test_attached_counts_where_there_are_no_ids(tmp_path: Path) -> None:
    with tracer(tmp_path) as t, torch.no_grad(), t.attached():
        for batch in X.split(4):
            t.model(batch)
    assert records(tmp_path)["ids"] == [str(i) for i in range(10)]


def test_attached_counts_on_from_block_to_block(tmp_path: Path) -> None:
    with tracer(tmp_path) as t, torch.no_grad():
        for _ in range(2):
            with t.attached(dataset_type="val"):
                t.model(X[:2])
        with t.attached(dataset_type="val", n_epoch=1):
            t.model(X[:2])
    assert records(tmp_path, n_epoch=None)["ids"] == ["0", "1", "2", "3"]
    assert records(tmp_path, n_epoch=1)["ids"] == ["0", "1"]


def test_attached_takes_values_of_any_sliceable_kind(tmp_path: Path) -> None:
    fields = [{"name": "cam", "type": "int"}, {"name": "site", "type": "str"}]
    with (
        tracer(tmp_path, additional_fields=fields) as t,
        torch.no_grad(),
        t.attached(Y.numpy(), range(10), cam=np.arange(10), site="north"),
    ):
        t.model(X[:6])
        t.model(X[6:])
    found = records(tmp_path)["found"]
    assert found.column("input/cam").to_pylist() == list(range(10))
    assert set(found.column("input/site").to_pylist()) == {"north"}
    assert found.column("actual/label").tolist() == Y.tolist()


@pytest.mark.parametrize(
    ("truth", "message"),
    [(iter([1, 2]), "ground_truth of attached.. must have a length"), (Y[:3], "3 values for 2")],
)
def test_attached_finds_what_does_not_fit_before_the_model_runs(
    tmp_path: Path, truth: Any, message: str
) -> None:
    with tracer(tmp_path) as t:
        with pytest.raises(InputError, match=message), t.attached(truth, [1, 2]):
            raise AssertionError("the block was entered")
        assert not t.model._forward_pre_hooks


def test_within_attached_the_tracer_itself_is_refused(tmp_path: Path) -> None:
    with tracer(tmp_path) as t, torch.no_grad():
        with t.attached(None, [1, 2]):
            for act in (lambda: t(X[:2], None, [1, 2]), lambda: t.check(X[:2])):
                with pytest.raises(InputError, match="call the model itself"):
                    act()
            t.model(X[:2])
        t(X[:2], None, [3, 4])
    with pytest.raises(InputError, match="is closed"), t.attached():
        pass
    assert records(tmp_path)["ids"] == ["1", "2", "3", "4"]


def test_attached_says_when_ids_do_not_fit(tmp_path: Path) -> None:
    with tracer(tmp_path) as t, torch.no_grad():
        with (
            pytest.raises(InputError, match="2 ids, but the model saw 1"),
            t.attached(None, [1, 2]),
        ):
            t.model(X[:1])
        with pytest.raises(InputError, match="1 input_ids for a batch of 4"), t.attached(None, [1]):
            t.model(X[:4])
        before = [len(m._forward_hooks) for m in t.model.modules()]
        with pytest.raises(RuntimeError, match="shapes"), t.attached():
            t.model(torch.ones(1, 5))
        assert [len(m._forward_hooks) for m in t.model.modules()] == before
        t(X, Y, range(10))  # and all is well


def test_several_threads_share_a_tracer(tmp_path: Path) -> None:
    with tracer(tmp_path) as t:

        def work(thread: int) -> None:
            with torch.no_grad():
                for at in range(50):
                    t(X[thread : thread + 1], Y[:1], [f"{thread}-{at}"], "val", 0)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = records(tmp_path)
    assert len(found["ids"]) == 200
    with torch.no_grad():
        expected = network()(X)
    for one, logits in zip(found["ids"], found["logits"], strict=True):
        row = int(one.split("-")[0])
        torch.testing.assert_close(torch.from_numpy(logits), expected[row])


def number(batch: Tensor) -> int:
    """Return which row of X a batch begins with."""
    return int((batch[:1] == X).all(1).nonzero()[0])


class Paced(nn.Module):
    """Lets calls wait for each other by what is in their first input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.begun = {at: threading.Event() for at in range(10)}
        self.may_end = {at: threading.Event() for at in range(10)}

    def forward(self, x: Tensor) -> Tensor:
        at = number(x)
        self.begun[at].set()
        assert self.may_end[at].wait(60)
        if at == 9:
            raise RuntimeError("out of memory")
        found: Tensor = self.net(x)
        return found

    def let(self, *rows: int) -> None:
        for row in rows:
            self.may_end[row].set()


def paced(home: Path) -> tuple[ClassificationTracer, Paced]:
    model = Paced().eval()
    return ClassificationTracer(model, "net", "v1", {"a": "net.0"}, home=home), model


def in_threads(model: Paced, batches: list[Tensor]) -> list[threading.Thread]:
    """Begin calls in this order, all of which then are under way."""

    def call(batch: Tensor) -> None:
        with torch.no_grad(), suppress(RuntimeError):
            model(batch)

    threads = []
    for batch in batches:
        thread = threading.Thread(target=call, args=(batch,))
        thread.start()
        assert model.begun[number(batch)].wait(60)
        threads.append(thread)
    return threads


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_attached_keeps_the_calls_of_several_threads_apart(tmp_path: Path) -> None:
    t, model = paced(tmp_path)
    with t, t.attached(Y[:6], [f"i{at}" for at in range(6)], "val", 0):
        first, second, third = in_threads(model, [X[:1], X[1:3], X[3:6]])
        for rows, thread in (((1,), second), ((3,), third), ((0,), first)):
            model.let(*rows)
            join([thread])
    found = records(tmp_path)
    assert sorted(found["ids"]) == [f"i{at}" for at in range(6)]
    with torch.no_grad():
        expected = network()(X)
    for name, logits in zip(found["ids"], found["logits"], strict=True):
        torch.testing.assert_close(torch.from_numpy(logits), expected[int(name[1:])])
    labels = found["found"].column("actual/label").tolist()
    assert labels == [int(Y[int(name[1:])]) for name in found["ids"]]


def test_a_failed_call_within_attached_takes_no_ids(tmp_path: Path) -> None:
    t, model = paced(tmp_path)
    model.let(9)
    with t, torch.no_grad():
        with t.attached(None, range(2)):
            with pytest.raises(RuntimeError, match="out of memory"):
                model(X[9:])
            model.let(0)
            model(X[:2])
            assert t._capture._passes.current is None  # nothing is kept of what failed
        model.may_end[9].clear()
        # one that began later has the ids behind it
        with t.attached(None, ["lost", "c", "d", "e", "f"]):
            threads = in_threads(model, [X[9:], X[2:6]])
            model.let(9)
            join(threads[:1])
            model.let(2)
            join(threads[1:])
        with t.attached(None, ["a", "b"]):
            join(in_threads(model, [X[9:]]))
            model(X[:2])
    assert records(tmp_path)["ids"] == ["0", "1", "c", "d", "e", "f", "a", "b"]


def test_attached_does_not_end_in_silence_before_its_calls(tmp_path: Path) -> None:
    t, model = paced(tmp_path)
    with t:
        with (
            pytest.raises(InputError, match="ended before calls of the model in other threads"),
            t.attached(None, range(2)),
        ):
            threads = in_threads(model, [X[:2]])
        model.let(0)
        join(threads)
        with torch.no_grad():
            t(X[:2], None, ["a", "b"])
    assert records(tmp_path)["ids"] == ["a", "b"]


def test_a_traced_model_inside_a_traced_model(tmp_path: Path) -> None:
    inner = network()
    inside = ClassificationTracer(inner, "inner", "v1", home=tmp_path)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(inside(x, None, range(len(x))))

    outer = Outer()
    with ClassificationTracer(outer, "net", "v1", home=tmp_path) as outside, torch.no_grad():
        outside(X, Y, range(10))
        assert torch.equal(outside.get_hooked_features("penultimate"), inner(X))
    inside.close()
    store = Store(tmp_path)
    assert store.open(ModelVersion("inner", "v1")).records().inputs == 10
    store.close()


def test_mappings_are_keyword_arguments(tmp_path: Path) -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, pixels: Tensor, *, scale: float = 1.0) -> dict[str, Tensor]:
            return {"loss": torch.zeros(()), "logits": self.head(pixels) * scale}

    model = Keyword()
    with ClassificationTracer(model, "net", "v1", home=tmp_path) as t, torch.no_grad():
        output = t({"pixels": X, "scale": 2.0}, Y, range(10))
        assert torch.equal(output["logits"], model(X)["logits"] * 2)


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_one_logit_is_that_of_the_second_class(shape: tuple[int, ...]) -> None:
    values = torch.linspace(-2, 2, 5).reshape(shape)
    logits = logits_of(values)
    torch.testing.assert_close(logits.softmax(1)[:, 1], values.reshape(-1).sigmoid())


@pytest.mark.parametrize(
    "output", ["text", {}, {"scores": torch.ones(2, 2)}, (), torch.ones(2, 2).long()]
)
def test_what_holds_no_logits(output: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="logits"):
        logits_of(output)


def test_what_is_not_finite_is_kept_and_flagged(tmp_path: Path) -> None:
    x = X.clone()
    x[1, 0], x[2, 1] = float("nan"), float("inf")
    with tracer(tmp_path) as t, torch.no_grad():
        t(x, Y, range(10))
        expected = t.model(x).numpy()
    found = records(tmp_path)["found"]
    assert found.column("predicted/finite").tolist() == [True, False, False] + [True] * 7
    assert found.column("predicted/logits").tobytes() == expected.tobytes()


def test_labels_of_every_kind(tmp_path: Path) -> None:
    kinds = [Y, Y.tolist(), Y.numpy(), Y.int(), Y.float(), tuple(Y.tolist()), Y - 5]
    with tracer(tmp_path) as t, torch.no_grad():
        for at, labels in enumerate(kinds):
            t(X, labels, range(10), "val", at)
    for at, labels in enumerate(kinds):
        found = records(tmp_path, n_epoch=at)["found"]
        assert found.column("actual/label").tolist() == [int(one) for one in labels]


def test_without_a_service_upload_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLD_API_ENDPOINT", raising=False)
    with tracer(tmp_path) as t, torch.no_grad():
        t(X, Y, range(10))
        with pytest.raises(EndpointError, match="MLD_API_ENDPOINT"):
            t.upload()
        t.wait_for_save(n_epoch=0)
        assert records(tmp_path)["found"].inputs == 10


def test_a_service_that_cannot_be_reached_costs_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader, "PATIENCE", 0.0)
    key = "mldbg_0123456789abcdef_secret"
    service = {"api_endpoint": "http://127.0.0.1:9", "api_key": key}
    with tracer(tmp_path, **service) as t, torch.no_grad():
        t(X, Y, range(10))
        with pytest.raises(ConnectionError, match="safe here") as caught:
            t.wait_for_save()
        assert isinstance(caught.value, SyncError)
        assert "secret" not in str(caught.value)
        assert "secret" not in repr(t._service)
        assert records(tmp_path)["found"].inputs == 10
    t = tracer(tmp_path, auto_sync=True, **service)
    with torch.no_grad():
        t(X, Y, range(10, 20))
    with pytest.warns(UserWarning, match="whether everything recorded.*could not be asked"):
        t.close()
    assert records(tmp_path)["found"].inputs == 20


def test_an_unclosed_tracer_flushes_at_exit(tmp_path: Path) -> None:
    script = f"""
import torch
from ml_debugger.data_filter import ClassificationDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.training import ClassificationTracer
model = torch.nn.Linear(4, 3)
tracer = ClassificationTracer(model, "net", "v1", home={str(tmp_path)!r})
for i in range(100):
    tracer(torch.ones(2, 4), [0, 1], [2 * i, 2 * i + 1])
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, env={**os.environ})
    assert len(records(tmp_path)["ids"]) == 200


def test_closing_during_a_call_is_said_in_that_call(tmp_path: Path) -> None:
    t = tracer(tmp_path)
    handle = t.model[1].register_forward_hook(lambda *_: t.close())
    with pytest.raises(InputError, match="closed before this call of the model ended"):
        t(X, Y, range(10))
    assert torch.equal(t.model(X), network()(X))
    handle.remove()
    assert records(tmp_path)["found"].inputs == 0


def test_closing_within_attached_is_said_in_the_next_call(tmp_path: Path) -> None:
    t = tracer(tmp_path)
    with torch.no_grad(), t.attached(None, range(2)):
        t.model(X[:2])
        t.close()
        with pytest.raises(InputError, match="closed before this call of the model ended"):
            t.model(X[:2])
    assert torch.equal(t.model(X), network()(X))
    assert records(tmp_path)["ids"] == ["0", "1"]


def test_closing_twice_is_fine_and_leaves_the_model_alone(tmp_path: Path) -> None:
    t = tracer(tmp_path)
    t.close()
    t.close()
    with pytest.raises(InputError, match="of Sequential as net/v1> is closed"):
        t(X, Y, range(10))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in t.model.modules())


def test_a_forgotten_tracer_takes_its_hooks_off_and_loses_nothing(tmp_path: Path) -> None:
    t = tracer(tmp_path)
    model = t.model
    t(X, Y, range(10))
    del t
    gc.collect()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert records(tmp_path)["found"].inputs == 10


@dataclass
class Answer:
    """A model's output of a class of one's own."""

    answer: Tensor


def test_the_documented_way_to_read_an_odd_output(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Answer:
            return Answer(self.head(x))

    class OddTracer(ClassificationTracer):
        def _parse_and_save_io_data(
            self, model_input: Any, model_output: Any, ground_truth: Any, **kwargs: Any
        ) -> Any:
            assert kwargs.pop("note") == "mine"
            return super()._parse_and_save_io_data(
                model_input, model_output.answer, ground_truth, **kwargs
            )

    with OddTracer(Odd(), "net", "v1", home=tmp_path) as t, torch.no_grad():
        assert isinstance(t(X, Y, range(10), note="mine"), Answer)
    assert records(tmp_path)["found"].inputs == 10


def test_nothing_warns_in_an_ordinary_use(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with tracer(tmp_path) as t:
            t(X, Y, range(10))


def test_hooked_features_are_the_users_own(tmp_path: Path) -> None:
    with tracer(tmp_path) as t, torch.no_grad():
        t(X, Y, range(10))
        wanted = t.get_hooked_features("penultimate").clone()
        t.get_hooked_features("penultimate").zero_()
    found = records(tmp_path)["found"].column("predicted/feature.penultimate")
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=0)


def test_hooked_features_are_those_of_the_own_thread(tmp_path: Path) -> None:
    with tracer(tmp_path) as t, torch.no_grad():
        t(X[:2], None, range(2))
        other = threading.Thread(target=t, args=(X[:3], None, range(3)))
        other.start()
        other.join()
        assert t.get_hooked_features("penultimate").shape == (2, 8)


@pytest.mark.parametrize("attached", [False, True])
def test_a_traced_model_can_be_copied_and_saved(tmp_path: Path, attached: bool) -> None:
    with tracer(tmp_path) as t, torch.no_grad():
        t(X[:2], Y[:2], [1, 2])
        block = t.attached(None, [3]) if attached else nullcontext()
        with block:
            average = copy.deepcopy(t.model)
            torch.save(t.model, tmp_path / "model.pt")
            average(X[:4])
            loaded = torch.load(tmp_path / "model.pt", weights_only=False)
            assert torch.equal(loaded(X), average(X))
            if attached:
                t.model(X[:1])
    assert records(tmp_path)["ids"] == ["1", "2", "3"][: 3 if attached else 2]


def test_the_prediction_is_that_of_the_logits(tmp_path: Path) -> None:
    logits = torch.tensor(
        [[1.0, 1.0 + 1e-12, 0.0], [0.0, 1e-9, 0.0], [0.0, 0.0, float("inf")]], dtype=torch.float64
    )
    with ClassificationTracer(nn.Identity(), "net", "v1", {}, home=tmp_path) as t:
        t(logits, None, range(3))
    assert records(tmp_path)["found"].column("predicted/prediction").tolist() == [1, 1, 2]


def test_a_layer_keeps_its_width(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with ClassificationTracer(model, "net", "v1", {"map": "0:flatten"}, home=tmp_path) as t:
        t(torch.zeros(2, 1, 4, 4), None, [1, 2])
        with pytest.raises(InputError, match=r"feature.map has \(32,\) .* but \(8,\) before"):
            t(torch.zeros(2, 1, 6, 6), None, [3, 4])
    assert records(tmp_path)["ids"] == ["1", "2"]


def test_an_alias_stands_for_one_layer(tmp_path: Path) -> None:
    def open_(path: str, **more: Any) -> ClassificationTracer:
        return ClassificationTracer(network(), "net", "v1", {"f": path}, home=tmp_path, **more)

    open_("0").close()
    with open_("2:input") as t:  # nothing was recorded at the other
        t(X, Y, range(10))
    with pytest.raises(InputError, match="'f' of net/v1 is recorded at '2:input', not '0'"):
        open_("0")
    open_("0", force_table_recreate=True).close()
    with ClassificationTracer(network(), "net", "v1", {"g": "0"}, home=tmp_path) as t:
        t(X, Y, range(10))
    with ClassificationTracer(network(), "net", "v1", {"h": "2"}, home=tmp_path) as t:
        pass
    store = Store(tmp_path)
    assert store.open(ModelVersion("net", "v1")).layers == {"g": "0", "h": "2"}
    store.close()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, float("inf")], "whole class numbers"),
        ([0.0, float("nan")], "whole class numbers"),
        (np.array([1, 2**63 + 1], np.uint64), "fit int64"),
        (["cat", "dog"], "number your classes"),
        ([None, 1], "number your classes"),
        ([[1], [2]], r"labels\[:, 0\]"),
        ([[1, 0], [0, 1]], "argmax"),
    ],
)
def test_labels_that_are_no_class_numbers(tmp_path: Path, labels: Any, message: str) -> None:
    with tracer(tmp_path) as t, pytest.raises(InputError, match=message):
        t(X[:2], labels, [1, 2])


def test_a_data_filter_on_a_labelled_split_hides_no_label(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(200, 4), torch.randint(3, (200,))
    with tracer(tmp_path) as t, torch.no_grad():
        t(x, y, range(200), "val", 0)
    evaluator = Evaluator("net", "v1", home=tmp_path)
    with ClassificationDataFilter(
        network(),
        "net",
        "v1",
        n_epoch=0,
        filter_config={"conditions": [{"score": ">=0"}]},
        home=tmp_path,
    ) as chooser:
        chooser(x, range(200), dataset_type="val")
    result = evaluator.request_evaluation(n_epoch=0)
    assert len(result) == 200
    assert result.errors().shape[0] == int(result.summary().errors)


def test_another_spelling_of_the_home_is_the_same_home(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    torch.manual_seed(0)
    with tracer(tmp_path / "real") as t, torch.no_grad():
        t(torch.randn(50, 4), torch.randint(3, (50,)), range(50), "val")
        result = Evaluator("net", "v1", home=tmp_path / "link").request_evaluation()
        assert len(result) == 50


def test_a_result_is_used_with_the_layers_it_was_fitted_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with ClassificationTracer(network(), "net", "v1", {"f": "2:input"}, home=tmp_path) as t:
        t(torch.randn(50, 4), torch.randint(3, (50,)), range(50), "val")
    name = Evaluator("net", "v1", home=tmp_path).request_evaluation().result_name
    for layers, message in (({"f": "0"}, "which is '0' here"), ({"g": "0"}, "is not recorded")):
        with pytest.raises(InputError, match=message):
            ClassificationDataFilter(
                network(), "net", "v1", name, target_layers=layers, home=tmp_path
            )
    with ClassificationDataFilter(network(), "net", "v1", name, home=tmp_path) as chooser:
        assert chooser.layers == {"f": "2:input"}


class Parts(nn.Module):
    """Takes images of several sizes in a list, or a batch by name."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, given: Any) -> Tensor:
        if isinstance(given, dict):
            return cast("Tensor", self.head(given["x"]))
        return cast("Tensor", self.head(torch.stack([one.mean((1, 2)) for one in given])))


def test_a_list_of_images_is_not_counted_by_the_channels_of_the_first(tmp_path: Path) -> None:
    model = Parts()
    images = [torch.rand(3, 4, 5), torch.rand(3, 6, 4)]
    with ClassificationTracer(model, "net", "v1", {}, home=tmp_path) as t, torch.no_grad():
        t(images, torch.tensor([0, 1]), ["a", "b"])
        with pytest.raises(InputError, match="holds 2 inputs but 3 ids"):
            t(images, None, ["c", "d", "e"])
        with t.attached(None, ["f", "g"]):
            model({"x": torch.rand(2, 3)})
        with pytest.raises(InputError, match="call the tracer"), t.attached(None, ["h", "i"]):
            model(images)
    assert records(tmp_path)["ids"] == ["a", "b", "f", "g"]


def test_the_check_tells_what_can_be_recorded(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    model.train()
    model[1].eval()
    state = copy.deepcopy(model.state_dict())
    layers = {"map": "0", "last": "4:input", "never": "0:call5"}
    with ClassificationTracer(model, "net", "v1", layers, home=tmp_path) as t:
        hooks = len(model[0]._forward_hooks)
        found = t.check(torch.randn(5, 3, 8, 8))
        assert len(model[0]._forward_hooks) == hooks
    by_alias = {one.alias: one for one in found.layers}
    assert by_alias["map"].shape == (5, 8, 6, 6)
    assert by_alias["map"].batch_first
    assert by_alias["map"].dtype == "float32"
    assert by_alias["map"].width == 8
    assert by_alias["map"].bytes_per_sample == 32
    assert by_alias["last"].problem is None
    assert by_alias["never"].problem == "ran 1 times, not as often as named"
    assert not found.ok
    assert found.units_per_sample == 1
    # two layers of 8, 2 logits and the score in float32, the class in int32, a flag
    assert found.bytes_per_sample == 2 * 32 + 3 * 4 + 4 + 1
    assert "0.6 MB of features per 10,000 samples, 0.8 MB with all else" in str(found)
    assert model.training
    assert not model[1].training
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert records(tmp_path)["found"].inputs == 0


def test_the_check_sees_a_batch_that_is_not_first(tmp_path: Path) -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.T

    model = nn.Sequential(Turned(), Turned())
    with ClassificationTracer(model, "net", "v1", {"a": "0", "b": "1"}, home=tmp_path) as t:
        found = t.check(torch.ones(5, 3))
    turned, fine = found.layers
    assert "shape (3, 5) for 5 inputs" in str(turned.problem)
    assert not turned.batch_first
    assert fine.problem is None
    assert not found.ok


def test_the_check_sets_flags_and_calls_nothing(tmp_path: Path) -> None:
    class Merging(nn.Linear):
        def train(self, mode: bool = True) -> "Merging":
            raise AssertionError("as adapters do, it would add to the weights")

    model = nn.Sequential(nn.Linear(4, 8), Merging(8, 3))
    with ClassificationTracer(model, "net", "v1", home=tmp_path) as t:
        assert t.check(X).ok
    assert model[1].training


def test_the_check_of_an_output_that_only_the_user_can_read(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Answer:
            return Answer(self.net(x))

    class OddTracer(ClassificationTracer):
        def _parse_and_save_io_data(
            self, model_input: Any, model_output: Any, *args: Any, **kwargs: Any
        ) -> Any:
            return super()._parse_and_save_io_data(
                model_input, model_output.answer, *args, **kwargs
            )

    for kind in (OddTracer, ClassificationTracer):
        with kind(Odd(), "net", "v1", {"a": "net.0"}, home=tmp_path) as t:
            if kind is OddTracer:
                found = t.check(X)
                assert found.ok
                assert found.layers[0].bytes_per_sample == 32
            else:
                with pytest.raises(UnsupportedModelError, match="there are no logits"):
                    t.check(X)


def test_a_constructor_that_fails_registers_nothing(tmp_path: Path) -> None:
    class Refusing(ClassificationTracer):
        def hook(self, model: nn.Module) -> Any:
            raise UnsupportedModelError("not this one")

    with pytest.raises(UnsupportedModelError, match="not this one"):
        Refusing(network(), "net", "v1", home=tmp_path)
    other = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))
    with ClassificationTracer(other, "net", "v1", home=tmp_path) as t:
        t(X, Y, range(10))
    assert len(records(tmp_path)["runs"]) == 1
    with pytest.raises(EpochError, match="n_epoch must be one epoch here"):
        ClassificationDataFilter(network(), "another", "v1", n_epoch="all", home=tmp_path)
    with pytest.raises(StrategyError, match="filter_config"):
        ClassificationDataFilter(
            network(), "another", "v1", filter_config={"target_zones": ["hotspot"]}, home=tmp_path
        )
    store = Store(tmp_path)
    assert [one.version for one in store.versions()] == [ModelVersion("net", "v1")]
    store.close()


def test_ids_have_an_order(tmp_path: Path) -> None:
    with tracer(tmp_path) as t:
        for ids in ({"a", "b"}, frozenset({"a", "b"}), {"a": 1, "b": 2}):
            with pytest.raises(InputError, match="input_ids must be a sequence with one id"):
                t(X[:2], Y[:2], ids)
        t(X[:2], Y[:2], {"a": 1, "b": 2}.keys())
    assert records(tmp_path)["ids"] == ["a", "b"]
