"""The units that an evaluation is about, read from the store column by column."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ml_debugger.core.evaluation.estimator import Observations
from ml_debugger.core.evaluation.options import EvaluationOptions
from ml_debugger.core.records import Array, Units, owners
from ml_debugger.core.store import Records
from ml_debugger.core.task import Verdict

#: Says what each predicted unit should have been; see `Task.judge`.
Judge = Callable[[Units[Array], Units[Array], EvaluationOptions], Verdict]

_INPUT = {
    "input_id": "input/id",
    "dataset_type": "input/dataset_type",
    "n_epoch": "input/n_epoch",
    "run": "input/run",
}


@dataclass(frozen=True)
class Part:
    """Some labelled records that can be read whole, and where their units lie among all."""

    records: Records
    start: int
    stop: int

    def rows_within(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which of some ascending unit numbers lie here, counted from this part's first."""
        first, last = np.searchsorted(rows, [self.start, self.stop])
        return rows[first:last] - self.start


class LabelledUnits:
    """The predicted units of labelled inputs, in the order in which they were written.

    Attributes:
        parts: The records they lie in.
        layers: The layers that all of them have features of, as wide everywhere: module path by
            alias.
        verdict: What is true of them; without what was missed, for which see `truths`.
        judged: Whether each unit counts.
        prediction: Predicted class of each unit, int64.
        score: The model's confidence in each, float32.
        finite: Whether what was recorded of each is finite.
    """

    def __init__(
        self,
        parts: Sequence[Records],
        layers: Mapping[str, str],
        judge: Judge,
        options: EvaluationOptions,
    ) -> None:
        stops = np.cumsum([part.units for part in parts])
        starts = [0, *stops.tolist()]
        self.parts = [
            Part(part, start, start + part.units)
            for part, start in zip(parts, starts[:-1], strict=True)
        ]
        names = set.intersection(*(set(part.names()) for part in parts if part.units))
        self.layers = {
            alias: path
            for alias, path in layers.items()
            if f"predicted/feature.{alias}" in names and _is_one_width(parts, f"feature.{alias}")
        }
        self._has_logits = "predicted/logits" in names
        self._has_statistics = "predicted/statistics" in names
        verdicts = [judge(_units(p, "predicted"), _units(p, "actual"), options) for p in parts]
        self._missed = [one.missed for one in verdicts]
        self.verdict = _all(verdicts)
        judged = self.verdict.judged
        self.judged = np.ones(int(stops[-1]), np.bool_) if judged is None else judged
        self.prediction = _joined([_plain(one, "prediction", np.int64) for one in parts])
        self.score = _joined([_plain(one, "score", np.float32) for one in parts])
        self.finite = _joined([_plain(one, "finite", np.bool_) for one in parts])

    def __len__(self) -> int:
        return len(self.prediction)

    @property
    def target(self) -> NDArray[np.int64]:
        """True class of each unit; -1 where none of the model's classes is right."""
        return self.verdict.target

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Whether each prediction is wrong."""
        wrong: NDArray[np.bool_] = self.target != self.prediction
        return wrong

    def observations(self, rows: NDArray[np.int64]) -> Observations:
        """Read what an error model looks at, of some units given in ascending order."""
        within = [(part, part.rows_within(rows)) for part in self.parts]
        chosen = [(part.records, local) for part, local in within if len(local)]

        def read(name: str) -> Array:
            found = [np.asarray(part.column(f"predicted/{name}", at)) for part, at in chosen]
            return np.concatenate(found) if len(found) != 1 else found[0]

        return Observations(
            features={alias: read(f"feature.{alias}") for alias in self.layers},
            prediction=self.prediction[rows],
            score=self.score[rows],
            logits=read("logits") if self._has_logits else None,
            statistics=read("statistics") if self._has_statistics else None,
        ).recorded_as(self.finite[rows])

    def column(self, name: str) -> Array:
        """Return a predicted scalar column of all units."""
        return _joined([np.asarray(one.records.column(f"predicted/{name}")) for one in self.parts])

    def inputs(self) -> pa.Table:
        """Return the inputs that the units belong to, also those without a unit.

        One row each: `input_id`, `dataset_type`, `n_epoch`, `run`, how many `units` it has and how
        many are `wrong`, how many actual ones are `missed`, and its other columns.
        """
        tables = []
        for part, missed in zip(self.parts, self._missed, strict=True):
            records = part.records
            counts = records.counts("predicted")
            owner = owners(counts, len(counts))
            wrong = (self.wrong & self.judged)[part.start : part.stop]
            judged = self.judged[part.start : part.stop]
            columns = {name: _plain_text(records.column(full)) for name, full in _INPUT.items()}
            columns["units"] = pa.array(np.bincount(owner, judged, len(counts)).astype(np.int64))
            columns["wrong"] = pa.array(np.bincount(owner, wrong, len(counts)).astype(np.int64))
            if missed is not None:
                truths = records.counts("actual")
                of_truths = owners(truths, len(truths))
                lost = np.bincount(of_truths, missed, len(truths)).astype(np.int64)
                columns["missed"] = pa.array(lost)
            for full in self.fields():
                side, _, name = full.partition("/")
                if side == "input":
                    columns[name] = _plain_text(records.column(full))
            tables.append(pa.table(columns))
        return pa.concat_tables(tables)

    def counts(self) -> NDArray[np.int64]:
        """Return how many units each input has, in the order of `inputs`."""
        return _joined([np.asarray(one.records.counts("predicted")) for one in self.parts])

    def truths(self) -> pa.Table | None:
        """Return the actual units; None for a task in which none can be missed.

        One row each: `input_id`, `dataset_type`, `n_epoch`, `run`, the scalar columns of the
        ground truth, and `missed`.
        """
        tables = []
        for part, missed in zip(self.parts, self._missed, strict=True):
            if missed is None:
                return None
            records = part.records
            counts = records.counts("actual")
            at = pa.array(owners(counts, len(counts)))
            columns = {
                name: _plain_text(records.column(full)).take(at) for name, full in _INPUT.items()
            }
            for full in records.names():
                side, _, name = full.partition("/")
                if side == "actual" and not name.startswith("#"):
                    values = np.asarray(records.column(full))
                    columns |= {name: pa.array(values)} if values.ndim == 1 else {}
            tables.append(pa.table({**columns, "missed": missed}))
        return pa.concat_tables(tables)

    def groups(self) -> NDArray[np.int64] | None:
        """Number the inputs that units belong to; None where each unit is an input of its own.

        The same id in several epochs is one input: its units must not judge each other. Numbered
        by data set and id, so that the order of the records decides nothing.
        """
        table = pa.table(
            {
                "dataset_type": self.of_inputs("input/dataset_type"),
                "id": self.of_inputs("input/id"),
            }
        )
        if len(self) == 0:
            return None
        codes = [c.combine_chunks().dictionary_encode() for c in table.itercolumns()]
        kind, one = (_ranks(code) for code in codes)
        numbers: NDArray[np.int64] = kind * (int(one.max()) + 1) + one
        return numbers if len(np.unique(numbers)) < len(numbers) else None

    def of_inputs(self, name: str) -> pa.ChunkedArray:
        """Return an `input/` or `label/` column, one value a unit; null where there is none."""
        pieces = []
        for part in self.parts:
            values = _plain_text(part.records.column(name))
            counts = part.records.counts("predicted")
            if not (counts == 1).all():
                values = values.take(pa.array(owners(counts, len(counts))))
            pieces.append(values)
        return pa.chunked_array(pieces)

    def fields(self) -> list[str]:
        """Return the additional columns of these records, as `input/<name>`, `label/<name>`."""
        names = dict.fromkeys(name for part in self.parts for name in part.records.names())
        own = {"input/id", "input/dataset_type", "input/n_epoch", "input/run", "input/recorded_at"}
        return [name for name in names if name.startswith(("input/", "label/")) and name not in own]


def _ranks(codes: pa.DictionaryArray) -> NDArray[np.int64]:
    """Return the place of each value among the different ones in their order, shape (n,)."""
    order = pc.sort_indices(codes.dictionary).to_numpy()
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    ranks: NDArray[np.int64] = place[codes.indices.to_numpy(zero_copy_only=False)]
    return ranks


def _is_one_width(parts: Sequence[Records], name: str) -> bool:
    one = np.zeros(1, np.int64)
    shapes = {np.shape(part.column(f"predicted/{name}", one))[1:] for part in parts if part.units}
    return len(shapes) <= 1


def _plain_text(values: Any) -> Any:
    """Return a column as an Arrow array without a dictionary."""
    values = pa.array(values) if isinstance(values, np.ndarray) else values
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _all(verdicts: Sequence[Verdict]) -> Verdict:
    """Put the verdicts on the units of several parts one after another."""
    first = verdicts[0]

    def joined(name: str) -> Any:
        if getattr(first, name) is None:
            return None
        return np.concatenate([getattr(one, name) for one in verdicts])

    return Verdict(
        target=np.asarray(joined("target"), np.int64),
        label=joined("label"),
        judged=joined("judged"),
        aspects={n: np.concatenate([one.aspects[n] for one in verdicts]) for n in first.aspects},
        kind=joined("kind"),
        columns={n: np.concatenate([one.columns[n] for one in verdicts]) for n in first.columns},
    )


def _units(part: Records, side: Literal["predicted", "actual"]) -> Units[Array]:
    counts = part.counts(side)
    return Units(_Columns(part, side), None if (counts == 1).all() else counts)


class _Columns(Mapping[str, Array]):
    """The columns of one side of some records, each read when it is asked for."""

    def __init__(self, records: Records, side: str) -> None:
        self._records = records
        self._side = side

    def __getitem__(self, name: str) -> Array:
        return np.asarray(self._records.column(f"{self._side}/{name}"))

    def __iter__(self) -> Iterator[str]:
        start = f"{self._side}/"
        return (n.removeprefix(start) for n in self._records.names() if n.startswith(start))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _plain(part: Records, name: str, dtype: Any) -> NDArray[Any]:
    return np.asarray(part.column(f"predicted/{name}"), dtype)


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(arrays)
