"""The store of this machine: its model versions, their repositories, and results."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray
from sqlalchemy import delete, func
from sqlmodel import Session, col, select

from ml_debugger.core.errors import InputError, NothingToEvaluateError, ResultNotFoundError
from ml_debugger.core.records import ModelVersion
from ml_debugger.core.settings import resolve_home
from ml_debugger.core.store import compaction, registration
from ml_debugger.core.store.catalogue import Catalogue, SqliteCatalogue
from ml_debugger.core.store.chunks import ChunkSource
from ml_debugger.core.store.contract import ResultInfo, VersionInfo
from ml_debugger.core.store.estimates import alive
from ml_debugger.core.store.home import folder_name, prepare, sweep
from ml_debugger.core.store.records import Records
from ml_debugger.core.store.repository import LocalRepository, moment
from ml_debugger.core.store.segments import FolderSegments, Segments, sync_folder
from ml_debugger.core.store.tables import (
    ChunkRow,
    EstimateRow,
    ModelRow,
    ResultRow,
    VersionRow,
)

CATALOGUE = "catalogue.db"  # in a store's folder, where its metadata are not elsewhere


class Store:
    """Everything recorded on this machine, in one folder.

    Safe to use from several threads, and several stores of several processes may share a folder
    on a local disk. The folder is self-contained: it may be moved or copied while nobody uses it.
    A forked child may read, and opens a store of its own to write. The store belongs to whoever
    made it, who closes it; repositories stop working then.

    Attributes:
        home: The folder.
        fence: Entered when all of a result but its commit is done, and left after that; raises
            where it may not be entered (any longer).
    """

    def __init__(
        self,
        home: str | os.PathLike[str] | None = None,
        *,
        catalogue: Catalogue | None = None,
        segments: Segments | None = None,
    ) -> None:
        """Open the store in a folder, making it where needed.

        Args:
            home: The folder; by default `MLD_HOME`, or `~/.ml_debugger`.
            catalogue: Where the metadata lie, if not in a file of the folder.
            segments: Where the values lie, if not in files of the folder.

        Raises:
            StoreError: The folder cannot be written, or the store is damaged.
            SchemaError: A newer version of ml-debugger wrote it.
        """
        self.home = resolve_home(home)
        prepare(self.home)
        self._catalogue = catalogue or SqliteCatalogue(self.home / CATALOGUE)
        self._segments = segments or FolderSegments(self.home / "segments")
        self._source = ChunkSource(self._catalogue, self._segments)
        self.fence: Callable[[], AbstractContextManager[None]] = nullcontext

    def register(
        self,
        version: ModelVersion,
        *,
        task: str,
        architecture: Sequence[str],
        layers: Mapping[str, str],
        fields: Sequence[Mapping[str, Any]] = (),
        label_fields: Sequence[Mapping[str, Any]] = (),
        recreate: bool | registration.Unfit = False,
    ) -> LocalRepository:
        """Create a model version, or open it for recording under the same conditions.

        Layers may differ from those before; additional fields may be added.

        Args:
            version: Its name.
            task: The task it is recorded for.
            architecture: What makes up the model, one entry a line of its description.
            layers: Module path of each recorded layer, by alias.
            fields: Declarations of the additional columns of inputs: name, type, nullable,
                default.
            label_fields: The same for ground truth.
            recreate: Delete the version's records first, and let the model name stand for this
                architecture where no other version of it has records. "unfit": only where the
                declaration does not fit the earlier one, and only if there are no records.

        Raises:
            ArchitectureMismatchError: The model name stands for another architecture.
            InputError: The version is of another task, or a field has another type.
        """
        with self._catalogue.writing() as session:
            number = registration.register(
                session,
                version,
                task=task,
                architecture=architecture,
                layers=layers,
                fields=fields,
                label_fields=label_fields,
                recreate=recreate,
            )
            return self._repository(session, number)

    def open(self, version: ModelVersion) -> LocalRepository:
        """Open a model version that exists.

        Raises:
            NothingToEvaluateError: It does not; the nearest that do are named.
        """
        version = ModelVersion(*version)
        with self._catalogue.reading() as session:
            for row in session.exec(_versions().where(ModelRow.name == version.model_name)):
                if row[0].name == version.version_name and row[0].id is not None:
                    return self._repository(session, row[0].id)
            names = [f"{model.name}/{one.name}" for one, model in session.exec(_versions())]
        near = get_close_matches(str(version), names, n=3, cutoff=0.4) or names[-3:]
        raise NothingToEvaluateError(
            f"no records of {version} in {self.home}; "
            + (f"the nearest are: {', '.join(near)}" if near else "the store is empty")
            + ". Record some with a tracer, or choose another store with MLD_HOME or home="
        )

    def numbered(self, number: int) -> LocalRepository:
        """Open a model version by its number.

        Raises:
            NothingToEvaluateError: There is none.
        """
        with self._catalogue.reading() as session:
            if session.get(VersionRow, number) is None:
                raise NothingToEvaluateError(f"there is no version number {number}")
            return self._repository(session, number)

    def versions(self) -> list[VersionInfo]:
        """Return all model versions, in the order in which they were registered."""
        with self._catalogue.reading() as session:
            return listed_versions(session)

    def add_result(
        self,
        *,
        name: str,
        version: ModelVersion,
        method: str,
        n_epoch: int | str | None,
        options: Mapping[str, Any],
        created_at: datetime,
        completed_at: datetime,
        draft: Path | None = None,
        estimates: Iterable[tuple[Records, Mapping[str, NDArray[Any]]]] = (),
    ) -> None:
        """Enter an evaluation result with all that belongs to it, or nothing of it.

        Args:
            name: What it is called.
            version: What it is of.
            method: How it was made.
            n_epoch: Of which epoch it is.
            options: What was asked for.
            created_at: When it was begun.
            completed_at: When it was done.
            draft: A folder with its files, which is moved to where they belong.
            estimates: What it derived for records; see `Records.write_estimates`.

        Raises:
            InputError: The name is taken, there is no such version, or all of the records for
                which something was derived were deleted meanwhile.
        """
        version = ModelVersion(*version)
        with ExitStack() as last, self._catalogue.writing() as session:
            if session.exec(select(ResultRow).where(ResultRow.name == name)).first():
                raise InputError(f"there is a result {name!r} already; choose another result_name")
            query = _versions().where(ModelRow.name == version.model_name)
            found = session.exec(query.where(VersionRow.name == version.version_name)).first()
            if found is None or found[0].id is None:
                raise InputError(f"no model version {version} in {self.home}")
            row = ResultRow(
                name=name,
                version_id=found[0].id,
                method=method,
                n_epoch=json.dumps(n_epoch),
                options=json.dumps(dict(options)),
                created_at=created_at.isoformat(),
                completed_at=completed_at.isoformat(),
            )
            session.add(row)
            session.flush()
            session.execute(delete(EstimateRow).where(col(EstimateRow.result) == name))
            judged: set[int] = set()
            for records, columns in estimates:
                records.write_estimates(name, columns, session)
                judged.update(records.chunks)
            if judged and not alive(session, sorted(judged)):
                raise InputError(f"the records of {version} were deleted meanwhile")
            last.enter_context(self.fence())
            if draft is not None:  # at the end: what fails before leaves no folder
                self._take_place(draft, Store.result_folder(self, name))

    def _take_place(self, draft: Path, folder: Path) -> None:
        """Move a folder to where a result belongs, in the transaction that enters it.

        There is one such transaction at a time, so whatever has the place and is not listed was
        left by a process that died in one.
        """
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        sync_folder(folder.parent)

    def results(self, version: ModelVersion | None = None) -> list[ResultInfo]:
        """Return the results of a version, or of all, in the order in which they were entered."""
        with self._catalogue.reading() as session:
            found = listed(session)
        return [one for one in found if version is None or one.version == tuple(version)]

    def result(self, name: str) -> ResultInfo:
        """Return what is known of a result.

        Raises:
            ResultNotFoundError: There is none of this name; similar names are listed.
        """
        found = self.results()
        for one in found:
            if one.name == name:
                return one
        raise ResultNotFoundError(_no_result(name, (one.name for one in found)))

    def drop_result(self, name: str) -> None:
        """Delete a result: its files, and the columns derived for it.

        Raises:
            ResultNotFoundError: There is none of this name.
        """
        folder = Store.result_folder(self, name)
        aside = folder.with_name(f".{uuid.uuid4().hex}.tmp")  # `sweep` knows it by that
        with ExitStack() as undo:
            with self._catalogue.writing() as session:
                row = session.exec(select(ResultRow).where(ResultRow.name == name)).first()
                if row is None:
                    known = session.exec(select(ResultRow.name))
                    raise ResultNotFoundError(_no_result(name, known))
                session.delete(row)
                session.execute(delete(EstimateRow).where(col(EstimateRow.result) == name))
                session.flush()
                # within the transaction: the next one may enter another result of this name
                with suppress(FileNotFoundError):
                    folder.rename(aside)
                    undo.callback(aside.rename, folder)
                    os.utime(aside)  # its age counts from now on
            undo.pop_all()
        shutil.rmtree(aside, ignore_errors=True)

    def result_folder(self, name: str) -> Path:
        """Return where a result's files belong: in the store, whatever the name; maybe not made."""
        return self.home / "results" / folder_name(name)

    def compact(self) -> int:
        """Give back the space of what was deleted, and return how many bytes that was.

        Safe while other processes record and read.
        """
        if not isinstance(self._segments, FolderSegments):
            return 0  # they are given back by whoever keeps them
        self._sweep_results()
        self._segments.end()  # what this process appended to may be rewritten too
        return compaction.compact(self._catalogue, self._segments.folder)

    def _sweep_results(self) -> None:
        """Delete the folders of results that are not listed (any longer)."""
        folder = self.home / "results"
        sweep(folder)
        with self._catalogue.writing() as session:  # while nobody enters one
            listed = {folder_name(name) for name in session.exec(select(ResultRow.name))}
            for one in folder.glob("[!.]*"):
                if one.name not in listed:
                    shutil.rmtree(one, ignore_errors=True)

    def verify(self) -> list[str]:
        """Read everything once and return what is damaged, in words; empty when sound."""
        return compaction.verify(self._catalogue, self._segments.anew())

    def close(self) -> None:
        """Close all files; idempotent."""
        self._segments.close()
        self._catalogue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _repository(self, session: Session, number: int) -> LocalRepository:
        row, model = session.exec(_versions().where(VersionRow.id == number)).one()
        return LocalRepository(
            self._source,
            number,
            version=ModelVersion(model.name, row.name),
            task=row.task,
            architecture=json.loads(model.architecture),
            architecture_hash=model.architecture_hash,
            layers=json.loads(row.layers),
            fields=json.loads(row.fields),
            label_fields=json.loads(row.label_fields),
        )


def _versions() -> Any:
    return select(VersionRow, ModelRow).join(ModelRow, col(ModelRow.id) == VersionRow.model_id)


def listed_versions(
    session: Session, *conditions: Any, limit: int | None = None
) -> list[VersionInfo]:
    """Return the versions that meet conditions on `VersionRow` and `ModelRow`, by their numbers."""
    chosen = select(VersionRow.id).join(ModelRow, col(ModelRow.id) == VersionRow.model_id)
    chosen = chosen.where(*conditions).order_by(col(VersionRow.id)).limit(limit)
    query = (
        select(VersionRow.id, VersionRow.name, VersionRow.task, ModelRow.name)
        .join(ModelRow, col(ModelRow.id) == VersionRow.model_id)
        .outerjoin(ChunkRow, col(ChunkRow.version_id) == VersionRow.id)
        .add_columns(
            col(ChunkRow.n_epoch),
            func.sum(ChunkRow.inputs),
            func.sum(ChunkRow.nbytes),
            func.max(ChunkRow.written_at),
        )
        .group_by(col(VersionRow.id), col(ModelRow.id), col(ChunkRow.n_epoch))
        .order_by(col(VersionRow.id), func.max(ChunkRow.id))
    )
    if conditions or limit is not None:
        query = query.where(col(VersionRow.id).in_(chosen))
    by_version: dict[int, list[Any]] = {}
    for row in session.execute(query):
        by_version.setdefault(row[0], []).append(row)
    return [_version_info(found) for found in by_version.values()]


def _version_info(rows: Sequence[Any]) -> VersionInfo:
    number, name, task, model_name, *_ = rows[0]
    epochs = [row for row in rows if row[7] is not None]
    return VersionInfo(
        number=number,
        version=ModelVersion(model_name, name),
        task=task,
        records=sum(int(row[5]) for row in epochs),
        epochs=tuple(row[4] for row in epochs),
        bytes=sum(int(row[6]) for row in epochs),
        last_written=moment(max(row[7] for row in epochs)) if epochs else None,
    )


def listed(session: Session, *conditions: Any, limit: int | None = None) -> list[ResultInfo]:
    """Return the results that meet conditions on the tables joined here, by their numbers."""
    query = (
        select(ResultRow, col(VersionRow.name), col(VersionRow.task), col(ModelRow.name))
        .join(VersionRow, col(VersionRow.id) == ResultRow.version_id)
        .join(ModelRow, col(ModelRow.id) == VersionRow.model_id)
        .where(*conditions)
        .order_by(col(ResultRow.id))
        .limit(limit)
    )
    return [
        ResultInfo(
            number=row.id or 0,
            name=row.name,
            version=ModelVersion(model_name, version_name),
            task=task,
            method=row.method,
            n_epoch=json.loads(row.n_epoch),
            created_at=datetime.fromisoformat(row.created_at),
            completed_at=datetime.fromisoformat(row.completed_at),
            options=json.loads(row.options),
        )
        for row, version_name, task, model_name in session.execute(query)
    ]


def _no_result(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = get_close_matches(name, names, n=3, cutoff=0.4) or names[-3:]
    if not near:
        return f"no result {name!r}: there are none yet; make one with request_evaluation"
    return f"no result {name!r}; the nearest are: {', '.join(near)}"
