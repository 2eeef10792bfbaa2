"""Tracing a model while it is trained or validated, with ground truth."""

from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import Any

from ml_debugger.core.errors import EpochError
from ml_debugger.core.inputs import as_epoch
from ml_debugger.core.store import Scope
from ml_debugger.core.tracer import Tracer


class TrainingTracer(Tracer):
    """Records a model's calls with their ground truth, epoch by epoch."""

    purpose = "training"

    def __call__(
        self,
        model_input: Any,
        ground_truth: Any | None,
        input_ids: Any,
        dataset_type: str = "train",
        n_epoch: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the model on a batch and record what it saw and said.

        Args:
            model_input: What the model takes; a mapping is passed as keyword arguments.
            ground_truth: What is true of the batch, or None.
            input_ids: One id an input: str, int or path, or an array or a tensor of them. The
                same id again in the same run, epoch and data set replaces the earlier record.
            dataset_type: The split: 'train', 'val', 'test' or any other name.
            n_epoch: The training epoch, or None.
            **kwargs: Values of the additional fields; passed on to `_parse_and_save_io_data`.

        Returns:
            The model's output, untouched.

        Raises:
            InputError: (a ValueError) Something given does not fit; the model has not run.
            EpochError: (a TypeError) `n_epoch` is neither an int nor None.
            LayerNotFiredError: A layer to record did not run.
            StoreError: Records cannot be written, and no more can be kept in memory.
        """
        return self._trace(model_input, ground_truth, input_ids, dataset_type, n_epoch, kwargs)[0]

    def attached(
        self,
        ground_truth: Any | None = None,
        input_ids: Any | None = None,
        dataset_type: str = "train",
        n_epoch: int | None = None,
        **kwargs: Any,
    ) -> AbstractContextManager[None]:
        """Record the calls that other code makes of the model, until the block ends.

        Calls may come from several threads: their order is that in which they begin.

        Args:
            ground_truth: What is true of all inputs of the block, in the order of the calls.
            input_ids: Ids of all inputs of the block, in the order of the calls; None counts
                from 0, on from one block to the next of the same data set and epoch.
            dataset_type: The split.
            n_epoch: The training epoch, or None.
            **kwargs: Values of the additional fields, one an input of the block or one for all.

        Example:
            `with tracer.attached(labels, ids, "val"): trainer.validate(model, loader)`
        """
        return self._attached(ground_truth, input_ids, dataset_type, n_epoch, kwargs)

    def export(
        self, output_path: str | PathLike[str] | None = None, n_epoch: int | None = None
    ) -> Path | None:
        """Write features and ground truth to a ZIP of Parquet files.

        Args:
            output_path: A file, or a folder to put the default file name in; None is the current
                folder.
            n_epoch: The epoch to export; None exports all.

        Returns:
            The file, or None on ranks other than the primary.

        Raises:
            InputError: The folder does not exist.
            StoreError: It cannot be written.
        """
        epoch = as_epoch(n_epoch)
        return self._recording.export(Scope(n_epoch="all" if epoch is None else epoch), output_path)

    def wait_for_save(
        self, n_epoch: int | None = None, interval: float = 3, *, force: bool = False
    ) -> None:
        """Return when everything recorded so far is durable, and saved by the service if any.

        Under `torch.distributed`, call it on every rank.

        Args:
            n_epoch: The epoch to wait for at a service; None waits for all. Locally, all of it
                is saved in any case.
            interval: Seconds between looks at what is left to send.
            force: Send again what the service already has; once, where ranks share a store.

        Raises:
            StoreError: It cannot be written here.
            SyncError: (a ConnectionError) The service refused, or nothing got through to it for
                five minutes, or some records are damaged here or refused there: those are named,
                and all others saved. Nothing is lost, and calling again tries again.
            LicenseError: The organisation's quota is exhausted.
        """
        epoch = as_epoch(n_epoch)
        self._recording.wait("all" if epoch is None else epoch, interval, again=force)

    def upload(self, n_epoch: int | None = None, *, force: bool = False) -> None:
        """Start sending records to the service, and return; `wait_for_save` tells when it is done.

        What could not be sent before is tried again.

        Args:
            n_epoch: The epoch to send; None sends all.
            force: Send again what the service already has.

        Raises:
            EndpointError: No service is configured; the message says what to set.
            StoreError: It cannot be written here.
        """
        epoch = as_epoch(n_epoch)
        self._recording.upload("all" if epoch is None else epoch, again=force)

    def drop_epoch_data(self, n_epoch: int) -> dict[str, int]:
        """Delete this version's records of one epoch.

        A service is told to forget those of them that it was sent from here: at once with
        `auto_sync`, otherwise with what is sent next.

        Args:
            n_epoch: The epoch. Only an int: None must not be taken for "everything".

        Returns:
            Deleted rows by table, 'extracted_feature' and 'ground_truth'; the latter is absent
            when the version holds no ground truth.

        Raises:
            EpochError: (a TypeError) Not an int.
        """
        epoch = as_epoch(n_epoch)
        if epoch is None:
            raise EpochError("drop_epoch_data needs an int; None would not mean everything")
        return self._recording.delete_epoch(epoch)

    def drop_version_data(self) -> None:
        """Drop all records of this model version; tracing can go on into an empty one.

        A service is told as by `drop_epoch_data`.

        What waits to be written is forgotten first, so that nothing recorded before can reappear
        after.
        """
        self._recording.restart()
        self._widths.clear()
        self._blocks.counted.clear()
