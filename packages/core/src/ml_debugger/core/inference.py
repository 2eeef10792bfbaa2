"""A tracer for a model in use: pinned to one epoch and, perhaps, to one evaluation result."""

import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ml_debugger.core import distributed
from ml_debugger.core.errors import ArchitectureMismatchError, EpochError, InputError
from ml_debugger.core.inputs import as_epoch
from ml_debugger.core.layers import (
    Layer,
    architecture_hash,
    architecture_of,
    parse_layers,
    unwrap,
)
from ml_debugger.core.pool import StoredPool, open_pool
from ml_debugger.core.records import differing
from ml_debugger.core.service.client import ServiceClient
from ml_debugger.core.settings import resolve_home
from ml_debugger.core.store import Scope
from ml_debugger.core.tracer import Tracer

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result


class InferenceTracer(Tracer):
    """The base of loggers and data filters: no ground truth, one epoch, perhaps a result.

    Attributes:
        result: The evaluation whose error model judges what is recorded, or None.
        n_epoch: The epoch that records go to and are read from.
    """

    def __init__(
        self,
        model: nn.Module,
        model_name: str,
        version_name: str,
        result_name: str | None = None,
        n_epoch: str | int | None = "latest",
        target_layers: Mapping[str, Any] | None = None,
        additional_fields: Sequence[Mapping[str, Any]] | None = None,
        auto_sync: bool = False,
        force_table_recreate: bool = False,
        api_endpoint: str | None = None,
        api_key: str | None = None,
        *,
        home: str | PathLike[str] | None = None,
    ) -> None:
        """Attach to a model, and to an evaluation of it.

        Args:
            model: The model to run.
            model_name: As it was traced.
            version_name: As it was traced.
            result_name: An evaluation of this version, from `Result.result_name`.
            n_epoch: The epoch that records belong to; 'latest' is the result's, or else the one
                traced last.
            target_layers: Layers to record, by alias; None takes those of the result.
            additional_fields: Columns to add to every record.
            auto_sync: Upload in the background, when a service is configured.
            force_table_recreate: Drop this version's records first, traced ones included.
            api_endpoint: The service; `MLD_API_ENDPOINT` if None, and no service if neither.
            api_key: The service's key; `MLD_API_KEY` if None.
            home: The local store's folder; `MLD_HOME` or `~/.ml_debugger` if None.

        Raises:
            InputError: An argument does not fit.
            EpochError: (a TypeError) `n_epoch` is no single epoch.
            ResultNotFoundError: No such result.
            ArchitectureMismatchError: The result belongs to another model.
        """
        if not isinstance(n_epoch, str):
            as_epoch(n_epoch)
        elif n_epoch != "latest":
            raise EpochError(
                f"n_epoch must be one epoch here: an int, None or 'latest', got {n_epoch!r}"
            )
        self.result = None
        if result_name is not None:
            client = self._connect(api_endpoint, api_key)
            self.result = distributed.together(lambda: _open(result_name, home, client))
        if self.result is not None:
            _fits(self.result, model, model_name, version_name)
            if target_layers is None:
                target_layers = self.result.layers
            elif isinstance(model, nn.Module):
                _has_layers(parse_layers(target_layers, unwrap(model)), self.result)
        super().__init__(
            model,
            model_name,
            version_name,
            target_layers,
            additional_fields,
            None,
            auto_sync,
            force_table_recreate,
            api_endpoint,
            api_key,
            home=home,
        )
        try:
            self.n_epoch = self._resolve(n_epoch)
            self._compare_settings()
        except BaseException:
            self.close()
            raise

    def _compare_settings(self) -> None:
        """Say so if other units are shown here than those that the result was fitted on."""
        found = (
            None
            if self.result is None
            else differing(self.result.settings, self._recording.settings)
        )
        if self.result is not None and found is not None:
            warnings.warn(
                f"the result {self.result.result_name!r} is of records with {found[0]}, but this "
                f"{type(self).__name__} has {found[1]}: its estimates are of units that are shown "
                "under other settings. Pass those of the result, or trace and evaluate with these",
                stacklevel=4,
            )

    def _resolve(self, n_epoch: Any) -> int | None:
        if n_epoch != "latest":
            return as_epoch(n_epoch)
        if self.result is not None and self.result.n_epoch != "all":
            return self.result.n_epoch
        return self._recording.repository.latest_epoch()

    def export(self, output_path: str | PathLike[str] | None = None) -> Path | None:
        """Write this epoch's features to a ZIP of Parquet files.

        Args:
            output_path: A file, or a folder to put the default file name in; None is the current
                folder.

        Returns:
            The file, or None on ranks other than the primary.
        """
        return self._recording.export(Scope(n_epoch=self.n_epoch), output_path)

    def wait_for_save(self, interval: float = 3) -> None:
        """Return when this epoch's records are durable, and saved by the service if any.

        Args:
            interval: Seconds between looks at what is left to send.

        Raises:
            StoreError: They cannot be written here.
            SyncError: (a ConnectionError) The service refused, or nothing got through to it for
                five minutes; nothing is lost, and calling again goes on.
            LicenseError: The organisation's quota is exhausted.
        """
        self._recording.wait(self.n_epoch, interval)

    def upload(self) -> None:
        """Start sending this epoch's records to the service.

        Raises:
            EndpointError: No service is configured; the message says what to set.
        """
        self._recording.upload(self.n_epoch)

    def _pool(
        self, dataset_type: str, runs: tuple[str, ...] | None = None, *, may_mix: bool = False
    ) -> StoredPool:
        """Return what is recorded of a split in this epoch, judged by the result if any."""
        self.flush()
        scope = Scope(dataset_types=(dataset_type,), n_epoch=self.n_epoch, runs=runs)
        return open_pool(
            self._recording.repository, scope, self.result, self.schema, may_mix=may_mix
        )


def _open(
    result_name: Any, home: str | PathLike[str] | None, client: ServiceClient | None
) -> "Result":
    from ml_debugger.core.remote import open_result

    if not isinstance(result_name, str):
        raise InputError(f"result_name must be a text, got {result_name!r}")
    return open_result(client, resolve_home(home), result_name)


def _fits(result: "Result", model: Any, model_name: str, version_name: str) -> None:
    if (result.model_name, result.version_name) != (model_name, version_name):
        raise InputError(
            f"the result {result.result_name!r} belongs to {result.model_name}/"
            f"{result.version_name}, not to {model_name}/{version_name}"
        )
    if isinstance(model, nn.Module):
        found = architecture_hash(architecture_of(unwrap(model)))
        if found != result.architecture_hash:
            raise ArchitectureMismatchError(
                f"the result {result.result_name!r} was fitted on another architecture than this "
                f"{type(model).__name__}; trace and evaluate this model, and use that result"
            )


def _has_layers(layers: Mapping[str, Layer], result: "Result") -> None:
    """Refuse to record other layers than those that a result's error model looks at."""
    for alias, path in result.layers.items():
        found = layers[alias].text if alias in layers else None
        if found != path:
            said = "is not recorded here" if found is None else f"is {found!r} here"
            raise InputError(
                f"the result {result.result_name!r} was fitted on the layer {alias!r} at {path!r}, "
                f"which {said}; leave target_layers out to record what the result needs"
            )
