"""What a task package promises, as tests that it inherits."""

import pickle
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import Tensor, nn

from ml_debugger.core.capture import Activations
from ml_debugger.core.errors import InputError, UnsupportedModelError
from ml_debugger.core.evaluation.options import EvaluationOptions
from ml_debugger.core.query import FilterConfig
from ml_debugger.core.records import Array, Batch, Column, ModelVersion, Units
from ml_debugger.core.store import Records, Scope, Store
from ml_debugger.core.task import CONTRACT, Task, installed, load
from ml_debugger.data_filter import CommonDataFilter
from ml_debugger.monitoring import MonitoringLogger
from ml_debugger.testing.model_state import (
    assert_same,
    hooks_of,
    next_random_numbers,
    seed_everything,
    tensors_of,
)
from ml_debugger.training import TrainingTracer

#: Facade, suffix of its public names, attribute of the task, and what its classes derive from.
PURPOSES: Sequence[tuple[str, str, str, type]] = (
    ("ml_debugger.training", "Tracer", "tracer", TrainingTracer),
    ("ml_debugger.monitoring", "Logger", "logger", MonitoringLogger),
    ("ml_debugger.data_filter", "DataFilter", "data_filter", CommonDataFilter),
)

#: How many times the batch is traced before it is evaluated.
REPEATS = 25


class TaskContract(ABC):
    """The tests of a task package.

    Subclass it in a test module of your package, give `task`, `model` and `batch` (and
    `empty_batch` where an input can be without units), and run pytest with your package
    installed. Everything is recorded in a temporary folder.

    Attributes:
        task: The task that your entry point names.
        target_layers: Layers to record, where the default ones do not suit your model.
        modes: Values of `model.training` in which your model returns what `parse_output` reads;
            `(False,)` for one that returns losses while it is trained.

    Example:
        `class TestSegmentation(TaskContract): task = SegmentationTask`, with the two methods.
    """

    task: ClassVar[type[Task]]
    target_layers: ClassVar[Mapping[str, Any] | None] = None
    modes: ClassVar[tuple[bool, ...]] = (False, True)

    @abstractmethod
    def model(self) -> nn.Module:
        """Return a small model of the task, with the same parameters at every call."""

    @abstractmethod
    def batch(self) -> tuple[Any, Any]:
        """Return a model input that holds two inputs, and their ground truth."""

    def empty_batch(self) -> tuple[Any, Any] | None:
        """Return the same for two inputs whose outputs have no unit: no box, no class.

        None for a task in which every input has exactly one unit.
        """
        return None

    @pytest.fixture(autouse=True)
    def _own_store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Record in a folder of the test's own, and know of no service."""
        monkeypatch.setenv("MLD_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("MLD_API_ENDPOINT", raising=False)
        monkeypatch.delenv("MLD_API_KEY", raising=False)

    # What is installed

    def test_entry_point_names_the_task(self) -> None:
        """One installed entry point leads to the task.

        Troubleshooting: your pyproject needs the table
        `[project.entry-points."ml_debugger.tasks"]` with one line `Prefix = "package:Task"`, the
        package must be installed (`pip install -e .`; again after each change of that table),
        and the class must be this test's `task`.
        """
        assert [prefix for prefix in installed() if load(prefix) is self.task] == [self._prefix()]

    def test_task_is_complete(self) -> None:
        """The task has everything that core asks a task for.

        Troubleshooting: `schema.name` and `method` are short names of letters, digits and
        underscores; both appear in file names. Leave `contract` out: it is then the one of the
        core that you tested with.
        """
        assert issubclass(self.task, Task)
        assert self.task.contract == CONTRACT
        for name in (self.task.schema.name, self.task.method):
            assert name.isidentifier(), name
        for _, _, slot, base in PURPOSES:
            found = getattr(self.task, slot)
            assert issubclass(found, base), f"{slot} must derive from {base.__name__}"
            assert found.schema is self.task.schema, f"{slot}.schema must be the task's"

    def test_facades_resolve_the_public_names(self) -> None:
        """`from ml_debugger.training import <Prefix>Tracer` works, and its two likes.

        Troubleshooting: the name is the entry point's name and the facade's suffix. An error
        here comes from importing your package: import it alone to see where.
        """
        for facade, suffix, slot, _ in PURPOSES:
            module = import_module(facade)
            assert getattr(module, self._prefix() + suffix) is getattr(self.task, slot)

    def test_facades_list_the_public_names(self) -> None:
        """`dir()` and tab completion show the public names.

        Troubleshooting: as for `test_entry_point_names_the_task`.
        """
        for facade, suffix, _, _ in PURPOSES:
            assert self._prefix() + suffix in dir(import_module(facade))

    def test_classes_pickle_by_reference(self) -> None:
        """A worker process that is sent a class finds the same class.

        Troubleshooting: define the task and its three classes at the top level of a module,
        under the name that `__qualname__` says; do not make them in a function.
        """
        for one in (self.task, *(getattr(self.task, slot) for _, _, slot, _ in PURPOSES)):
            assert pickle.loads(pickle.dumps(one)) is one

    # What the parser gives

    def test_output_becomes_units(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two inputs give the units of two inputs, with the columns of the schema.

        Troubleshooting: `parse_output` returns one `Units` for the whole batch. Its columns are
        those of `schema.extracted_feature`, `logits` and `feature.<alias>`, all of one length,
        the latter two with the shape (unit, d). Where an input can have another number of units
        than one, `counts` says how many each has, as int32, and units lie in the order of their
        inputs. Core needs the columns `prediction` (int), `score` (float) and `finite` (bool).
        """
        batch = self._traced(self.batch(), monkeypatch)
        self._check(batch.predicted, self.task.schema.extracted_feature)
        declared = {column.name: column.type for column in self.task.schema.extracted_feature}
        needed = {"prediction": int, "score": float, "finite": bool}
        assert needed.items() <= declared.items()
        assert len(batch.predicted), "batch() must give inputs with units"
        score = batch.predicted["score"]
        assert bool(((score >= 0) & (score <= 1)).all()), "score is a confidence in [0, 1]"

    def test_layers_become_features(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each recorded layer gives a vector a unit.

        Troubleshooting: `parse_output` adds a column `feature.<alias>` for every alias in
        `activations`; repeat an input's vector where it has several units.
        """
        batch = self._traced(self.batch(), monkeypatch)
        aliases = {
            name.removeprefix("feature.")
            for name in batch.predicted.columns
            if name.startswith("feature.")
        }
        with self._tracer() as tracer:
            assert aliases == set(tracer.layers)

    def test_ground_truth_becomes_units(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The ground truth of two inputs gives the units of two inputs.

        Troubleshooting: `parse_ground_truth` returns one `Units` for the whole batch, with the
        columns of `schema.ground_truth`, and with `counts` where an input can have another
        number of units than one. It must do so when `inputs` is None, too.
        """
        given = self.batch()
        batch = self._traced(given, monkeypatch)
        assert batch.actual is not None
        self._check(batch.actual, self.task.schema.ground_truth)
        with self._tracer() as tracer:
            alone = tracer.parse_ground_truth(given[1], None)
            alone = tracer.complete_ground_truth(alone, given[0])
        for name, values in batch.actual.columns.items():
            torch.testing.assert_close(alone[name].cpu(), values, rtol=0, atol=0, equal_nan=True)

    def test_other_things_are_refused(self) -> None:
        """What is no output or no ground truth of the task is refused by name.

        Troubleshooting: `parse_output` raises `UnsupportedModelError` for what it cannot read,
        `parse_ground_truth` raises `InputError`, also for another number of inputs than it is
        told; both from `ml_debugger.core.errors`. Say what was expected and what was found.
        """
        with self._tracer() as tracer:
            with pytest.raises(UnsupportedModelError, match=r"\w"):
                tracer.parse_output(object(), Activations())
            with pytest.raises(InputError, match=r"\w"):
                tracer.parse_ground_truth(object(), None)
            with pytest.raises(InputError, match=r"\w"):
                tracer.parse_ground_truth(self.batch()[1], 3)

    # What the model's owner notices: nothing

    def test_output_is_the_models_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A call returns the very object that the model returned, with the same values.

        Troubleshooting: `parse_output` must not write to the output or to a view of it; copy
        before you change. An override of `_parse_and_save_io_data` must not either.
        """
        model_input, ground_truth = self.batch()
        with self._tracer() as tracer:
            run_model, seen = tracer.run_model, []

            def run(given: Any) -> Any:
                output = run_model(given)
                seen.append((output, deepcopy([one.detach() for one in tensors_of(output)])))
                return output

            monkeypatch.setattr(tracer, "run_model", run)
            returned = tracer(model_input, ground_truth, ["a", "b"], "val")
            ((output, before),) = seen
            assert returned is output
            assert_same(list(tensors_of(returned)), before)

    def test_model_is_untouched(self) -> None:
        """Mode, gradients, buffers and random numbers are those of the model alone.

        Troubleshooting: a call runs the model once, through `run_model`. Do not call `eval()`,
        `no_grad()`, a random function or the model itself in `run_model`, `parse_output` or
        `parse_ground_truth`; core already parses without gradients.
        """
        for training in self.modes:
            model = self.model().train(training)
            states: list[tuple[list[Tensor], list[bool], tuple[float, ...]]] = []
            for traced in (True, False):
                copy = deepcopy(model)
                calls: list[bool] = []

                def called(*_: Any, calls: list[bool] = calls) -> None:
                    calls.append(torch.is_grad_enabled())

                copy.register_forward_pre_hook(called)
                with self._tracer(copy) as tracer:
                    if not traced:
                        tracer.close()  # its hooks are gone: the model is alone now
                    model_input, ground_truth = self.batch()
                    seed_everything()
                    if traced:
                        output = tracer(model_input, ground_truth, ["a", "b"], "val")
                    else:
                        output = tracer.run_model(model_input)
                    assert calls == [True], "the model must run once, under the caller's gradients"
                    random_state = next_random_numbers()
                    modes = [module.training for module in copy.modules()]
                    graph = [one for one in tensors_of(output) if one.requires_grad]
                    if graph:
                        sum(one.double().sum() for one in graph).backward()  # type: ignore[union-attr]
                grads = [p.grad for p in copy.parameters() if p.grad is not None]
                states.append(([*tensors_of(output), *grads, *copy.buffers()], modes, random_state))
            ours, alone = states
            assert_same(ours[0], alone[0])
            assert ours[1] == alone[1] == [module.training for module in model.modules()]
            assert ours[2] == alone[2], "the random state differs after a traced call"

    def test_close_takes_all_hooks_off(self) -> None:
        """After `close()` the model has the hooks that it had before.

        Troubleshooting: register no hooks of your own; name layers in `target_layers` and read
        them from `activations`.
        """
        model = self.model()
        before = hooks_of(model)
        model_input, ground_truth = self.batch()
        for _, _, slot, _ in PURPOSES:
            with self._open(slot, model) as one:
                given = (model_input, ground_truth) if slot == "tracer" else (model_input,)
                one(*given, input_ids=["a", "b"])
                assert (hooks_of(model) != before) == bool(one.layers)
            assert hooks_of(model) == before
            one.close()  # a second time does nothing

    # What the store keeps

    def test_round_trip_loses_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was parsed is what a later process reads: every value, type and order.

        Troubleshooting: columns are tensors of numbers or bools, on any device. If values
        differ, `parse_output` returned a view of something that was changed after the call.
        """
        batch = self._traced(self.batch(), monkeypatch)
        records = _stored()
        assert records.ids().to_pylist() == ["a", "b"]
        assert batch.actual is not None
        for side, units in (("predicted", batch.predicted), ("actual", batch.actual)):
            for name, values in units.columns.items():
                found = records.column(f"{side}/{name}")
                assert found.dtype == values.numpy().dtype
                assert_array_equal(found, values.numpy())
            assert_array_equal(records.counts(side), _counts(units))  # type: ignore[arg-type]

    def test_judge_gives_a_verdict_a_unit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each predicted unit is told what it should have been.

        Troubleshooting: `judge` returns a `Verdict` whose `target` is int64, one value for each
        predicted unit in their order: the true class, or -1. Its `aspects` are those of the
        schema, one value a unit each. It gets NumPy arrays; units of one input lie together, and
        `counts` says how many each input has. It is None on a side where all have exactly one,
        also when `parse_output` or `parse_ground_truth` gave it.
        """
        batch = self._traced(self.batch(), monkeypatch)
        assert batch.actual is not None
        predicted, actual = _as_arrays(batch.predicted), _as_arrays(batch.actual)
        verdict = self.task.judge(predicted, actual, EvaluationOptions())
        target = verdict.target
        assert target.shape == (len(predicted),)
        assert target.dtype == np.int64
        assert (target >= -1).all()
        assert tuple(verdict.aspects) == self.task.schema.aspects
        assert all(len(values) == len(predicted) for values in verdict.aspects.values())
        again = self.task.judge(_of_store(predicted), _of_store(actual), EvaluationOptions())
        assert_array_equal(again.target, target)

    def test_inputs_without_units(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An output without any unit is recorded, queried and flagged like any other.

        Troubleshooting: give `empty_batch` where `parse_output` sets `counts`. For an output
        without units it returns the same columns with no row, and zeros as `counts`; a shape
        such as (0, d) must be kept.
        """
        given = self.empty_batch()
        if given is None:
            batch = self._traced(self.batch(), monkeypatch)
            assert batch.predicted.counts is None, "empty_batch() is missing"
            return
        batch = self._traced(given, monkeypatch)
        assert _counts(batch.predicted) == [0, 0], "empty_batch() gave units"
        self._check(batch.predicted, self.task.schema.extracted_feature)
        if batch.actual is not None:
            predicted, actual = _as_arrays(batch.predicted), _as_arrays(batch.actual)
            target = self.task.judge(predicted, actual, EvaluationOptions()).target
            assert target.shape == (0,)
        config = FilterConfig(conditions=({"score": ">=0"},))
        with self._open("data_filter", self.model(), filter_config=config) as data_filter:
            _, flags = data_filter(given[0], ["c", "d"])
            assert flags == [False, False]
            assert data_filter.query(10, config) == []
        assert _stored("pool").ids().to_pylist() == ["c", "d"]

    # What it is all for

    def test_logger_needs_no_ground_truth(self) -> None:
        """A deployed model is recorded without ids and without ground truth.

        Troubleshooting: the logger derives from `MonitoringLogger` first, and then from the
        class with your `parse_output`. Ids are made for as many inputs as the output holds.
        """
        model_input, _ = self.batch()
        with self._open("logger", self.model()) as logger:
            logger(model_input)
            logger(model_input, ["a", "b"])
        records = _stored("deploying")
        assert records.inputs == 4
        assert not [name for name in records.names() if name.startswith("actual/")]

    def test_evaluation_query_and_flags(self) -> None:
        """What was traced can be evaluated, and the result picks and flags new inputs.

        Troubleshooting: the tests above fail first where parsing is wrong. `codes` returns one
        text for each unit, also when `target` is None. `batch()` should hold right and wrong
        units, so that there is something to learn.
        """
        from ml_debugger.evaluator import Evaluator

        model = self.model().eval()
        model_input, ground_truth = self.batch()
        with self._open("tracer", model) as tracer, torch.no_grad():
            for at in range(REPEATS):
                tracer(model_input, ground_truth, [f"{at}a", f"{at}b"], "val", n_epoch=1)
        result = Evaluator("contract", "v1").request_evaluation()
        assert result is not None  # this process is the only one, so the primary
        assert result.method_name == self.task.method
        units = result.samples(as_="arrow")
        assert len(units) == _stored().units
        assert all(units.column("code").to_pylist())

        every = {"conditions": [{"error_proba": ">=0"}]}
        name = result.result_name
        with (
            self._open("data_filter", model, result_name=name, filter_config=every) as data_filter,
            torch.no_grad(),
        ):
            _, flags = data_filter(model_input, ["a", "b"])
            data_filter.flush()
            counts = _stored("pool").counts("predicted")
            assert flags == [count > 0 for count in counts]
            with_units = [one for one, count in zip("ab", counts, strict=True) if count]
            assert sorted(data_filter.query(10, "high_error_proba")) == with_units
            assert sorted(data_filter.query(10, every)) == with_units
            assert len(data_filter.query(1, "low_error_proba")) == 1

    # How it is done

    def _prefix(self) -> str:
        found = [prefix for prefix in installed() if load(prefix) is self.task]
        assert found, f"no installed entry point in ml_debugger.tasks leads to {self.task}"
        return found[0]

    def _open(self, slot: str, model: nn.Module, **arguments: Any) -> Any:
        made = getattr(self.task, slot)
        return made(model, "contract", "v1", target_layers=self.target_layers, **arguments)

    def _tracer(self, model: nn.Module | None = None) -> Any:
        return self._open("tracer", self.model().eval() if model is None else model)

    def _traced(self, given: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Batch:
        """Trace two inputs, and return what was handed to the store."""
        with self._tracer() as tracer:
            save, batches = tracer._parse_and_save_io_data, []  # noqa: SLF001  the documented hook

            def keep(*args: Any, **kwargs: Any) -> Any:
                batches.append(save(*args, **kwargs))
                return batches[-1]

            monkeypatch.setattr(tracer, "_parse_and_save_io_data", keep)
            with torch.no_grad():
                tracer(given[0], given[1], ["a", "b"], "val")
        (batch,) = batches
        if batch.ready is not None:
            batch.ready()
        assert isinstance(batch, Batch)
        return batch

    def _check(self, units: Units[Tensor], schema: Sequence[Column]) -> None:
        """Compare units with the columns that were declared for them."""
        counts = _counts(units)
        assert len(counts) == 2, f"two inputs gave the units of {len(counts)}"
        assert sum(counts) == len(units), "counts do not add up to the number of units"
        if units.counts is not None:
            assert units.counts.dtype is torch.int32
        declared = {column.name: column.type for column in schema}
        vectors = {n for n in units.columns if n.startswith("feature.")}
        scalars = set(units.columns) - vectors - {"logits", "statistics"}
        assert scalars == set(declared), "the schema declares other columns"
        for name, values in units.columns.items():
            assert len(values) == len(units), f"column {name} has another length"
            assert values.ndim == (1 if name in declared else 2), f"{name}: {tuple(values.shape)}"
            if name in declared:
                assert _kind(values) is declared[name], f"{name} is {values.dtype}"


def _kind(values: Tensor) -> type:
    if values.dtype is torch.bool:
        return bool
    return float if values.is_floating_point() else int


def _counts(units: Units[Tensor]) -> list[int]:
    return [1] * len(units) if units.counts is None else units.counts.tolist()


def _as_arrays(units: Units[Tensor]) -> Units[Array]:
    return Units(
        {name: values.numpy() for name, values in units.columns.items()},
        None if units.counts is None else units.counts.numpy(),
    )


def _of_store(units: Units[Array]) -> Units[Array]:
    """Leave out counts where all are one, as units read from the store come."""
    plain = units.counts is not None and bool((units.counts == 1).all())
    return Units(units.columns) if plain else units


def _stored(*dataset_types: str) -> Records:
    """Read what the test has recorded, through a store of its own."""
    store = Store()
    try:
        return store.open(ModelVersion("contract", "v1")).records(
            Scope(dataset_types=dataset_types or None)
        )
    finally:
        store.close()
