"""The files that hold recorded values: appended to by one process, read by any."""

import fcntl
import itertools
import os
import threading
import uuid
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.errors import StoreError

ALIGNMENT = 64
SEGMENT_BYTES = 1 << 30
SUFFIX = ".seg"
IOV_MAX = os.sysconf("SC_IOV_MAX")
OPEN_FILES = 256  # of all readers of a process
GROUP_BYTES = 64 << 20

Bytes = memoryview


class Segments(Protocol):
    """Where the values of chunks lie: byte arrays that are appended and never change."""

    def appended(self, pieces: Iterable[Bytes]) -> AbstractContextManager[tuple[str, int]]:
        """Write byte arrays one after the other, and give the time to enter them somewhere.

        Yields:
            A segment's name and the offset of the first byte, once all of them are durable.

        Raises:
            StoreError: They cannot be written; nothing of `pieces` is in use then.
        """

    def read(self, name: str, offset: int, out: Bytes) -> None:
        """Fill `out` with the bytes at an offset of a segment.

        Raises:
            FileNotFoundError: There is no such segment (any more).
            StoreError: It is shorter than that, or cannot be read.
        """

    def place(self, name: str) -> str:
        """Return where a segment lies, for messages."""

    def anew(self) -> "Segments":
        """Return the same segments with nothing open or cached, to see what is really there."""

    def close(self) -> None:
        """Let go of open files; a later call opens them again."""


class SegmentWriter:
    """The open segment of this process.

    Safe to use from several threads. The file is locked while it is open, which is how
    compaction knows that somebody still appends to it.
    """

    def __init__(self, folder: Path, limit: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._limit = limit
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._end = 0
        self._name: str | None = None
        self._fd = -1
        self._closing: weakref.finalize[Any, Any] | None = None

    @contextmanager
    def appended(self, pieces: Iterable[Bytes]) -> Iterator[tuple[str, int]]:
        """Write byte arrays one after the other, and give the time to enter them somewhere.

        The segment stays open and locked until the block ends, whatever other threads do: what
        is written but not yet in the catalogue is dead to compaction.

        Yields:
            The segment's name and the offset of the first byte, a multiple of 64, once all of
            them are durable.

        Raises:
            StoreError: The disk refused, or this is a forked child of the process that opened
                the writer; nothing of `pieces` is in use then.
        """
        if os.getpid() != self._pid:
            raise StoreError(
                f"the store writer of process {self._pid} was used in its forked child "
                f"{os.getpid()}; open a Store of its own in the child"
            )
        with self._lock:
            yield self._append(pieces)

    def close(self) -> None:
        """Let go of the open segment; a later append opens another one."""
        if os.getpid() == self._pid:
            with self._lock:
                self._close()

    def _append(self, pieces: Iterable[Bytes]) -> tuple[str, int]:
        if self._name is None or self._end >= self._limit:
            self._roll()
        assert self._name is not None  # _roll has just opened one
        start = self._end
        try:
            end = _write_all(self._fd, pieces, start)
            os.fdatasync(self._fd)
        except OSError as error:
            self._undo(start)
            if isinstance(error, StoreError):  # of where the pieces come from
                raise
            raise StoreError(
                f"cannot write {self._folder / self._name}: {error.strerror}; what was recorded "
                "before is intact. Free some space, or move the store with MLD_HOME"
            ) from error
        # Even if the block that enters it fails, these bytes are not used again: a transaction
        # whose commit failed may still be found committed after a crash.
        self._end = end + -end % ALIGNMENT
        return self._name, start

    def _close(self) -> None:
        if self._closing is not None:
            self._closing()
        self._name, self._fd, self._closing, self._end = None, -1, None, 0

    def _roll(self) -> None:
        self._close()
        name = uuid.uuid4().hex
        # Under its final name the file is always locked, or compaction could take it for a
        # leftover between its creation and the lock.
        hidden = self._folder / f".{name}"
        try:
            fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._closing = weakref.finalize(self, _release, fd, self._pid)
            self._closing.atexit = False  # batches may still be flushed at exit, after this
            self._fd = fd
            fcntl.flock(fd, fcntl.LOCK_EX)
            hidden.rename(self._folder / (name + SUFFIX))
            sync_folder(self._folder)
        except OSError as error:
            self._close()
            hidden.unlink(missing_ok=True)
            raise StoreError(
                f"cannot create a file in {self._folder}: {error.strerror}; the store needs a "
                "writable folder with free space. Choose one with MLD_HOME or home="
            ) from error
        self._name = name

    def _undo(self, start: int) -> None:
        try:
            os.ftruncate(self._fd, start)
        except OSError:
            self._close()  # leaves dead bytes behind, which compaction finds


class SegmentReader:
    """Reads from segments, keeping files open between reads.

    Safe to use from several threads. A file that is open stays readable after compaction has
    removed it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = next(_numbers)

    def read(self, name: str, offset: int, out: Bytes) -> None:
        """Fill `out` with the bytes at an offset.

        Raises:
            FileNotFoundError: There is no such segment (any more).
            StoreError: It is shorter than that, or cannot be read.
        """
        file = self._file(name)
        done = 0
        try:
            while done < out.nbytes:
                count = os.preadv(file.fd, [out[done:]], offset + done)
                if count == 0:
                    raise StoreError(
                        f"{self._folder / (name + SUFFIX)} ends before byte "
                        f"{offset + out.nbytes}, which the catalogue promises; the file is "
                        "damaged: restore it, or find what is affected with `ml-debugger doctor`"
                    )
                done += count
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(
                f"cannot read {self._folder / (name + SUFFIX)}: {error.strerror}"
            ) from error

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        _opened.forget(self._number)

    def forget(self, name: str) -> None:
        """Close a file that was deleted, which takes space until nobody reads from it."""
        _opened.forget(self._number, name)

    def _file(self, name: str) -> "_File":
        return _opened.get(self._number, name, self._folder / (name + SUFFIX))


class FolderSegments:
    """Segments that are files of a folder, one for each process that writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer = SegmentWriter(folder)
        self._reader = SegmentReader(folder)

    def appended(self, pieces: Iterable[Bytes]) -> AbstractContextManager[tuple[str, int]]:
        """See `SegmentWriter.appended`."""
        return self._writer.appended(pieces)

    def read(self, name: str, offset: int, out: Bytes) -> None:
        """See `SegmentReader.read`."""
        self._reader.read(name, offset, out)

    def place(self, name: str) -> str:
        """Return the path of a segment."""
        return str(self.folder / (name + SUFFIX))

    def anew(self) -> "FolderSegments":
        """Return the same segments, with no file open."""
        return FolderSegments(self.folder)

    def end(self) -> None:
        """Let go of the segment that is written to, so that it may be compacted."""
        self._writer.close()

    def close(self) -> None:
        """Let go of open files; a later call opens them again."""
        self._writer.close()
        self._reader.close()


class _File:
    """A descriptor that is closed when nobody reads through it any more."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.fd).atexit = False


class _Opened:
    """The files that the readers of a process keep open: a few, whatever number of stores."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # those of a reader that is no more are the oldest some time
        self._files: OrderedDict[tuple[int, str], _File] = OrderedDict()

    def get(self, reader: int, name: str, path: Path) -> "_File":
        """Return a file, opened where it is not open."""
        with self._lock:
            file = self._files.get((reader, name))
            if file is None:
                file = self._files[reader, name] = _File(path)
                if len(self._files) > OPEN_FILES:
                    self._files.popitem(last=False)
            self._files.move_to_end((reader, name))
            return file

    def forget(self, reader: int, name: str | None = None) -> None:
        """Close a file of a reader, or all."""
        with self._lock:
            for key in [one for one in self._files if one[0] == reader]:
                if name in (None, key[1]):
                    del self._files[key]

    def names(self, reader: int) -> set[str]:
        """Return which files of a reader are open."""
        with self._lock:
            return {name for one, name in self._files if one == reader}

    def renew(self) -> None:
        """Take a new lock after a fork: another thread of the parent may have held the old one."""
        self._lock = threading.Lock()


_opened = _Opened()
_numbers = itertools.count()
os.register_at_fork(after_in_child=_opened.renew)


def as_bytes(array: NDArray[Any]) -> Bytes:
    """Return the memory of a contiguous array, without a copy."""
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # from 3.12 on


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, pieces: Iterable[Bytes], offset: int) -> int:
    """Write pieces at an offset, whatever number of calls it takes; return the end."""
    rest = iter(pieces)
    while group := _next_group(rest):
        while group:
            count = os.pwritev(fd, group, offset)
            offset += count
            group = _after(group, count)
    return offset


def _next_group(pieces: Iterator[Bytes]) -> list[Bytes]:
    """Return what one call may write: some pieces, and no more in memory than need be."""
    group: list[Bytes] = []
    size = 0
    while len(group) < IOV_MAX and size < GROUP_BYTES:
        piece = next(pieces, None)
        if piece is None:
            break
        group.append(piece)
        size += piece.nbytes
    return group


def _after(group: list[Bytes], count: int) -> list[Bytes]:
    """Return what is left of pieces after some bytes of them."""
    for k, piece in enumerate(group):
        if count < piece.nbytes:
            return [piece[count:], *group[k + 1 :]]
        count -= piece.nbytes
    return []


def _release(fd: int, pid: int) -> None:
    if os.getpid() == pid:  # the lock is shared with forked children, and not theirs to give up
        fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def checksum(pieces: Sequence[Bytes], start: int = 0) -> int:
    """Return the CRC-32 of byte arrays one after the other."""
    for piece in pieces:
        start = zlib.crc32(piece, start)
    return start
