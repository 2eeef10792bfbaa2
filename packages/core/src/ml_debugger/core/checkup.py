"""A report on how a model's layers can be recorded, from one batch and without recording it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ml_debugger.core.capture import Activations
from ml_debugger.core.errors import MLDebuggerError, UnsupportedModelError
from ml_debugger.core.layers import Layer, unwrap
from ml_debugger.core.records import Units

SAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class LayerCheck:
    """What became of one layer in the batch.

    Attributes:
        alias: The layer's alias.
        layer: How it is written in `target_layers`.
        calls: How often it ran; of several calls the last is recorded unless `call<n>` names one.
            0 with a width: only its parts ran, and a detector's features come from these.
        shape: Its shape before reduction; None if it did not run.
        dtype: Its dtype before reduction.
        batch_first: Whether its first dimension is the batch; what a detector says of its boxes
            need not be.
        width: Values recorded a unit: an image, a box.
        bytes_per_sample: Bytes recorded a sample, for all of its units.
        problem: Why it cannot be recorded, or None.
    """

    alias: str
    layer: str
    calls: int
    shape: tuple[int, ...] | None
    dtype: str | None
    batch_first: bool
    width: int
    bytes_per_sample: float
    problem: str | None

    def __str__(self) -> str:
        form = "parts of it" if self.shape is None else f"{self.dtype} {self.shape}"
        found = f"{form} -> {self.width} values, {self.bytes_per_sample:.0f} bytes"
        return f"{self.alias:<14} {self.layer:<32} calls {self.calls}  {self.problem or found}"


@dataclass(frozen=True, slots=True)
class Checkup:
    """How a model can be recorded; printing it shows a table.

    Attributes:
        layers: One entry a layer.
        notes: What was noticed about the model: compiled, scripted, quantised, ...
        units_per_sample: Units a sample in this batch: 1, or the boxes that a detector showed.
        bytes_per_sample: Bytes a sample of all that the model says; ids, ground truth and
            additional fields come on top.
    """

    layers: tuple[LayerCheck, ...]
    notes: tuple[str, ...]
    units_per_sample: float
    bytes_per_sample: float

    @property
    def ok(self) -> bool:
        """Whether every layer can be recorded."""
        return not any(layer.problem for layer in self.layers)

    def __str__(self) -> str:
        features = sum(one.bytes_per_sample for one in self.layers)
        size = (
            f"{features * SAMPLES / 1e6:.1f} MB of features per 10,000 samples, "
            f"{self.bytes_per_sample * SAMPLES / 1e6:.1f} MB with all else that it says"
        )
        if self.units_per_sample != 1:
            size += f", at {self.units_per_sample:.1f} units a sample as in this batch"
        return "\n".join([*map(str, self.layers), *self.notes, size])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have a model in evaluation mode within the block, each module as it was after it.

    Flags alone are set: `eval()` may be a model's own, and do more than that.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_layers(
    model: nn.Module,
    activations: Activations,
    read: Callable[[Activations], Units[Tensor]],
    *,
    must_read: bool,
) -> Checkup:
    """Look at what a call of a model left of each layer.

    Args:
        model: The model.
        activations: What was kept of the call, whether or not every layer ran.
        read: Reads units in the model's output, with the features of such layers as it is given.
        must_read: Whether it must be able to; if not, features are taken as they were kept.

    Raises:
        UnsupportedModelError: Units cannot be read, whatever the layers.
    """
    problems: dict[str, str] = {}
    try:
        read(activations.only([]))
    except UnsupportedModelError:
        if must_read:
            raise
        kept = {f"feature.{alias}": activations[alias] for alias in activations}
        units = Units({k: v.reshape(*v.shape, 1, 1).flatten(1) for k, v in kept.items()})
    else:
        for alias in activations.layers:
            try:
                read(activations.only([alias]))
            except MLDebuggerError as error:
                problems[alias] = str(error)
        units = read(activations.only(set(activations.layers).difference(problems)))
    checks = tuple(
        _check(alias, layer, activations, units, problems.get(alias))
        for alias, layer in activations.layers.items()
    )
    notes = _notes(model)
    if not len(units):
        notes += ("no units in this batch: pass one in which the model sees something",)
    inputs = max(units.n_inputs, 1)
    size = sum(map(_bytes, units.columns.values()))
    return Checkup(checks, notes, len(units) / inputs, size / inputs)


def _check(
    alias: str, layer: Layer, activations: Activations, units: Units[Tensor], problem: str | None
) -> LayerCheck:
    calls, shape, dtype = _seen(alias, layer, activations)
    features = units.columns.get(f"feature.{alias}")
    if features is None and shape is None:
        problem = "did not run" if not calls else f"ran {calls} times, not as often as named"
    return LayerCheck(
        alias=alias,
        layer=layer.text,
        calls=calls,
        shape=shape,
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        batch_first=shape is not None and shape[:1] == (units.n_inputs,),
        width=0 if features is None else features.shape[1],
        bytes_per_sample=0 if features is None else _bytes(features) / max(units.n_inputs, 1),
        problem=problem,
    )


def _seen(
    alias: str, layer: Layer, activations: Activations
) -> tuple[int, tuple[int, ...] | None, torch.dtype | None]:
    """Return how often a layer ran, and shape and dtype of the call that is recorded."""
    copies = activations.copies.get(alias)
    if copies is None:
        return activations.calls.get(alias, 0), *activations.forms.get(alias, (None, None))
    at = len(copies) - 1 if layer.call is None else layer.call
    if at >= len(copies) or not copies[at]:
        return len(copies), None, None
    return len(copies), tuple(copies[at][0].shape), copies[at][0].dtype


def _bytes(column: Tensor) -> int:
    wide = column.dtype is torch.bfloat16  # recorded in float32
    return column.numel() * (4 if wide else column.element_size())


def _notes(model: nn.Module) -> tuple[str, ...]:
    inner = unwrap(model)
    modules = list(inner.modules())
    names = {f"{type(m).__module__}.{type(m).__name__}" for m in modules}
    compiled = model is not inner and hasattr(model, "_orig_mod")
    found = {
        "compiled: trace it before its first call": compiled
        or getattr(inner, "_compiled_call_impl", None) is not None,
        "scripted: layers inside a scripted module do not run hooks": any(
            isinstance(m, torch.jit.ScriptModule) for m in modules
        ),
        "quantised": any(".quantized." in n or ".quantizable." in n for n in names),
        "fused": any(".intrinsic." in name for name in names),
    }
    return tuple(note for note, there in found.items() if there)
