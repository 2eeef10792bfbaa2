"""Recording a classifier: runs, epochs, ids, fields, and code that calls the model itself."""

import gc
import os
import subprocess
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ml_debugger.classification.tracer import logits_of
from ml_debugger.core import ModelVersion, Scope, Store
from ml_debugger.core.errors import (
    ArchitectureMismatchError,
    EndpointError,
    InputError,
    SyncError,
    UnsupportedModelError,
)
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


def test_a_configured_service_is_said_to_be_out_of_reach(tmp_path: Path) -> None:
    key = "mldbg_secret"
    with tracer(tmp_path, api_endpoint="http://127.0.0.1:9", api_key=key) as t, torch.no_grad():
        t(X, Y, range(10))
        with pytest.raises(SyncError, match="safe in the local store") as caught:
            t.wait_for_save()
        assert key not in str(caught.value)
        assert key not in repr(t._service)
        assert records(tmp_path)["found"].inputs == 10
    with pytest.warns(UserWarning, match="cannot upload"):
        tracer(tmp_path, api_endpoint="http://127.0.0.1:9", auto_sync=True).close()


def test_an_unclosed_tracer_flushes_at_exit(tmp_path: Path) -> None:
    script = f"""
import torch
from ml_debugger.training import ClassificationTracer
model = torch.nn.Linear(4, 3)
tracer = ClassificationTracer(model, "net", "v1", home={str(tmp_path)!r})
for i in range(100):
    tracer(torch.ones(2, 4), [0, 1], [2 * i, 2 * i + 1])
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, env={**os.environ})
    assert len(records(tmp_path)["ids"]) == 200


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
