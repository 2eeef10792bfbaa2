"""Do something beside what comes next."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def begun(act: Callable[[], T]) -> "Future[T]":
    """Begin to do something in a thread of its own, which no exit of the interpreter waits for.

    Where the interpreter ends and lets no thread begin, it is done on return.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(act())
        except BaseException as error:  # noqa: BLE001  # raised in the thread that waits
            done.set_exception(error)

    thread = threading.Thread(target=run, name="ml-debugger-background", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        run()
    return done
