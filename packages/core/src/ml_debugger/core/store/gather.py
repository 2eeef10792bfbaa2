"""Reading columns across chunks: all rows straight into one array, or only the rows asked for."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ml_debugger.core.errors import InputError
from ml_debugger.core.store.chunks import Chunk, ChunkSource
from ml_debugger.core.store.columns import Column, width
from ml_debugger.core.store.live import Live, same_type
from ml_debugger.core.store.segments import as_bytes

Rows = NDArray[np.int64]

SPAN_BYTES = 1 << 15  # reading on over a gap this long costs about as much as another call
PARALLEL_BYTES = 1 << 26  # below, starting threads costs more than it saves
THREADS = min(4, os.cpu_count() or 1)


class Place(NamedTuple):
    """A chunk's share of some rows.

    Attributes:
        chunk: Where they lie.
        positions: Which of the chunk's rows; None for all.
        start: The number of its first row among all.
        length: How many there are.
    """

    chunk: Chunk
    positions: Live
    start: int
    length: int

    def column(self, name: str) -> Column:
        """Return the column that is known to be there."""
        return self.chunk.layout[name]


def places(chunks: Sequence[Chunk], positions: Sequence[Live], full: Sequence[int]) -> list[Place]:
    """Number the rows of chunks through, given how many a chunk has where all count."""
    found, start = [], 0
    for chunk, some, size in zip(chunks, positions, full, strict=True):
        length = size if some is None else len(some)
        found.append(Place(chunk, some, start, length))
        start += length
    return found


def read_plain(
    source: ChunkSource, name: str, where: Sequence[Place], rows: Rows | None
) -> NDArray[Any]:
    """Read a column of plain numbers.

    Args:
        source: Where chunks are read from.
        name: The column; each place with rows has it.
        where: The places.
        rows: Numbers of the rows to read, in any order; None for all.

    Raises:
        InputError: Chunks hold values of different shapes under this name.
    """
    total = where[-1].start + where[-1].length if where else 0
    filled = [one for one in where if one.length] or [o for o in where if name in o.chunk.layout]
    dtype, shape = _common(name, filled[:1] if not total else filled)
    if rows is None:
        out = np.empty((total, *shape), dtype)
        _fill(source, name, filled if total else [], out)
        return out
    out = np.empty((len(rows), *shape), dtype)
    for place, picked, local in _split(where, rows):
        out[picked] = _read_some(source, place, place.column(name), local)
    return out


def read_arrow(
    get: Callable[[Chunk], pa.Array | None],
    type_: pa.DataType,
    where: Sequence[Place],
    rows: Rows | None,
) -> pa.Array:
    """Read an Arrow column.

    Args:
        get: Returns all values of a chunk; None where it does not have the column, and null is
            read.
        type_: What is returned, where the chunks do not need 64-bit offsets.
        where: The places.
        rows: Numbers of the rows to read, in any order; None for all.
    """
    if rows is None:
        parts = [_take(get, type_, one, one.positions) for one in where if one.length]
        return _joined(parts, type_)
    parts, order = [], []
    for place, picked, local in _split(where, rows):
        parts.append(_take(get, type_, place, local))
        order.append(picked)
    whole = _joined(parts, type_)
    back = np.empty(len(rows), np.int64)
    if order:
        back[np.concatenate(order)] = np.arange(len(rows))
    return whole.take(pa.array(back))


def checked(rows: Any, total: int, what: str) -> Rows:
    """Return positions as an array.

    Raises:
        InputError: They are not positions, or lead beyond the end.
    """
    array = np.asarray(rows)
    if array.size and array.dtype.kind not in "iu":
        raise InputError(f"rows are positions (whole numbers), not {array.dtype}")
    array = array.astype(np.int64, copy=False).reshape(-1)
    if array.size and (array.min() < 0 or array.max() >= total):
        raise InputError(
            f"rows reach from {array.min()} to {array.max()}; there are {total} {what}"
        )
    return array


def _common(name: str, where: Sequence[Place]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    if not where:
        return np.dtype(np.float64), ()
    columns = [place.column(name) for place in where]
    shape = columns[0].shape
    for place, column in zip(where, columns, strict=True):
        if column.shape != shape:
            raise InputError(
                f"{name} has values of shape {shape} in run {where[0].chunk.run} and "
                f"{column.shape} in run {place.chunk.run}; choose one run with Scope.runs"
            )
    return np.result_type(*{column.type for column in columns}), shape


def _fill(source: ChunkSource, name: str, where: Sequence[Place], out: NDArray[Any]) -> None:
    def one(place: Place) -> None:
        target = out[place.start : place.start + place.length]
        column = place.column(name)
        if place.positions is None and np.dtype(column.type) == out.dtype:
            source.read(place.chunk, int(place.chunk.spans[column.first, 0]), as_bytes(target))
        elif place.positions is None:
            target[:] = source.plain(place.chunk, column)
        else:
            target[:] = _read_some(source, place, column, place.positions)

    if out.nbytes < PARALLEL_BYTES or len(where) < 2 or THREADS < 2:
        for place in where:
            one(place)
        return
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(one, where):
            pass


def _split(where: Sequence[Place], rows: Rows) -> Iterator[tuple[Place, Rows, Rows]]:
    """Yield each place that has some of the rows, which of them, and their chunk positions."""
    if not len(rows):
        return
    starts = np.array([place.start for place in where])
    owner = np.searchsorted(starts, rows, side="right") - 1
    order = np.argsort(owner, kind="stable")
    bounds = np.flatnonzero(np.diff(owner[order], prepend=-1, append=len(where)))
    for first, last in pairwise(bounds):
        picked = order[first:last]
        place = where[owner[picked[0]]]
        local = rows[picked] - place.start
        yield place, picked, local if place.positions is None else place.positions[local]


def _read_some(source: ChunkSource, place: Place, column: Column, local: Rows) -> NDArray[Any]:
    """Read some rows of a chunk, skipping over long gaps between them."""
    size = width(column)
    origin = int(place.chunk.spans[column.first, 0])
    ranks: NDArray[Any] = np.arange(len(local))
    if len(local) > 1 and (np.diff(local) < 0).any():
        ranks = np.argsort(local, kind="stable")
    ordered = local[ranks]
    gap = max(1, SPAN_BYTES // max(1, size))
    cuts = np.flatnonzero(np.diff(ordered) > gap) + 1
    out = np.empty((len(local), *column.shape), column.type)
    for picked in np.split(ranks, cuts):
        low, high = int(local[picked[0]]), int(local[picked[-1]])
        span: NDArray[Any] = np.empty((high + 1 - low, *column.shape), column.type)
        source.read(place.chunk, origin + low * size, as_bytes(span))
        out[picked] = span[local[picked] - low]
    return out


def _take(
    get: Callable[[Chunk], pa.Array | None], type_: pa.DataType, place: Place, positions: Live
) -> pa.Array:
    values = get(place.chunk)
    if values is None:
        return pa.nulls(place.length if positions is None else len(positions), type_)
    return values if positions is None else values.take(pa.array(positions))


def _joined(parts: Sequence[pa.Array], type_: pa.DataType) -> pa.Array:
    return pa.concat_arrays(same_type(parts)) if parts else pa.array([], type_)
