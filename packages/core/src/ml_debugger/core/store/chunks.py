"""Chunks as readers see them: where a flush's arrays lie, and how to get at their bytes."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlmodel import Session, col, select

from ml_debugger.core.errors import StoreError
from ml_debugger.core.store.catalogue import Catalogue
from ml_debugger.core.store.columns import INPUT_ID, Column, Layout, decode
from ml_debugger.core.store.segments import Bytes, Segments, as_bytes, checksum
from ml_debugger.core.store.tables import ChunkRow, LayoutRow, RunRow, SegmentRow

MOVES = 5  # how often a chunk may be found moved during one read before we give up


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """What the catalogue says of a chunk; see `ChunkRow`."""

    id: int
    run: str
    n_epoch: int | None
    dataset_type: str
    inputs: int
    units: int
    actuals: int | None
    segment: str
    offset: int
    nbytes: int
    crc: int
    layout: Layout
    spans: NDArray[np.int64]

    def length(self, column: Column) -> int:
        """Return how many values a column has."""
        side, _, name = column.name.partition("/")
        if side in ("input", "label") or name == "#counts":
            return self.inputs
        return self.units if side == "predicted" else self.actuals or 0


class ChunkSource:
    """Loads chunks from the catalogue and their bytes from the segments; thread-safe."""

    def __init__(self, catalogue: Catalogue, segments: Segments) -> None:
        self.catalogue = catalogue
        self.segments = segments
        self._layouts: dict[int, Layout] = {}
        self._moved: dict[int, tuple[str, int]] = {}
        self._lock = threading.Lock()

    def load(self, session: Session, *conditions: Any) -> tuple[Chunk, ...]:
        """Return the chunks that fit conditions on `ChunkRow` and `RunRow`, oldest first."""
        rows: Sequence[Any] = session.execute(_QUERY.where(*conditions)).all()
        missing = {row[-2] for row in rows} - self._layouts.keys()
        if missing:
            found = session.exec(select(LayoutRow).where(col(LayoutRow.id).in_(missing)))
            self._layouts.update({one.id or 0: Layout.parse(one.columns) for one in found})
        chunks = []
        for row in rows:
            spans = np.frombuffer(row[-1], np.int64).reshape(-1, 2)
            values: list[Any] = [*row[:-2], self._layouts[row[-2]], spans]
            chunks.append(Chunk(*values))
        return tuple(chunks)

    def read(self, chunk: Chunk, start: int, out: Bytes) -> None:
        """Fill `out` with a chunk's bytes from `start` on, wherever compaction has put them."""
        if not out.nbytes:
            return None
        segment, offset = self._moved.get(chunk.id, (chunk.segment, chunk.offset))
        for _ in range(MOVES):
            try:
                return self.segments.read(segment, offset + start, out)
            except FileNotFoundError:
                segment, offset = self._find(chunk)
        raise StoreError(f"chunk {chunk.id} keeps moving; wait for compaction to end and retry")

    def plain(self, chunk: Chunk, column: Column) -> NDArray[Any]:
        """Read a whole column of plain numbers."""
        values: NDArray[Any] = np.empty((chunk.length(column), *column.shape), column.type)
        self.read(chunk, int(chunk.spans[column.first, 0]), as_bytes(values))
        return values

    def arrow(self, chunk: Chunk, column: Column) -> pa.Array:
        """Read a whole Arrow column, in one go, since its buffers lie next to each other."""
        assert column.arrow is not None  # the caller has looked at the column's type
        spans = chunk.spans[column.first : column.first + column.arrow.num_buffers]
        data = as_bytes(np.empty(int(spans[-1].sum() - spans[0, 0]), np.uint8))
        self.read(chunk, int(spans[0, 0]), data)
        try:
            return decode(column, chunk.length(column), spans, data)
        except pa.ArrowException as error:
            raise self._damaged(chunk) from error

    def checked(self, chunk: Chunk) -> Bytes:
        """Read all of a chunk, and compare it with its checksum.

        Raises:
            StoreError: It has changed on disk.
        """
        data = as_bytes(np.empty(chunk.nbytes, np.uint8))
        self.read(chunk, 0, data)
        if checksum([data]) != chunk.crc:
            raise self._damaged(chunk)
        return data

    def field(self, chunk: Chunk, name: str) -> pa.Array | None:
        """Read a whole Arrow column by name; None where the chunk does not have it."""
        column = chunk.layout.get(name)
        return None if column is None else self.arrow(chunk, column)

    def ids(self, chunk: Chunk) -> pa.Array:
        """Read the ids of all inputs, replaced ones too."""
        return self.arrow(chunk, chunk.layout[INPUT_ID])

    def _damaged(self, chunk: Chunk) -> StoreError:
        return StoreError(
            f"records of run {chunk.run} (epoch {chunk.n_epoch}, {chunk.dataset_type}) have "
            f"changed on disk, in {self.segments.place(chunk.segment)}; restore it, or find all "
            "that is affected with `ml-debugger doctor`"
        )

    def _find(self, chunk: Chunk) -> tuple[str, int]:
        with self.catalogue.reading() as session:
            place = session.exec(
                select(SegmentRow.name, ChunkRow.offset)
                .join(ChunkRow, col(ChunkRow.segment_id) == SegmentRow.id)
                .where(ChunkRow.id == chunk.id)
            ).first()
        if place is None:
            raise StoreError(
                f"records of run {chunk.run} (epoch {chunk.n_epoch}, {chunk.dataset_type}) were "
                "deleted while they were read; ask the repository for its records again"
            )
        if place == (self._moved.get(chunk.id) or (chunk.segment, chunk.offset)):
            raise StoreError(
                f"{self.segments.place(place[0])} is missing; restore it, or find what is affected "
                "with `ml-debugger doctor`"
            )
        with self._lock:
            self._moved[chunk.id] = place
        return place


def live_positions(counts: NDArray[Any], inputs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions of the units of some inputs, given how many each input has."""
    sizes = counts[inputs].astype(np.int64)
    starts = np.cumsum(counts, dtype=np.int64) - counts
    shift = starts[inputs] - (np.cumsum(sizes) - sizes)
    return np.repeat(shift, sizes) + np.arange(sizes.sum())


_COLUMNS: Sequence[Any] = (
    ChunkRow.id,
    RunRow.uuid,
    ChunkRow.n_epoch,
    ChunkRow.dataset_type,
    ChunkRow.inputs,
    ChunkRow.units,
    ChunkRow.actuals,
    SegmentRow.name,
    ChunkRow.offset,
    ChunkRow.nbytes,
    ChunkRow.crc,
    ChunkRow.layout_id,
    ChunkRow.buffers,
)
_QUERY: Any = (
    select(*_COLUMNS)
    .join(RunRow, col(RunRow.id) == ChunkRow.run_id)
    .join(SegmentRow, col(SegmentRow.id) == ChunkRow.segment_id)
    .order_by(col(ChunkRow.id))
)
