"""The store of this machine: its model versions, their repositories, and results."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from sqlalchemy import delete, func
from sqlmodel import Session, col, select

from ml_debugger.core.errors import InputError, NothingToEvaluateError, ResultNotFoundError
from ml_debugger.core.records import ModelVersion
from ml_debugger.core.settings import resolve_home
from ml_debugger.core.store import compaction, registration
from ml_debugger.core.store.catalogue import Catalogue, SqliteCatalogue
from ml_debugger.core.store.chunks import ChunkSource
from ml_debugger.core.store.contract import ResultInfo, VersionInfo
from ml_debugger.core.store.home import folder_name, prepare, sweep
from ml_debugger.core.store.repository import LocalRepository, moment
from ml_debugger.core.store.segments import FolderSegments, Segments
from ml_debugger.core.store.tables import (
    ChunkRow,
    EstimateRow,
    ModelRow,
    ResultRow,
    VersionRow,
)


class Store:
    """Everything recorded on this machine, in one folder.

    Safe to use from several threads, and several stores of several processes may share a folder
    on a local disk. The folder is self-contained: it may be moved or copied while nobody uses it.
    A forked child may read, and opens a store of its own to write. The store belongs to whoever
    made it, who closes it; repositories stop working then.

    Attributes:
        home: The folder.
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
        self._catalogue = catalogue or SqliteCatalogue(self.home / "catalogue.db")
        self._segments = segments or FolderSegments(self.home / "segments")
        self._source = ChunkSource(self._catalogue, self._segments)

    def register(
        self,
        version: ModelVersion,
        *,
        task: str,
        architecture: Sequence[str],
        layers: Mapping[str, str],
        fields: Sequence[Mapping[str, Any]] = (),
        label_fields: Sequence[Mapping[str, Any]] = (),
        recreate: bool = False,
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
                architecture where no other version of it has records.

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
        query = (
            select(VersionRow, ModelRow)
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
        with self._catalogue.reading() as session:
            rows = session.execute(query).all()
            by_version: dict[int | None, list[Any]] = {}
            for row in rows:
                by_version.setdefault(row[0].id, []).append(row)
            return [_version_info(found) for found in by_version.values()]

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
    ) -> None:
        """Enter an evaluation result; its folder is the caller's.

        Raises:
            InputError: The name is taken, or there is no such version.
        """
        version = ModelVersion(*version)
        with self._catalogue.writing() as session:
            if session.exec(select(ResultRow).where(ResultRow.name == name)).first():
                raise InputError(f"there is a result {name!r} already; choose another result_name")
            query = _versions().where(ModelRow.name == version.model_name)
            found = session.exec(query.where(VersionRow.name == version.version_name)).first()
            if found is None or found[0].id is None:
                raise InputError(f"no model version {version} in {self.home}")
            session.add(
                ResultRow(
                    name=name,
                    version_id=found[0].id,
                    method=method,
                    n_epoch=json.dumps(n_epoch),
                    options=json.dumps(dict(options)),
                    created_at=created_at.isoformat(),
                    completed_at=completed_at.isoformat(),
                )
            )

    def results(self, version: ModelVersion | None = None) -> list[ResultInfo]:
        """Return the results of a version, or of all, in the order in which they were entered."""
        with self._catalogue.reading() as session:
            found = _results(session)
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
        """Forget a result and the columns derived for it; its folder is the caller's.

        Raises:
            ResultNotFoundError: There is none of this name.
        """
        with self._catalogue.writing() as session:
            row = session.exec(select(ResultRow).where(ResultRow.name == name)).first()
            if row is None:
                raise ResultNotFoundError(_no_result(name, session.exec(select(ResultRow.name))))
            session.delete(row)
        self.drop_estimates(name)

    def drop_estimates(self, name: str) -> None:
        """Forget the columns derived for a result, whether or not it was ever added."""
        with self._catalogue.writing() as session:
            session.execute(delete(EstimateRow).where(col(EstimateRow.result) == name))

    def result_folder(self, name: str) -> Path:
        """Return where a result's files belong: in the store, whatever the name; maybe not made."""
        return self.home / "results" / folder_name(name)

    def compact(self) -> int:
        """Give back the space of what was deleted, and return how many bytes that was.

        Safe while other processes record and read.
        """
        if not isinstance(self._segments, FolderSegments):
            return 0  # they are given back by whoever keeps them
        sweep(self.home / "results")
        self._segments.end()  # what this process appended to may be rewritten too
        return compaction.compact(self._catalogue, self._segments.folder)

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


def _version_info(rows: Sequence[Any]) -> VersionInfo:
    version, model, *_ = rows[0]
    epochs = [row for row in rows if row[5] is not None]
    return VersionInfo(
        number=version.id,
        version=ModelVersion(model.name, version.name),
        task=version.task,
        records=sum(int(row[3]) for row in epochs),
        epochs=tuple(row[2] for row in epochs),
        bytes=sum(int(row[4]) for row in epochs),
        last_written=moment(max(row[5] for row in epochs)) if epochs else None,
    )


def _results(session: Session) -> list[ResultInfo]:
    query = (
        select(ResultRow, VersionRow, ModelRow)
        .join(VersionRow, col(VersionRow.id) == ResultRow.version_id)
        .join(ModelRow, col(ModelRow.id) == VersionRow.model_id)
        .order_by(col(ResultRow.id))
    )
    return [
        ResultInfo(
            number=row.id or 0,
            name=row.name,
            version=ModelVersion(model.name, version.name),
            task=version.task,
            method=row.method,
            n_epoch=json.loads(row.n_epoch),
            created_at=datetime.fromisoformat(row.created_at),
            completed_at=datetime.fromisoformat(row.completed_at),
            options=json.loads(row.options),
        )
        for row, version, model in session.exec(query)
    ]


def _no_result(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = get_close_matches(name, names, n=3, cutoff=0.4) or names[-3:]
    if not near:
        return f"no result {name!r}: there are none yet; make one with request_evaluation"
    return f"no result {name!r}; the nearest are: {', '.join(near)}"
