"""Send what is recorded to a service, in the background, in order, and each chunk once.

One process at a time sends what a store holds of a version, whoever recorded it: what a process
that was killed has left, the next one sends. Nothing waits for the service but who asks to.
"""

import atexit
import fcntl
import hashlib
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ml_debugger.core.errors import EndpointError, InputError, MLDebuggerError, SyncError
from ml_debugger.core.progress import progress
from ml_debugger.core.service import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    RefusedError,
    ServiceClient,
    UnavailableError,
)
from ml_debugger.core.settings import Service

if TYPE_CHECKING:
    from ml_debugger.core.store import LocalRepository
    from ml_debugger.core.store.sending import Pending

T = TypeVar("T")

EpochChoice = int | Literal["all"] | None

PART_BYTES = 8 << 20  # of a part, unless a single batch is larger
PATIENCE = 300.0  # seconds without anything getting through, after which who waits is told
LOOK = 0.25  # seconds between looks whether another process is done sending
COMPRESSION = 1  # most of a part is float noise, which a higher level takes long over for little


def client_of(service: Service) -> ServiceClient | None:
    """Return the connection to a configured service; None if none is.

    Raises:
        InputError: The endpoint or the key is malformed, or the key is missing.
    """
    if service.endpoint is None:
        return None
    client = ServiceClient(service.endpoint, service.api_key)
    if not client.encrypted:
        warnings.warn(
            f"{client.endpoint} is not encrypted: whoever is on the way can read the API key and "
            "the records; use https",
            stacklevel=5,
        )
    return client


def needed(client: ServiceClient | None) -> ServiceClient:
    """Return the connection to the service.

    Raises:
        EndpointError: None is configured; the message says what to set.
    """
    if client is None:
        raise EndpointError(
            "there is no service to upload to: set MLD_API_ENDPOINT and MLD_API_KEY, or pass "
            "api_endpoint= and api_key=. Without a service everything stays in the local store, "
            "where evaluation works as well; export() writes a file to hand over"
        )
    return client


def check_interval(interval: float) -> None:
    """Refuse what is no interval.

    Raises:
        InputError: `interval` is not a positive number of seconds.
    """
    if isinstance(interval, bool) or not isinstance(interval, int | float) or not interval > 0:
        raise InputError(f"interval must be a positive number of seconds, got {interval!r}")


class Uploader:
    """Sends a version's records; the thread that does it lives while there is something to send.

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
        self._work = _Work(repository, client, home)
        # Who is garbage is not waited for; at the interpreter's exit, and closed, it is alive.
        alive = weakref.ref(self)
        self._finalize = weakref.finalize(self, _Work.end, self._work, alive, drain=auto)
        self.recorded()  # what an earlier process has left

    def recorded(self) -> None:
        """Take note that something new is durable, or gone."""
        if self.auto:
            self._work.start("all", unasked=True)

    def start(self, n_epoch: EpochChoice = "all", *, again: bool = False) -> None:
        """Begin to send an epoch, or everything, and return.

        Args:
            n_epoch: What to send.
            again: Also what the service has saved already.

        Raises:
            InputError: It was closed.
        """
        self._work.check_open()
        self._work.start(n_epoch, again=again)

    def wait(self, n_epoch: EpochChoice, interval: float, *, again: bool = False) -> None:
        """Return when the service has saved an epoch, or everything.

        Raises:
            InputError: It was closed.
            SyncError: It refused, or could not be reached for five minutes. Nothing is lost, and
                waiting again goes on where this ended.
            LicenseError: A quota is exhausted.
        """
        self._work.check_open()
        last = None if again else self._work.last()  # others may go on recording
        self._work.start(n_epoch, again=again)
        self._work.wait(n_epoch, interval, last)

    def close(self) -> None:
        """Send what can be sent now if that was to happen unasked, and end; idempotent."""
        self._finalize()

    def stop(self) -> None:
        """End, and leave what is not sent yet; idempotent."""
        if self._finalize.detach() is not None:
            self._work.finish(drain=False)


class _Work:
    """What an uploader and its thread share."""

    def __init__(self, repository: "LocalRepository", client: ServiceClient, home: Path) -> None:
        self._repository = repository
        self._client = client
        self._lock_path = _lock_path(home, repository)
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._asked: dict[EpochChoice, bool] = {}  # what to send, and whether again
        self._busy = False
        self._closing = False
        self._draining = False  # whether all is to be sent before the end
        self._failure: MLDebuggerError | None = None  # why the last attempt got nowhere
        self._last_good = time.monotonic()
        self._rests_until = 0.0  # after a refusal, for what nobody asked for,
        self._rest = FIRST_PAUSE  # and longer after each
        self._warned = False

    def start(self, n_epoch: EpochChoice, *, again: bool = False, unasked: bool = False) -> None:
        with self._changed:
            if self._closing or os.getpid() != self._pid:
                return
            if unasked and time.monotonic() < self._rests_until:
                return  # it would only be refused again
            self._asked[n_epoch] = self._asked.get(n_epoch, False) or again
            if not isinstance(self._failure, UnavailableError):
                self._failure = None  # whoever asks again may have mended it
            if self._thread is None:
                self._last_good = time.monotonic()
                thread = threading.Thread(
                    target=self._run, name="ml-debugger-uploader", daemon=True
                )
                with suppress(RuntimeError):  # the interpreter ends: `finish` does it then
                    thread.start()
                    self._thread = thread
            self._changed.notify_all()

    def check_open(self) -> None:
        if self._closing or os.getpid() != self._pid:
            raise InputError(
                f"what sends {self._repository.version} is closed, or of another process; make "
                "another tracer"
            )

    def last(self) -> int:
        return self._repository.outbox("").last()

    def wait(self, n_epoch: EpochChoice, interval: float, last: int | None) -> None:
        total = 0
        with progress(1.0, f"saving {self._repository.version}") as advance:
            said = 0.0
            self._last_good = time.monotonic()
            while True:
                with self._changed:
                    if self._asked or self._busy:
                        self._changed.wait(interval)
                    failure, idle = self._failure, not self._asked and not self._busy
                if failure is not None and not isinstance(failure, UnavailableError):
                    raise failure
                left = self._left(n_epoch, last)
                done = left is not None and not left.chunks and not self._withdrawn()
                if done and (idle or last is not None):
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
                    self.start(n_epoch)

    def end(self, uploader: "weakref.ref[Uploader]", *, drain: bool) -> None:
        """Finish; of an uploader that is garbage, not before the interpreter ends."""
        if uploader() is not None or not drain or self._thread is None:
            self.finish(drain=drain)
            return
        with self._changed:
            self._closing = self._draining = True
            self._changed.notify_all()
        _leaving.add(self)

    def finish(self, *, drain: bool) -> None:
        """End the thread; before, let it send what gets through, if asked to."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            thread = self._thread
            self._closing, self._draining = True, drain
            if not drain:
                self._asked.clear()
            elif self._rests_until:
                self._asked.setdefault("all", False)  # what was refused may be taken by now
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if drain and self._asked:
            self._run()
        if drain and self._failure is not None and self._is_left():
            warnings.warn(
                f"not everything recorded of {self._repository.version} has reached the service: "
                f"{self._failure}. The next tracer of this version with auto_sync sends the rest, "
                "and so do upload(), wait_for_save() and `ml-debugger upload`",
                stacklevel=2,
            )

    def _left(self, n_epoch: EpochChoice, last: int | None) -> "Pending | None":
        """Return what is left to send; None while nobody knows where it goes."""
        if not self._client.met:
            return None
        return self._repository.outbox(self._client.project).pending(n_epoch, last=last)

    def _is_left(self) -> bool:
        nobody = ""  # who was sent nothing, as long as we do not know to whom it goes
        service = self._client.project if self._client.met else nobody
        outbox = self._repository.outbox(service)
        return outbox.pending().chunks > 0 or bool(outbox.withdrawals(1))

    def _withdrawn(self) -> bool:
        """Tell whether the service is still to forget something."""
        return bool(self._repository.outbox(self._client.project).withdrawals(1))

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._changed:
                if not self._asked:
                    self._thread = None
                    if self._failure is None:
                        _leaving.discard(self)
                    self._changed.notify_all()
                    return
                asked, self._asked = self._asked, {}
                self._busy = True
            failure: MLDebuggerError | None = None
            begun = self._last_good
            try:
                with alone(self._lock_path, self._gives_up):
                    for n_epoch, again in list(asked.items()):
                        if again:
                            self._repository.outbox(self._client.project).send_again(n_epoch)
                            asked[n_epoch] = False
                        send(self._repository, self._client, n_epoch, sent=self._sent)
            except MLDebuggerError as error:
                failure = error
            except Exception as error:  # noqa: BLE001  # recording must go on, whatever this is
                failure = RefusedError(f"uploading failed: {type(error).__name__}: {error}")
            with self._changed:
                self._busy = False
                self._failure = failure
                if failure is None:
                    self._last_good = time.monotonic()
                    self._rests_until, self._rest = 0.0, FIRST_PAUSE
                elif not isinstance(failure, UnavailableError):
                    self._rests_until = time.monotonic() + self._rest
                    self._rest = min(2 * self._rest, LONGEST_PAUSE)
                if begun != self._last_good:
                    pause = FIRST_PAUSE
                if failure is not None and self._closing:
                    self._asked.clear()  # whoever closes is not kept waiting
                elif isinstance(failure, UnavailableError):
                    for n_epoch, again in asked.items():
                        self._asked[n_epoch] = self._asked.get(n_epoch, False) or again
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._closing, max(pause, failure.pause or 0.0))
                    pause = min(2 * pause, LONGEST_PAUSE)
                self._changed.notify_all()
            if failure is not None and not isinstance(failure, UnavailableError):
                self._tell(failure)

    def _sent(self) -> bool:
        """Take note that a part got through; return whether to go on."""
        with self._changed:
            self._last_good = time.monotonic()
            self._failure = None
            self._changed.notify_all()
            return self._draining or not self._closing

    def _gives_up(self) -> bool:
        """Tell whether not to wait for the process that sends; what is here, it sends too."""
        return self._closing and not (self._draining and self._is_left())

    def _tell(self, failure: MLDebuggerError) -> None:
        if not self._warned:
            self._warned = True
            with suppress(Warning):  # an error where warnings are; whoever waits is told anyway
                warnings.warn(
                    f"{failure} Records stay in the local store, and recording goes on",
                    stacklevel=2,
                )


#: What still sends for uploaders that are garbage.
_leaving: set[_Work] = set()


@atexit.register
def _wait_for_those_leaving() -> None:
    while _leaving:
        _leaving.pop().finish(drain=True)


def send(
    repository: "LocalRepository",
    client: ServiceClient,
    n_epoch: EpochChoice = "all",
    *,
    sent: Callable[[], bool] = lambda: True,
) -> None:
    """Send what a service does not have of a version.

    What is saved there is noted part by part, so that an interrupted transfer goes on where it
    ended.

    Args:
        repository: The version's records.
        client: The service.
        n_epoch: Only this epoch, or "all".
        sent: Called after each part; False ends it there.

    Raises:
        UnavailableError: The service cannot be reached just now.
        SyncError: It refused.
        LicenseError: A quota is exhausted.
        StoreError: The records cannot be read.
    """
    outbox = repository.outbox(client.project)
    registered: tuple[dict[str, Any], int] | None = None

    def there() -> int:
        """Return the version's number there, where it is declared as it is here by now."""
        nonlocal registered
        declared = repository.declared()
        if registered is None or registered[0] != declared:
            registered = (declared, client.register(repository.version, **declared))
        return registered[1]

    while origins := outbox.withdrawals():
        # before anything is declared, which what is withdrawn may stand in the way of
        version = client.version(repository.version)
        if version is not None:
            client.withdraw(version, origins)
        outbox.withdrawn(origins)

    def prepare(after: int) -> tuple[str, bytes, list[int]] | None:
        found = outbox.next_part(n_epoch, after=after)
        return None if found is None else (*_packed(found[0].pack()), found[1])

    coming = _ahead(lambda: prepare(0))
    while (found := coming()) is not None:
        digest, packed, numbers = found
        coming = _ahead(partial(prepare, numbers[-1]))  # while this one is on its way
        client.put_part(there(), digest, packed)
        outbox.saved(numbers)
        if not sent():
            return


def _ahead(act: Callable[[], T]) -> Callable[[], T]:
    """Begin to do something beside what comes next; return what waits for it."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(act())
        except BaseException as error:  # noqa: BLE001  # raised in the thread that waits
            failed.append(error)

    thread = threading.Thread(target=run, name="ml-debugger-packer", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter ends, and lets no thread begin
        run()

    def wait() -> T:
        if thread.ident is not None:
            thread.join()
        if failed:
            raise failed[0]
        return done[0]

    return wait


def _packed(named: tuple[str, bytes]) -> tuple[str, bytes]:
    import pyarrow as pa

    digest, content = named
    codec = pa.Codec("zstd", compression_level=COMPRESSION)
    return digest, codec.compress(content, asbytes=True)


def _lock_path(home: Path, repository: "LocalRepository") -> Path:
    name = hashlib.sha256("\0".join(repository.version).encode()).hexdigest()[:32]
    return home / "sync" / f"{name}.lock"


@contextmanager
def alone(path: Path, gives_up: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Wait until nobody else, in any process, has taken this file; a crash gives it back.

    Raises:
        UnavailableError: Somebody has, and we are told not to wait.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if gives_up():
                    raise UnavailableError("another process is at it") from None
                time.sleep(LOOK)
        yield
    finally:
        os.close(fd)
