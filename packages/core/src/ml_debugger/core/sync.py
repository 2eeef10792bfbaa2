"""Send what is recorded to a service, in the background, in order, and each chunk once.

One process at a time sends what a store holds of a version, whoever recorded it: what a process
that was killed has left, the next one sends. Nothing waits for the service but who asks to.
"""

import fcntl
import hashlib
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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

EpochChoice = int | Literal["all"] | None

PATIENCE = 300.0  # seconds without anything getting through, after which who waits is told
LOOK = 1.0
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

    It never raises into the code that records. What it holds in memory is one part, whatever
    waits to be sent: that lies in the store.
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
        self._finalize = weakref.finalize(self, _Work.finish, self._work, drain=auto)

    def recorded(self) -> None:
        """Take note that something new is durable."""
        if self.auto:
            self._work.start("all")

    def start(self, n_epoch: EpochChoice = "all", *, again: bool = False) -> None:
        """Begin to send an epoch, or everything, and return.

        Args:
            n_epoch: What to send.
            again: Also what the service has saved already.
        """
        self._work.start(n_epoch, again=again)

    def wait(self, n_epoch: EpochChoice, interval: float, *, again: bool = False) -> None:
        """Return when the service has saved an epoch, or everything.

        Raises:
            SyncError: It refused, or could not be reached for five minutes. Nothing is lost, and
                waiting again goes on where this ended.
            LicenseError: A quota is exhausted.
        """
        self._work.start(n_epoch, again=again)
        self._work.wait(n_epoch, interval)

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
        self._failure: MLDebuggerError | None = None  # why the last attempt got nowhere
        self._last_good = time.monotonic()
        self._warned = False

    def start(self, n_epoch: EpochChoice, *, again: bool = False) -> None:
        with self._changed:
            if self._closing or os.getpid() != self._pid:
                return
            self._asked[n_epoch] = self._asked.get(n_epoch, False) or again
            if isinstance(self._failure, RefusedError) or again:
                self._failure = None  # whoever asks again may have mended it
            if self._thread is None:
                self._last_good = time.monotonic()
                self._thread = threading.Thread(
                    target=self._run, name="ml-debugger-uploader", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def wait(self, n_epoch: EpochChoice, interval: float) -> None:
        total = 0
        with progress(1.0, f"saving {self._repository.version}") as advance:
            said = 0.0
            self._last_good = time.monotonic()
            while True:
                with self._changed:
                    if self._asked or self._busy:
                        self._changed.wait(interval)
                    failure, idle = self._failure, not self._asked and not self._busy
                left = self._left(n_epoch)
                if left is not None and not left.chunks and idle:
                    return
                if failure is not None and not isinstance(failure, UnavailableError):
                    raise failure
                silent = time.monotonic() - self._last_good
                if failure is not None and silent > PATIENCE:
                    raise SyncError(f"{failure} (nothing got through for {silent:.0f} s)")
                if left is not None:
                    total = max(total, left.nbytes)
                    share = 1 - left.nbytes / total if total else 1.0
                    advance(max(0.0, share - said))
                    said = max(said, share)
                if idle:
                    self.start(n_epoch)

    def finish(self, *, drain: bool) -> None:
        """End the thread; before, let it send what gets through, if asked to."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            thread = self._thread
            self._closing = True
            if not drain:
                self._asked.clear()
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if drain and self._failure is not None:
            warnings.warn(
                f"not everything recorded of {self._repository.version} has reached the service: "
                f"{self._failure} The next tracer of this version sends the rest, and so does "
                "`ml-debugger upload`",
                stacklevel=2,
            )

    def _left(self, n_epoch: EpochChoice) -> "Pending | None":
        """Return what is left to send; None while nobody knows where it goes."""
        try:
            return self._repository.outbox(self._client.project).pending(n_epoch)
        except MLDebuggerError:
            return None

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._changed:
                if not self._asked:
                    self._thread = None
                    self._changed.notify_all()
                    return
                asked, self._asked = self._asked, {}
                self._busy = True
            failure: MLDebuggerError | None = None
            try:
                with _alone(self._lock_path, self._gives_up):
                    for n_epoch, again in asked.items():
                        send(self._repository, self._client, n_epoch, again=again, sent=self._sent)
                pause = FIRST_PAUSE
            except MLDebuggerError as error:
                failure = error
            except Exception as error:  # noqa: BLE001  # recording must go on, whatever this is
                failure = RefusedError(f"uploading failed: {type(error).__name__}: {error}")
            with self._changed:
                self._busy = False
                self._failure = failure
                if failure is None:
                    self._last_good = time.monotonic()
                elif isinstance(failure, UnavailableError) and not self._closing:
                    for n_epoch in asked:
                        self._asked.setdefault(n_epoch, False)
                    self._changed.notify_all()
                    # whoever closes is not kept waiting
                    self._changed.wait_for(lambda: self._closing, max(pause, failure.pause or 0.0))
                    pause = min(2 * pause, LONGEST_PAUSE)
                else:
                    self._asked.clear()
                self._changed.notify_all()
            if failure is not None and not isinstance(failure, UnavailableError):
                self._tell(failure)

    def _sent(self) -> None:
        self._last_good = time.monotonic()
        with self._changed:
            self._failure = None
            self._changed.notify_all()

    def _gives_up(self) -> bool:
        return self._closing

    def _tell(self, failure: MLDebuggerError) -> None:
        if not self._warned:
            self._warned = True
            with suppress(Warning):  # an error where warnings are; whoever waits is told anyway
                warnings.warn(
                    f"{failure} Records stay in the local store, and recording goes on",
                    stacklevel=2,
                )


def send(
    repository: "LocalRepository",
    client: ServiceClient,
    n_epoch: EpochChoice = "all",
    *,
    again: bool = False,
    sent: Callable[[], None] = lambda: None,
) -> int:
    """Send what a service does not have of a version; return how many parts that were.

    What is saved there is noted part by part, so that an interrupted transfer goes on where it
    ended.

    Args:
        repository: The version's records.
        client: The service.
        n_epoch: Only this epoch, or "all".
        again: Also what it has saved already.
        sent: Called after each part.

    Raises:
        UnavailableError: The service cannot be reached just now.
        SyncError: It refused.
        LicenseError: A quota is exhausted.
        StoreError: The records cannot be read.
    """
    outbox = repository.outbox(client.project)
    if again:
        outbox.send_again(n_epoch)
    version: int | None = None

    def there() -> int:
        nonlocal version
        if version is None:
            version = client.register(
                repository.version,
                task=repository.task,
                architecture=repository.architecture,
                layers=repository.layers,
                fields=repository.fields,
                label_fields=repository.label_fields,
            )
        return version

    while origins := outbox.withdrawals():
        client.withdraw(there(), origins)
        outbox.withdrawn(origins)
    count = 0
    while (found := outbox.next_part(n_epoch)) is not None:
        part, numbers = found
        digest, packed = _packed(part.pack())
        del part, found
        client.put_part(there(), digest, packed)
        outbox.saved(numbers)
        count += 1
        sent()
    return count


def _packed(named: tuple[str, bytes]) -> tuple[str, bytes]:
    import pyarrow as pa

    digest, content = named
    codec = pa.Codec("zstd", compression_level=COMPRESSION)
    return digest, codec.compress(content, asbytes=True)


def _lock_path(home: Path, repository: "LocalRepository") -> Path:
    name = hashlib.sha256("\0".join(repository.version).encode()).hexdigest()[:32]
    return home / "sync" / f"{name}.lock"


@contextmanager
def _alone(path: Path, gives_up: Callable[[], bool]) -> Iterator[None]:
    """Wait until no other process sends this version; a crash gives the lock back.

    Raises:
        UnavailableError: Another process sends it, and we are told not to wait.
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
                    raise UnavailableError("another process is sending this version") from None
                time.sleep(LOOK)
        yield
    finally:
        os.close(fd)
