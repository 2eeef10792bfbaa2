"""The reading view: a fixed set of records, read column by column."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sqlmodel import Session

from ml_debugger.core.errors import InputError
from ml_debugger.core.store import estimates
from ml_debugger.core.store.chunks import Chunk, ChunkSource, live_positions
from ml_debugger.core.store.columns import COUNTS, INPUT_ID
from ml_debugger.core.store.gather import Place, checked, places, read_arrow, read_plain
from ml_debugger.core.store.live import Live, LiveRows, same_type

Side = Literal["predicted", "actual"]

DATASET_TYPE = "input/dataset_type"
N_EPOCH = "input/n_epoch"
RUN = "input/run"
CONSTANTS = (DATASET_TYPE, N_EPOCH, RUN)
PART_BYTES = 64 << 20


class Records:
    """The records of a scope, in the order in which they were written.

    Never changes after it was made, whatever is written meanwhile. Of records with the same id,
    epoch and data set only the last counts: the others are not seen here. Safe to use from
    several threads; nothing is read before it is asked for.

    Inputs and units are counted separately: rows of `input/...` and `label/...` are inputs, rows
    of `predicted/...` and `actual/...` are units, in the order of their inputs.

    Attributes:
        runs: The runs that the records come from, oldest first; mixing several is for the caller
            to warn about.
        n_epochs: Their epochs, in order of writing.
        dataset_types: Their data sets, in order of writing.
    """

    def __init__(
        self,
        source: ChunkSource,
        finder: LiveRows,
        chunks: Sequence[Chunk],
        fields: Mapping[str, pa.DataType],
        known: tuple[list[pa.Array], list[Live]] | None = None,
    ) -> None:
        """Take a fixed set of chunks; made by `Repository.records`, not by callers."""
        self._source = source
        self._finder = finder
        self._chunks = tuple(chunks)
        self._fields = fields
        if known is not None:
            self._found = known
        self.runs = tuple(dict.fromkeys(chunk.run for chunk in chunks))
        self.n_epochs = tuple(dict.fromkeys(chunk.n_epoch for chunk in chunks))
        self.dataset_types = tuple(dict.fromkeys(chunk.dataset_type for chunk in chunks))

    @property
    def inputs(self) -> int:
        """How many inputs there are."""
        return _total(self._input_places)

    @property
    def units(self) -> int:
        """How many predicted units there are."""
        return _total(self._places("predicted"))

    @property
    def replaced(self) -> int:
        """How many inputs were written and then replaced by a later record of the same id."""
        return sum(chunk.inputs for chunk in self._chunks) - self.inputs

    @property
    def labelled(self) -> bool:
        """Whether any of them was recorded with ground truth."""
        return any(chunk.actuals is not None for chunk in self._chunks)

    @property
    def ragged(self) -> tuple[Side, ...]:
        """The sides on which the number of units of an input varies."""
        return tuple(
            side
            for side in get_args(Side)
            if any(f"{side}/{COUNTS}" in chunk.layout for chunk in self._chunks)
        )

    @property
    def chunks(self) -> tuple[int, ...]:
        """The numbers of the chunks that were looked at: alike only for the same records."""
        return tuple(chunk.id for chunk in self._chunks)

    def __len__(self) -> int:
        return self.inputs

    def ids(self, rows: NDArray[np.int64] | None = None) -> pa.Array:
        """Return the ids as an Arrow string array, of all inputs or of some positions.

        A 64-bit `LargeStringArray` where they take more than 2 GiB.
        """
        ids = dict(zip((chunk.id for chunk in self._chunks), self._found[0], strict=True))
        if rows is not None:
            rows = checked(rows, self.inputs, "inputs")
        return read_arrow(lambda chunk: ids[chunk.id], pa.string(), self._input_places, rows)

    def find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the position of each id among the inputs; -1 where there is none.

        An id that occurs in several epochs or data sets stands for its last record.
        """
        every = self._every_id
        wanted = pa.array(ids, every.type).dictionary_encode()
        where = pc.index_in(every, value_set=wanted.dictionary)
        hits = np.flatnonzero(where.is_valid().to_numpy())
        last = np.full(len(wanted.dictionary) + 1, -1, np.int64)  # the one more is for null
        last[where.drop_null().to_numpy()] = hits  # of several, NumPy keeps the last
        found: NDArray[np.int64] = last[wanted.indices.fill_null(-1).to_numpy()]
        return found

    def names(self) -> tuple[str, ...]:
        """Return the columns that `column` can read for all of these records.

        Columns of ground truth need to be there only where ground truth is.
        """
        common = dict.fromkeys(name for chunk in self._chunks for name in chunk.layout)
        for chunk in self._chunks:
            for name in list(common):
                if name not in chunk.layout and _expected(name, chunk):
                    del common[name]
        found = [name for name in common if not name.endswith(f"/{COUNTS}")]
        return tuple(dict.fromkeys((*CONSTANTS, *found, *self._fields)))

    def column(self, name: str, rows: NDArray[np.int64] | None = None) -> NDArray[Any] | pa.Array:
        """Read a column.

        Args:
            name: One of `names()`.
            rows: Positions to read, in any order: of inputs for `input/` and `label/`, of units
                for `predicted/` and `actual/`. None for all. Only these are read from disk.

        Returns:
            A NumPy array for units and `input/recorded_at` (nanoseconds since 1970); an Arrow
            array, with nulls where nothing was given, for ids, additional fields and the
            constants of a chunk. JSON fields are text.

        Raises:
            InputError: Some of the records lack the column; the runs are named.
        """
        side = name.partition("/")[0]
        where = self._places(side) if side in ("predicted", "actual") else self._input_places
        if rows is not None:
            rows = checked(rows, _total(where), "inputs" if side in ("input", "label") else "units")
        if name in CONSTANTS:
            return self._constant(name, rows)
        if name == INPUT_ID:
            return self.ids(rows)
        if name in self._fields:
            return read_arrow(
                lambda chunk: self._source.field(chunk, name), self._fields[name], where, rows
            )
        self._check(name, where)
        return read_plain(self._source, name, where, rows)

    def counts(self, side: Side) -> NDArray[np.int32]:
        """Return how many units each input has on a side; 0 for inputs without ground truth."""
        out = np.ones(self.inputs, np.int32)
        for place in self._input_places:
            target = out[place.start : place.start + place.length]
            column = place.chunk.layout.get(f"{side}/{COUNTS}")
            if column is not None:
                values = self._source.plain(place.chunk, column)
                target[:] = values if place.positions is None else values[place.positions]
            elif side == "actual" and place.chunk.actuals is None:
                target[:] = 0
        return out

    def parts(self, max_bytes: int = PART_BYTES) -> Iterator["Records"]:
        """Yield the same records in pieces that can be read whole.

        A piece holds whole flushes with the same columns: at most `max_bytes`, or one flush that
        is larger alone. What counts in a piece is what counts in all.
        """
        first = size = 0
        for k, chunk in enumerate(self._chunks):
            new_columns = chunk.layout != self._chunks[first].layout
            if k > first and (size + chunk.nbytes > max_bytes or new_columns):
                yield self._part(range(first, k))
                first, size = k, 0
            size += chunk.nbytes
        if self._chunks:
            yield self._part(range(first, len(self._chunks)))

    def check(self) -> None:
        """Compare everything that was written with its checksums.

        Raises:
            StoreError: Something has changed on disk.
        """
        for chunk in self._chunks:
            self._source.checked(chunk)

    def missing_estimates(self, result: str) -> "Records | None":
        """Return the part of these records that has no columns of a result yet; None if none."""
        numbers = estimates.missing(self._source.catalogue, result, self._places("predicted"))
        return self._part(numbers) if numbers else None

    def write_estimates(
        self, result: str, columns: Mapping[str, NDArray[Any]], session: Session | None = None
    ) -> None:
        """Store columns that a result derives for these records: all or none, durable on return.

        Columns stored for them before, under whatever name, are replaced. Records deleted
        meanwhile are left out.

        Args:
            result: The name of the result.
            columns: One value for each predicted unit, in order.
            session: A transaction of the catalogue to do it in; one of its own by default.
        """
        where = self._places("predicted")
        with self._source.catalogue.writing() if session is None else nullcontext(session) as one:
            estimates.write(one, result, where, columns)

    def estimates(self, result: str, name: str) -> NDArray[Any]:
        """Return a column written with `write_estimates`, for all predicted units.

        Raises:
            ResultNotFoundError: Some of them have no value; see `missing_estimates`.
        """
        return estimates.read(self._source.catalogue, result, name, self._places("predicted"))

    @cached_property
    def _found(self) -> tuple[list[pa.Array], list[Live]]:
        return self._finder.of(self._chunks)

    @cached_property
    def _every_id(self) -> pa.ChunkedArray:
        ids, live = self._found
        parts = [
            some if rows is None else some.take(pa.array(rows))
            for some, rows in zip(ids, live, strict=True)
        ]
        return pa.chunked_array(same_type(parts), None if parts else pa.string())

    @cached_property
    def _input_places(self) -> list[Place]:
        return places(self._chunks, self._found[1], [chunk.inputs for chunk in self._chunks])

    @cached_property
    def _predicted_places(self) -> list[Place]:
        return self._unit_places("predicted", [chunk.units for chunk in self._chunks])

    @cached_property
    def _actual_places(self) -> list[Place]:
        return self._unit_places("actual", [chunk.actuals or 0 for chunk in self._chunks])

    def _places(self, side: str) -> list[Place]:
        return self._predicted_places if side == "predicted" else self._actual_places

    def _unit_places(self, side: str, full: Sequence[int]) -> list[Place]:
        positions = []
        for chunk, live, size in zip(self._chunks, self._found[1], full, strict=True):
            column = chunk.layout.get(f"{side}/{COUNTS}")
            units = live
            if live is not None and column is not None:
                units = live_positions(self._source.plain(chunk, column), live)
            positions.append(units if size else None)
        return places(self._chunks, positions, full)

    def _part(self, numbers: Sequence[int]) -> "Records":
        ids, live = self._found
        chosen = [ids[k] for k in numbers], [live[k] for k in numbers]
        chunks = [self._chunks[k] for k in numbers]
        return Records(self._source, self._finder, chunks, self._fields, chosen)

    def _constant(self, name: str, rows: NDArray[np.int64] | None) -> pa.Array:
        type_ = pa.int64() if name == N_EPOCH else pa.string()
        each_value = [getattr(chunk, name.removeprefix("input/")) for chunk in self._chunks]
        values = list(dict.fromkeys(each_value))
        numbers = {value: k for k, value in enumerate(values)}
        each = np.array([numbers[value] for value in each_value], np.int32)
        codes = np.repeat(each, [place.length for place in self._input_places])
        array = pa.DictionaryArray.from_arrays(
            pa.array(codes if rows is None else codes[rows]), pa.array(values, type_)
        )
        return array.cast(type_) if name == N_EPOCH else array

    def _check(self, name: str, where: Sequence[Place]) -> None:
        lacking = [one.chunk for one in where if one.length and name not in one.chunk.layout]
        if not lacking and (not where or any(name in one.chunk.layout for one in where)):
            return
        known = self.names()
        near = get_close_matches(name, known, n=3) or known
        having = dict.fromkeys(c.run for c in self._chunks if name in c.layout)
        if not having:
            raise InputError(f"no column {name!r}; the nearest are: {', '.join(near)}")
        without = dict.fromkeys(chunk.run for chunk in lacking)
        raise InputError(
            f"column {name!r} was recorded in run {', '.join(having)}, but not in all records of "
            f"run {', '.join(without)}; choose runs with Scope.runs, or a column of all: "
            f"{', '.join(known)}"
        )


def _expected(name: str, chunk: Chunk) -> bool:
    return chunk.actuals is not None or not name.startswith(("actual/", "label/"))


def _total(where: Sequence[Place]) -> int:
    return where[-1].start + where[-1].length if where else 0
