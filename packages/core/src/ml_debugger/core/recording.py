"""Step 4: one tracer's run, and the records of a model version that it adds to."""

import platform
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from ml_debugger.core import distributed, store
from ml_debugger.core.epochs import EpochChoice
from ml_debugger.core.records import Batch, ModelVersion, Settings
from ml_debugger.core.service import endpoint
from ml_debugger.core.service.client import ServiceClient
from ml_debugger.core.service.uploader import Uploader, check_interval
from ml_debugger.core.store import Purpose, Scope
from ml_debugger.core.store.contract import PART_BYTES
from ml_debugger.core.writer import FLUSH_BYTES, BatchWriter


class Recording:
    """What a tracer records into; it owns the store and the writer.

    Under `torch.distributed` every rank makes one: they agree on one version and one run.

    Attributes:
        repository: The records of the version.
        run: The run's id; all ranks share it.
        settings: What decides which units are recorded; kept with the run.
    """

    def __init__(
        self,
        version: ModelVersion,
        purpose: Purpose,
        settings: Settings,
        home: str | PathLike[str] | None,
        *,
        recreate: bool,
        client: ServiceClient | None,
        auto_sync: bool,
        task: str,
        architecture: Sequence[str],
        layers: Mapping[str, str],
        fields: Sequence[Mapping[str, Any]],
        label_fields: Sequence[Mapping[str, Any]],
    ) -> None:
        """Register the version and begin a run.

        Args:
            version: Its name.
            purpose: What is recorded for.
            settings: What decides which units are recorded.
            home: The local store's folder; `MLD_HOME` or `~/.ml_debugger` if None.
            recreate: Drop the version's records first.
            client: The service that records go to, if any.
            auto_sync: Whether they go there unasked.
            task: As in `Store.register`, like all that follow.
            architecture: What makes up the model.
            layers: Module path of each recorded layer, by alias.
            fields: Declarations of the additional columns of inputs.
            label_fields: The same for ground truth.

        Raises:
            InputError: The version is of another task, or a field has another type.
            ArchitectureMismatchError: The model name belongs to another architecture.
            StoreError: The store cannot be opened.
        """
        self.version, self.purpose, self.settings = version, purpose, settings
        self._declared = partial(
            store.Store.register,
            version=version,
            task=task,
            architecture=architecture,
            layers=layers,
            fields=fields,
            label_fields=label_fields,
        )
        self._client, self._auto_sync = client, auto_sync
        self._store = distributed.together(lambda: store.Store(home))
        try:
            self._begin(recreate=recreate)
        except BaseException:
            self._store.close()
            raise

    def put(self, batch: Batch) -> None:
        """Hand over what was read of one call; it is written in the background."""
        self._writer.put(batch)

    def flush(self) -> None:
        """Return when everything recorded so far is on disk.

        Raises:
            StoreError: It cannot be written; it is kept in memory and tried again.
        """
        self._writer.flush()

    def restart(self) -> None:
        """Drop all records of the version, and begin a run of the empty one.

        What waits to be written is forgotten first, so that nothing recorded before can reappear
        after.
        """

        def forget() -> None:
            self._writer.discard()
            self._writer.stop()
            if self._uploader is not None:
                self._uploader.stop()

        distributed.together(forget)  # on all ranks, before one of them drops all records
        self._begin(recreate=True)

    def delete_epoch(self, n_epoch: int) -> dict[str, int]:
        """Delete an epoch's records, here and, with what is sent next, at the service; count units.

        Raises:
            StoreError: Something cannot be written here.
        """
        self.flush()
        counts = self.repository.delete_epoch(n_epoch)
        if self._uploader is not None:
            self._uploader.recorded()
        return counts

    def export(self, scope: Scope, output_path: str | PathLike[str] | None) -> Path | None:
        """Write features to a ZIP of Parquet files; None on ranks other than the primary."""
        from ml_debugger.core.archive import export_archive  # Parquet is only needed here

        distributed.together(self.flush)
        return distributed.once(lambda: export_archive(self.repository, scope, output_path))

    def upload(self, n_epoch: EpochChoice, *, again: bool = False) -> None:
        """Begin to send what is recorded to the service, and return; see `Uploader.start`.

        Raises:
            EndpointError: There is none.
            InputError: The recording is closed.
            StoreError: Something cannot be written here.
        """
        endpoint.needed(self._client)
        self.flush()
        if self._uploader is not None:
            self._uploader.start(n_epoch, again=again and self._first)

    def wait(self, n_epoch: EpochChoice, interval: float, *, again: bool = False) -> None:
        """Return when everything recorded is durable, and saved by the service if there is one.

        Under `torch.distributed`, call it on every rank. Of those that share a store, the first
        sends again what was saved before.

        Raises:
            InputError: `interval` is not a positive number of seconds, or the recording is closed.
            StoreError: Something cannot be written here.
            SyncError: The service refused, or cannot be reached, or some records cannot be sent.
            LicenseError: A quota is exhausted.
        """
        check_interval(interval)
        distributed.together(self.flush)
        uploader = self._uploader

        def wait() -> None:
            if uploader is not None:
                uploader.wait(n_epoch, interval, again=again and self._first)

        distributed.together(wait)  # even where this rank has no service: others may have one

    def close(self) -> None:
        """Flush, and release the store. Safe to call twice."""
        try:
            try:
                self._writer.stop()
            finally:
                if self._uploader is not None:
                    self._uploader.close()
        finally:
            self._store.close()

    def _begin(self, *, recreate: bool) -> None:
        self.repository = self._register(recreate=recreate)
        self.run = self._start()
        repository, run = self.repository, self.run
        uploader = self._uploader = None
        if self._client is not None:
            uploader = self._uploader = Uploader(
                repository, self._client, self._store.home, auto=self._auto_sync
            )

        def write(batches: Sequence[Batch]) -> None:
            repository.write(run, batches)
            if uploader is not None:
                uploader.recorded()

        # made after the uploader: at the interpreter's exit it is flushed before that ends
        self._writer = BatchWriter(
            write,
            flush_bytes=FLUSH_BYTES if uploader is None else PART_BYTES,
            home=self._store.home,
            version=self.version,
        )

    def _register(self, *, recreate: bool) -> "store.LocalRepository":
        def register(*, recreate: bool) -> "store.LocalRepository":
            return self._declared(self._store, recreate=recreate)

        # one rank makes the version what the others then find
        first = distributed.once(lambda: register(recreate=recreate))
        return distributed.together(lambda: first or register(recreate=False))

    def _start(self) -> str:
        """Begin a run whose id all ranks agree on, and see which of them share a store."""
        begin = partial(self.repository.start_run, self.purpose, settings=self.settings)
        said = distributed.told((distributed.once(begin), _identity(self._store.home)))
        run, stores = said[0][0], [identity for _, identity in said]
        assert run is not None  # the primary rank has begun it
        self._first = stores.index(stores[distributed.rank()]) == distributed.rank()
        rank, world_size = distributed.rank(), distributed.world_size()
        join = partial(begin, run=run, rank=rank, world_size=world_size)
        distributed.together(lambda: distributed.is_primary() or join())
        return run


def _identity(home: Path) -> tuple[str, int, int]:
    """Return what only processes that use the same store have in common."""
    found = home.stat()
    return platform.node(), found.st_dev, found.st_ino
