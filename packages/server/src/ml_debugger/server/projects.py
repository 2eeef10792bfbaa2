"""The stores of projects: one of each in a process, over whatever the service keeps things in."""

import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from typing_extensions import override

from ml_debugger.core.errors import InputError, SchemaError
from ml_debugger.core.evaluation.folder import read_manifest
from ml_debugger.core.records import ModelVersion
from ml_debugger.core.store import LocalRepository, ResultInfo, Store
from ml_debugger.core.store.catalogue import Catalogue
from ml_debugger.core.store.home import folder_name, sweep
from ml_debugger.core.store.tables import ChunkRow, ModelRow
from ml_debugger.server.credentials import new_id
from ml_debugger.server.database import Database
from ml_debugger.server.objects import Objects, ObjectSegments
from ml_debugger.server.pools import Pools
from ml_debugger.server.settings import Settings
from ml_debugger.server.tables import ProjectRow

OPEN_REPOSITORIES = 64


class ProjectStore(Store):
    """A store whose values and results may lie in an object store."""

    def __init__(
        self,
        home: Path,
        *,
        catalogue: Catalogue | None = None,
        objects: Objects | None = None,
        name: str = "",
        cache_bytes: int = 0,
    ) -> None:
        """Open the store of a project.

        Args:
            home: A folder of this machine, for everything or for a cache.
            catalogue: Where the metadata lie, if not in the folder.
            objects: Where values and results lie, if not in the folder,
            name: and under which name.
            cache_bytes: How much of the values the folder may hold then.
        """
        segments = None
        if objects is not None:
            segments = ObjectSegments(objects, f"{name}/segments", home / "segments", cache_bytes)
        super().__init__(home, catalogue=catalogue, segments=segments)
        self._objects = objects
        self._name = name
        self._repositories: OrderedDict[int, LocalRepository] = OrderedDict()
        self._lock = threading.Lock()
        self.pools = Pools()

    def repository(self, number: int) -> LocalRepository:
        """Return a version's records by its number; what it has cached is kept between calls.

        Raises:
            NothingToEvaluateError: There is no such version.
        """
        return self._kept(self.numbered(number))

    def repository_of(self, version: ModelVersion) -> LocalRepository:
        """Return a version's records by its name; like `repository`."""
        return self._kept(self.open(version))

    def _kept(self, found: LocalRepository) -> LocalRepository:
        """Return the repository of the same version that was opened first, while it holds."""
        number = found.number
        with self._lock:
            known = self._repositories.get(number)
            if known is None or not _alike(known, found):
                known = self._repositories[number] = found
                while len(self._repositories) > OPEN_REPOSITORIES:
                    self._repositories.popitem(last=False)
            self._repositories.move_to_end(number)
            return known

    def usage(self) -> tuple[int, int, int]:
        """Return how many models there are, and of all records the number and the bytes."""
        models = select(func.count(col(ModelRow.id)))
        chunks = select(
            func.coalesce(func.sum(ChunkRow.inputs), 0), func.coalesce(func.sum(ChunkRow.nbytes), 0)
        )
        with self._catalogue.reading() as session:
            records, nbytes = session.execute(chunks).one()
            return session.exec(models).one(), int(records), int(nbytes)

    def has_model(self, name: str) -> bool:
        """Tell whether there is a model of this name."""
        with self._catalogue.reading() as session:
            return (
                session.exec(select(ModelRow.id).where(ModelRow.name == name)).first() is not None
            )

    def result_numbered(self, number: int) -> ResultInfo | None:
        """Return what is known of a result by its number; None if there is none."""
        return next((one for one in self.results() if one.number == number), None)

    @override
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
        if self._objects is not None:  # first, for a result that is listed is complete
            self._objects.put_folder(super().result_folder(name), self._result(name))
        super().add_result(
            name=name,
            version=version,
            method=method,
            n_epoch=n_epoch,
            options=options,
            created_at=created_at,
            completed_at=completed_at,
        )

    @override
    def result_folder(self, name: str) -> Path:
        """Return where a result's files are, or belong; fetched if they are elsewhere."""
        folder = super().result_folder(name)
        if self._objects is None:
            return folder
        info = next((one for one in self.results() if one.name == name), None)
        if info is not None and not _holds(folder, info):
            with self._lock:
                if not _holds(folder, info):
                    draft = folder.with_name(f".{new_id()}.tmp")
                    try:
                        self._objects.get_folder(self._result(name), draft)
                        if not _holds(folder, info):  # another process may have been faster
                            shutil.rmtree(folder, ignore_errors=True)
                            draft.rename(folder)
                    finally:
                        shutil.rmtree(draft, ignore_errors=True)
        return folder

    def delete_result(self, name: str) -> None:
        """Forget a result, and delete its files.

        Raises:
            ResultNotFoundError: There is none of this name.
        """
        self.drop_result(name)
        shutil.rmtree(super().result_folder(name), ignore_errors=True)
        if self._objects is not None:
            self._objects.remove(self._result(name))

    def delete_version(self, number: int) -> None:
        """Delete a version's records and its results."""
        repository = self.repository(number)
        for one in self.results(repository.version):
            self.delete_result(one.name)
        repository.recreate()

    @override
    def compact(self) -> int:
        if isinstance(self._segments, ObjectSegments):
            for name in ("results", "segments"):
                sweep(self.home / name)
            return self._segments.collect(self._catalogue)
        return super().compact()

    def _result(self, name: str) -> str:
        return f"{self._name}/results/{folder_name(name)}"


class Projects:
    """The stores that this process has open; safe for several threads."""

    def __init__(self, settings: Settings, database: Database) -> None:
        """Take where things are."""
        self._settings = settings
        self._database = database
        self._folder = settings.data / "projects"
        self.objects = None
        if settings.objects is not None:
            self.objects = Objects(settings.objects, settings.objects_options)
        self._stores: dict[str, ProjectStore] = {}
        self._lock = threading.Lock()

    def make(self, organization_id: str, name: str) -> ProjectRow:
        """Make a project, with an empty store.

        Raises:
            InputError: The organisation has one of this name.
        """
        row = ProjectRow(
            id=new_id(), organization_id=organization_id, name=name, created_at=time.time_ns()
        )
        self._database.make_project(row.id)  # first: a project that is listed can be used
        try:
            with self._database.writing() as session:
                same = select(ProjectRow).where(
                    ProjectRow.organization_id == organization_id, ProjectRow.name == name
                )
                if session.exec(same).first() is not None:
                    raise InputError(f"there is a project {name!r} already; choose another name")
                session.add(row)
        except (InputError, IntegrityError):
            self._database.drop_project(row.id)
            raise
        return row

    def store(self, project_id: str) -> ProjectStore:
        """Return the store of a project that exists."""
        with self._lock:
            found = self._stores.get(project_id)
            if found is None:
                found = self._stores[project_id] = ProjectStore(
                    self._folder / project_id,
                    catalogue=self._database.catalogue(project_id),
                    objects=self.objects,
                    name=project_id,
                    cache_bytes=self._settings.cache_bytes,
                )
            return found

    def delete(self, project_id: str) -> None:
        """Delete a project, and all that was recorded in it.

        Raises:
            StoreError: The object store refused; the project is still listed, to be deleted again.
        """
        if self.objects is not None:
            self.objects.remove(project_id)
        with self._database.writing() as session:
            row = session.exec(select(ProjectRow).where(col(ProjectRow.id) == project_id)).one()
            session.delete(row)
        with self._lock:
            store = self._stores.pop(project_id, None)
        if store is not None:
            store.close()
        self._database.drop_project(project_id)
        shutil.rmtree(self._folder / project_id, ignore_errors=True)

    def close(self) -> None:
        """Close all stores."""
        with self._lock:
            for store in self._stores.values():
                store.close()
            self._stores.clear()


def _alike(one: LocalRepository, other: LocalRepository) -> bool:
    names = ("version", "task", "architecture_hash", "layers", "fields", "label_fields")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _holds(folder: Path, info: ResultInfo) -> bool:
    """Tell whether a folder holds this result, and not an earlier one of the same name."""
    if not folder.is_dir():
        return False
    try:
        return read_manifest(folder).completed_at == info.completed_at
    except (SchemaError, LookupError):
        return False
