"""A report on how a model's layers can be recorded, from one batch and without recording it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ml_debugger.core.capture import Capture
from ml_debugger.core.inputs import batch_size
from ml_debugger.core.layers import Layer, Reducer, unwrap

SAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class LayerCheck:
    """What became of one layer in the batch.

    Attributes:
        alias: The layer's alias.
        layer: How it is written in `target_layers`.
        calls: How often it ran; the last call is recorded unless `call<n>` names one.
        shape: Its shape before reduction; None if it did not run.
        dtype: Its dtype before reduction.
        batch_first: Whether its first dimension is the batch.
        width: Values recorded a sample.
        bytes_per_sample: Bytes recorded a sample.
        problem: Why it cannot be recorded, or None.
    """

    alias: str
    layer: str
    calls: int
    shape: tuple[int, ...] | None
    dtype: str | None
    batch_first: bool
    width: int
    bytes_per_sample: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Checkup:
    """How a model can be recorded; printing it shows a table.

    Attributes:
        layers: One entry a layer.
        notes: What was noticed about the model: compiled, scripted, quantised, ...
        bytes_per_sample: Bytes of features a sample.
    """

    layers: tuple[LayerCheck, ...]
    notes: tuple[str, ...]
    bytes_per_sample: int

    @property
    def ok(self) -> bool:
        """Whether every layer can be recorded."""
        return not any(layer.problem for layer in self.layers)

    def __str__(self) -> str:
        lines = [
            f"{one.alias:<14} {one.layer:<32} calls {one.calls}  "
            + (
                one.problem
                or f"{one.dtype} {one.shape} -> {one.width} values, {one.bytes_per_sample} bytes"
            )
            for one in self.layers
        ]
        size = self.bytes_per_sample * SAMPLES / 1e6
        return "\n".join([*lines, *self.notes, f"{size:.1f} MB of features per 10,000 samples"])


def check_model(model: nn.Module, layers: Mapping[str, Layer], run: Callable[[], Any]) -> Checkup:
    """Run one batch in evaluation mode, without gradients, and look at each layer.

    Args:
        model: The model; every module is left in the mode it was in.
        layers: The layers to look at.
        run: Calls the model on the batch.
    """
    raw: dict[str, Tensor] = {}

    def noting(alias: str, reducer: Reducer) -> Reducer:
        def note(features: Tensor) -> Tensor:
            raw[alias] = features
            return reducer(features)

        return note

    noted = {a: one._replace(reducer=noting(a, one.reducer)) for a, one in layers.items()}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with Capture(model, noted) as capture, torch.no_grad():
            activations = capture.begin()
            try:
                output = run()
            finally:
                capture.abandon(activations)
            activations.finish(noted)
    finally:
        for module, mode in modes:
            module.training = mode
    inputs = batch_size(output)
    checks = tuple(
        _check(
            alias,
            layer,
            activations.calls.get(alias, 0),
            raw.get(alias),
            activations[alias] if alias in raw else None,
            inputs,
        )
        for alias, layer in layers.items()
    )
    return Checkup(checks, _notes(model), sum(one.bytes_per_sample for one in checks))


def _check(
    alias: str,
    layer: Layer,
    calls: int,
    raw: Tensor | None,
    reduced: Tensor | None,
    inputs: int | None,
) -> LayerCheck:
    if raw is None or reduced is None:
        problem = "did not run" if not calls else f"ran {calls} times, not as often as named"
        return LayerCheck(alias, layer.text, calls, None, None, False, 0, 0, problem)
    batch_first = inputs is None or (reduced.ndim > 0 and len(reduced) == inputs)
    width = reduced[0].numel() if len(reduced) else 0
    return LayerCheck(
        alias=alias,
        layer=layer.text,
        calls=calls,
        shape=tuple(raw.shape),
        dtype=str(raw.dtype).removeprefix("torch."),
        batch_first=batch_first,
        width=width,
        bytes_per_sample=width * reduced.element_size(),
        problem=None
        if batch_first
        else f"its first dimension is {len(reduced)}, the batch has {inputs}",
    )


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
