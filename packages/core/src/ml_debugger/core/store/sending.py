"""What a service was sent of a version's chunks, what it is to be sent, and what it is to forget.

A chunk is known to a service by its origin: this store, its number here, and the checksum of its
bytes. It is marked before it is sent and marked as saved after, so that a chunk that is deleted
here is withdrawn there even where nobody heard the answer.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import delete, func, insert, or_, update
from sqlmodel import Session, col, select

from ml_debugger.core.epochs import EpochChoice
from ml_debugger.core.errors import StoreError
from ml_debugger.core.store.contract import PART_BYTES, LeftOut
from ml_debugger.core.store.parts import (
    HEADER_BYTES,
    ChunkHeader,
    Part,
    PartHeader,
    RunHeader,
)
from ml_debugger.core.store.tables import (
    ChunkRow,
    IdentityRow,
    LayoutRow,
    ModelRow,
    RunRow,
    UploadRow,
    VersionRow,
    WithdrawalRow,
)

if TYPE_CHECKING:
    from ml_debugger.core.records import ModelVersion
    from ml_debugger.core.store.chunks import Chunk, ChunkSource
    from ml_debugger.core.store.segments import Bytes

PART_CHUNKS = 256
AT_ONCE = 500  # SQLite takes a limited number of values in one statement


class Pending(NamedTuple):
    """What a service has not saved yet."""

    chunks: int
    inputs: int
    nbytes: int


def delete_chunks(session: Session, *conditions: Any) -> None:
    """Delete chunks, and have every service that was sent one of them forget it."""
    sent = (
        select(UploadRow.service, ModelRow.name, VersionRow.name, UploadRow.origin)
        .join(ChunkRow, col(ChunkRow.id) == UploadRow.chunk_id)
        .join(VersionRow, col(VersionRow.id) == ChunkRow.version_id)
        .join(ModelRow, col(ModelRow.id) == VersionRow.model_id)
        .where(*conditions)
    )
    names = ["service", "model_name", "version_name", "origin"]
    session.execute(insert(WithdrawalRow).from_select(names, sent))
    session.execute(delete(ChunkRow).where(*conditions))


class Outbox:
    """A version's chunks, on their way to one service.

    Safe to use from several threads and processes; two that send at the same time send some
    chunks twice, which a service takes for once.
    """

    def __init__(
        self, source: "ChunkSource", number: int, version: "ModelVersion", service: str
    ) -> None:
        """Take what `LocalRepository.outbox` gives."""
        self._source = source
        self._number = number
        self._version = version
        self._service = service

    def last(self) -> int:
        """Return the number of the chunk written last; 0 where there is none."""
        query = select(ChunkRow.id).where(self._by_number).order_by(col(ChunkRow.id).desc())
        with self._source.catalogue.reading() as session:
            return session.exec(query.limit(1)).first() or 0

    def pending(
        self, n_epoch: EpochChoice = "all", *, after: int = 0, last: int | None = None
    ) -> Pending:
        """Return how much of an epoch, or of all, the service has not saved yet.

        Args:
            n_epoch: Only of this epoch, or "all".
            after: Only chunks with larger numbers than this; the time taken depends on theirs.
            last: Only chunks up to this number, if given.
        """
        counts = select(
            func.count(col(ChunkRow.id)),
            func.coalesce(func.sum(ChunkRow.inputs), 0),
            func.coalesce(func.sum(ChunkRow.nbytes), 0),
        )
        with self._source.catalogue.reading() as session:
            row = session.execute(self._unsaved(counts, n_epoch, after, last)).one()
        return Pending(*map(int, row))

    def next_part(
        self,
        n_epoch: EpochChoice = "all",
        *,
        after: int = 0,
        last: int | None = None,
        most: int = PART_CHUNKS,
        damaged: dict[int, LeftOut] | None = None,
    ) -> tuple[Part, list[int]] | None:
        """Return the oldest chunks that are not saved yet, as one part, and their numbers.

        They are marked as sent. None when there are none. A chunk larger than a part is one.

        Args:
            n_epoch: Only of this epoch, or "all".
            after: Only chunks with larger numbers than this.
            last: Only chunks up to this number, if given.
            most: No more chunks than this.
            damaged: Where to put those that cannot be read, by number, instead of raising.

        Raises:
            StoreError: They cannot be read, or have changed on disk.
        """
        while True:
            found, runs, known, store = self._oldest(n_epoch, after, last, most)
            if not found:
                return None
            after = found[-1].id
            bodies: dict[int, Bytes] = {}
            unread: dict[int, LeftOut] = {}
            for chunk in found:
                try:
                    bodies[chunk.id] = self._source.checked(chunk)
                except StoreError as error:
                    if damaged is None:
                        raise
                    unread[chunk.id] = LeftOut(chunk.n_epoch, chunk.inputs, str(error))
            if damaged is not None and unread:  # or they were deleted while we read
                alive = self._alive(unread)
                damaged.update({k: one for k, one in unread.items() if k in alive})
            origins = {
                number: known[number] or f"{store}:{number}:{hashlib.sha256(body).hexdigest()[:16]}"
                for number, body in bodies.items()
            }
            marked = self._mark(origins)
            if chunks := [chunk for chunk in found if chunk.id in marked]:
                break
        ranks = list({runs[chunk.id].id: runs[chunk.id] for chunk in chunks}.values())
        at = {run.id: position for position, run in enumerate(ranks)}
        header = PartHeader(
            runs=[_run_header(run) for run in ranks],
            chunks=[_chunk_header(one, origins[one.id], at[runs[one.id].id]) for one in chunks],
        )
        return Part(header, [bodies[one.id] for one in chunks]), [one.id for one in chunks]

    def saved(self, numbers: Sequence[int]) -> None:
        """Note that the service has saved chunks."""
        with self._source.catalogue.writing() as session:
            session.execute(
                update(UploadRow)
                .where(
                    col(UploadRow.service) == self._service, col(UploadRow.chunk_id).in_(numbers)
                )
                .values(saved=True)
            )

    def send_again(self, n_epoch: EpochChoice = "all") -> None:
        """Take nothing of an epoch, or of all, for saved."""
        mine = select(ChunkRow.id).where(*self._scope(n_epoch))
        with self._source.catalogue.writing() as session:
            session.execute(
                update(UploadRow)
                .where(col(UploadRow.service) == self._service, col(UploadRow.chunk_id).in_(mine))
                .values(saved=False)
            )

    def withdrawals(self, limit: int = AT_ONCE) -> list[str]:
        """Return the origins of chunks that the service is to forget, as they were deleted here."""
        query = select(WithdrawalRow.origin).where(*self._withdrawn())
        with self._source.catalogue.reading() as session:
            return list(session.exec(query.order_by(col(WithdrawalRow.id)).limit(limit)))

    def withdrawn(self, origins: Sequence[str]) -> None:
        """Note that the service has forgotten chunks."""
        with self._source.catalogue.writing() as session:
            session.execute(
                delete(WithdrawalRow).where(
                    *self._withdrawn(), col(WithdrawalRow.origin).in_(origins)
                )
            )

    def _oldest(
        self, n_epoch: EpochChoice, after: int, last: int | None, most: int
    ) -> "tuple[tuple[Chunk, ...], dict[int, RunRow], dict[int, str | None], str]":
        """Return the chunks of the next part.

        With them come who recorded each, the origins of those that are from elsewhere, and what
        this store is called.
        """
        # No less than what the columns and the spans take in a header.
        text = func.length(LayoutRow.columns) + 2 * func.length(ChunkRow.buffers)
        query = select(ChunkRow.id, ChunkRow.nbytes, text.label("text")).join(
            LayoutRow, col(LayoutRow.id) == ChunkRow.layout_id
        )
        sizes = self._unsaved(query, n_epoch, after, last).order_by(col(ChunkRow.id))
        with self._source.catalogue.reading() as session:
            numbers: list[int] = []
            size = header = 0
            for row in session.execute(sizes.limit(min(most, PART_CHUNKS))):
                size += row.nbytes
                header += row.text
                if numbers and (size > PART_BYTES or header > HEADER_BYTES // 2):
                    break
                numbers.append(row.id)
            if not numbers:
                return (), {}, {}, ""
            found = self._source.load(session, col(ChunkRow.id).in_(numbers))
            by = select(ChunkRow.id, ChunkRow.origin, RunRow)
            by = by.join(RunRow, col(RunRow.id) == ChunkRow.run_id)
            runs, known = {}, {}
            for number, origin, run in session.execute(by.where(col(ChunkRow.id).in_(numbers))):
                runs[number], known[number] = run.model_copy(), origin
            return found, runs, known, session.exec(select(IdentityRow.uuid)).one()

    def _unsaved(self, query: Any, n_epoch: EpochChoice, after: int, last: int | None) -> Any:
        sent = (col(UploadRow.chunk_id) == ChunkRow.id) & (col(UploadRow.service) == self._service)
        conditions = self._scope(n_epoch)
        if after:
            conditions = [*conditions[1:], self._by_number, col(ChunkRow.id) > after]
        if last is not None:
            conditions.append(col(ChunkRow.id) <= last)
        return query.outerjoin(UploadRow, sent).where(
            *conditions, or_(col(UploadRow.saved).is_(None), col(UploadRow.saved).is_(False))
        )

    @property
    def _by_number(self) -> Any:
        """The version's chunks, in a form that no index fits: they are looked for by number."""
        return col(ChunkRow.version_id) + 0 == self._number

    def _scope(self, n_epoch: EpochChoice) -> list[Any]:
        conditions: list[Any] = [col(ChunkRow.version_id) == self._number]
        if n_epoch != "all":
            conditions.append(col(ChunkRow.n_epoch) == n_epoch)
        return conditions

    def _withdrawn(self) -> list[Any]:
        return [
            col(WithdrawalRow.service) == self._service,
            col(WithdrawalRow.model_name) == self._version.model_name,
            col(WithdrawalRow.version_name) == self._version.version_name,
        ]

    def _alive(self, numbers: Iterable[int]) -> set[int]:
        with self._source.catalogue.reading() as session:
            return _existing(session, numbers)

    def _mark(self, origins: Mapping[int, str]) -> set[int]:
        """Note that chunks are about to be sent; return which, without what is deleted by now."""
        numbers = list(origins)
        with self._source.catalogue.writing() as session:
            mine = col(UploadRow.service) == self._service
            known = set(
                session.exec(
                    select(UploadRow.chunk_id).where(mine, col(UploadRow.chunk_id).in_(numbers))
                )
            )
            alive = _existing(session, numbers)
            rows = [
                {"service": self._service, "chunk_id": n, "origin": origins[n], "saved": False}
                for n in sorted(alive - known)
            ]
            if rows:
                session.execute(insert(UploadRow), rows)
        return alive


def _existing(session: Session, numbers: Iterable[int]) -> set[int]:
    found = session.exec(select(ChunkRow.id).where(col(ChunkRow.id).in_(numbers)))
    return {number for number in found if number is not None}


def _run_header(run: RunRow) -> RunHeader:
    return RunHeader(
        run=run.uuid,
        rank=run.rank,
        world_size=run.world_size,
        purpose=run.purpose,  # type: ignore[arg-type]  # start_run has checked it
        host=run.host,
        pid=run.pid,
        started_at=run.started_at,
        settings=json.loads(run.settings),
    )


def _chunk_header(chunk: "Chunk", origin: str, run: int) -> ChunkHeader:
    return ChunkHeader(
        origin=origin,
        run=run,
        n_epoch=chunk.n_epoch,
        dataset_type=chunk.dataset_type,
        inputs=chunk.inputs,
        units=chunk.units,
        actuals=chunk.actuals,
        columns=[(one.name, one.type, list(one.shape)) for one in chunk.layout.values()],
        spans=[(int(start), int(length)) for start, length in chunk.spans],
        nbytes=chunk.nbytes,
        crc=chunk.crc,
    )
