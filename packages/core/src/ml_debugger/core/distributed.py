"""Which process of a distributed job this is.

Every rank records into segments of its own, and sends what its store holds; what is done once for
all of them (export, evaluation) happens on the primary rank, and returns None elsewhere. When a
rank fails in something that all do together, all of them fail, so that none waits for ever.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

from ml_debugger.core.background import begun
from ml_debugger.core.errors import MLDebuggerError

T = TypeVar("T")

LOOK = 1.0  # seconds for which a rank may keep the others waiting in a collective


def is_distributed() -> bool:
    """Tell whether a process group is up in this process."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's rank; 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def is_primary() -> bool:
    """Tell whether this rank does what is done once."""
    return rank() == 0


def together(act: Callable[[], T]) -> T:
    """Do something on every rank, and fail on every rank where one of them fails.

    However long it takes: meanwhile the ranks ask each other every second, in a thread of its own,
    whether all are done. A rank that only waited in one collective would be ended by the process
    group's timeout, which is ten minutes with NCCL. An interrupt ends what is done here, and is a
    failure for the others.

    Raises:
        MLDebuggerError: Another rank failed; it raises its own exception.
    """
    if not is_distributed():
        return act()
    here = _Here()
    asking = begun(here.ask_beside)
    try:
        result = act()
        here.done.set()
        said = asking.result() or here.ask()
    except BaseException as error:
        here.failure = f"{type(error).__name__}: {error}"
        here.done.set()
        with suppress(Exception):  # those who are gone need not be told
            asking.result() or here.ask()
        raise
    for number, one in enumerate(said):
        if one.failure is not None:
            raise MLDebuggerError(f"rank {number} failed, and so do all: {one.failure}")
    return result


class _Said(NamedTuple):
    """What a rank tells the others."""

    done: bool
    failure: str | None


class _Here:
    """How far this rank is."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.failure: str | None = None
        self._caller = threading.get_ident()
        # of a thread; NCCL sends from the current one, which must not be another rank's
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def ask_beside(self) -> "list[_Said] | None":
        """Ask, but not in the caller's thread: where the interpreter lets no other begin."""
        if threading.get_ident() == self._caller:
            return None
        if self._device is not None:
            torch.cuda.set_device(self._device)
        return self.ask()

    def ask(self) -> list[_Said]:
        """Return what all ranks said last: that they are done, or one of them that it failed."""
        while True:
            self.done.wait(LOOK)
            said = told(_Said(self.done.is_set(), self.failure))
            if all(one.done for one in said) or any(one.failure is not None for one in said):
                return said


def once(act: Callable[[], T]) -> T | None:
    """Do something on the primary rank while the others wait; they return None.

    Raises:
        MLDebuggerError: The primary rank failed; it raises its own exception.
    """
    return together(lambda: act() if is_primary() else None)


def told(value: T) -> list[T]:
    """Return what each rank tells the others, in their order. All ranks must call it."""
    if not is_distributed():
        return [value]
    said: list[T] = [value] * world_size()
    dist.all_gather_object(said, value)
    return said
