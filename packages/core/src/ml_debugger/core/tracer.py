"""The steps in order: check, run the model, parse what it said, hand it to the store."""

import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ml_debugger.core import distributed
from ml_debugger.core.attached import Blocks
from ml_debugger.core.capture import Activations, Capture, outside_autocast
from ml_debugger.core.checkup import Checkup, check_layers, evaluating
from ml_debugger.core.errors import InputError
from ml_debugger.core.inputs import (
    AdditionalField,
    FieldSet,
    as_epoch,
    as_input_ids,
    as_name,
    batch_size,
    own_fields,
    tensors_in,
)
from ml_debugger.core.layers import architecture_of, default_layers, parse_layers, unwrap
from ml_debugger.core.recording import Recording
from ml_debugger.core.records import Batch, ModelVersion, Settings, TaskSchema, Units
from ml_debugger.core.service import endpoint
from ml_debugger.core.service.client import ServiceClient
from ml_debugger.core.settings import Service
from ml_debugger.core.store import Purpose
from ml_debugger.core.transfer import HostCopy

#: What a column or an argument is called already.
_RESERVED = frozenset(
    {"model_input", "ground_truth", "input_ids", "dataset_type", "n_epoch"}
    | {"input_id", "id", "run", "recorded_at", "prediction", "label", "wrong", "score"}
    | {"finite", "error_proba", "outlier", "unstable", "plausible", "zone", "code"}
)


class Tracer(ABC):
    """A model whose calls are recorded; the base of every tracer, logger and data filter.

    Calling it runs the model and returns the model's own output, untouched: training mode,
    gradients, random state and the user's hooks stay as they are. It owns its hooks and its
    writer; `close()`, a `with` block or the interpreter's exit flush and release them.
    """

    schema: ClassVar[TaskSchema]
    purpose: ClassVar[Purpose]

    def __init__(
        self,
        model: nn.Module,
        model_name: str,
        version_name: str,
        target_layers: Mapping[str, Any] | None = None,
        additional_fields: Sequence[Mapping[str, Any]] | None = None,
        additional_label_fields: Sequence[Mapping[str, Any]] | None = None,
        auto_sync: bool = False,
        force_table_recreate: bool = False,
        api_endpoint: str | None = None,
        api_key: str | None = None,
        *,
        home: str | PathLike[str] | None = None,
    ) -> None:
        """Attach to a model and open its records.

        Under `torch.distributed`, construct it on every rank: they agree on one run.

        Args:
            model: The model to trace, on any device.
            model_name: Stands for an architecture, which is recorded on first use.
            version_name: Stands for training conditions and data.
            target_layers: Layers to record, by alias; see `ml_debugger.core.layers`. None picks
                the classifier's input and up to two earlier stages.
            additional_fields: Columns to add to every record.
            additional_label_fields: Columns to add to the ground truth.
            auto_sync: Upload in the background, when a service is configured.
            force_table_recreate: Drop this version's records first.
            api_endpoint: The service; `MLD_API_ENDPOINT` if None, and no service if neither.
            api_key: The service's key; `MLD_API_KEY` if None.
            home: The local store's folder; `MLD_HOME` or `~/.ml_debugger` if None.

        Raises:
            InputError: An argument does not fit.
            LayerNotFoundError: A layer's path leads nowhere.
            ArchitectureMismatchError: The model name belongs to another architecture.
            UnsupportedModelError: The model cannot be traced.
            StoreError: The store cannot be opened.
        """
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.accept(unwrap(model))
        self.model = model
        self._closed = False
        self._blocks = Blocks()
        self._widths: dict[str, tuple[int, ...]] = {}
        self.version = ModelVersion(
            as_name(model_name, "model_name"), as_name(version_name, "version_name")
        )
        reserved = _RESERVED | self.schema.taken
        self._fields = FieldSet(additional_fields, what="additional_fields", reserved=reserved)
        self._label_fields = FieldSet(
            additional_label_fields,
            what="additional_label_fields",
            reserved=reserved | set(self._fields.fields),
        )
        if target_layers is None:
            target_layers = self.default_layers(unwrap(model))
        self._layers = parse_layers(target_layers, unwrap(model))
        self._connect(api_endpoint, api_key)
        self._auto_sync = auto_sync
        self._capture = self.hook(model)
        # a tracer that is forgotten takes its hooks off as well
        weakref.finalize(self, self._capture.close)
        try:
            self._recording = self._open(home, recreate=force_table_recreate)
        except BaseException:
            self.unhook()
            raise

    # What a task implements

    @abstractmethod
    def parse_output(self, output: Any, activations: Activations) -> Units[Tensor]:
        """Read units from what the model returned.

        Args:
            output: The model's output, as the user will see it. It must not be changed.
            activations: What the layers produced.

        Returns:
            Units with the schema's columns, and `logits` and `feature.<alias>` where there are
            any, on whatever device they are.

        Raises:
            UnsupportedModelError: The output is not of this task.
        """

    @abstractmethod
    def parse_ground_truth(self, ground_truth: Any, inputs: int | None) -> Units[Tensor]:
        """Read units from what the user says is true.

        It runs before the model does, so that bad labels cost nothing.

        Args:
            ground_truth: What the call was given, not None.
            inputs: The number of inputs in the batch; None when only the model can tell.

        Raises:
            InputError: It is not of the expected form or length.
        """

    # What a task may implement

    def accept(self, model: nn.Module) -> None:  # noqa: B027  a task may take any model
        """Refuse a model that cannot be traced, before anything is registered.

        Args:
            model: The user's own module, below any wrapper.

        Raises:
            UnsupportedModelError: It cannot be traced.
        """

    def default_layers(self, model: nn.Module) -> dict[str, str]:
        """Choose the layers to record where the user names none.

        Args:
            model: The user's own module, below any wrapper.

        Raises:
            UnsupportedModelError: Nothing can be chosen.
        """
        return default_layers(model)

    def settings(self) -> Settings:
        """Return what decides which units are recorded, by name; None for what is not known.

        Asked once, after `hook`. An error model has only seen what these settings show, so they
        are kept with the run and with each result.
        """
        return {}

    def hook(self, model: nn.Module) -> Capture:
        """Attach our hooks to the model, before anything is registered."""
        return Capture(model, self._layers)

    def unhook(self) -> None:
        """Take off the model what `hook` put there; a second time does nothing."""
        self._capture.close()

    def count_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
        """Return how many inputs the arguments of a call of the model hold.

        None where only the model's output can tell, as for a list: it may hold one tensor an
        input, or one an argument. Nothing is guessed then: ids of another number than the output
        says are refused once the model has run.
        """
        first = next(iter((*args, *kwargs.values())), None)
        if isinstance(first, Mapping):
            first = next(iter(first.values()), None)
        return batch_size(first) if isinstance(first, Tensor) else None

    def ground_truth_of(self, input_ids: Sequence[str]) -> Any:
        """Return what is true of the inputs of a call that was given no ground truth, or None.

        Raises:
            InputError: It should be known, and is not.
        """
        return None

    def run_model(self, model_input: Any) -> Any:
        """Call the model; a mapping is passed as keyword arguments."""
        args, kwargs = arguments_of(model_input)
        return self.model(*args, **kwargs)

    def complete_ground_truth(self, actual: Units[Tensor], model_input: Any) -> Units[Tensor]:
        """Add to what is true what the model input says of it; the model has run by then."""
        return actual

    @property
    def _input_fields(self) -> dict[str, AdditionalField]:
        """The columns of inputs: the user's, and the task's own."""
        return {**self._fields.fields, **own_fields(self.schema.inputs)}

    # What users call

    @property
    def layers(self) -> dict[str, str]:
        """The recorded layers, by alias, as they would be written in `target_layers`."""
        return {alias: layer.text for alias, layer in self._layers.items()}

    @property
    def run(self) -> str:
        """The id of this tracer's run; all ranks of a job share it."""
        return self._recording.run

    def get_hooked_features(self, layer_name: str) -> Tensor:
        """Return what a layer produced in the latest call, reduced to a vector an input.

        Args:
            layer_name: Alias of the layer.

        Returns:
            A detached copy, shape (n, d), on the model's device.

        Raises:
            LayerNotCapturedError: (a KeyError) Nothing has been captured for it.
        """
        return self._capture.latest[layer_name].clone()  # ours may be waiting to be written

    def check(self, model_input: Any) -> Checkup:
        """Run one batch, record nothing, and report how each layer can be recorded.

        The model runs in evaluation mode without gradients, and is left in the mode it was in.
        Its output is read as that of any call.

        Raises:
            UnsupportedModelError: The output is not of this task, nor is
                `_parse_and_save_io_data` overridden for it.
        """
        self._check_open()
        capture = self._capture.recording(complete=False)
        with evaluating(self.model), torch.no_grad(), capture as activations:
            output = self.run_model(model_input)

        def read(part: Activations) -> Units[Tensor]:
            return self._read(model_input, output, part)

        try:
            return check_layers(self.model, activations, read, must_read=not self._reads_itself)
        finally:
            activations.release()

    @property
    def _reads_itself(self) -> bool:
        """Whether a derived class sees the model's output before `parse_output` does."""
        ours = Tracer._parse_and_save_io_data
        return type(self)._parse_and_save_io_data is not ours  # noqa: SLF001  our own

    def flush(self) -> None:
        """Return when everything recorded so far is on disk.

        Raises:
            StoreError: It cannot be written; it is kept in memory and tried again.
        """
        self._recording.flush()

    def close(self) -> None:
        """Flush, take our hooks off the model and release the store. Safe to call twice."""
        self._closed = True
        try:
            self.unhook()
        finally:
            self._recording.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {type(self.model).__name__} as {self.version}>"

    # The steps

    def _connect(self, api_endpoint: str | None, api_key: str | None) -> ServiceClient | None:
        """Return the connection to the service, if one is configured; made once."""
        if "_service" not in vars(self):
            service = Service.resolve(api_endpoint, api_key)
            # what is set may differ between ranks, and where it does not fit, all have to know
            self._service = distributed.together(lambda: endpoint.client_of(service))
        return self._service

    def _open(self, home: str | PathLike[str] | None, *, recreate: bool) -> Recording:
        """Register what is to be recorded; the last step of the constructor."""
        return Recording(
            self.version,
            self.purpose,
            self.settings(),
            home,
            recreate=recreate,
            client=self._service,
            auto_sync=self._auto_sync,
            task=self.schema.name,
            architecture=architecture_of(unwrap(self.model)),
            layers=self.layers,
            fields=[one.model_dump(mode="json") for one in self._input_fields.values()],
            label_fields=self._label_fields.declarations(),
        )

    def _trace(
        self,
        model_input: Any,
        ground_truth: Any,
        input_ids: Any,
        dataset_type: str,
        n_epoch: int | None,
        kwargs: dict[str, Any],
    ) -> tuple[Any, Any]:
        """Check, run, parse and save one call; return the output and what saving returned."""
        self._check_open()
        inputs = self.count_inputs(*arguments_of(model_input))
        call = self._checked(ground_truth, input_ids, inputs, dataset_type, n_epoch, kwargs)
        with self._capture.recording() as activations:
            output = self.run_model(model_input)
        return output, self._save(model_input, output, activations, call)

    def _checked(
        self,
        ground_truth: Any,
        input_ids: Any,
        inputs: int | None,
        dataset_type: str,
        n_epoch: int | None,
        kwargs: dict[str, Any],
    ) -> dict[str, Any]:
        """Check all that can be checked before the model runs."""
        given = dict(kwargs)
        ids = as_input_ids(input_ids, inputs)
        if ground_truth is None:
            ground_truth = self.ground_truth_of(ids)
        labels = {} if ground_truth is None else self._label_fields.take(given, len(ids))
        if ground_truth is not None:
            self.parse_ground_truth(ground_truth, len(ids))
        call = {
            "ground_truth": ground_truth,
            "input_ids": ids,
            "dataset_type": as_name(dataset_type, "dataset_type"),
            "n_epoch": as_epoch(n_epoch),
            "fields": self._fields.take(given, len(ids)),
            "label_fields": labels,
        }
        if given and not self._reads_itself:
            raise InputError(
                f"unexpected argument {min(given)!r}; additional values must be declared in "
                "additional_fields or additional_label_fields"
            )
        return {**call, **given}

    def _parse_and_save_io_data(
        self,
        model_input: Any,
        model_output: Any,
        ground_truth: Any,
        *,
        activations: Activations,
        input_ids: Sequence[str],
        dataset_type: str,
        n_epoch: int | None,
        fields: Mapping[str, Sequence[Any]],
        label_fields: Mapping[str, Sequence[Any]],
        **kwargs: Any,
    ) -> Batch:
        """Turn one call into a batch and hand it to the writer.

        Override it for a model whose input, output or ground truth is out of the ordinary; call
        it with an output that `parse_output` can read.

        Args:
            model_input: What the call was given; within `attached`, the first argument of the
                model's call, or its keyword arguments if it has no other.
            model_output: What the model returned.
            ground_truth: What the call was given, or None.
            activations: What the layers produced.
            input_ids: One id an input.
            dataset_type: The split.
            n_epoch: The epoch, or None.
            fields: Values of the additional fields.
            label_fields: Values of the additional label fields.
            **kwargs: Whatever else the call was given.

        Returns:
            The batch, as it was handed to the writer.
        """
        try:
            predicted = self._read(model_input, model_output, activations)
        finally:
            activations.release()
        inputs = predicted.n_inputs
        if inputs != len(input_ids):
            raise InputError(
                f"the model's output holds {inputs} inputs but {len(input_ids)} ids were given; "
                "nothing of this call was recorded"
            )
        with outside_autocast(_device_of(model_output)), torch.no_grad():
            actual = None
            if ground_truth is not None:
                actual = self.parse_ground_truth(ground_truth, inputs)
                actual = self.complete_ground_truth(actual, model_input)
            self._check_widths(predicted)
            copies = HostCopy()
            batch = Batch(
                input_ids=input_ids,
                dataset_type=dataset_type,
                n_epoch=n_epoch,
                recorded_at=time.time_ns(),
                predicted=copies.units(predicted, activations.owns),
                actual=None if actual is None else copies.units(actual, lambda _tensor: False),
                fields={**fields, **{k: _listed(v) for k, v in predicted.inputs.items()}},
                label_fields=label_fields,
                ready=copies.wait if copies.pending else None,
            )
        if inputs:
            self._recording.put(batch)
        return batch

    def _read(self, model_input: Any, output: Any, activations: Activations) -> Units[Tensor]:
        """Parse what the model returned, once a call."""
        if activations.read is None or activations.read[0] is not output:
            activations.model_input = model_input
            with outside_autocast(_device_of(output)), torch.no_grad():
                activations.read = (output, self.parse_output(output, activations))
        units: Units[Tensor] = activations.read[1]
        return units

    @contextmanager
    def _attached(
        self,
        ground_truth: Any,
        input_ids: Any,
        dataset_type: str,
        n_epoch: int | None,
        kwargs: dict[str, Any],
    ) -> Iterator[None]:
        """Record the calls that other code makes of the model within the block."""
        self._check_open()
        values = {"ground_truth": ground_truth, **kwargs}
        call = (values, input_ids, dataset_type, n_epoch)
        with self._blocks.run(self.model, self._capture, self.count_inputs, self._record, *call):
            yield

    def _record(
        self,
        model_input: Any,
        output: Any,
        activations: Activations,
        ids: Sequence[str],
        dataset_type: str,
        n_epoch: int | None,
        values: dict[str, Any],
    ) -> None:
        """Check and save a call that other code made of the model."""
        truth = values.pop("ground_truth")
        call = self._checked(truth, ids, len(ids), dataset_type, n_epoch, values)
        self._save(model_input, output, activations, call)

    def _save(
        self, model_input: Any, output: Any, activations: Activations, call: dict[str, Any]
    ) -> Any:
        """Save a call that `_checked` found to fit; return what saving returned."""
        truth = call.pop("ground_truth")
        return self._parse_and_save_io_data(
            model_input, output, truth, activations=activations, **call
        )

    def _check_open(self) -> None:
        """Refuse to begin what needs our hooks, or to begin it twice at a time."""
        if self._closed:
            raise InputError(f"{self!r} is closed; make another, or call the model itself")
        if self._blocks.running:
            raise InputError(
                "within attached() every call of the model is recorded: call the model itself, and "
                "use the tracer outside the block"
            )

    def _check_widths(self, units: Units[Tensor]) -> None:
        """Refuse vectors of another width than before: no evaluation could compare them."""
        for name, values in units.columns.items():
            shape = values.shape[1:]
            if shape and self._widths.setdefault(name, shape) != shape:
                raise InputError(
                    f"{name} has {tuple(shape)} values a unit, but {tuple(self._widths[name])} "
                    "before; nothing of this call was recorded. Choose a reducer whose width does "
                    "not depend on the input's size, such as 'mean'"
                )


def arguments_of(model_input: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return the arguments that the model is called with."""
    return ((), model_input) if isinstance(model_input, Mapping) else ((model_input,), {})


def _listed(values: Tensor | Sequence[str]) -> list[Any]:
    return values.tolist() if isinstance(values, Tensor) else list(values)


def _device_of(output: Any) -> torch.device:
    return next((t.device for t in tensors_in(output)), torch.device("cpu"))
