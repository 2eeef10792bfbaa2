"""Locks between processes."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ml_debugger.core.errors import StoreError

PAUSE = 0.25  # seconds between attempts to take a lock

_open: set[int] = set()


def _close_inherited() -> None:
    """Let go, in a forked child, of what is its parent's: a lock is of all who have the file open.

    A child that outlives its parent would keep it.
    """
    while _open:
        os.close(_open.pop())


os.register_at_fork(after_in_child=_close_inherited)


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Wait until nobody else, in any process, holds this lock, and hold it; a crash frees it.

    Args:
        path: The file that it is; made where it does not exist, and left there.
        waiting: Called again and again while somebody else holds it; it may raise, not to wait.

    Raises:
        StoreError: The file cannot be made.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"cannot write in {path.parent}: {error.strerror}; the store needs a writable "
            "folder. Choose one with MLD_HOME or home="
        ) from error
    pid = os.getpid()
    _open.add(fd)
    try:
        if waiting is None:
            fcntl.flock(fd, fcntl.LOCK_EX)
        else:
            while not _taken(fd):
                waiting()
                time.sleep(PAUSE)
        yield
    finally:
        if os.getpid() == pid:
            fcntl.flock(fd, fcntl.LOCK_UN)  # to close it frees nothing where a child has it open
            _open.discard(fd)  # first, or it may be the number of another file by then
            os.close(fd)


def is_free(path: Path) -> bool:
    """Tell whether nobody holds a lock just now.

    Raises:
        StoreError: The file cannot be made.
    """
    try:
        with locked(path, _give_up):
            return True
    except BlockingIOError:
        return False


def _give_up() -> None:
    raise BlockingIOError


def _taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
