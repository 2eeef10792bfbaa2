"""A progress bar for work that takes longer than two seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ml_debugger.core.distributed import is_primary

PATIENCE = 2.0

#: Told the share that is done, in [0, 1], in place of a bar.
Listener = Callable[[float], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have what is done within the block tell how far it has come."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def progress(total: float, description: str) -> Iterator[Callable[[float], None]]:
    """Show how far some work has come, on a terminal and on the primary rank only.

    Args:
        total: How much there is to do, in any unit.
        description: What is being done.

    Yields:
        A function to call with how much was done since its last call.
    """
    listener = _listener.get()
    if listener is not None:
        done_so_far = 0.0

        def tell(done: float) -> None:
            nonlocal done_so_far
            done_so_far += done
            listener(min(1.0, done_so_far / total if total else 1.0))

        yield tell
        return
    if not is_primary() or not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task(description, total=total)
    start = time.monotonic()

    def advance(done: float) -> None:
        bar.advance(task, done)
        if not bar.live.is_started and time.monotonic() - start > PATIENCE:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
