"""Watching the calls that other code makes of a model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from torch import nn

from ml_debugger.core.capture import Activations, Capture, Hook
from ml_debugger.core.errors import InputError

#: What stands for one value, though it has a length.
_SINGLE = (str, bytes, Mapping, int, float, bool, datetime)


class OnCall(Protocol):
    """What happens after each call."""

    def __call__(
        self,
        model_input: Any,
        output: Any,
        activations: Activations,
        inputs: range,
        values: dict[str, Any],
    ) -> None:
        """Take one call.

        Args:
            model_input: The first argument of the call, or the keyword arguments if it is one.
            output: What the model returned.
            activations: What its layers produced.
            inputs: Which inputs of the block these are, counted from 0.
            values: Their part of the values that the block was given.
        """


@dataclass
class Watch:
    """What a block has seen so far.

    Attributes:
        seen: The number of inputs that the model was called with.
    """

    seen: int = 0


@contextmanager
def watching(
    model: nn.Module,
    capture: Capture,
    values: Mapping[str, Any],
    count: Callable[[tuple[Any, ...], Mapping[str, Any]], int | None],
    on_call: OnCall,
) -> Iterator[Watch]:
    """Capture and report each call of a model within the block.

    Args:
        model: The model that other code calls.
        capture: What its layers' outputs are kept with.
        values: Values of all inputs of the block, by name; see `check_lengths`.
        count: Tells how many inputs the arguments of a call hold.
        on_call: Told of each call. What it raises leaves the model's call.
    """
    watch = Watch()
    stack: list[tuple[Activations, Any, int]] = []

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = count(args, kwargs)
        if inputs is None:
            raise InputError(
                "attached() needs a model input that tells how many inputs it holds, such as a "
                "batch of tensors; for any other, call the tracer in place of the model"
            )
        stack.append((capture.begin(), args[0] if args else kwargs, inputs))

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        activations, model_input, size = stack.pop()
        capture.end(activations)
        inputs = range(watch.seen, watch.seen + size)
        watch.seen = inputs.stop
        parts = {name: _part(value, inputs) for name, value in values.items()}
        on_call(model_input, output, activations, inputs, parts)

    hooks = [
        model.register_forward_pre_hook(Hook(before), with_kwargs=True),
        model.register_forward_hook(Hook(after)),
    ]
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()
        while stack:  # the model raised
            capture.abandon(stack.pop()[0])


def check_lengths(values: Mapping[str, Any], ids: Sequence[str]) -> None:
    """Refuse, before a block begins, values that cannot be those of its inputs.

    Args:
        values: One value for all inputs, or something sliceable with one for each, by name.
        ids: The ids of all inputs of the block.

    Raises:
        InputError: A value has no length, or another than there are ids.
    """
    for name, value in values.items():
        if value is None or isinstance(value, _SINGLE):
            continue
        if not hasattr(value, "__len__"):
            raise InputError(
                f"{name} of attached() must have a length and be sliceable, such as a list, an "
                f"array or a tensor; got {type(value).__name__}"
            )
        if len(value) != len(ids):
            raise InputError(f"{name} has {len(value)} values for {len(ids)} ids")


def _part(value: Any, inputs: range) -> Any:
    whole = value is None or isinstance(value, _SINGLE) or not hasattr(value, "__len__")
    return value if whole else value[inputs.start : inputs.stop]
