"""Giving space back, and checking that what the catalogue promises is on disk."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from sqlalchemy import delete, update
from sqlmodel import col, select

from ml_debugger.core.errors import StoreError
from ml_debugger.core.store.catalogue import Catalogue
from ml_debugger.core.store.segments import (
    SUFFIX,
    Bytes,
    SegmentReader,
    Segments,
    SegmentWriter,
    as_bytes,
    checksum,
)
from ml_debugger.core.store.tables import ChunkRow, RunRow, SegmentRow

DEAD_SHARE = 0.5


def compact(catalogue: Catalogue, folder: Path) -> int:
    """Rewrite segments of which more than half is dead, and return the bytes given back.

    Safe beside writers and readers of any process: a segment that somebody appends to is left
    alone, chunks move in one transaction, and a reader that finds a file gone looks up where its
    chunk is now.
    """
    freed = 0
    for path in sorted(folder.glob("*" + SUFFIX)):
        freed += _compact_one(catalogue, folder, path)
    return freed


def verify(catalogue: Catalogue, segments: Segments) -> list[str]:
    """Return what is wrong with the store, in words; empty when it is sound."""
    problems = catalogue.check()
    with catalogue.reading() as session:
        query = (
            select(ChunkRow, SegmentRow.name, RunRow.uuid)
            .join(SegmentRow, col(SegmentRow.id) == ChunkRow.segment_id)
            .join(RunRow, col(RunRow.id) == ChunkRow.run_id)
            .order_by(col(ChunkRow.segment_id), col(ChunkRow.offset))
        )
        chunks = [(chunk.model_copy(), name, run) for chunk, name, run in session.exec(query)]
    for chunk, name, run in chunks:
        what = f"{chunk.inputs} inputs of run {run}, epoch {chunk.n_epoch}, {chunk.dataset_type}"
        try:
            data = _read(segments, name, chunk)
        except FileNotFoundError:
            problems.append(f"{segments.place(name)} is missing; it holds {what}")
        except StoreError as error:
            problems.append(f"{error} ({what})")
        else:
            if checksum([data]) != chunk.crc:
                problems.append(f"{segments.place(name)} has changed on disk; affected: {what}")
    return problems


def _compact_one(catalogue: Catalogue, folder: Path, path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0  # another process compacts too
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        # Only now that nobody can append are the rows of this segment complete.
        chunks = _chunks_of(catalogue, path.stem)
        size = os.fstat(fd).st_size
        live = sum(chunk.nbytes for chunk in chunks)
        if chunks and size - live <= DEAD_SHARE * size:
            return 0
        _move(catalogue, folder, path.stem, chunks)
        with suppress(FileNotFoundError):
            path.unlink()
        return size - live
    finally:
        os.close(fd)


def _chunks_of(catalogue: Catalogue, name: str) -> list[ChunkRow]:
    with catalogue.reading() as session:
        query = (
            select(ChunkRow)
            .join(SegmentRow, col(SegmentRow.id) == ChunkRow.segment_id)
            .where(SegmentRow.name == name)
            .order_by(col(ChunkRow.id))
        )
        return [chunk.model_copy() for chunk in session.exec(query)]


def _move(catalogue: Catalogue, folder: Path, name: str, chunks: Sequence[ChunkRow]) -> None:
    """Move what is left of a segment to a new one, if anything is, and forget the segment."""
    reader, writer = SegmentReader(folder), SegmentWriter(folder)

    def pieces() -> Iterator[Bytes]:
        for chunk in chunks:
            data = _read(reader, name, chunk)
            if checksum([data]) != chunk.crc:
                raise StoreError(
                    f"{folder / (name + SUFFIX)} has changed on disk and is left as it is; find "
                    "what is affected with `ml-debugger doctor`"
                )
            yield data

    try:
        with ExitStack() as stack:
            target, offset = "", 0
            if chunks:
                target, offset = stack.enter_context(writer.appended(pieces()))
            session = stack.enter_context(catalogue.writing())
            if chunks:
                row = SegmentRow(name=target)
                session.add(row)
                session.flush()
            for chunk in chunks:  # a chunk deleted meanwhile is simply not there
                session.execute(
                    update(ChunkRow)
                    .where(col(ChunkRow.id) == chunk.id)
                    .values(segment_id=row.id, offset=offset)
                )
                offset += chunk.nbytes
            session.execute(delete(SegmentRow).where(col(SegmentRow.name) == name))
    finally:
        writer.close()


def _read(segments: SegmentReader | Segments, name: str, chunk: ChunkRow) -> Bytes:
    data = as_bytes(np.empty(chunk.nbytes, np.uint8))
    segments.read(name, chunk.offset, data)
    return data
