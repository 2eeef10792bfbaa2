"""A progress bar for work that takes longer than two seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ml_debugger.core.distributed import is_primary

PATIENCE = 2.0


@contextmanager
def progress(total: float, description: str) -> Iterator[Callable[[float], None]]:
    """Show how far some work has come, on a terminal and on the primary rank only.

    Args:
        total: How much there is to do, in any unit.
        description: What is being done.

    Yields:
        A function to call with how much was done since its last call.
    """
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
