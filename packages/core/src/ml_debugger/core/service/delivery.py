"""Send what a service does not have of a model version, once over, part by part."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_debugger.core.background import begun
from ml_debugger.core.epochs import EpochChoice
from ml_debugger.core.errors import NothingToEvaluateError
from ml_debugger.core.service.client import RefusedError, ServiceClient, UnfitError
from ml_debugger.core.store.contract import LeftOut

if TYPE_CHECKING:
    from ml_debugger.core.store import LocalRepository
    from ml_debugger.core.store.parts import ChunkHeader

COMPRESSION = 1  # most of a part is float noise, which a higher level takes long over for little
MOST_REFUSED = 100  # chunks; a service that refuses more will refuse the rest as well
MANY = 1000  # chunks, more than any part has


class Progress:
    """How far a version's chunks were gone through, and what could not be sent of them.

    Attributes:
        left_out: What is damaged here, and what the service refused for itself, by number.
        refused: How much of that the service refused.
    """

    def __init__(self) -> None:
        self.left_out: dict[int, LeftOut] = {}
        self.refused = 0
        self._ends: dict[EpochChoice, int] = {}

    def end(self, n_epoch: EpochChoice) -> int:
        """Return the number up to which all of an epoch, or of all, is saved or left out."""
        return max(self._ends.get("all", 0), self._ends.get(n_epoch, 0))

    def reached(self, n_epoch: EpochChoice, number: int) -> None:
        """Take note that this is so up to a number."""
        self._ends[n_epoch] = number

    def missing(self, n_epoch: EpochChoice, last: int | None = None) -> list[LeftOut]:
        """Return what is left out of an epoch, or of all, up to a number."""
        return [
            one
            for number, one in list(self.left_out.items())
            if n_epoch in ("all", one.n_epoch) and (last is None or number <= last)
        ]


class Registration:
    """A version's number at a service, which is asked for once for what is declared."""

    def __init__(self, repository: "LocalRepository", client: ServiceClient) -> None:
        """Prepare to ask."""
        self._repository = repository
        self._client = client
        self._known: tuple[dict[str, Any], int] | None = None

    def put_part(self, digest: str, packed: bytes) -> None:
        """Send a part of the version, where it is declared as it is here by now."""
        declared, version = self._repository.declared(), self._repository.version
        if self._known is not None and self._known[0] == declared:
            try:
                self._client.put_part(self._known[1], version, digest, packed)
            except UnfitError:
                raise
            except (RefusedError, NothingToEvaluateError):
                self._known = None  # after a restored backup it may have another there, or none
            else:
                return
        number = self._client.register(version, **declared)
        self._known = (declared, number)
        self._client.put_part(number, version, digest, packed)


class _Ready(NamedTuple):
    """A part to send, and how far that goes; `numbers` is empty where nothing is left."""

    numbers: list[int]
    end: int
    damaged: dict[int, LeftOut]
    digest: str = ""
    packed: bytes = b""
    first: "ChunkHeader | None" = None


def send(
    repository: "LocalRepository",
    client: ServiceClient,
    n_epoch: EpochChoice = "all",
    *,
    progress: Progress | None = None,
    registration: Registration | None = None,
    last: Callable[[], int | None] = lambda: None,
    sent: Callable[[], bool] = lambda: True,
) -> None:
    """Send what a service does not have of a version.

    What is saved there is noted part by part, so that an interrupted transfer goes on where it
    ended. What is damaged here, and what the service refuses for itself, is left out; a part that
    is refused is halved until it is known which of its chunks that is.

    Args:
        repository: The version's records.
        client: The service.
        n_epoch: Only this epoch, or "all".
        progress: Where to go on, and to note what is left out; from the start if None.
        registration: The version at the service, if it may be known already.
        last: Asked for the number of the last chunk to send; None for no end.
        sent: Called after each part; False ends it there.

    Raises:
        UnavailableError: The service cannot be reached just now.
        SyncError: It refused, for other reasons than one chunk, or very many chunks.
        LicenseError: A quota is exhausted.
        StoreError: The catalogue cannot be read.
    """
    outbox = repository.outbox(client.project)
    done = Progress() if progress is None else progress
    there = Registration(repository, client) if registration is None else registration

    while origins := outbox.withdrawals():
        # before anything is declared, which what is withdrawn may stand in the way of
        version = client.version(repository.version)
        if version is not None:
            client.withdraw(version, origins)
        outbox.withdrawn(origins)

    def prepare(after: int, most: int) -> _Ready:
        damaged: dict[int, LeftOut] = {}
        found = outbox.next_part(n_epoch, after=after, last=last(), most=most, damaged=damaged)
        if found is None:
            return _Ready([], max([after, *damaged]), damaged)
        part, numbers = found
        named = _packed(part.pack())
        return _Ready(numbers, max([*numbers, *damaged]), damaged, *named, part.header.chunks[0])

    most = MANY
    coming = begun(partial(prepare, done.end(n_epoch), most))
    try:
        while True:
            ready = coming.result()
            done.left_out.update(ready.damaged)
            if ready.numbers:
                coming = begun(partial(prepare, ready.end, most))  # while this is on its way
                try:
                    there.put_part(ready.digest, ready.packed)
                except UnfitError as error:
                    if done.refused >= MOST_REFUSED:
                        raise
                    if len(ready.numbers) > 1:
                        coming.exception()  # returns when it is done with the store
                        most = len(ready.numbers) // 2
                        coming = begun(partial(prepare, done.end(n_epoch), most))
                        continue
                    assert ready.first is not None  # there is a part
                    done.left_out[ready.numbers[0]] = _refused(ready.first, error)
                    done.refused += 1
                else:
                    outbox.saved(ready.numbers)
                most = min(2 * most, MANY)
            done.reached(n_epoch, ready.end)
            if not ready.numbers or not sent():
                return
    finally:
        coming.exception()


def _refused(chunk: "ChunkHeader", error: UnfitError) -> LeftOut:
    what = f"records of epoch {chunk.n_epoch}, {chunk.dataset_type}, were refused"
    return LeftOut(chunk.n_epoch, chunk.inputs, f"{what}: {error}")


def _packed(named: tuple[str, bytes]) -> tuple[str, bytes]:
    import pyarrow as pa

    digest, content = named
    codec = pa.Codec("zstd", compression_level=COMPRESSION)
    return digest, codec.compress(content, asbytes=True)
