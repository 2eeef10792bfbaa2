"""A copy of a whole service in a folder, made while it runs, and a service made of such a copy.

The metadata are copied first, of one moment each; then the values, which are there before the
metadata name them and never change. What was taken in meanwhile may be missing in a copy: whoever
sent it sends it again with `force=True`, which adds what is missing and nothing twice.
"""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sqlalchemy import make_url

from ml_debugger.core.errors import InputError, StoreError
from ml_debugger.core.store.segments import SUFFIX
from ml_debugger.server.objects import Objects
from ml_debugger.server.settings import Settings

DUMP = "database.dump"
OBJECTS = "objects"
ATTEMPTS = 5


def backup(settings: Settings, target: Path) -> None:
    """Copy a service into a new folder, which only its owner can read: the secret is in it.

    Args:
        settings: Of the service, which may be running.
        target: The folder. Its parent exists; it is there only once all is copied.

    Raises:
        InputError: The folder is there already, or its parent is not.
        StoreError: Something cannot be read or written.
    """
    if target.exists() or not target.parent.is_dir():
        raise InputError(f"{target} must be a new folder in one that is there")
    draft = target.with_name(f".{target.name}.tmp")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        _copy_out(settings, draft)
        draft.rename(target)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"cannot back up to {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def restore(settings: Settings, source: Path) -> None:
    """Make a service of a backup.

    Args:
        settings: Of the new service: its folder and its database are empty. It is of the same
            kind, with PostgreSQL and an object store or without.
        source: The backup.

    Raises:
        InputError: There is something already, or the backup is of another kind.
        StoreError: Something cannot be read or written.
    """
    if not (source / "secret").is_file():
        raise InputError(f"{source} is no backup of a service")
    if settings.data.exists() and any(settings.data.iterdir()):
        raise InputError(f"{settings.data} must be empty, so that nothing is overwritten")
    for part, given, name in (
        (DUMP, settings.database, "database"),
        (OBJECTS, settings.objects, "objects"),
    ):
        if (source / part).exists() != (given is not None):
            raise InputError(
                f"the backup was made {'with' if given is None else 'without'} the setting "
                f"{name!r}; restore it alike"
            )
    try:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        for one in source.iterdir():
            if one.name in (DUMP, OBJECTS):
                continue
            copy = shutil.copytree if one.is_dir() else shutil.copy2
            copy(one, settings.data / one.name)
        if settings.objects is not None:
            _objects(settings).put_tree(source / OBJECTS)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"cannot restore {source}: {error.strerror or error}") from error
    if settings.database is not None:
        _run("pg_restore", settings.database, "--no-owner", "--exit-on-error", str(source / DUMP))


def _copy_out(settings: Settings, target: Path) -> None:
    (target / "secret").touch(mode=0o600)
    (target / "secret").write_bytes(settings.key)
    if settings.database is not None:
        dump = ("--format=custom", "--no-owner", "--file", str(target / DUMP))
        _run("pg_dump", settings.database, *dump)
    else:
        _copy_database(settings.data / "service.db", target / "service.db")
    for project in _projects(settings.data):
        _copy_project(project, target / "projects" / project.name, values=settings.objects is None)
    if settings.objects is not None:
        _objects(settings).get_tree(target / OBJECTS)


def _projects(data: Path) -> Iterator[Path]:
    folder = data / "projects"
    if folder.is_dir():
        yield from (one for one in sorted(folder.iterdir()) if one.is_dir())


def _copy_project(project: Path, target: Path, *, values: bool) -> None:
    """Copy what a project has in the service's folder."""
    for _ in range(ATTEMPTS):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        catalogue = project / "catalogue.db"
        if catalogue.exists():
            _copy_database(catalogue, target / "catalogue.db")
        if not values:
            return
        for name in ("segments", "results"):
            if (project / name).is_dir():
                ignore = shutil.ignore_patterns(".*")  # what is still being written
                shutil.copytree(project / name, target / name, ignore=ignore)
        if not catalogue.exists() or not _missing(target):
            return
    raise StoreError(f"{project} is being compacted faster than it can be copied; try again later")


def _missing(copy: Path) -> bool:
    """Tell whether compaction has moved something away between catalogue and values."""
    with closing(sqlite3.connect(copy / "catalogue.db")) as raw:
        names = raw.execute(
            "SELECT DISTINCT segment.name FROM segment JOIN chunk ON chunk.segment_id = segment.id"
        ).fetchall()
    return any(not (copy / "segments" / f"{name}{SUFFIX}").exists() for (name,) in names)


def _copy_database(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as here, closing(sqlite3.connect(target)) as there:
        here.backup(there)
    target.chmod(0o600)


def _run(program: str, url: str, *arguments: str) -> None:
    """Run a program of PostgreSQL; what it is to connect to is not on its command line."""
    found = make_url(url)
    variables = {
        "PGHOST": found.host,
        "PGPORT": None if found.port is None else str(found.port),
        "PGUSER": found.username,
        "PGPASSWORD": None if found.password is None else str(found.password),
        "PGDATABASE": found.database,
    }
    given = {name: value for name, value in variables.items() if value is not None}
    if program == "pg_restore":
        arguments = ("--dbname", found.database or "", *arguments)
    try:
        done = subprocess.run(
            [program, *arguments],
            env={**os.environ, **given},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise StoreError(
            f"{program} is needed for PostgreSQL; install its client programs"
        ) from error
    if done.returncode:
        raise StoreError(f"{program} failed: {done.stderr.strip()[:500]}")


def _objects(settings: Settings) -> Objects:
    assert settings.objects is not None  # the callers have looked
    return Objects(settings.objects, settings.objects_options)
