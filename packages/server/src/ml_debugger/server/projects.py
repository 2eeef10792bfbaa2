"""The stores of projects: one of each in a process, over whatever the service keeps things in."""

import logging
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from numpy.typing import NDArray
from sqlalchemy import exists, func
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from typing_extensions import override

from ml_debugger.core.errors import InputError, MLDebuggerError, SchemaError, StoreError
from ml_debugger.core.evaluation.folder import read_manifest
from ml_debugger.core.records import ModelVersion
from ml_debugger.core.store import LocalRepository, Records, ResultInfo, Store, VersionInfo
from ml_debugger.core.store.catalogue import Catalogue
from ml_debugger.core.store.home import sweep
from ml_debugger.core.store.local import CATALOGUE, listed, listed_versions
from ml_debugger.core.store.repository import moment
from ml_debugger.core.store.segments import sync_folder
from ml_debugger.core.store.sending import delete_chunks
from ml_debugger.core.store.tables import ChunkRow, ModelRow, ResultRow, VersionRow
from ml_debugger.server.credentials import new_id
from ml_debugger.server.database import Database
from ml_debugger.server.objects import ORPHAN_SECONDS, Objects, ObjectSegments, result_place
from ml_debugger.server.pools import Pools
from ml_debugger.server.problems import NoProjectError, OvertakenError
from ml_debugger.server.settings import Settings
from ml_debugger.server.tables import ProjectRow

log = logging.getLogger("ml_debugger.server")

OPEN_STORES = 32
OPEN_REPOSITORIES = 16  # of each store


class ProjectStore(Store):
    """A store whose values and results may lie in an object store.

    Attributes:
        pools: What is kept of queries.
    """

    def __init__(
        self,
        home: Path,
        *,
        catalogue: Catalogue | None = None,
        objects: Objects | None = None,
        name: str = "",
        cache_bytes: int = 0,
        pools: Pools | None = None,
    ) -> None:
        """Open the store of a project.

        Args:
            home: A folder of this machine, for everything or for a cache.
            catalogue: Where the metadata lie, if not in the folder.
            objects: Where values and results lie, if not in the folder,
            name: and under which name.
            cache_bytes: How much of the values the folder may hold then.
            pools: What is kept of queries, by all stores together.
        """
        segments = None
        if objects is not None:
            segments = ObjectSegments(objects, f"{name}/segments", home / "segments", cache_bytes)
        super().__init__(home, catalogue=catalogue, segments=segments)
        self._objects = objects
        self._name = name
        self._repositories: OrderedDict[int, LocalRepository] = OrderedDict()
        self._lock = threading.Lock()
        self._fetching: WeakValueDictionary[str, _Lock] = WeakValueDictionary()
        self.pools = Pools() if pools is None else pools

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

    def has_records(self, model_name: str) -> bool:
        """Tell whether there are records of a model; one that has none keeps its name alone."""
        recorded = exists().where(
            col(VersionRow.model_id) == ModelRow.id, col(ChunkRow.version_id) == VersionRow.id
        )
        query = select(ModelRow.id).where(ModelRow.name == model_name, recorded)
        with self._catalogue.reading() as session:
            return session.exec(query).first() is not None

    def page_of_versions(
        self, after: int, limit: int, model_name: str | None, version_name: str | None
    ) -> list[VersionInfo]:
        """Return some versions whose numbers are greater, of any name or of a certain one."""
        conditions = [col(VersionRow.id) > after, *_named(model_name, version_name)]
        with self._catalogue.reading() as session:
            return listed_versions(session, *conditions, limit=limit)

    def version_numbered(self, number: int) -> VersionInfo | None:
        """Return what there is of a version; None if there is none of this number."""
        with self._catalogue.reading() as session:
            return next(iter(listed_versions(session, col(VersionRow.id) == number)), None)

    def page_of_results(
        self,
        after: int,
        limit: int,
        result_name: str | None,
        model_name: str | None,
        version_name: str | None,
    ) -> list[ResultInfo]:
        """Return some results whose numbers are greater, of any name or of a certain one."""
        conditions = [col(ResultRow.id) > after, *_named(model_name, version_name)]
        if result_name is not None:
            conditions.append(col(ResultRow.name) == result_name)
        with self._catalogue.reading() as session:
            return listed(session, *conditions, limit=limit)

    def result_numbered(self, number: int) -> ResultInfo | None:
        """Return what is known of a result by its number; None if there is none."""
        with self._catalogue.reading() as session:
            return next(iter(listed(session, col(ResultRow.id) == number)), None)

    def result_named(self, name: str) -> ResultInfo | None:
        """Return what is known of a result by its name; None if there is none."""
        with self._catalogue.reading() as session:
            return next(iter(listed(session, col(ResultRow.name) == name)), None)

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
        draft: Path | None = None,
        estimates: Iterable[tuple[Records, Mapping[str, NDArray[Any]]]] = (),
    ) -> None:
        objects = self._result(name, completed_at)
        if self._objects is not None and draft is not None:
            # first, for a result that is listed is complete; and where no other writes
            self._objects.put_folder(draft, objects)
        try:
            super().add_result(
                name=name,
                version=version,
                method=method,
                n_epoch=n_epoch,
                options=options,
                created_at=created_at,
                completed_at=completed_at,
                draft=draft,
                estimates=estimates,
            )
        except (InputError, OvertakenError):  # after others it may be listed all the same
            if self._objects is not None:
                self._objects.remove(objects)
            with self.fence():  # who was overtaken finds the name taken, which is no failure
                raise

    @override
    def result_folder(self, name: str) -> Path:
        """Return where a result's files are, or belong; fetched if they are elsewhere."""
        folder = super().result_folder(name)
        if self._objects is None:
            return folder
        info = self.result_named(name)
        if info is not None and not _holds(folder, info):
            with self._lock:
                lock = self._fetching.setdefault(name, _Lock())
            with lock.held:
                if not _holds(folder, info):
                    draft = folder.with_name(f".{new_id()}.tmp")
                    try:
                        self._objects.get_folder(self._result(name, info.completed_at), draft)
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
        info = self.result(name)
        self.drop_result(name)
        if self._objects is not None:
            self._objects.remove(self._result(name, info.completed_at))

    def delete_version(self, number: int) -> None:
        """Delete a version's records and its results."""
        repository = self.repository(number)
        for one in self.results(repository.version):
            self.delete_result(one.name)
        repository.recreate()

    def drop_epoch(self, number: int, n_epoch: int | None, before: datetime) -> bool:
        """Delete the records of an epoch, unless something of it was written since a moment."""
        mine = (col(ChunkRow.version_id) == number, col(ChunkRow.n_epoch) == n_epoch)
        with self._catalogue.writing() as session:
            last = session.exec(select(func.max(ChunkRow.written_at)).where(*mine)).one()
            if last is None or moment(last) >= before:
                return False
            delete_chunks(session, *mine)
        return True

    @override
    def compact(self) -> int:
        if isinstance(self._segments, ObjectSegments):
            self.sweep()
            self._collect_results()
            return self._segments.collect(self._catalogue)
        return super().compact()

    def sweep(self) -> None:
        """Delete copies of what is no more, and what was never copied to its end."""
        sweep(self.home / "segments")
        self._sweep_results()

    def _collect_results(self) -> None:
        """Delete the objects of results that were never entered."""
        assert self._objects is not None  # the caller has looked
        place = f"{self._name}/results"
        old = [name for name, age in self._objects.folders(place).items() if age > ORPHAN_SECONDS]
        listed = {self._result(one.name, one.completed_at) for one in self.results()} if old else ()
        for name in old:
            if f"{place}/{name}" not in listed:
                self._objects.remove(f"{place}/{name}")

    def _result(self, name: str, completed_at: datetime) -> str:
        return f"{self._name}/results/{result_place(name, completed_at)}"


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
        self._stores: OrderedDict[str, ProjectStore] = OrderedDict()
        self._pools = Pools()
        self._lock = threading.Lock()
        self._opening: WeakValueDictionary[str, _Lock] = WeakValueDictionary()

    def make(self, organization_id: str, name: str) -> ProjectRow:
        """Make a project, with an empty store.

        Raises:
            InputError: The organisation has one of this name.
        """
        row = ProjectRow(
            id=new_id(), organization_id=organization_id, name=name, created_at=time.time_ns()
        )
        mark = self._mark(row.id)
        try:
            self._database.make_project(row.id)  # first: a project that is listed can be used
            with self._database.writing() as session:
                same = select(ProjectRow).where(
                    ProjectRow.organization_id == organization_id, ProjectRow.name == name
                )
                if session.exec(same).first() is not None:
                    raise InputError(f"there is a project {name!r} already; choose another name")
                session.add(row)
        except (InputError, IntegrityError):  # it is not made
            self._clear(row.id)
            mark.unlink(missing_ok=True)
            raise
        mark.unlink(missing_ok=True)
        return row

    def store(self, project_id: str) -> ProjectStore:
        """Return the store of a project.

        Of those that were asked for longest ago, files are closed; who still uses one goes on.

        Raises:
            NoProjectError: There is none.
        """
        with self._lock:
            lock = self._opening.setdefault(project_id, _Lock())
        with lock.held:  # of one project: to open a store may be to wait
            with self._lock:
                found = self._stores.get(project_id)
            opened = found or self._open(project_id)
            idle = []
            with self._lock:
                self._stores[project_id] = opened
                self._stores.move_to_end(project_id)
                while len(self._stores) > OPEN_STORES:
                    idle.append(self._stores.popitem(last=False)[1])
        for one in idle:
            self._let_go(one)
        return opened

    def _open(self, project_id: str) -> ProjectStore:
        folder = self._folder / project_id
        store = ProjectStore(
            folder,
            catalogue=self._database.catalogue(project_id),
            objects=self.objects,
            name=project_id,
            cache_bytes=self._settings.cache_bytes,
            pools=self._pools,
        )
        try:
            # afterwards: whoever deletes a project takes the row first, then the files
            self._look_for(project_id)
        except NoProjectError:
            store.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except StoreError:
            store.close()
            raise
        return store

    def _look_for(self, project_id: str) -> None:
        with self._database.reading() as session:
            if session.get(ProjectRow, project_id) is None:
                raise NoProjectError

    def delete(self, project_id: str) -> None:
        """Delete a project, and all that was recorded in it.

        What the object store or the database refuses to delete just now, and what somebody is just
        writing, nobody sees any more; `sweep` sees to it a day later.

        Raises:
            NoProjectError: There is none.
            StoreError: The database is away, and nothing is deleted.
        """
        self._mark(project_id)  # which stays: somebody may be writing, and be done after `_clear`
        with self._database.writing() as session:
            row = session.get(ProjectRow, project_id)
            if row is None:
                raise NoProjectError
            session.delete(row)
        try:
            self._clear(project_id)
        except StoreError as error:
            _put_off(project_id, error)

    def _mark(self, project_id: str) -> Path:
        """Leave a mark before a project is made or deleted, for `sweep` to see to the rest."""
        mark = self._settings.data / "unfinished" / project_id
        mark.parent.mkdir(mode=0o700, exist_ok=True)
        mark.touch()
        sync_folder(mark.parent)
        return mark

    def _clear(self, project_id: str) -> None:
        """Delete all that there is of a project that has no row (any longer)."""
        with self._lock:
            store = self._stores.pop(project_id, None)
        if store is not None:
            self._let_go(store)
        shutil.rmtree(self._folder / project_id, ignore_errors=True)
        self._database.drop_project(project_id)
        if self.objects is not None:
            self.objects.remove(project_id)

    def sweep(self) -> None:
        """Delete what is left of projects that are no more."""
        self._sweep_copies()
        for mark in (self._settings.data / "unfinished").glob("*"):
            try:
                if time.time() - mark.stat().st_mtime < ORPHAN_SECONDS:
                    continue  # somebody may be at it
                try:
                    self._look_for(mark.name)
                except NoProjectError:
                    self._clear(mark.name)
                mark.unlink(missing_ok=True)
            except FileNotFoundError:
                pass  # another process has seen to it
            except StoreError as error:
                _put_off(mark.name, error)

    def _sweep_copies(self) -> None:
        """Delete what this machine has copied of projects and results that are no more."""
        if self.objects is None or not self._database.postgres or not self._folder.is_dir():
            return  # else they are no copies
        there = [  # first: more may come
            one
            for one in self._folder.iterdir()
            if one.is_dir() and not (one / CATALOGUE).exists()  # which would be the only one
        ]
        with self._database.reading() as session:
            listed = set(session.exec(select(ProjectRow.id)))
        for one in there:
            if one.name not in listed:
                with self._lock:
                    store = self._stores.pop(one.name, None)
                if store is not None:
                    self._let_go(store)
                shutil.rmtree(one, ignore_errors=True)
            else:
                try:
                    self.store(one.name).sweep()
                except MLDebuggerError as error:  # the others are swept all the same
                    log.warning("cannot tidy", extra={"project": one.name, "cause": str(error)})

    def _let_go(self, store: ProjectStore) -> None:
        self._pools.forget(store.home)
        store.close()

    def close(self) -> None:
        """Close all stores."""
        with self._lock:
            for store in self._stores.values():
                store.close()
            self._stores.clear()


def _named(model_name: str | None, version_name: str | None) -> list[Any]:
    given = ((ModelRow.name, model_name), (VersionRow.name, version_name))
    return [col(column) == name for column, name in given if name is not None]


def _put_off(project_id: str, error: StoreError) -> None:
    about = {"project": project_id, "cause": str(error)}
    log.warning("a deleted project is not gone yet", extra=about)


class _Lock:
    """A lock that is gone with its last user."""

    def __init__(self) -> None:
        self.held = threading.Lock()


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
