"""One model version's records in the local store."""

import json
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, get_args

import pyarrow as pa
from pydantic import ValidationError
from sqlalchemy import func, insert, true
from sqlmodel import Session, col, select
from typing_extensions import override

from ml_debugger.core.errors import InputError, NothingToEvaluateError, StoreError
from ml_debugger.core.records import Batch, ModelVersion, Settings
from ml_debugger.core.store.chunks import Chunk, ChunkSource
from ml_debugger.core.store.columns import FIELD_TYPES, Encoded, encode
from ml_debugger.core.store.contract import (
    EVERYTHING,
    EpochInfo,
    Purpose,
    Repository,
    RunInfo,
    Scope,
)
from ml_debugger.core.store.live import LiveRows
from ml_debugger.core.store.parts import ORIGIN, ChunkHeader, Part, RunHeader, brief
from ml_debugger.core.store.records import Records
from ml_debugger.core.store.segments import checksum
from ml_debugger.core.store.sending import Outbox, delete_chunks
from ml_debugger.core.store.tables import (
    ChunkRow,
    ForgottenRow,
    LayoutRow,
    ModelRow,
    RunRow,
    SegmentRow,
    VersionRow,
)

CHUNK_BYTES = 64 << 20

#: Decides, while it is entered, about the chunks that are about to be added.
Admission = AbstractContextManager[Callable[[Sequence[ChunkHeader]], None]]


class LocalRepository(Repository):
    """A repository in the store of this machine; made by `Store.register` and `Store.open`."""

    def __init__(
        self,
        source: ChunkSource,
        number: int,
        *,
        version: ModelVersion,
        task: str,
        architecture: Sequence[str],
        architecture_hash: str,
        layers: Mapping[str, str],
        fields: Sequence[Mapping[str, Any]],
        label_fields: Sequence[Mapping[str, Any]],
    ) -> None:
        """Take the parts of the store that this version's records go through."""
        self.number = number
        self.version = version
        self.task = task
        self.architecture = tuple(architecture)
        self.architecture_hash = architecture_hash
        self.layers = dict(layers)
        self.fields = tuple(fields)
        self.label_fields = tuple(label_fields)
        self._source = source
        self._catalogue = source.catalogue
        self._segments = source.segments
        self._live = LiveRows(source)
        self._runs: dict[str, int] = {}  # the runs this process records, and their rows
        self._columns: dict[str, pa.DataType] = {}
        for side, declared in (("input", fields), ("label", label_fields)):
            for one in declared:
                self._columns[f"{side}/{one['name']}"] = FIELD_TYPES[one["type"]]

    @override
    def start_run(
        self,
        purpose: Purpose,
        *,
        run: str | None = None,
        rank: int = 0,
        world_size: int = 1,
        settings: Settings | None = None,
    ) -> str:
        if purpose not in get_args(Purpose):
            raise InputError(f"purpose {purpose!r}, expected {', '.join(get_args(Purpose))}")
        run = run or str(uuid.uuid4())
        try:  # what could not be sent to a service is not recorded either
            header = RunHeader(
                run=run,
                rank=rank,
                world_size=world_size,
                purpose=purpose,
                host=socket.gethostname(),
                pid=os.getpid(),
                started_at=time.time_ns(),
                settings=dict(settings or {}),
            )
        except ValidationError as error:
            raise InputError(f"a run cannot be like this: {brief(error)}") from None
        with self._catalogue.writing() as session:
            same = select(RunRow).where(RunRow.version_id == self.number, RunRow.uuid == run)
            ranks = {one.rank: one for one in session.exec(same)}
            if other := [one.purpose for one in ranks.values() if one.purpose != purpose]:
                raise InputError(f"run {run} is of purpose {other[0]!r}, not {purpose!r}")
            row = ranks.get(rank)
            if row is None:
                row = self._run_row(header)
                session.add(row)
                session.flush()
            assert row.id is not None  # flushed
            number = row.id
        self._runs[run] = number
        return run

    @override
    def write(self, run: str, batches: Sequence[Batch]) -> None:
        number = self._runs.get(run)
        if number is None:
            raise InputError(f"run {run!r} was not started here; call start_run first")
        for batch in batches:
            if batch.ready is not None:
                batch.ready()
        fields = {one["name"]: one for one in self.fields}
        label_fields = {one["name"]: one for one in self.label_fields}
        chunks = list(encode(batches, fields, label_fields, CHUNK_BYTES))
        if not chunks:
            return
        pieces = [piece for chunk in chunks for piece in chunk.pieces]
        sums = [checksum(chunk.pieces) for chunk in chunks]
        ends = accumulate(chunk.nbytes for chunk in chunks)
        with (
            self._segments.appended(pieces) as (segment, start),
            self._catalogue.writing() as session,
        ):
            offsets = [start + end - chunk.nbytes for end, chunk in zip(ends, chunks, strict=True)]
            self._insert(session, [number] * len(chunks), chunks, sums, segment, offsets)

    def adopt(self, part: Part, admission: Admission | None = None) -> int:
        """Add chunks of another store, all of them or none; durable on return.

        Those that are here already, by their origin, are left as they are, and those that were
        forgotten stay so.

        Args:
            part: The chunks. Everything in it is checked first.
            admission: Entered before the transaction and left after it. What it gives is called
                in it with the chunks that are about to be added, and may raise.

        Returns:
            How many inputs were added.

        Raises:
            InputError: The part cannot be believed, or does not fit this version.
            NothingToEvaluateError: The version is not there any more.
            StoreError: It cannot be written, or the version was declared anew meanwhile.
        """
        part.check(_types(self.fields), _types(self.label_fields))
        missing = {one.origin for one in self.missing(part)}
        wanted = [
            pair
            for pair in zip(part.header.chunks, part.bodies, strict=True)
            if pair[0].origin in missing
        ]
        if not wanted:
            return 0
        with (
            self._segments.appended([body for _, body in wanted]) as (segment, offset),
            admission or nullcontext(_anything) as admit,
            self._catalogue.writing() as session,
        ):
            self._check_declaration(session)
            here = self._here(session, part)  # another request may have brought it meanwhile
            runs = [self._adopted_run(session, one) for one in part.header.runs]
            starts = accumulate((body.nbytes for _, body in wanted), initial=offset)
            new = [
                (chunk, start)
                for (chunk, _), start in zip(wanted, starts, strict=False)
                if chunk.origin not in here
            ]
            chunks, places = [one for one, _ in new], [start for _, start in new]
            if chunks:
                admit(chunks)
                owners = [runs[one.run] for one in chunks]
                sums = [one.crc for one in chunks]
                self._insert(session, owners, chunks, sums, segment, places)
        return sum(one.inputs for one in chunks)

    def missing(self, part: Part) -> list[ChunkHeader]:
        """Return those chunks of a part that `adopt` would add.

        Raises:
            InputError: The part does not fit what is here.
        """
        with self._catalogue.reading() as session:
            here = self._here(session, part)
            for one in part.header.runs:
                self._ranks(session, one)
        return [one for one in part.header.chunks if one.origin not in here]

    def forget(self, origins: Sequence[str]) -> int:
        """Delete chunks that were adopted, by their origin; return how many were here.

        Those that were not are not taken in any more: they may still be on their way.

        Raises:
            InputError: Something else is among them than what chunks are called.
        """
        for one in origins:
            if not re.fullmatch(ORIGIN, one):
                raise InputError(f"no chunk is called {one[:80]!r}; expected store:number:checksum")
        mine = (col(ChunkRow.version_id) == self.number, col(ChunkRow.origin).in_(origins))
        with self._catalogue.writing() as session:
            found = len(session.exec(select(ChunkRow.id).where(*mine)).all())
            delete_chunks(session, *mine)
            query = select(ForgottenRow.origin).where(col(ForgottenRow.origin).in_(origins))
            known = session.exec(query).all()
            new = sorted(set(origins).difference(known))
            if new:
                session.execute(insert(ForgottenRow), [{"origin": one} for one in new])
        self._live.clear()
        return found

    def declared(self) -> dict[str, Any]:
        """Return what `Store.register` was told of the version, by whatever process, until now."""
        with self._catalogue.reading() as session:
            row = session.get_one(VersionRow, self.number)
            return {
                "task": row.task,
                "architecture": list(self.architecture),
                "layers": json.loads(row.layers),
                "fields": json.loads(row.fields),
                "label_fields": json.loads(row.label_fields),
            }

    def _check_declaration(self, session: Session) -> None:
        """Refuse to go on where the version is not what this repository was opened as.

        Fields may have been added.
        """
        found = session.exec(
            select(VersionRow, ModelRow)
            .join(ModelRow, col(ModelRow.id) == VersionRow.model_id)
            .where(VersionRow.id == self.number)
        ).first()
        if found is None or (found[1].name, found[0].name) != self.version:
            raise NothingToEvaluateError(f"{self.version} was deleted meanwhile")
        row, model = found
        if (
            (row.task, model.architecture_hash) != (self.task, self.architecture_hash)
            or not _types(self.fields).items() <= _types(json.loads(row.fields)).items()
            or not _types(self.label_fields).items() <= _types(json.loads(row.label_fields)).items()
        ):
            raise StoreError(f"{self.version} was declared anew meanwhile; open it and try again")

    def outbox(self, service: str) -> Outbox:
        """Return what is to be sent to a service, which is called by any text that is its own."""
        return Outbox(self._source, self.number, self.version, service)

    def _here(self, session: Session, part: Part) -> set[str | None]:
        """Return the origins of those chunks of a part that are not to be added."""
        origins = [one.origin for one in part.header.chunks]
        query = select(ChunkRow.origin, ChunkRow.version_id)
        found = session.exec(query.where(col(ChunkRow.origin).in_(origins))).all()
        for origin, version in found:
            if version != self.number:
                raise InputError(
                    f"chunk {origin} is here already, as one of another version; send it under "
                    "the name that it was recorded for"
                )
        gone = select(ForgottenRow.origin).where(col(ForgottenRow.origin).in_(origins))
        there: set[str | None] = {origin for origin, _ in found}
        there.update(session.exec(gone).all())
        return there

    def _run_row(self, header: RunHeader) -> RunRow:
        return RunRow(
            version_id=self.number,
            uuid=header.run,
            settings=json.dumps(header.settings),
            **header.model_dump(exclude={"run", "settings"}),
        )

    def _ranks(self, session: Session, header: RunHeader) -> dict[int, RunRow]:
        """Return what is here of a run that a part names, by rank."""
        same = select(RunRow).where(RunRow.version_id == self.number, RunRow.uuid == header.run)
        ranks = {one.rank: one for one in session.exec(same)}
        if any(one.purpose != header.purpose for one in ranks.values()):
            raise InputError(f"run {header.run} is not of purpose {header.purpose!r}")
        return ranks

    def _adopted_run(self, session: Session, header: RunHeader) -> int:
        row = self._ranks(session, header).get(header.rank)
        if row is None:
            row = self._run_row(header)
            session.add(row)
            session.flush()
        assert row.id is not None  # flushed
        return row.id

    def _insert(
        self,
        session: Session,
        runs: Sequence[int],
        chunks: Sequence[Encoded | ChunkHeader],
        sums: Sequence[int],
        segment: str,
        offsets: Sequence[int],
    ) -> None:
        now = time.time_ns()
        place = _interned(session, SegmentRow, SegmentRow.name, segment)
        layouts = {
            text: _interned(session, LayoutRow, LayoutRow.columns, text)
            for text in {chunk.layout for chunk in chunks}
        }
        rows = []
        for run, chunk, crc, offset in zip(runs, chunks, sums, offsets, strict=True):
            rows.append(
                {
                    "version_id": self.number,
                    "run_id": run,
                    "layout_id": layouts[chunk.layout],
                    "segment_id": place,
                    "n_epoch": chunk.n_epoch,
                    "dataset_type": chunk.dataset_type,
                    "inputs": chunk.inputs,
                    "units": chunk.units,
                    "actuals": chunk.actuals,
                    "offset": offset,
                    "nbytes": chunk.nbytes,
                    "buffers": chunk.buffers,
                    "crc": crc,
                    "written_at": now,
                    "origin": chunk.origin,
                }
            )
        session.execute(insert(ChunkRow), rows)

    @override
    def records(self, scope: Scope = EVERYTHING) -> Records:
        return self._view(self._chunks(scope))

    def _view(self, chunks: Sequence[Chunk]) -> Records:
        return Records(self._source, self._live, chunks, self._columns)

    def _chunks(self, scope: Scope) -> tuple[Chunk, ...]:
        conditions: list[Any] = [ChunkRow.version_id == self.number]
        if scope.dataset_types is not None:
            conditions.append(col(ChunkRow.dataset_type).in_(scope.dataset_types))
        if scope.n_epoch is None or scope.n_epoch != "all":
            conditions.append(col(ChunkRow.n_epoch) == scope.n_epoch)
        if scope.runs is not None:
            conditions.append(col(RunRow.uuid).in_(scope.runs))
        if scope.labelled:
            conditions.append(col(ChunkRow.actuals).is_not(None))
        with self._catalogue.reading() as session:
            return self._source.load(session, *conditions)

    @override
    def latest_epoch(self) -> int | None:
        with self._catalogue.reading() as session:
            conditions: tuple[Any, ...] = (RunRow.purpose == "training", true())
            for condition in conditions:
                query = (
                    select(ChunkRow.n_epoch)
                    .join(RunRow, col(RunRow.id) == ChunkRow.run_id)
                    .where(col(ChunkRow.version_id) == self.number, condition)
                    .order_by(col(ChunkRow.id).desc())
                )
                for n_epoch in session.exec(query.limit(1)):
                    return n_epoch
        return None

    @override
    def epochs(self) -> list[EpochInfo]:
        query = (
            select(
                ChunkRow.n_epoch,
                ChunkRow.dataset_type,
                RunRow.uuid,
                func.sum(ChunkRow.inputs),
            )
            .add_columns(func.max(ChunkRow.written_at), func.max(ChunkRow.id))
            .join(RunRow, col(RunRow.id) == ChunkRow.run_id)
            .where(col(ChunkRow.version_id) == self.number)
            .group_by(col(ChunkRow.n_epoch), col(ChunkRow.dataset_type), col(RunRow.uuid))
        )
        with self._catalogue.reading() as session:
            rows = session.execute(query.order_by(func.max(ChunkRow.id))).all()
        by_epoch: dict[int | None, list[Any]] = {}
        for row in rows:
            # Re-inserting keeps the epoch written last at the end.
            by_epoch[row[0]] = [*by_epoch.pop(row[0], []), row]
        return [_epoch_info(n_epoch, found) for n_epoch, found in by_epoch.items()]

    @override
    def runs(self) -> list[RunInfo]:
        query = (
            select(RunRow, func.sum(ChunkRow.inputs))
            .join(ChunkRow, col(ChunkRow.run_id) == RunRow.id)
            .where(RunRow.version_id == self.number)
            .group_by(col(RunRow.id))
            .order_by(col(RunRow.started_at), col(RunRow.id))
        )
        ranks: dict[str, list[Any]] = {}
        with self._catalogue.reading() as session:
            for row in session.execute(query):
                ranks.setdefault(row[0].uuid, []).append(row)
            return [_run_info(found) for found in ranks.values()]

    @override
    def delete_epoch(self, n_epoch: int | None) -> dict[str, int]:
        # Within a run, replaced records were never more than one row to the user.
        chunks = self._chunks(Scope(n_epoch=n_epoch))
        predicted = actual = 0
        for run in dict.fromkeys(chunk.run for chunk in chunks):
            mine = self._view([chunk for chunk in chunks if chunk.run == run])
            predicted += mine.units
            actual += int(mine.counts("actual").sum())
        with self._catalogue.writing() as session:
            labelled = session.exec(
                select(ChunkRow.id)
                .where(ChunkRow.version_id == self.number, col(ChunkRow.actuals).is_not(None))
                .limit(1)
            ).first()
            delete_chunks(
                session,
                col(ChunkRow.version_id) == self.number,
                col(ChunkRow.n_epoch) == n_epoch,
                col(ChunkRow.id) <= (chunks[-1].id if chunks else 0),  # what was counted
            )
        self._live.clear()
        counts = {"extracted_feature": predicted}
        return counts if labelled is None else {**counts, "ground_truth": actual}

    @override
    def recreate(self) -> None:
        with self._catalogue.writing() as session:
            delete_chunks(session, col(ChunkRow.version_id) == self.number)
        self._live.clear()

    @override
    def close(self) -> None:
        self._live.clear()


def _types(fields: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the types of additional fields, by name."""
    return {one["name"]: one["type"] for one in fields}


def _anything(_: Sequence[ChunkHeader]) -> None:
    """Admit any chunks."""


def moment(nanoseconds: int) -> datetime:
    """Return a point in time, in UTC."""
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)


def _run_info(ranks: Sequence[Any]) -> RunInfo:
    first: RunRow = ranks[0][0]
    return RunInfo(
        run=first.uuid,
        purpose=first.purpose,  # type: ignore[arg-type]  # start_run has checked it
        host=first.host,
        world_size=max(row.world_size for row, _ in ranks),
        started_at=moment(first.started_at),
        records=sum(int(records) for _, records in ranks),
        settings=json.loads(first.settings),
    )


def _epoch_info(n_epoch: int | None, rows: Sequence[Any]) -> EpochInfo:
    records: dict[str, int] = {}
    for _, dataset_type, _, inputs, *_ in rows:
        records[dataset_type] = records.get(dataset_type, 0) + int(inputs)
    return EpochInfo(
        n_epoch=n_epoch,
        last_written=moment(max(row[4] for row in rows)),
        runs=tuple(dict.fromkeys(row[2] for row in rows)),
        records=records,
    )


def _interned(session: Session, table: Any, column: Any, value: str) -> int:
    """Return the number of the row with a value, which is added when it is new."""
    number = session.exec(select(table.id).where(column == value)).first()
    if number is None:
        row = table(**{column.key: value})
        session.add(row)
        session.flush()
        number = row.id
    return int(number)
