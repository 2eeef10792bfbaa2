"""Locks between processes, and what becomes of them in a forked child."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ml_debugger.core.locks import locked

# that threads run beside; what is forked here does nothing but sleep
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


class Children:
    """Forks processes that sleep, or do one thing before; the test's end is theirs."""

    def __init__(self) -> None:
        self._begun: list[int] = []

    def fork(self) -> int:
        pid = os.fork()
        if pid:
            self._begun.append(pid)
        return pid

    def end(self) -> None:
        for pid in self._begun:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._begun.clear()


@pytest.fixture
def children() -> Iterator[Children]:
    found = Children()
    yield found
    found.end()


def sleep() -> None:
    while True:
        signal.pause()


def is_free(path: Path) -> bool:
    def taken() -> None:
        raise TimeoutError

    try:
        with locked(path, taken):
            return True
    except TimeoutError:
        return False


def test_a_child_that_was_forked_meanwhile_does_not_keep_a_lock(
    tmp_path: Path, children: Children
) -> None:
    with locked(tmp_path / "lock"):
        if not children.fork():
            sleep()
        assert not is_free(tmp_path / "lock")
    assert is_free(tmp_path / "lock")


def test_a_child_does_not_keep_the_lock_of_a_killed_parent(
    tmp_path: Path, children: Children
) -> None:
    reader, writer = os.pipe()
    if not children.fork():
        with locked(tmp_path / "lock"):
            pid = os.fork()
            if not pid:
                os.write(writer, b"%d" % os.getpid())
            sleep()
    grandchild = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    assert not is_free(tmp_path / "lock")
    children.end()
    try:
        assert is_free(tmp_path / "lock")
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_a_child_that_leaves_the_block_does_not_free_its_parent_s_lock(
    tmp_path: Path, children: Children
) -> None:
    with ExitStack() as held:
        held.enter_context(locked(tmp_path / "lock"))
        reader, writer = os.pipe()
        if not children.fork():
            held.close()
            os.write(writer, b"done")
            sleep()
        assert os.read(reader, 4) == b"done"
        os.close(reader)
        os.close(writer)
        assert not is_free(tmp_path / "lock")
