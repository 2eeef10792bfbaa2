"""Records as Arrow tables, for files that are handed over, and back."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from ml_debugger.core.records import Batch, Units, owners
from ml_debugger.core.store.chunks import live_positions
from ml_debugger.core.store.columns import COUNTS, FIELD_TYPES, INPUT_ID, RECORDED_AT
from ml_debugger.core.store.records import DATASET_TYPE, N_EPOCH, RUN, Records, Side

#: The tables of a part: one row an input, a predicted unit, an actual unit.
INPUT = "input"
TABLES: Mapping[str, Side] = {"extracted_feature": "predicted", "ground_truth": "actual"}

KEYS: Mapping[str, pa.DataType] = {
    INPUT_ID: pa.string(),
    DATASET_TYPE: pa.string(),
    N_EPOCH: pa.int64(),
    RUN: pa.string(),
}
NAMES = {INPUT_ID: "input_id", DATASET_TYPE: "dataset_type", N_EPOCH: "n_epoch", RUN: "run"}


class Numbers(NamedTuple):
    """A column of plain numbers, as a manifest describes it."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def arrow(self) -> pa.DataType:
        """The type of its Arrow column: a list of fixed size where a value is a vector."""
        value = pa.from_numpy_dtype(np.dtype(self.type))
        return pa.list_(value, math.prod(self.shape)) if self.shape else value

    @property
    def stored(self) -> bool:
        """Whether there is anything to store; vectors of width 0 have only a shape."""
        return math.prod(self.shape) > 0

    @property
    def nbytes(self) -> int:
        """The memory of one value."""
        return np.dtype(self.type).itemsize * math.prod(self.shape)


class Part(NamedTuple):
    """Some records with the same columns: three tables, and what they mean.

    Attributes:
        columns: The columns of units, `predicted/...` and `actual/...`.
        ragged: The sides on which the number of units varies.
        tables: By name; `ground_truth` is missing where there is none.
    """

    columns: tuple[Numbers, ...]
    ragged: tuple[str, ...]
    tables: dict[str, pa.Table]


def to_part(records: Records) -> Part:
    """Read records, which must all have the same columns, into tables."""
    names = records.names()
    keys = {name: _flat(records.column(name), type_) for name, type_ in KEYS.items()}
    times = records.column(RECORDED_AT)
    fields = {
        name: records.column(name)
        for name in names
        if name.startswith(("input/", "label/")) and name not in (*KEYS, RECORDED_AT)
    }
    inputs = {**keys, RECORDED_AT: pa.array(times), **fields}
    tables, columns = {}, []
    for table, side in TABLES.items():
        counts = records.counts(side)
        inputs[f"{side}/{COUNTS}"] = pa.array(counts)
        if side == "actual" and not records.labelled:
            continue
        owner = pa.array(owners(counts, len(counts)))
        content = {NAMES[name]: values.take(owner) for name, values in keys.items()}
        moments = pa.array(times, pa.timestamp("ns", tz="UTC"))
        content["recorded_at"] = moments.take(owner)
        own = [name for name in names if name.startswith(f"{side}/")]
        taken = {*content, *(name.partition("/")[2] for name in own)}
        start = "input/" if side == "predicted" else "label/"
        for name, values in fields.items():
            if name.startswith(start):
                short = name.partition("/")[2]
                content[name if short in taken else short] = values.take(owner)
        for name in own:
            values = records.column(name)
            column = Numbers(name, values.dtype.str, values.shape[1:])
            columns.append(column)
            if column.stored:
                content[name.partition("/")[2]] = _to_arrow(values, column)
        tables[table] = pa.table(content)
    tables[INPUT] = pa.table(inputs)
    return Part(tuple(columns), records.ragged, tables)


def input_types(
    fields: Mapping[str, str], label_fields: Mapping[str, str]
) -> dict[str, pa.DataType]:
    """Return the types that the columns of the input table have, given fields and their types."""
    sides = {"input": fields, "label": label_fields}
    return {
        **KEYS,
        RECORDED_AT: pa.int64(),
        **{f"{s}/{k}": FIELD_TYPES[kind] for s, one in sides.items() for k, kind in one.items()},
        **{f"{side}/{COUNTS}": pa.int32() for side in TABLES.values()},
    }


class Incoming:
    """A part that was read from a file, as batches."""

    def __init__(self, part: Part) -> None:
        self._part = part
        table = part.tables[INPUT]
        self.ids: list[str] = table[INPUT_ID].to_pylist()
        self.times: NDArray[np.int64] = table[RECORDED_AT].to_numpy()
        self._keys = [table[name].to_pylist() for name in (RUN, N_EPOCH, DATASET_TYPE)]
        self._counts = {s: table[f"{s}/{COUNTS}"].to_numpy() for s in TABLES.values()}
        self._fields = {
            side: {
                name.partition("/")[2]: table[name].to_pylist()
                for name in table.column_names
                if name.startswith(f"{side}/") and name not in (*KEYS, RECORDED_AT)
            }
            for side in ("input", "label")
        }

    def groups(self) -> Iterator[tuple[tuple[str, int | None, str], NDArray[np.int64]]]:
        """Yield each run, epoch and data set with the positions of its inputs."""
        found: dict[tuple[str, int | None, str], list[int]] = {}
        for k, key in enumerate(zip(*self._keys, strict=True)):
            found.setdefault(key, []).append(k)
        for key, rows in found.items():
            yield key, np.array(rows, np.int64)

    def batches(self, rows: NDArray[np.int64]) -> Iterator[Batch]:
        """Yield inputs of one group as they were recorded, a batch for each time of recording."""
        for some in np.split(rows, np.flatnonzero(np.diff(self.times[rows])) + 1):
            if not len(some):
                continue
            first = int(some[0])
            labelled = "ground_truth" in self._part.tables
            yield Batch(
                input_ids=[self.ids[k] for k in some],
                dataset_type=self._keys[2][first],
                n_epoch=self._keys[1][first],
                recorded_at=int(self.times[first]),
                predicted=self._units("extracted_feature", some),
                actual=self._units("ground_truth", some) if labelled else None,
                fields=_chosen(self._fields["input"], some),
                label_fields=_chosen(self._fields["label"], some) if labelled else {},
            )

    def _units(self, table: str, rows: NDArray[np.int64]) -> Units[torch.Tensor]:
        side = TABLES[table]
        counts = self._counts[side]
        units = live_positions(counts, rows)
        content = self._part.tables[table]
        columns = {}
        for column in self._part.columns:
            if column.name.startswith(f"{side}/"):
                name = column.name.partition("/")[2]
                values = _to_numpy(content, name, column, units)
                columns[name] = torch.from_numpy(values)
        ragged = torch.from_numpy(counts[rows]) if side in self._part.ragged else None
        return Units(columns, ragged)


def text_bytes(table: pa.Table) -> int:
    """Return the memory that the text of a table takes, dictionaries spelt out."""
    total = 0
    for column in table.columns:
        for chunk in column.chunks:
            if pa.types.is_dictionary(chunk.type):
                sizes = pc.binary_length(chunk.dictionary)
                total += pc.sum(sizes.take(chunk.indices)).as_py() or 0
    return total


def _flat(values: pa.Array, type_: pa.DataType) -> pa.Array:
    return values.cast(type_) if pa.types.is_dictionary(values.type) else values


def _to_arrow(values: NDArray[Any], column: Numbers) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    if not column.shape:
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, math.prod(column.shape))


def _to_numpy(table: pa.Table, name: str, column: Numbers, rows: NDArray[np.int64]) -> NDArray[Any]:
    out = np.zeros((len(rows), *column.shape), column.type)
    if column.stored and len(rows):
        low, high = int(rows.min()), int(rows.max()) + 1
        values = table[name].slice(low, high - low).combine_chunks()
        if isinstance(values, pa.ChunkedArray):
            values = pa.concat_arrays(values.chunks)
        flat = (values.flatten() if column.shape else values).to_numpy(zero_copy_only=False)
        out[:] = flat.reshape(-1, *column.shape)[rows - low]
    return out


def _chosen(fields: Mapping[str, list[Any]], rows: NDArray[np.int64]) -> dict[str, list[Any]]:
    return {name: [values[k] for k in rows] for name, values in fields.items()}
