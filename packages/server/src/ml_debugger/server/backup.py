"""A copy of a whole service in a folder, made while it runs, and a service made of such a copy.

The metadata are copied first, of one moment each; then the values, which are there before the
metadata name them and never change. Should compaction have moved something away in between, what
has changed is copied once more. What was taken in meanwhile may be missing in a copy: whoever sent
it sends it again with `force=True`, which adds what is missing and nothing twice.
"""

import hmac
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import make_url, text

from ml_debugger.core.errors import InputError, StoreError
from ml_debugger.core.store.home import folder_name
from ml_debugger.core.store.local import CATALOGUE
from ml_debugger.core.store.segments import SUFFIX
from ml_debugger.server.database import Database
from ml_debugger.server.objects import COMPRESSED, Objects, result_place
from ml_debugger.server.settings import Settings

ABOUT = "backup.json"
DUMP = "database.dump"
OBJECTS = "objects"
PROJECTS = "projects"
TABLES = "service.db"
RESTORING = ".restoring"  # there while a folder is not restored yet
ATTEMPTS = 5

_SEGMENTS = "SELECT DISTINCT name FROM {0}segment JOIN {0}chunk ON segment_id = segment.id"
_RESULTS = "SELECT name, completed_at FROM {0}result"


def backup(settings: Settings, target: Path) -> None:
    """Copy a service into a new folder, which only its owner can read.

    The secret is in it, if the service made that itself.

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
        with _told(f"cannot back up to {target}"):
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(mode=0o700)
            _copy_out(settings, draft)
            os.sync()  # or a power cut leaves files with less in them
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def restore(settings: Settings, source: Path) -> bool:
    """Make a service of a backup.

    The database comes last, in one transaction: until then there is nothing that a service would
    start with. A restore that was interrupted is begun again, with all of it empty.

    Args:
        settings: Of the new service: its folder, its database and its place in an object store are
            empty. It is of the same kind, with PostgreSQL and an object store or without.
        source: The backup.

    Returns:
        Whether the secret is that of the backup; API keys and logins are void otherwise.

    Raises:
        InputError: There is something already, or the backup is of another kind.
        StoreError: Something cannot be read or written.
    """
    try:
        about = json.loads((source / ABOUT).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{source} is no backup of a service: it has no {ABOUT}") from error
    for part, given, name in (
        (DUMP, settings.database, "database"),
        (OBJECTS, settings.objects, "objects"),
    ):
        if (source / part).exists() != (given is not None):
            raise InputError(
                f"the backup was made {'with' if given is None else 'without'} the setting "
                f"{name!r}; restore it alike"
            )
    _refuse_what_is_there(settings)
    with _told(f"cannot restore {source}"):
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        (settings.data / RESTORING).touch()
        if settings.objects is not None:
            place = _objects(settings)
            place.make()
            place.put_tree(source / OBJECTS)
        for name in ("secret", PROJECTS, TABLES):
            one = source / name
            if one.is_dir():
                shutil.copytree(one, settings.data / name)
            elif one.exists():
                shutil.copy2(one, settings.data / name)
        if settings.database is not None:
            how = ("--no-owner", "--single-transaction", str(source / DUMP))
            _run("pg_restore", settings.database, *how)
        os.sync()
        (settings.data / RESTORING).unlink()
    return hmac.compare_digest(str(about.get("secret")), _fingerprint(settings))


def _refuse_what_is_there(settings: Settings) -> None:
    there = sorted(one.name for one in settings.data.iterdir()) if settings.data.exists() else []
    found = {f"the folder {settings.data}": there}
    if settings.objects is not None:
        found[f"the object store's {settings.objects}"] = _objects(settings).listed()
    if settings.database is not None:
        name = make_url(settings.database).database
        with closing(Database(settings.database, settings.data)) as database:
            found[f"the database {name}"] = database.listed()
    for what, names in found.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(
                f"{what} must be empty, so that nothing is overwritten; there is "
                f"{', '.join(names[:3])}{more}"
            )


def _copy_out(settings: Settings, target: Path) -> None:
    (target / ABOUT).write_text(json.dumps({"secret": _fingerprint(settings)}))
    if settings.secret is None:
        (target / "secret").touch(mode=0o600)
        (target / "secret").write_bytes(settings.key)
    for _ in range(ATTEMPTS):
        named = _copy_metadata(settings, target)
        top = PROJECTS if settings.objects is None else OBJECTS
        for results in target.glob(f"{top}/*/results"):
            shutil.rmtree(results)  # of the attempt before; these may have changed
        if settings.objects is None:
            gone = _copy_values(settings.data / PROJECTS, target / PROJECTS)
        else:
            gone = _objects(settings).get_tree(target / OBJECTS)
        whole = not any("/results/" in one for one in gone)  # of which a folder may be half there
        if whole and all((target / one).exists() for one in named):
            return
    raise StoreError("records are deleted faster than they can be copied; try again later")


def _copy_metadata(settings: Settings, target: Path) -> list[str]:
    """Copy what names values; return where in the copy these have to be."""
    if settings.database is None:
        _copy_database(settings.data / TABLES, target / TABLES)
    catalogues = {}
    for source in sorted(settings.data.glob(f"{PROJECTS}/*/{CATALOGUE}")):
        copy = target / PROJECTS / source.parent.name / source.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # a project that was deleted meanwhile
            _copy_database(source, copy)
            catalogues[source.parent.name] = copy
    named = []
    for project, copy in catalogues.items():
        with closing(sqlite3.connect(copy)) as raw:
            rows = [raw.execute(query.format("")).fetchall() for query in (_SEGMENTS, _RESULTS)]
        named += _places(settings, project, *rows)
    if settings.database is not None:
        with (
            closing(Database(settings.database, settings.data)) as database,
            database.reading() as session,
        ):
            # what is read here is what is dumped
            snapshot = session.connection().scalar(text("SELECT pg_export_snapshot()"))
            how = ("--format=custom", "--no-owner", f"--snapshot={snapshot}")
            _run("pg_dump", settings.database, *how, "--file", str(target / DUMP))
            for schema in database.namespaces(session.connection()):
                found = [
                    session.connection().execute(text(query.format(f'"{schema}".'))).all()
                    for query in (_SEGMENTS, _RESULTS)
                ]
                named += _places(settings, schema.partition("_")[2], *found)
    return named


def _places(
    settings: Settings, project: str, segments: Sequence[Any], results: Sequence[Any]
) -> list[str]:
    """Return where the values are that rows name."""
    if settings.objects is None:
        names = [f"segments/{name}{SUFFIX}" for (name,) in segments]
        names += [f"results/{folder_name(name)}" for name, _ in results]
        return [f"{PROJECTS}/{project}/{one}" for one in names]
    names = [f"segments/{name}{COMPRESSED}" for (name,) in segments]
    names += [
        f"results/{result_place(name, datetime.fromisoformat(completed_at))}"
        for name, completed_at in results
    ]
    return [f"{OBJECTS}/{project}/{one}" for one in names]


def _copy_values(source: Path, target: Path) -> list[str]:
    """Copy the files of all projects that are not there yet as they are; return what was gone.

    What is gone from the source goes from an earlier copy too, which may have less in it than what
    is named by now.
    """
    gone = []
    for folder, folders, files in os.walk(source):
        here = Path(folder)
        parts = here.relative_to(source).parts
        if len(parts) == 1:
            folders[:] = [one for one in folders if one in ("segments", "results")]
        folders[:] = [one for one in folders if not one.startswith(".")]  # still being written
        there = target / here.relative_to(source)
        there.mkdir(parents=True, exist_ok=True)
        if len(parts) < 2:
            continue
        for name in {one.name for one in there.iterdir() if one.is_file()}.difference(files):
            (there / name).unlink()
        for name in files:
            try:
                if not name.startswith(".") and not _alike(here / name, there / name):
                    shutil.copy2(here / name, there / name)
            except FileNotFoundError:  # deleted meanwhile
                (there / name).unlink(missing_ok=True)
                gone.append(str(here / name))
    return gone


def _alike(one: Path, copy: Path) -> bool:
    if not copy.exists():
        return False
    there, here = one.stat(), copy.stat()
    return (there.st_size, there.st_mtime_ns) == (here.st_size, here.st_mtime_ns)


def _copy_database(source: Path, target: Path) -> None:
    if not source.exists():
        raise FileNotFoundError(f"{source} is not there")
    target.unlink(missing_ok=True)
    with closing(sqlite3.connect(source)) as here, closing(sqlite3.connect(target)) as there:
        here.backup(there)
    target.chmod(0o600)


def _run(program: str, url: str, *arguments: str) -> None:
    """Run a program of PostgreSQL; what it is to connect to is not on its command line."""
    from psycopg import pq

    found = make_url(url)
    _, given = found.get_dialect()().create_connect_args(found)
    variables = {
        one.envvar.decode(): str(given[one.keyword.decode()])
        for one in pq.Conninfo.get_defaults()
        if one.envvar and given.get(one.keyword.decode()) is not None
    }
    if program == "pg_restore":
        arguments = ("--dbname", found.database or "", *arguments)
    try:
        done = subprocess.run(
            [program, *arguments],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise StoreError(
            f"{program} is needed for PostgreSQL; install its client programs, of the "
            "server's version"
        ) from error
    if done.returncode:
        raise StoreError(f"{program} failed: {done.stderr.strip()[:500]}")


def _objects(settings: Settings) -> Objects:
    assert settings.objects is not None  # the callers have looked
    return Objects(settings.objects, settings.objects_options)


def _fingerprint(settings: Settings) -> str:
    """Return what tells one secret from another, and nothing else of it."""
    return hmac.new(settings.key, b"ml-debugger backup", "sha256").hexdigest()


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except (shutil.Error, OSError, sqlite3.Error) as error:
        why: Any = error
        if isinstance(error, shutil.Error):  # a list of what went wrong
            why = error.args[0][0][2]
        elif isinstance(error, OSError):
            why = error.strerror or error
        raise StoreError(f"{what}: {why}") from error
