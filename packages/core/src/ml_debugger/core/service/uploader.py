"""Send what is recorded to a service, in the background, in order, and each chunk once.

One process at a time sends what a store holds of a version, whoever recorded it: what a process
that was killed has left, the next one sends. Nothing waits for the service but who asks to.
"""

import atexit
import hashlib
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ml_debugger.core.epochs import EpochChoice
from ml_debugger.core.errors import InputError, MLDebuggerError, StoreError, SyncError
from ml_debugger.core.locks import is_free, locked
from ml_debugger.core.progress import progress
from ml_debugger.core.service.client import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    RefusedError,
    ServiceClient,
    UnavailableError,
)
from ml_debugger.core.service.delivery import Progress, Registration, send

if TYPE_CHECKING:
    from ml_debugger.core.store import LocalRepository
    from ml_debugger.core.store.contract import LeftOut
    from ml_debugger.core.store.sending import Outbox, Pending

NAMED = 3  # reasons why something is left out
PATIENCE = 300.0  # seconds without anything getting through, after which who waits is told,
CLOSING_PATIENCE = 30.0  # and who closes while another process is to send
LOOKS = 20  # in this time, whether that gets anything through
LINGER = 5.0  # seconds for which a thread keeps its connection, as a flush follows another


class LeftOutError(SyncError):
    """Something cannot be sent, and all else is saved."""


def check_interval(interval: float) -> None:
    """Refuse what is no interval.

    Raises:
        InputError: `interval` is not a positive number of seconds.
    """
    if isinstance(interval, bool) or not isinstance(interval, int | float) or not interval > 0:
        raise InputError(f"interval must be a positive number of seconds, got {interval!r}")


class Uploader:
    """Sends a version's records; its thread lives while there is something, and a little longer.

    It never raises into the code that records. What it holds in memory is one part, and the one
    after it, whatever waits to be sent: that lies in the store.
    """

    def __init__(
        self, repository: "LocalRepository", client: ServiceClient, home: Path, *, auto: bool
    ) -> None:
        """Prepare to send; the first request is made when there is something to send.

        Args:
            repository: The version's records.
            client: The service.
            home: The store's folder.
            auto: Whether to send whatever is recorded, unasked.
        """
        self.auto = auto
        self._work = _Work(repository, client, home, auto=auto)
        # Who is garbage is not waited for; at the interpreter's exit, and closed, it is alive.
        alive = weakref.ref(self)
        self._finalize = weakref.finalize(self, _Work.end, self._work, alive)
        self.recorded()  # what an earlier process has left

    def recorded(self) -> None:
        """Take note that something new is durable, or gone."""
        if self.auto:
            self._work.start("all", unasked=True, owed=True)

    def start(self, n_epoch: EpochChoice = "all", *, again: bool = False) -> None:
        """Begin to send an epoch, or everything, at once, and return; `close` waits for it.

        What was left out before is tried again.

        Args:
            n_epoch: What to send.
            again: Also what the service has saved already.

        Raises:
            InputError: It was closed.
        """
        self._work.check_open()
        self._work.start(n_epoch, again=again, owed=True)

    def wait(self, n_epoch: EpochChoice, interval: float, *, again: bool = False) -> None:
        """Return when the service has saved an epoch, or everything, that is here by now.

        Raises:
            InputError: It was closed.
            LeftOutError: Something cannot be sent, and all else is saved.
            SyncError: It refused, or could not be reached for five minutes, or another process is
                to send and does not. Nothing is lost, and waiting again tries again.
            LicenseError: A quota is exhausted.
        """
        self._work.check_open()
        last = self._work.last()  # others may go on recording
        self._work.start(n_epoch, again=again)
        self._work.wait(n_epoch, interval, last)

    def close(self) -> None:
        """Send what `start` was asked for, or all that is here by now with `auto`, and end.

        Nothing is waited for that cannot be sent now. Idempotent.
        """
        self._finalize()

    def stop(self) -> None:
        """End, and leave what is not sent yet; idempotent."""
        if self._finalize.detach() is not None:
            self._work.finish(drain=False)


class _Work:
    """What an uploader and its thread share."""

    def __init__(
        self, repository: "LocalRepository", client: ServiceClient, home: Path, *, auto: bool
    ) -> None:
        self._repository = repository
        self._client = client
        self._registration = Registration(repository, client)
        self._auto = auto
        self._lock_path = _lock_path(home, repository)
        self._next_path = self._lock_path.with_suffix(".next")  # held by who takes it next
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._asked: set[EpochChoice] = set()  # what to send,
        self._again: set[EpochChoice] = set()  # of what to take nothing for saved before,
        self._owed: set[EpochChoice] = set()  # and what is not to be left behind at the end
        self._busy = False
        self._closing = False
        self._draining = False  # whether all is to be sent before the end,
        self._last: int | None = None  # and up to which chunk: others may go on recording
        self._progress = Progress()  # another one whenever somebody asks: all is tried again
        self._failure: MLDebuggerError | None = None  # why the last attempt got nowhere
        self._last_good = time.monotonic()
        self._rests_until = 0.0  # after a refusal, for what nobody asked for,
        self._rest = FIRST_PAUSE  # and longer after each
        self._hurry = False  # whether somebody asks, who is not to wait for a pause to end
        self._warned = False
        self._named: set[int] = set()  # chunks that were left out, and warned of

    def start(
        self,
        n_epoch: EpochChoice,
        *,
        again: bool = False,
        unasked: bool = False,
        owed: bool = False,
    ) -> None:
        if os.getpid() != self._pid:
            return
        failure = None
        with self._changed:
            if self._closing:
                return
            if owed:
                self._owed.add(n_epoch)
            if unasked and time.monotonic() < self._rests_until:
                return  # it would only be refused again
            self._asked.add(n_epoch)
            if again:
                self._again.add(n_epoch)
            if not unasked:
                self._hurry, self._progress = True, Progress()
            if not isinstance(self._failure, UnavailableError):
                self._failure = None  # whoever asks again may have mended it
            if self._thread is None:
                self._last_good = time.monotonic()
                thread = threading.Thread(
                    target=self._run, name="ml-debugger-uploader", daemon=True
                )
                try:
                    thread.start()
                    self._thread = thread
                except RuntimeError as error:
                    if threading.main_thread().is_alive():
                        failure = self._failure = SyncError(
                            f"{self._repository.version} is not sent: {error}. End what else runs "
                            "here, or allow more threads (ulimit -u)"
                        )
                    # else the interpreter ends, and `finish` does it
            self._changed.notify_all()
        if failure is not None:
            self._tell(failure)

    def check_open(self) -> None:
        if self._closing or os.getpid() != self._pid:
            raise InputError(
                f"what sends {self._repository.version} is closed, or of another process; make "
                "another tracer"
            )

    def last(self) -> int:
        return self._repository.outbox("").last()

    def wait(self, n_epoch: EpochChoice, interval: float, last: int) -> None:
        total = 0
        with progress(1.0, f"saving {self._repository.version}") as advance:
            said = 0.0
            self._last_good = time.monotonic()
            while True:
                with self._changed:
                    if self._asked or self._busy:
                        self._changed.wait(interval)
                    failure, idle = self._failure, not self._asked and not self._busy
                    seen, again = self._progress, bool(self._again)
                if failure is not None and not isinstance(failure, UnavailableError):
                    raise failure
                left = None if again else self._left(seen, n_epoch, last)
                if left is not None and not left.chunks and not self._withdrawn():
                    if missing := seen.missing(n_epoch, last):
                        self._tell_left_out(seen)
                        raise LeftOutError(self._explained(missing))
                    return
                silent = time.monotonic() - self._last_good
                if failure is not None and silent > PATIENCE:
                    raise SyncError(f"{failure} (nothing got through for {silent:.0f} s)")
                if left is not None:
                    total = max(total, left.nbytes)
                    share = 1 - left.nbytes / total if total else 1.0
                    advance(max(0.0, share - said))
                    said = max(said, share)
                if idle:
                    self.check_open()  # another thread may have closed it
                    self.start(n_epoch, unasked=True)

    def end(self, uploader: "weakref.ref[Uploader]") -> None:
        """Finish; of an uploader that is garbage, not before the interpreter ends."""
        if os.getpid() != self._pid:
            return  # the condition may be held by a thread that is not in this process
        drain = self._auto or bool(self._owed)
        if uploader() is not None or not drain or self._thread is None:
            self.finish(drain=drain)
            return
        _leaving.add(self)
        with self._changed:
            self._closing = self._draining = True
            self._changed.notify_all()

    def finish(self, *, drain: bool) -> None:
        """End the thread; before, let it send what gets through, if asked to."""
        if os.getpid() != self._pid:
            return
        if drain and (self._thread is not None or self._asked or self._owed):
            with suppress(StoreError):  # then there is no end to what is sent
                self._last = self.last()
        with self._changed:
            thread = self._thread
            self._closing, self._draining = True, drain
            if drain:
                self._asked |= self._owed  # what was refused may be taken by now
            else:
                self._asked.clear()
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if drain and self._asked:
            self._run()
        owed: set[EpochChoice] = {"all"} if self._auto else self._owed
        missing = [one for n_epoch in owed for one in self._progress.missing(n_epoch, self._last)]
        failed = drain and (self._failure is not None or missing)
        if failed and any(self._is_left(n_epoch) for n_epoch in owed):
            what = f"recorded of {self._repository.version} has reached the service"
            warnings.warn(
                (f"not everything {what}" if self._client.met else f"whether everything {what} ")
                + ("" if self._client.met else "could not be asked")
                + f": {self._failure or self._explained(missing)}. The next tracer of this "
                "version with auto_sync sends the rest, and so do upload(), wait_for_save() and "
                "`ml-debugger upload`",
                stacklevel=2,
            )

    def _left(self, seen: Progress, n_epoch: EpochChoice, last: int | None) -> "Pending | None":
        """Return what there is beyond what was seen to; None while nobody knows where it goes."""
        if not self._client.met:
            return None
        outbox = self._repository.outbox(self._client.project)
        return outbox.pending(n_epoch, after=seen.end(n_epoch), last=last)

    def _is_left(self, n_epoch: EpochChoice, after: int = 0) -> bool:
        """Tell whether there is something to withdraw, or to send of chunks after a number."""
        nobody = ""  # who was sent nothing, as long as we do not know to whom it goes
        service = self._client.project if self._client.met else nobody
        outbox = self._repository.outbox(service)
        left = outbox.pending(n_epoch, after=after, last=self._last).chunks
        return left > 0 or bool(outbox.withdrawals(1))

    def _withdrawn(self) -> bool:
        """Tell whether the service is still to forget something."""
        return bool(self._repository.outbox(self._client.project).withdrawals(1))

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._changed:
                if not self._closing:  # a connection is worth more than a moment
                    self._changed.wait_for(lambda: self._asked or self._closing, LINGER)
                if not self._asked:
                    self._thread = None
                    if self._failure is None:
                        _leaving.discard(self)
                    self._changed.notify_all()
                    return
                asked, self._asked = self._asked, set()
                self._busy, self._hurry = True, False
                done = self._progress
            failure: MLDebuggerError | None = None
            begun = self._last_good
            try:
                # asked before the lock is waited for: whoever waits may find that all is saved
                outbox = self._repository.outbox(self._client.project)
                with ExitStack() as held:
                    look = self._turn(outbox)
                    with locked(self._next_path, look):
                        held.enter_context(locked(self._lock_path, look))
                    last = outbox.last()
                    with self._changed:
                        for n_epoch in self._again:
                            outbox.send_again(n_epoch)
                        if self._again:  # all that was gone through is to be gone through again
                            self._again.clear()
                            self._progress = Progress()
                        done = self._progress
                    for n_epoch in asked:
                        send(
                            self._repository,
                            self._client,
                            n_epoch,
                            progress=done,
                            registration=self._registration,
                            last=lambda: self._last,
                            sent=partial(self._sent, done, n_epoch, last),
                        )
            except MLDebuggerError as error:
                failure = error
            except Exception as error:  # noqa: BLE001  # recording must go on, whatever this is
                failure = RefusedError(f"uploading failed: {type(error).__name__}: {error}")
            with self._changed:
                self._busy = False
                self._failure = failure
                if failure is None:
                    self._last_good = time.monotonic()
                    self._owed -= asked - self._asked
                    self._rests_until, self._rest = 0.0, FIRST_PAUSE
                elif not isinstance(failure, UnavailableError):
                    self._rests_until = time.monotonic() + self._rest
                    self._rest = min(2 * self._rest, LONGEST_PAUSE)
                if begun != self._last_good:
                    pause = FIRST_PAUSE
                if failure is not None and self._closing:
                    self._asked.clear()  # whoever closes is not kept waiting
                elif isinstance(failure, UnavailableError):
                    self._asked |= asked
                    self._changed.notify_all()
                    self._changed.wait_for(
                        lambda: self._closing or self._hurry, max(pause, failure.pause or 0.0)
                    )
                    pause = FIRST_PAUSE if self._hurry else min(2 * pause, LONGEST_PAUSE)
                self._changed.notify_all()
            if failure is not None and not isinstance(failure, UnavailableError):
                self._tell(failure)
            self._tell_left_out(done)

    def _sent(self, done: Progress, n_epoch: EpochChoice, last: int) -> bool:
        """Take note that a part got through; return whether to go on.

        What is recorded beyond `last`, since we began, is not to keep others from their turn.
        """
        self._note_good()
        if done.end(n_epoch) > last and not is_free(self._next_path):
            with self._changed:
                self._asked.add(n_epoch)
            return False
        return self._draining or not self._closing

    def _note_good(self) -> None:
        with self._changed:
            self._last_good = time.monotonic()
            self._failure = None
            self._changed.notify_all()

    def _turn(self, outbox: "Outbox") -> Callable[[], None]:
        """Return what to call while another process sends what is here; it may be suspended."""
        last = outbox.last()
        since = looked = time.monotonic()
        known: tuple[int, list[str]] | None = None

        def look() -> None:
            nonlocal since, looked, known
            closing = self._closing
            if closing and not (self._draining and self._is_left("all", self._progress.end("all"))):
                raise UnavailableError("another process is sending")
            patience, now = CLOSING_PATIENCE if closing else PATIENCE, time.monotonic()
            if known is not None and now - looked < patience / LOOKS:
                return
            found = outbox.pending(last=last).chunks, outbox.withdrawals(1)
            if known is not None and found != known:
                since = now
                self._note_good()
            known, looked = found, now
            if now - since > patience:
                raise UnavailableError(
                    f"another process is sending what is recorded of {self._repository.version}, "
                    f"and has got nothing through for {now - since:.0f} s; end it if it hangs"
                )

        return look

    def _tell(self, failure: MLDebuggerError) -> None:
        if not self._warned:
            self._warned = True
            with suppress(Warning):  # an error where warnings are; whoever waits is told anyway
                warnings.warn(
                    f"{failure} Records stay in the local store, and recording goes on",
                    stacklevel=2,
                )

    def _tell_left_out(self, done: Progress) -> None:
        with self._changed:
            left_out = dict(done.left_out)
            new = {number: one for number, one in left_out.items() if number not in self._named}
            self._named.update(new)
        if new:
            with suppress(Warning):
                warnings.warn(self._explained(new.values()), stacklevel=2)

    def _explained(self, missing: "Collection[LeftOut]") -> str:
        """Say what is left out, and why."""
        reasons = list(dict.fromkeys(one.why for one in missing))
        said = "; ".join(reasons[:NAMED]) + ("; and more" if len(reasons) > NAMED else "")
        return (
            f"{sum(one.inputs for one in missing)} inputs of {self._repository.version} cannot be "
            f"sent to the service, and are left out: {said}. They stay in the local store, and "
            "all else is sent"
        )


#: What still sends for uploaders that are garbage.
_leaving: set[_Work] = set()


@atexit.register
def _wait_for_those_leaving() -> None:
    while _leaving:
        _leaving.pop().finish(drain=True)


def _lock_path(home: Path, repository: "LocalRepository") -> Path:
    name = hashlib.sha256("\0".join(repository.version).encode()).hexdigest()[:32]
    return home / "sync" / f"{name}.lock"
