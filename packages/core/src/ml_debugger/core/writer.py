"""Hand batches to the store in the background, and never lose one that was accepted."""

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple, Self

from ml_debugger.core.errors import StoreError
from ml_debugger.core.records import Batch, ModelVersion

Write = Callable[[Sequence[Batch]], None]

FIRST_RETRY = 0.5
FLUSH_BYTES = 32 << 20
LONGEST_RETRY = 30.0

_writers: "weakref.WeakSet[BatchWriter]" = weakref.WeakSet()


class BatchWriter:
    """A thread that writes batches, many at a time.

    `put` returns at once; what `flush` has returned from is durable. A write that fails keeps
    its batches in memory and is tried again, so nothing accepted is dropped while the process
    lives; at its regular end, or when the writer is garbage, it is flushed. Safe to use from
    several threads. It owns its thread, which ends with `stop`; a later `put` starts another.
    """

    def __init__(
        self,
        write: Write,
        *,
        max_bytes: int = 256 << 20,
        flush_rows: int = 4096,
        flush_bytes: int = FLUSH_BYTES,
        flush_seconds: float = 2.0,
        patience: float = 60.0,
        home: str | PathLike[str] | None = None,
        version: ModelVersion | None = None,
    ) -> None:
        """Prepare to write; the thread starts with the first batch.

        Args:
            write: Writes batches whole or not at all, and returns when they are durable. It is
                called from one thread at a time.
            max_bytes: The memory that waiting batches may hold.
            flush_rows: Write when this many inputs wait,
            flush_bytes: or this many bytes,
            flush_seconds: or when the first has waited this long.
            patience: Seconds of failing writes after which `put` says so.
            home: The store that is written to, and
            version: the model version, for `flush_all`.
        """
        self.home = None if home is None else Path(home).resolve()
        self.version = version
        self._queue = _Queue(write, max_bytes, flush_rows, flush_bytes, flush_seconds, patience)
        # The thread holds the queue and not the writer, so a writer that nobody holds is garbage.
        self._finalize = weakref.finalize(self, _Queue.finish, self._queue)
        _writers.add(self)

    @property
    def pending(self) -> int:
        """How many inputs are not durable yet."""
        return self._queue.rows

    def put(self, batch: Batch) -> None:
        """Accept a batch; waits while too many bytes wait.

        A batch that is larger than all memory allowed is let through when it is alone.

        Raises:
            StoreError: Writing fails, and there is no room or it has failed for long; or this is
                a forked child. The batch is not accepted then.
        """
        self._queue.put(batch)

    def flush(self) -> None:
        """Return when everything put before is durable.

        Raises:
            StoreError: It cannot be written; it stays in memory and is tried again, by itself
                and with the next flush.
        """
        self._queue.flush()

    def discard(self) -> None:
        """Forget what is not durable yet, and return when nothing is being written."""
        self._queue.discard()

    def stop(self) -> None:
        """Flush and end the thread; idempotent.

        Raises:
            StoreError: As for `flush`; the thread goes on, and so does trying.
        """
        self._queue.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def flush_all(home: str | PathLike[str] | None = None, version: ModelVersion | None = None) -> None:
    """Flush the writers of this process, so that a reader sees all that was recorded.

    Args:
        home: Only those that write to this store, or do not say; None for all.
        version: Only those of this model version, or that do not say; None for all.

    Raises:
        StoreError: One of them cannot write.
    """
    place = None if home is None else Path(home).resolve()
    for writer in list(_writers):
        here = place is None or writer.home in (None, place)
        if here and (version is None or writer.version in (None, version)):
            writer.flush()


class _Waiting(NamedTuple):
    batch: Batch
    nbytes: int
    since: float


class _Queue:
    """What a writer and its thread share; everything changes under one condition."""

    def __init__(
        self,
        write: Write,
        max_bytes: int,
        flush_rows: int,
        flush_bytes: int,
        flush_seconds: float,
        patience: float,
    ) -> None:
        self._write = write
        self._max_bytes = max_bytes
        self._flush_rows = flush_rows
        self._flush_bytes = flush_bytes
        self._flush_seconds = flush_seconds
        self._patience = patience
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._left = False  # nobody holds the writer any more: write what waits, and end
        self._waiting: deque[_Waiting] = deque()
        self._refused: list[_Waiting] = []  # what failed for another reason than the disk
        self._bytes = 0
        self.rows = 0
        self._writing = False
        self._put = 0  # how many batches were accepted,
        self._done = 0  # how many of them are durable,
        self._urgent = 0  # and how many of them somebody waits for
        self._asked = 0  # flushes that were asked for,
        self._answered = 0  # and how many of them the last write that ended had seen
        self._failure: Exception | None = None
        self._failing_since = 0.0
        self._retry_at = 0.0
        self._pause = FIRST_RETRY

    def put(self, batch: Batch) -> None:
        self._check_process()
        size = batch.nbytes
        with self._changed:
            while self._bytes and self._bytes + size > self._max_bytes:
                if self._failure is not None:
                    raise self._error("no more fit into memory")
                self._urgent = self._put
                self._changed.notify_all()
                self._changed.wait()
            now = time.monotonic()
            if self._failure is not None and now - self._failing_since > self._patience:
                raise self._error(f"failing for {now - self._failing_since:.0f} s")
            first = not self._waiting
            self._waiting.append(_Waiting(batch, size, now))
            self._put += 1
            self._bytes += size
            self.rows += len(batch.input_ids)
            self._start()
            if first or self._due(now):
                self._changed.notify_all()

    def flush(self) -> None:
        self._check_process()
        with self._changed:
            target = self._put
            if self._done >= target:
                return
            self._asked += 1
            ticket = self._asked
            self._urgent = max(self._urgent, target)
            self._waiting.extendleft(reversed(self._refused))
            self._refused.clear()
            self._start()
            self._changed.notify_all()
            while self._done < target:
                # A write that was under way when we asked may fail for what is solved by now.
                if self._failure is not None and self._answered >= ticket:
                    raise self._error("kept in memory")
                self._changed.wait()

    def discard(self) -> None:
        self._check_process()
        with self._changed:
            while self._writing:
                self._changed.wait()
            self._waiting.clear()
            self._refused.clear()
            self._bytes = self.rows = 0
            self._done = self._put
            self._failure, self._retry_at = None, 0.0
            self._changed.notify_all()

    def stop(self) -> None:
        self.flush()
        with self._changed:
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    def finish(self) -> None:
        """Flush for the last time, in whichever thread the writer became garbage."""
        if os.getpid() != self._pid:
            return
        if self._thread is threading.current_thread():
            self._left = True
            return
        self.stop()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise StoreError(
                f"the batch writer of process {self._pid} was used in its forked child "
                f"{os.getpid()}, where its thread does not run; make a tracer in the child"
            )

    def _error(self, what: str) -> StoreError:
        return StoreError(
            f"{self.rows} rows are not saved, {what}: {self._failure}. Nothing accepted is lost "
            "while this process runs; solve it and flush again"
        )

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="ml-debugger-writer", daemon=True
            )
            self._thread.start()

    def _due(self, now: float) -> bool:
        if not self._waiting:
            return False
        if self._failure is not None and now < self._retry_at and self._asked <= self._answered:
            return False
        return (
            self._left
            or self._done < self._urgent
            or self.rows >= self._flush_rows
            or self._bytes >= self._flush_bytes
            or now >= self._waiting[0].since + self._flush_seconds
        )

    def _next_look(self, now: float) -> float | None:
        """Return how long nothing is due, if nothing happens; None for ever."""
        if not self._waiting:
            return None
        due = self._waiting[0].since + self._flush_seconds
        return max(0.0, max(due, self._retry_at) - now)

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            with self._changed:
                while not self._due(time.monotonic()):
                    if self._thread is not me or (self._left and not self._waiting):
                        return
                    self._changed.wait(self._next_look(time.monotonic()))
                group = self._take()
                self._writing = True
                seen = self._asked
            saved, failure = self._save(group)
            del group  # or the last batches stay in memory until the next ones come
            with self._changed:
                self._account(saved, failure, seen)

    def _take(self) -> list[_Waiting]:
        group = [self._waiting.popleft()]
        size = group[0].nbytes
        while self._waiting and size + self._waiting[0].nbytes <= self._flush_bytes:
            group.append(self._waiting.popleft())
            size += group[-1].nbytes
        return group

    def _save(self, group: list[_Waiting]) -> tuple[list[_Waiting], Exception | None]:
        """Write a group; return what is durable, and why the rest is not."""
        try:
            self._write([one.batch for one in group])
        except OSError as error:
            with self._changed:
                self._waiting.extendleft(reversed(group))
            return [], error
        except Exception as error:  # noqa: BLE001  # raised in the threads that wait for it
            if len(group) > 1:
                return self._save_one_by_one(group)
            self._refused += group
            return [], error
        return group, None

    def _save_one_by_one(self, group: list[_Waiting]) -> tuple[list[_Waiting], Exception | None]:
        """Keep one batch that cannot be stored from keeping the others from the disk."""
        saved: list[_Waiting] = []
        failure: Exception | None = None
        for k, one in enumerate(group):
            some, why = self._save([one])
            saved += some
            failure = why or failure
            if isinstance(why, OSError):
                with self._changed:
                    for later in reversed(group[k + 1 :]):
                        self._waiting.insert(1, later)
                break
        return saved, failure

    def _account(self, saved: Sequence[_Waiting], failure: Exception | None, seen: int) -> None:
        self._writing = False
        self._answered = seen
        self._done += len(saved)
        self._bytes -= sum(one.nbytes for one in saved)
        self.rows -= sum(len(one.batch.input_ids) for one in saved)
        now = time.monotonic()
        if failure is not None:
            if self._failure is None:
                self._failing_since, self._pause = now, FIRST_RETRY
            self._failure = failure
            self._retry_at = now + self._pause
            self._pause = min(2 * self._pause, LONGEST_RETRY)
        elif not self._refused:
            self._failure, self._retry_at = None, 0.0
        self._changed.notify_all()
