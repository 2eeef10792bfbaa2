"""Recorded values and results in an object store, with a copy of what is in use on local disk."""

import math
import os
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from sqlalchemy import delete, exists
from sqlmodel import col, select

from ml_debugger.core.errors import InputError, StoreError
from ml_debugger.core.store.catalogue import Catalogue
from ml_debugger.core.store.home import folder_name
from ml_debugger.core.store.segments import SUFFIX, Bytes, SegmentReader
from ml_debugger.core.store.tables import ChunkRow, SegmentRow

COMPRESSED = ".zst"
BLOCK = 1 << 20
TRIES = 5
ORPHAN_SECONDS = 24 * 3600.0  # nothing that is being entered takes as long
#: botocore asks for longer, five times: who refuses connections would hold a thread for 6 s then.
S3_CONFIG = {
    "connect_timeout": 5,
    "read_timeout": 30,
    "retries": {"mode": "standard", "total_max_attempts": 2},
}
STAMP = "%Y%m%dT%H%M%S.%fZ"


def result_place(name: str, completed_at: datetime) -> str:
    """Return what the folder of a result's objects is called: another of its name has another."""
    return f"{folder_name(name)}-{completed_at.astimezone(UTC).strftime(STAMP)}"


class Objects:
    """A place in an object store.

    Attributes:
        root: Where it is, as fsspec names it.
    """

    def __init__(self, url: str, options: dict[str, Any] | None = None) -> None:
        """Prepare to connect; nothing is asked yet.

        Raises:
            InputError: There is no such kind of object store, or it needs a package.
        """
        if "://" not in url or url.startswith("file:"):
            raise InputError(
                f"objects must be a URL such as s3://bucket/prefix, got {url!r}; leave it out to "
                "keep everything in the service's folder"
            )
        try:
            self._fs, self.root = fsspec.core.url_to_fs(
                url, use_listings_cache=False, **_patient(url, options or {})
            )
        except (ImportError, ValueError) as error:
            raise InputError(f"objects {url!r} cannot be used: {error}") from error
        self.url = url.rstrip("/")
        self.root = self.root.rstrip("/")

    def make(self) -> None:
        """Make the place, a bucket for example, where it is not there yet.

        Raises:
            StoreError: The object store refused.
        """
        with self._told(f"cannot make {self.url}"):
            self._fs.makedirs(self.root, exist_ok=True)

    def write(self, name: str, pieces: Iterable[Bytes]) -> None:
        """Write an object, compressed, that nothing is called yet.

        Raises:
            StoreError: The object store refused.
        """
        with self._told(f"cannot write {self.url}/{name}"):
            raw = self._fs.open(f"{self.root}/{name}", "wb")
            with raw, pa.CompressedOutputStream(pa.PythonFile(raw, "w"), "zstd") as out:
                for piece in pieces:
                    out.write(piece)

    def fetch(self, name: str, target: Path) -> None:
        """Copy an object into a file, as it was before it was compressed.

        Raises:
            FileNotFoundError: There is none.
            StoreError: The object store refused.
        """
        with self._told(f"cannot read {self.url}/{name}", reading=True):
            raw = self._fs.open(f"{self.root}/{name}", "rb", block_size=16 << 20)
            with (
                raw,
                pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd") as source,
                target.open("xb") as out,
            ):
                while block := source.read(BLOCK):
                    out.write(block)
                out.flush()
                os.fsync(out.fileno())  # or a power cut leaves a file with less in it

    def put_folder(self, folder: Path, name: str) -> None:
        """Copy a folder's files, after deleting what was there under its name."""
        with self._told(f"cannot write {self.url}/{name}"):
            self._remove(name)
            for file in sorted(folder.iterdir()):
                self._fs.put_file(str(file), f"{self.root}/{name}/{file.name}")

    def get_folder(self, name: str, folder: Path) -> None:
        """Copy files into a new folder.

        Raises:
            FileNotFoundError: There are none.
            StoreError: The object store refused.
        """
        with self._told(f"cannot read {self.url}/{name}", reading=True):
            files = self._fs.ls(f"{self.root}/{name}", detail=False)
            folder.mkdir(parents=True)
            for file in files:
                self._fs.get_file(file, str(folder / Path(file).name))

    def listed(self) -> list[str]:
        """Return the names of what is in the place, at its top; nothing where there is no place."""
        with self._told(f"cannot list {self.url}"), suppress(FileNotFoundError):
            found = self._fs.ls(self.root, detail=False)
            return sorted(Path(one).name for one in found if one.rstrip("/") != self.root)
        return []

    def get_tree(self, folder: Path) -> list[str]:
        """Copy everything that is not in a folder yet, as it is; return what was gone meanwhile."""
        gone = []
        with self._told(f"cannot read {self.url}"):
            folder.mkdir(parents=True, exist_ok=True)
            for file in self._fs.find(self.root):
                target = folder / file.removeprefix(self.root).lstrip("/")
                if target.exists():
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._fs.get_file(file, str(target))
                except FileNotFoundError:
                    gone.append(str(file))
        return gone

    def put_tree(self, folder: Path) -> None:
        """Write what `get_tree` copied."""
        with self._told(f"cannot write {self.url}"):
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    self._fs.put_file(str(file), f"{self.root}/{file.relative_to(folder)}")

    def remove(self, name: str) -> None:
        """Delete an object or a folder; there being none is no error."""
        with self._told(f"cannot delete {self.url}/{name}"):
            self._remove(name)

    def ages(self, name: str) -> dict[str, float]:
        """Return how many seconds ago each object of a folder was written."""
        with self._told(f"cannot list {self.url}/{name}"):
            try:
                found = self._fs.ls(f"{self.root}/{name}", detail=True)
            except FileNotFoundError:
                return {}
            now = self._now()
        return {Path(one["name"]).name: now - _written(one) for one in found}

    def folders(self, name: str) -> dict[str, float]:
        """Return how many seconds ago each folder of a folder was last written to."""
        with self._told(f"cannot list {self.url}/{name}"):
            found = self._fs.find(f"{self.root}/{name}", detail=True)
            now = self._now() if found else 0.0
        ages: dict[str, float] = {}
        for path, one in found.items():
            first = path.removeprefix(f"{self.root}/{name}/").partition("/")[0]
            ages[first] = min(ages.get(first, math.inf), now - _written(one))
        return ages

    def ping(self) -> None:
        """Look whether the object store answers, and has the bucket of this place.

        Raises:
            StoreError: It does not.
        """
        with self._told(f"{self.url} does not answer"):
            try:
                self._fs.info(self.root)
            except FileNotFoundError:  # nothing is in it yet, or it is not there itself
                with suppress(PermissionError):  # who may see one prefix only may write to it
                    # not `info`, for which early s3fs has no bucket that is empty
                    self._fs.ls(self.root.partition("/")[0], detail=False)

    def _now(self) -> float:
        """Return what the object store's own clock says; ours may have jumped."""
        probe = f"{self.root}/.clock-{uuid.uuid4().hex}"
        self._fs.pipe_file(probe, b"?")
        try:
            return _written(self._fs.info(probe))
        finally:
            self._fs.rm(probe)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm(f"{self.root}/{name}", recursive=True)

    @contextmanager
    def _told(self, what: str, *, reading: bool = False) -> Iterator[None]:
        """Tell what an object store refused; that it lacks an object is for who is reading."""
        try:
            yield
        except FileNotFoundError as error:
            if reading:
                raise
            raise StoreError(
                f"{what}: the place itself, a bucket for example, is not there; `ml-debugger "
                "service migrate` makes it"
            ) from error
        except Exception as error:  # each kind of store has errors of its own
            raise StoreError(f"{what} ({type(error).__name__}); try again") from error


class ObjectSegments:
    """Segments that are objects, one for each append; read through a cache of files."""

    def __init__(self, objects: Objects, name: str, cache: Path, limit: int) -> None:
        """Use objects under a name, and a folder that may take `limit` bytes."""
        self._objects = objects
        self._name = name
        self._cache = cache
        self._limit = limit
        self._room = 0  # how many bytes may be fetched before the cache is looked through again
        self._files = SegmentReader(cache)
        self._lock = threading.Lock()
        self._fetching: dict[str, threading.Lock] = {}
        self._needs: Counter[str] = Counter()  # by how many threads a file is being read

    @contextmanager
    def appended(self, pieces: Iterable[Bytes]) -> Iterator[tuple[str, int]]:
        """Write byte arrays as one object, and give the time to enter it somewhere.

        Should that fail, the object stays: a transaction whose commit failed may still be found
        committed. `collect` deletes what nobody has entered after a day.
        """
        name = uuid.uuid4().hex
        self._objects.write(self._object(name), pieces)
        yield name, 0

    def read(self, name: str, offset: int, out: Bytes) -> None:
        """Fill `out` with the bytes at an offset of a segment."""
        for _ in range(TRIES):  # another process may delete what was just fetched
            try:
                return self._files.read(name, offset, out)
            except FileNotFoundError:
                pass
            except StoreError:  # a copy that was cut short is worth nothing
                self._drop(name)
            with self._needed(name):
                self._fetch(name)
                with suppress(FileNotFoundError):
                    return self._files.read(name, offset, out)
        raise StoreError(f"{self._cache} is too small for what is read at once; try again")

    def place(self, name: str) -> str:
        """Return the URL of a segment."""
        return f"{self._objects.url}/{self._object(name)}"

    def anew(self) -> "ObjectSegments":
        """Return the same segments with an empty cache."""
        shutil.rmtree(self._cache / "anew", ignore_errors=True)
        return ObjectSegments(self._objects, self._name, self._cache / "anew", 0)

    def close(self) -> None:
        """Let go of open files."""
        self._files.close()

    def collect(self, catalogue: Catalogue) -> int:
        """Delete objects of which no chunk is left, or that were never entered; count them."""
        with catalogue.writing() as session:
            # said twice, not listed: there may be more of them than a statement takes values
            unused = ~exists().where(col(ChunkRow.segment_id) == SegmentRow.id)
            dead = list(session.exec(select(SegmentRow.name).where(unused)))
            session.execute(delete(SegmentRow).where(unused))
        for name in dead:
            self._objects.remove(self._object(name))
            self._drop(name)
        for draft in self._cache.glob(".*"):  # of processes that were killed
            with suppress(FileNotFoundError):
                if time.time() - draft.stat().st_mtime > ORPHAN_SECONDS:
                    draft.unlink()
        old = [
            name.removesuffix(COMPRESSED)
            for name, age in self._objects.ages(self._name).items()
            if age > ORPHAN_SECONDS
        ]
        with catalogue.reading() as session:
            known = set(session.exec(select(SegmentRow.name)))
        orphans = [name for name in old if name not in known]
        for name in orphans:
            self._objects.remove(self._object(name))
        return len(dead) + len(orphans)

    def _object(self, name: str) -> str:
        return f"{self._name}/{name}{COMPRESSED}"

    def _fetch(self, name: str) -> None:
        with self._fetching[name]:
            path = self._cache / (name + SUFFIX)
            if path.exists():
                return
            self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = self._cache / f".{uuid.uuid4().hex}"
            try:
                self._objects.fetch(self._object(name), draft)
                size = draft.stat().st_size
                draft.rename(path)
            except OSError as error:
                if isinstance(error, StoreError | FileNotFoundError):
                    raise
                raise StoreError(
                    f"cannot cache {self.place(name)}: {error.strerror}; free some space"
                ) from error
            finally:
                draft.unlink(missing_ok=True)
        with self._lock:
            self._room -= size
            if self._room < 0:
                self._evict()

    @contextmanager
    def _needed(self, name: str) -> Iterator[None]:
        """Let no other thread delete a file before it is read; give each file a lock."""
        with self._lock:
            self._fetching.setdefault(name, threading.Lock())
            self._needs[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._needs[name] -= 1
                if not self._needs[name]:
                    del self._needs[name], self._fetching[name]

    def _drop(self, name: str) -> None:
        """Delete the copy of a segment, and give its space back."""
        (self._cache / (name + SUFFIX)).unlink(missing_ok=True)
        self._files.forget(name)

    def _evict(self) -> None:
        """Delete the files that were fetched first, until the rest is no more than allowed."""
        files = []
        for path in self._cache.glob("*" + SUFFIX):
            with suppress(FileNotFoundError):
                found = path.stat()
                files.append((found.st_mtime, found.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._limit:
                break
            if path.stem not in self._needs:
                self._drop(path.stem)
                total -= size
        self._room = max(self._limit - total, 0) // 2  # other processes fetch too


def _patient(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Have a client of S3 give up while somebody still waits, unless the options say otherwise."""
    if not url.startswith(("s3://", "s3a://")):
        return options
    return {**options, "config_kwargs": {**S3_CONFIG, **options.get("config_kwargs", {})}}


def _written(entry: dict[str, Any]) -> float:
    for name in ("LastModified", "last_modified", "mtime", "created", "updated"):
        found = entry.get(name)
        if found is not None:
            return float(found.timestamp()) if hasattr(found, "timestamp") else float(found)
    return time.time()  # nothing is known of its age, so it is taken for new
