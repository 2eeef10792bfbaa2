# ruff: noqa: E501  a case a line reads best
"""What users get wrong: each case raises a readable error, and nothing is written.

`python tests/test_bad_input.py` prints every case with its message.
"""

import json
import os
import sqlite3
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ml_debugger.core import MLDebuggerError, ModelVersion, Store
from ml_debugger.core.archive import import_archive
from ml_debugger.data_filter import ClassificationDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.monitoring import ClassificationLogger
from ml_debugger.training import ClassificationTracer


def network(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3)).eval()


@dataclass
class Bench:
    """A traced and evaluated model, and the tools around it."""

    folder: Path
    model: nn.Module
    tracer: ClassificationTracer
    data_filter: ClassificationDataFilter
    logger: ClassificationLogger
    evaluator: Evaluator
    result: str
    store: Store
    x: torch.Tensor
    y: torch.Tensor

    @property
    def home(self) -> Path:
        return self.store.home

    def rows(self) -> int:
        self.tracer.flush()
        self.data_filter.flush()
        self.logger.flush()
        return sum(one.records for one in self.store.versions())


def make(folder: Path) -> Bench:
    home, model = folder / "home", network()
    x = torch.randn(300, 4)
    y = x[:, :3].argmax(1)
    fields = [
        {"name": "camera", "type": "str"},
        {"name": "speed", "type": "float", "nullable": True},
    ]
    tracer = ClassificationTracer(model, "net", "v1", additional_fields=fields, home=home)
    with torch.no_grad():
        tracer(x, y, range(300), "val", n_epoch=0, camera="front")
        tracer.flush()
        evaluator = Evaluator("net", "v1", home=home)
        result = evaluator.request_evaluation().result_name
        data_filter = ClassificationDataFilter(model, "net", "v1", result, home=home)
        data_filter(x[:50], input_ids=[f"pool-{i}" for i in range(50)])
    logger = ClassificationLogger(model, "net", "v1", auto_sync=False, home=home)
    return Bench(
        folder, model, tracer, data_filter, logger, evaluator, result, Store(home), x[:4], y[:4]
    )


def call(b: Bench, **changed: Any) -> Any:
    """Call the tracer with one argument changed."""
    given = {
        "model_input": b.x, "ground_truth": b.y, "input_ids": [1, 2, 3, 4],
        "dataset_type": "val", "n_epoch": 1, "camera": "front",
    }  # fmt: skip
    given |= changed
    return b.tracer(**{name: value for name, value in given.items() if value is not ...})


def new(b: Bench, **changed: Any) -> Any:
    given = {"model": b.model, "model_name": "other", "version_name": "v1", "home": b.home}
    return ClassificationTracer(**(given | changed))


def query(b: Bench, strategy: Any = "high_error_proba", n: Any = 5, **more: Any) -> Any:
    return b.data_filter.query(n, strategy, **more)


def where(b: Bench, condition: Any) -> Any:
    return query(b, {"conditions": [condition]})


def archive(b: Bench, **members: bytes) -> Path:
    path = b.folder / "foreign.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/").replace("_json", ".json"), data)
    return path


def exported(b: Bench, change: Callable[[dict[str, Any]], None]) -> Path:
    """Export, and change the manifest."""
    source = b.tracer.export(b.folder / "good.zip")
    target = b.folder / "changed.zip"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as file:
        for name in old.namelist():
            data = old.read(name)
            if name == "manifest.json":
                manifest = json.loads(data)
                change(manifest)
                data = json.dumps(manifest).encode()
            file.writestr(name, data)
    return target


def damaged(b: Bench) -> Path:
    source = b.tracer.export(b.folder / "good.zip")
    target = b.folder / "damaged.zip"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as file:
        for name in old.namelist():
            data = old.read(name)
            file.writestr(name, data if name == "manifest.json" else data[:-40] + bytes(40))
    return target


def future_store(b: Bench) -> Any:
    home = b.folder / "future"
    Store(home).close()
    connection = sqlite3.connect(home / "catalogue.db")
    (table,) = connection.execute(
        "select name from sqlite_master where name like '%schema%' and type = 'table'"
    ).fetchone()
    (column,) = [
        row[1] for row in connection.execute(f"pragma table_info({table})") if "number" in row[1]
    ]
    connection.execute(f"update {table} set {column} = 999")
    connection.commit()
    connection.close()
    return Store(home)


def broken_store(b: Bench) -> Any:
    home = b.folder / "broken"
    home.mkdir(exist_ok=True)
    (home / "catalogue.db").write_bytes(b"this is no database, whatever its name says" * 100)
    return Store(home)


def home_is_a_file(b: Bench) -> Any:
    path = b.folder / "file"
    path.write_text("")
    return new(b, home=path)


class Strings(nn.Module):
    def forward(self, x: torch.Tensor) -> str:
        return "cat"


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


class Idle(nn.Module):
    """Has a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


def traced(b: Bench, model: nn.Module, x: torch.Tensor, **more: Any) -> Any:
    name = f"bad-{type(model).__name__}"
    with ClassificationTracer(model, name, "v1", home=b.folder / "scratch", **more) as tracer:
        return tracer(x, None, range(len(x)))


def mismatch(b: Bench) -> Any:
    return ClassificationTracer(network(9), "net", "v2", home=b.home)


def foreign_result(b: Bench) -> Any:
    return ClassificationDataFilter(network(9), "net", "v1", b.result, home=b.home)


def query_without_result(b: Bench) -> Any:
    with ClassificationDataFilter(b.model, "net", "v1", home=b.home) as data_filter:
        return data_filter.query(5, "high_error_proba")


def compiled_before(b: Bench) -> Any:
    torch.compiler.reset()
    model = torch.compile(network(), backend="eager")
    model(b.x)
    with ClassificationTracer(model, "compiled", "v1", home=b.folder / "scratch") as tracer:
        return tracer(b.x, None, range(4))


#: What happens, what raises it (the built-in that users may catch), and words of the message.
CASES: dict[str, tuple[Callable[[Bench], Any], type[Exception], str]] = {
    # a call
    "too few ids": (lambda b: call(b, input_ids=[1, 2]), ValueError, "2 input_ids for a batch of 4"),
    "too many labels": (
        lambda b: call(b, ground_truth=[0] * 5), ValueError, "5 labels for 4 inputs"),
    "one string as ids": (lambda b: call(b, input_ids="abcd"), ValueError, "must be a sequence"),
    "ids that are floats": (lambda b: call(b, input_ids=[1.5, 2, 3, 4]), ValueError, r"input_ids\[0\]"),
    "an id that is None": (lambda b: call(b, input_ids=[None, 2, 3, 4]), ValueError, "NoneType None"),
    "an id that is a bool": (lambda b: call(b, input_ids=[True, 2, 3, 4]), ValueError, "bool True"),
    "an empty id": (lambda b: call(b, input_ids=["", "b", "c", "d"]), ValueError, "1 to 4096"),
    "a huge id": (lambda b: call(b, input_ids=["x" * 10_000, 2, 3, 4]), ValueError, "got 10000"),
    "an id with half a surrogate": (
        lambda b: call(b, input_ids=["\ud800", 2, 3, 4]), ValueError, "not valid Unicode"),
    "two-dimensional ids": (
        lambda b: call(b, input_ids=np.zeros((4, 2), int)), ValueError, "one-dimensional"),
    "one-hot labels": (lambda b: call(b, ground_truth=torch.eye(4)), ValueError, "argmax"),
    "labels that are no whole numbers": (
        lambda b: call(b, ground_truth=[0.5, 1, 2, 0]), ValueError, "whole class numbers"),
    "a NaN label": (
        lambda b: call(b, ground_truth=[float("nan"), 1, 2, 0]), ValueError, "whole class numbers"),
    "labels that are text": (
        lambda b: call(b, ground_truth=["cat", "dog", "cat", "dog"]), ValueError, "class numbers"),
    "n_epoch as text": (lambda b: call(b, n_epoch="3"), TypeError, "n_epoch must be an int or None"),
    "n_epoch as a bool": (lambda b: call(b, n_epoch=True), TypeError, "bool True"),
    "n_epoch as a float": (lambda b: call(b, n_epoch=1.0), TypeError, "float 1.0"),
    "an empty dataset_type": (lambda b: call(b, dataset_type=""), ValueError, "dataset_type"),
    "a field left out": (lambda b: call(b, camera=...), ValueError, "field 'camera' is missing"),
    "a field of the wrong type": (lambda b: call(b, camera=3), ValueError, "must be str, got int 3"),
    "a field of the wrong length": (
        lambda b: call(b, camera=["front"] * 3), ValueError, "3 values for 4 inputs"),
    "a field with half a surrogate": (
        lambda b: call(b, camera=["front", "bad\ud800", "rear", "rear"]),
        ValueError, r"field 'camera'\[1\] is not valid Unicode"),
    "an infinite field": (lambda b: call(b, speed=float("inf")), ValueError, "finite or NaN"),
    "an unknown field": (lambda b: call(b, lens="wide"), ValueError, "unexpected argument 'lens'"),
    # a model
    "no module": (lambda b: new(b, model=len), ValueError, "must be a torch.nn.Module"),
    "an unknown layer": (
        lambda b: new(b, target_layers={"a": "3"}), ValueError, "no module '3' in the model"),
    "an unknown reducer": (
        lambda b: new(b, target_layers={"a": "0:median"}), ValueError, "'median' is none of"),
    "an alias with a slash": (lambda b: new(b, target_layers={"a/b": "0"}), ValueError, "layer alias"),
    "layers as a list": (lambda b: new(b, target_layers=["0"]), ValueError, "must map aliases"),
    "another architecture": (mismatch, ValueError, "Linear|8|9|architecture"),
    "DataParallel": (
        lambda b: new(b, model=nn.DataParallel(b.model)), TypeError, "DistributedDataParallel"),
    "no layer to take": (
        lambda b: new(b, model=nn.Sequential(nn.BatchNorm1d(4))), TypeError, "target_layers="),
    "an output that is no logits": (
        lambda b: traced(b, Strings(), b.x, target_layers={}), TypeError, "returned str"),
    "a dense output": (
        lambda b: traced(b, Dense(), torch.randn(2, 3, 4, 4)), TypeError, r"\(2, 5, 4, 4\)"),
    "a layer that does not run": (
        lambda b: traced(b, Idle(), b.x, target_layers={"a": "unused"}), RuntimeError, "did not run"),
    "compiled and run before": (compiled_before, RuntimeError, "compiled and run before"),
    "activations never captured": (
        lambda b: b.tracer.get_hooked_features("nope"), KeyError, "no activation captured"),
    "an empty model name": (lambda b: new(b, model_name=" "), ValueError, "model_name"),
    "a field declared twice": (
        lambda b: new(b, additional_fields=[{"name": "a", "type": "int"}] * 2), ValueError, "twice"),
    "a reserved field name": (
        lambda b: new(b, additional_fields=[{"name": "score", "type": "int"}]), ValueError, "taken"),
    "an unknown field type": (
        lambda b: new(b, additional_fields=[{"name": "a", "type": "tensor"}]), ValueError, "type"),
    # a query
    "an unknown strategy": (lambda b: query(b, "worst"), ValueError, "'worst' is none of"),
    "a strategy of another type": (lambda b: query(b, 7), ValueError, "must be one of"),
    "an unknown zone": (
        lambda b: query(b, {"target_zones": ["hot"]}), ValueError, "critical_hotspot"),
    "an empty filter": (lambda b: query(b, {}), ValueError, "give target_zones"),
    "an unknown key": (lambda b: query(b, {"zones": ["hotspot"]}), ValueError, "target_zones"),
    "a wrong operator": (lambda b: where(b, {"score": "=> 0.5"}), ValueError, "use one of >="),
    "an operator without a value": (lambda b: where(b, {"score": ">="}), ValueError, "nothing"),
    "text against a number": (lambda b: where(b, {"score": ">= high"}), ValueError, "a number"),
    "an unknown column": (lambda b: where(b, {"colour": "== red"}), ValueError, "camera"),
    "SQL as a column": (
        lambda b: where(b, {"score; DROP TABLE chunk": ">=0"}), ValueError, "no column"),
    "SQL as a value": (
        lambda b: where(b, {"score": ">= 0; DROP TABLE chunk"}), ValueError, "a number"),
    "a range the wrong way round": (
        lambda b: where(b, {"score": "between 0.9 and 0.1"}), ValueError, "nothing lies between"),
    "an unknown zone in a condition": (
        lambda b: where(b, {"zone": "==hotspots"}), ValueError, "the closest is hotspot"),
    "a filter that no call could be judged by": (
        lambda b: ClassificationDataFilter(
            b.model, "net", "v1", filter_config={"conditions": [{"score": ">=abc"}]}, home=b.home),
        ValueError, "'score': expected a number"),
    "a negative seed": (
        lambda b: query(b, sampling={"method": "random", "min_value": 0, "seed": -1}),
        ValueError, "seed: .*greater than or equal to 0, got -1"),
    "n_data of zero": (lambda b: query(b, n=0), ValueError, "n_data"),
    "n_data as a float": (lambda b: query(b, n=2.5), ValueError, "n_data"),
    "ids that cannot be cast": (lambda b: query(b, type_cast=int), ValueError, "'pool-"),
    "sampling without a range": (
        lambda b: query(b, sampling={"method": "random"}), ValueError, "min_value"),
    "a query without a result": (query_without_result, ValueError, "needs an evaluation"),
    "a filter without a result": (
        lambda b: ClassificationDataFilter(
            b.model, "net", "v1", filter_config={"target_zones": ["hotspot"]}, home=b.home),
        ValueError, "needs an evaluation"),
    # results
    "an unknown result": (
        lambda b: ClassificationDataFilter(b.model, "net", "v1", "nope", home=b.home),
        LookupError, "nope"),
    "a result of another model": (foreign_result, ValueError, "another architecture"),
    "a result of another version": (
        lambda b: ClassificationDataFilter(b.model, "net", "v2", b.result, home=b.home),
        ValueError, "belongs to net/v1"),
    "an unknown method": (
        lambda b: b.evaluator.request_evaluation("magic"), ValueError, "classification_v1"),
    "an unknown option": (
        lambda b: b.evaluator.request_evaluation(options={"speed": 1}), ValueError, "speed"),
    "a result name that is taken": (
        lambda b: b.evaluator.request_evaluation(result_name=b.result), ValueError, "already"),
    "nothing to evaluate": (
        lambda b: b.evaluator.request_evaluation(n_epoch=77), LookupError, "77|label"),
    "an unknown version": (
        lambda b: Evaluator("net", "v9", home=b.home).request_evaluation(), LookupError, "v9"),
    "dropping without an epoch": (lambda b: b.tracer.drop_epoch_data(None), TypeError, "needs an int"),
    # files and the store
    "upload without a service": (lambda b: b.tracer.upload(), RuntimeError, "MLD_API_ENDPOINT"),
    "export into a folder that is not there": (
        lambda b: b.tracer.export(b.folder / "no" / "where" / "a.zip"), ValueError, "where"),
    "export to a path that cannot be written": (
        lambda b: b.tracer.export("/proc/out.zip"), OSError, "/proc"),
    "a report to a path that cannot be written": (
        lambda b: b.evaluator.get_result(b.result).report("/proc/report.html"),
        OSError, "/proc"),
    "importing no ZIP": (
        lambda b: import_archive(b.store, Path(__file__)), ValueError, "test_bad_input"),
    "importing a file that is not there": (
        lambda b: import_archive(b.store, b.folder / "missing.zip"), (ValueError, OSError), "missing"),
    "importing a foreign ZIP": (
        lambda b: import_archive(b.store, archive(b, a=b"1")), ValueError, "manifest"),
    "importing a ZIP whose manifest is no JSON": (
        lambda b: import_archive(b.store, archive(b, manifest_json=b"{")), ValueError, "manifest"),
    "importing a later format": (
        lambda b: import_archive(
            b.store, exported(b, lambda m: m.update({next(k for k in m if "format" in k): 99}))),
        (ValueError, RuntimeError), "99"),
    "importing a damaged export": (
        lambda b: import_archive(b.store, damaged(b)), ValueError, "sha256|hash|damaged"),
    "a home that is a file": (home_is_a_file, OSError, "file"),
    "a home under /proc": (lambda b: new(b, home="/proc/home"), OSError, "/proc"),
    "a store of a later schema": (future_store, RuntimeError, "999"),
    "a catalogue that is no database": (broken_store, OSError, "broken"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = make(tmp_path_factory.mktemp("bench"))
    yield made
    for one in (made.tracer, made.data_filter, made.logger, made.store):
        one.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_says_what_is_wrong_and_writes_nothing(name: str, bench: Bench) -> None:
    act, kind, words = CASES[name]
    before = bench.rows()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in bench.model.modules()]
    with pytest.raises(kind, match=words) as caught:
        act(bench)
    assert isinstance(caught.value, MLDebuggerError)
    assert len(str(caught.value)) > 20
    assert bench.rows() == before
    after = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in bench.model.modules()]
    assert after == hooks


def test_user_text_cannot_leave_the_home(bench: Bench) -> None:
    for name in ("../../escape", "/abs", "a/b", "..", "con\\x", "ü" * 60):
        folder = bench.store.result_folder(name).resolve()
        assert folder.is_relative_to(bench.home.resolve())
    with ClassificationTracer(bench.model, "../up", "../../v", home=bench.home) as tracer:
        tracer(bench.x, bench.y, range(4))
        path = tracer.export(bench.folder)
    assert path.parent == bench.folder
    bench.store.open(ModelVersion("../up", "../../v")).recreate()


def main() -> None:
    """Print each case with its error and message."""
    warnings.simplefilter("ignore")
    os.environ.pop("MLD_API_ENDPOINT", None)
    with tempfile.TemporaryDirectory() as folder:
        bench = make(Path(folder))
        for at, (name, (act, _, _)) in enumerate(CASES.items(), start=1):
            try:
                act(bench)
            except MLDebuggerError as error:
                said = str(error).replace(folder, "TMP")
                print(f"{at:2}. {name}: {type(error).__name__}: {said}")  # noqa: T201
            else:
                raise AssertionError(f"{name} raised nothing")


if __name__ == "__main__":
    main()
