"""Which process of a distributed job this is.

Every rank records into segments of its own; what is done once for all of them (export, upload,
evaluation) happens on the primary rank, and returns None elsewhere. When a rank fails in something
that all do together, all of them fail, so that none waits for ever.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from ml_debugger.core.errors import MLDebuggerError

T = TypeVar("T")


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

    Raises:
        MLDebuggerError: Another rank failed; it raises its own exception.
    """
    if not is_distributed():
        return act()
    result: Any = None
    failure: Exception | None = None
    try:
        result = act()
    except Exception as error:  # noqa: BLE001  # raised again below, once the others know
        failure = error
    said: list[str | None] = [None] * world_size()
    mine = None if failure is None else f"{type(failure).__name__}: {failure}"
    dist.all_gather_object(said, mine)
    if failure is not None:
        raise failure
    for number, text in enumerate(said):
        if text is not None:
            raise MLDebuggerError(f"rank {number} failed, and so do all: {text}")
    done: T = result
    return done


def once(act: Callable[[], T]) -> T | None:
    """Do something on the primary rank while the others wait; they return None.

    Raises:
        MLDebuggerError: The primary rank failed; it raises its own exception.
    """
    return together(lambda: act() if is_primary() else None)


def agree_on(value: str) -> str:
    """Return the primary rank's value on every rank. All ranks must call it."""
    if not is_distributed():
        return value
    box: list[str | None] = [value]
    dist.broadcast_object_list(box, src=0)
    agreed = box[0]
    assert agreed is not None  # the primary rank always puts a string into the box
    return agreed
