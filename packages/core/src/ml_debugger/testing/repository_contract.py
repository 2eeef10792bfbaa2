"""What a place to keep records in promises, as tests that it inherits."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from ml_debugger.core.errors import InputError
from ml_debugger.core.records import Batch, Units
from ml_debugger.core.store import Records, Repository, Scope

CLASSES = 3
THREADS = 4


class RepositoryContract(ABC):
    """The tests of an implementation of `ml_debugger.core.Repository`.

    Subclass it in a test module, give `open`, and run pytest.

    Attributes:
        fields: The additional columns that the opened version declares for inputs.
        label_fields: Those that it declares for ground truth.
    """

    fields: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"name": "camera", "type": "str", "nullable": True, "default": None},
        {"name": "exposure", "type": "float", "nullable": True, "default": None},
    )
    label_fields: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"name": "annotator", "type": "str", "nullable": True, "default": None},
    )

    @abstractmethod
    def open(self, folder: Path) -> Repository:
        """Open the repository of one model version, which declares `fields` and `label_fields`.

        Args:
            folder: Where its records live. Opening a folder again, as another process would,
                finds what was written there, whether or not the first was closed.
        """

    @pytest.fixture
    def repository(self, tmp_path: Path) -> Repository:
        """The repository of a new folder."""
        return self.open(tmp_path / "records")

    # Writing and reading

    def test_new_repository_is_empty(self, repository: Repository) -> None:
        """Nothing recorded reads as nothing, not as an error.

        Troubleshooting: `records` returns an empty `Records`, `epochs` and `runs` empty lists.
        A run that has no records yet is not listed.
        """
        repository.start_run("training")
        records = repository.records()
        assert (records.inputs, records.units, len(records.ids())) == (0, 0, 0)
        assert repository.epochs() == []
        assert repository.runs() == []
        assert repository.latest_epoch() is None
        assert repository.delete_epoch(3)["extracted_feature"] == 0

    def test_reads_what_was_written(self, repository: Repository) -> None:
        """Every value comes back, with its type, in the order of writing.

        Troubleshooting: no value may be converted on the way: float16 stays float16, and NaN
        and infinity are values like others.
        """
        run = repository.start_run("training")
        batches = [batch(["a", "b"]), batch(["c"], seed=1)]
        batches[0].predicted.columns["logits"][0, 0] = torch.nan
        repository.write(run, batches)
        records = repository.records()
        assert records.ids().to_pylist() == ["a", "b", "c"]
        assert_holds(records, batches)
        assert records.column("input/recorded_at").tolist() == [1000, 1000, 1001]
        assert _listed(records, "input/camera") == ["front", None, "front"]
        assert _listed(records, "input/exposure") == [0.5, 0.5, 0.5]
        assert _listed(records, "label/annotator") == ["ann"] * 3

    def test_ragged_units(self, repository: Repository) -> None:
        """Inputs with several units, and with none, keep them.

        Troubleshooting: `counts` says how many units each input has on either side; rows of
        `predicted/` and `actual/` columns are units, rows of `input/` columns are inputs.
        """
        run = repository.start_run("training")
        batches = [
            batch(["a", "b", "c"], counts=[2, 0, 3], actual_counts=[0, 0, 1]),
            batch(["d"], counts=[0], actual_counts=[2], seed=1),
        ]
        repository.write(run, batches)
        records = repository.records()
        assert (records.inputs, records.units) == (4, 5)
        assert records.counts("predicted").tolist() == [2, 0, 3, 0]
        assert records.counts("actual").tolist() == [0, 0, 1, 2]
        assert_holds(records, batches)

    def test_rows_asked_for(self, repository: Repository) -> None:
        """Some rows can be read alone, in any order.

        Troubleshooting: rows of `predicted/` columns are positions of units, those of `input/`
        columns positions of inputs.
        """
        run = repository.start_run("training")
        batches = [batch(["a", "b"]), batch(["c", "d"], seed=1)]
        repository.write(run, batches)
        records = repository.records()
        rows = np.array([3, 0, 0])
        assert records.ids(rows).to_pylist() == ["d", "a", "a"]
        whole = records.column("predicted/score")
        assert_array_equal(records.column("predicted/score", rows), whole[rows])
        assert records.find(["d", "nobody", "a"]).tolist() == [3, -1, 0]

    def test_inputs_without_ground_truth(self, repository: Repository) -> None:
        """Records with and without ground truth lie side by side.

        Troubleshooting: an input without ground truth has no actual unit: `counts("actual")` is
        0 there, and columns of `actual/` have no row for it.
        """
        run = repository.start_run("training")
        repository.write(run, [batch(["a"]), batch(["b"], labelled=False), batch(["c"], seed=1)])
        records = repository.records()
        assert records.ids().to_pylist() == ["a", "b", "c"]
        assert records.counts("actual").tolist() == [1, 0, 1]
        assert len(records.column("actual/label")) == 2

    def test_waits_until_values_are_there(self, repository: Repository) -> None:
        """A batch whose tensors are still being filled is written when they are.

        Troubleshooting: call `Batch.ready` in `write`, before the tensors are read.
        """
        run = repository.start_run("training")
        late = batch(["a"])

        def arrive() -> None:
            late.predicted.columns["score"].fill_(0.75)

        waiting = Batch(
            input_ids=late.input_ids,
            dataset_type=late.dataset_type,
            n_epoch=late.n_epoch,
            recorded_at=late.recorded_at,
            predicted=late.predicted,
            actual=late.actual,
            ready=arrive,
        )
        repository.write(run, [waiting])
        assert repository.records().column("predicted/score").tolist() == [0.75]

    def test_all_batches_or_none(self, repository: Repository) -> None:
        """A batch that cannot be stored leaves nothing of those beside it.

        Troubleshooting: check all batches before the first is written, or write them in one
        transaction.
        """
        run = repository.start_run("training")
        broken = batch(["b", "c"])
        broken = Batch(
            input_ids=broken.input_ids,
            dataset_type="val",
            n_epoch=0,
            recorded_at=0,
            predicted=Units({"score": torch.zeros(5)}),
        )
        with pytest.raises(InputError):
            repository.write(run, [batch(["a"]), broken])
        assert repository.records().inputs == 0

    def test_unknown_run_is_refused(self, repository: Repository) -> None:
        """Records belong to a run that was started.

        Troubleshooting: raise `InputError`; a run of another process must be joined first with
        `start_run(run=...)`.
        """
        with pytest.raises(InputError):
            repository.write("never-started", [batch(["a"])])

    # Which records count

    def test_later_record_of_an_id_counts(self, repository: Repository) -> None:
        """The same id again in the same epoch and data set replaces the earlier record.

        Troubleshooting: `replaced` counts what is hidden. Another epoch or another data set is
        another record.
        """
        run = repository.start_run("training")
        again = batch(["b", "a"], seed=1)
        repository.write(run, [batch(["a", "b", "c"]), again])
        repository.write(run, [batch(["a"], n_epoch=1, seed=2)])
        repository.write(run, [batch(["a"], dataset_type="test", seed=3)])
        records = repository.records(Scope(dataset_types=("val",), n_epoch=0))
        assert records.ids().to_pylist() == ["c", "b", "a"]
        assert records.replaced == 2
        assert_array_equal(
            records.column("predicted/score")[1:], again.predicted.columns["score"].numpy()
        )
        assert repository.records().inputs == 5

    def test_scopes(self, repository: Repository) -> None:
        """Epoch, data set and run each select; the epoch None is one of its own.

        Troubleshooting: `Scope.n_epoch` is "all", a number, or None for records that were
        written without an epoch.
        """
        first, second = repository.start_run("training"), repository.start_run("training")
        repository.write(first, [batch(["a"], n_epoch=1), batch(["b"], n_epoch=None)])
        repository.write(second, [batch(["c"], n_epoch=1, dataset_type="test")])

        def ids(scope: Scope) -> list[str]:
            return list(repository.records(scope).ids().to_pylist())

        assert ids(Scope()) == ["a", "b", "c"]
        assert ids(Scope(n_epoch=1)) == ["a", "c"]
        assert ids(Scope(n_epoch=None)) == ["b"]
        assert ids(Scope(dataset_types=("test", "none"))) == ["c"]
        assert ids(Scope(runs=(first,))) == ["a", "b"]
        assert ids(Scope(n_epoch=1, runs=(second,), dataset_types=("val",))) == []
        assert repository.records().runs == (first, second)
        assert set(repository.records().n_epochs) == {1, None}

    def test_latest_epoch_goes_by_time(self, repository: Repository) -> None:
        """The latest epoch is the one written last, not the one with the largest number.

        Troubleshooting: training runs decide; what a logger or a data filter wrote counts only
        where there is no training run.
        """
        logger = repository.start_run("monitoring")
        repository.write(logger, [batch(["x"], n_epoch=4, labelled=False)])
        assert repository.latest_epoch() == 4
        run = repository.start_run("training")
        for n_epoch in (0, 7, 2):
            repository.write(run, [batch(["a"], n_epoch=n_epoch)])
        repository.write(logger, [batch(["y"], n_epoch=9, labelled=False)])
        assert repository.latest_epoch() == 2
        assert [epoch.n_epoch for epoch in repository.epochs()] == [4, 0, 7, 2, 9]
        repository.write(run, [batch(["a"], n_epoch=None)])
        assert repository.latest_epoch() is None

    def test_epochs_and_runs_tell_what_is_there(self, repository: Repository) -> None:
        """Counts are of inputs as written, replaced ones too.

        Troubleshooting: `epochs` counts by data set; `runs` lists a run once, however many
        ranks it has.
        """
        run = repository.start_run("training", rank=0, world_size=2)
        assert repository.start_run("training", run=run, rank=1, world_size=2) == run
        repository.write(run, [batch(["a", "b"]), batch(["a"]), batch(["c"], dataset_type="test")])
        (epoch,) = repository.epochs()
        assert (epoch.n_epoch, epoch.runs, dict(epoch.records)) == (
            0,
            (run,),
            {"val": 3, "test": 1},
        )
        (info,) = repository.runs()
        assert (info.run, info.purpose, info.world_size, info.records) == (run, "training", 2, 4)
        assert info.started_at.tzinfo is not None
        assert epoch.last_written.tzinfo is not None

    # Deleting

    def test_delete_epoch_counts_units(self, repository: Repository) -> None:
        """Deleting an epoch tells how many units went, by table, and leaves the others.

        Troubleshooting: units are counted, not inputs; `ground_truth` is left out when no record
        of the version has ground truth.
        """
        run = repository.start_run("training")
        counts: dict[str, Any] = {"counts": [2, 1], "actual_counts": [1, 0]}
        repository.write(run, [batch(["a", "b"], n_epoch=1, **counts), batch(["a"], n_epoch=2)])
        assert repository.delete_epoch(1) == {"extracted_feature": 3, "ground_truth": 1}
        assert repository.delete_epoch(1) == {"extracted_feature": 0, "ground_truth": 0}
        assert [epoch.n_epoch for epoch in repository.epochs()] == [2]
        repository.delete_epoch(2)
        repository.write(run, [batch(["a"], n_epoch=None, labelled=False)])
        assert repository.delete_epoch(None) == {"extracted_feature": 1}

    def test_recreate_empties(self, repository: Repository) -> None:
        """After `recreate` nothing is there, and recording can go on.

        Troubleshooting: runs that were started before stay valid.
        """
        run = repository.start_run("training")
        repository.write(run, [batch(["a", "b"])])
        repository.recreate()
        assert repository.records().inputs == 0
        assert repository.epochs() == []
        repository.write(run, [batch(["c"])])
        assert repository.records().ids().to_pylist() == ["c"]

    # Several at once

    def test_records_are_a_snapshot(self, repository: Repository) -> None:
        """What `records` has returned stays as it was, whatever is written meanwhile.

        Troubleshooting: fix the set of records when `records` is called; values may be read
        later.
        """
        run = repository.start_run("training")
        first = batch(["a", "b"])
        repository.write(run, [first])
        records = repository.records()
        repository.write(run, [batch(["b", "c"], seed=1)])
        assert records.ids().to_pylist() == ["a", "b"]
        assert_holds(records, [first])
        assert repository.records().ids().to_pylist() == ["a", "b", "c"]

    def test_opened_again(self, tmp_path: Path) -> None:
        """What `write` has returned from is found by whoever opens the folder next.

        Troubleshooting: make records durable before `write` returns; `close` must not be needed
        for that.
        """
        first = self.open(tmp_path / "records")
        written = batch(["a", "b"])
        first.write(first.start_run("training"), [written])
        second = self.open(tmp_path / "records")
        assert_holds(second.records(), [written])
        second.write(second.start_run("training"), [batch(["c"])])
        assert first.records().ids().to_pylist() == ["a", "b", "c"]
        for one in (first, second, first):
            one.close()

    def test_what_it_stands_for(self, repository: Repository) -> None:
        """A repository knows its version, task, layers and additional columns.

        Troubleshooting: the attributes of the protocol are those that the version was opened
        with.
        """
        assert repository.version.model_name
        assert repository.version.version_name
        assert repository.task
        assert repository.architecture
        assert repository.architecture_hash
        assert [dict(one) for one in repository.fields] == [dict(one) for one in self.fields]
        assert [dict(one) for one in repository.label_fields] == list(self.label_fields)

    def test_several_threads_write_and_read(self, repository: Repository) -> None:
        """Nothing is lost or mixed when several threads write while others read.

        Troubleshooting: guard what is shared between calls with a lock; batches of one thread
        keep their order.
        """
        run = repository.start_run("training")
        rounds = 8

        def write(thread: int) -> None:
            for at in range(rounds):
                ids = [f"{thread}-{at}-{k}" for k in range(3)]
                repository.write(run, [batch(ids, dataset_type=f"t{thread}", seed=at)])

        def read(_thread: int) -> None:
            for _ in range(rounds):
                records = repository.records()
                assert len(records.column("predicted/score")) == records.units == records.inputs

        with ThreadPoolExecutor(2 * THREADS) as pool:
            waiting = [pool.submit(do, one) for one in range(THREADS) for do in (write, read)]
            for one in waiting:
                one.result()
        for thread in range(THREADS):
            records = repository.records(Scope(dataset_types=(f"t{thread}",)))
            expected = [f"{thread}-{at}-{k}" for at in range(rounds) for k in range(3)]
            assert records.ids().to_pylist() == expected


def batch(
    ids: Sequence[str],
    *,
    n_epoch: int | None = 0,
    dataset_type: str = "val",
    counts: Sequence[int] | None = None,
    actual_counts: Sequence[int] | None = None,
    labelled: bool = True,
    seed: int = 0,
) -> Batch:
    """Make a batch of random values with every kind of column.

    Args:
        ids: One an input.
        n_epoch: Its epoch.
        dataset_type: Its split.
        counts: Predicted units an input; None for one each.
        actual_counts: Actual units an input; None for one each.
        labelled: Whether there is ground truth.
        seed: Of the values; also when it was recorded.
    """
    generator = torch.Generator().manual_seed(seed)
    n = len(ids) if counts is None else sum(counts)
    m = len(ids) if actual_counts is None else sum(actual_counts)
    actual = Units(
        {"label": torch.randint(CLASSES, (m,), generator=generator)}, _int32(actual_counts)
    )
    columns = {
        "prediction": torch.randint(CLASSES, (n,), generator=generator).int(),
        "score": torch.rand(n, generator=generator),
        "finite": torch.ones(n, dtype=torch.bool),
        "logits": torch.randn(n, CLASSES, generator=generator),
        "feature.stem": torch.randn(n, 5, generator=generator).half(),
    }
    return Batch(
        input_ids=list(ids),
        dataset_type=dataset_type,
        n_epoch=n_epoch,
        recorded_at=1000 + seed,
        predicted=Units(columns, _int32(counts)),
        actual=actual if labelled else None,
        fields={
            "camera": ["front" if at % 2 == 0 else None for at in range(len(ids))],
            "exposure": [0.5] * len(ids),
        },
        label_fields={"annotator": ["ann"] * len(ids)} if labelled else {},
    )


def assert_holds(records: Records, batches: Sequence[Batch]) -> None:
    """Compare records with the batches that they were written from."""
    sides: dict[str, list[Units[torch.Tensor]]] = {"predicted": [one.predicted for one in batches]}
    sides["actual"] = [one.actual for one in batches if one.actual is not None]
    for side, parts in sides.items():
        for name in parts[0].columns:
            expected = torch.cat([part.columns[name] for part in parts]).numpy()
            found = records.column(f"{side}/{name}")
            assert found.dtype == expected.dtype
            assert_array_equal(found, expected)


def _listed(records: Records, name: str) -> list[Any]:
    column: Any = records.column(name)
    return list(column.to_pylist())


def _int32(counts: Sequence[int] | None) -> torch.Tensor | None:
    return None if counts is None else torch.tensor(counts, dtype=torch.int32)
