"""Watching the calls that other code makes of a model."""

import threading
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


class Watch:
    """What a block has seen so far; calls may come from several threads.

    The inputs of a call are counted when it begins.

    Attributes:
        seen: The number of inputs that the model was called with.
        running: The number of calls that have begun and not ended.
    """

    def __init__(self) -> None:
        self.seen = self.running = 0
        self._lock = threading.Lock()

    def begin(self, size: int) -> range:
        """Count a call; return which inputs of the block it has."""
        with self._lock:
            inputs = range(self.seen, self.seen + size)
            self.seen = inputs.stop
            self.running += 1
        return inputs

    def end(self, inputs: range, *, failed: bool) -> None:
        """Count a call as ended; the next has its inputs if it failed, and none began meanwhile."""
        with self._lock:
            self.running -= 1
            if failed and self.seen == inputs.stop:
                self.seen = inputs.start


@dataclass
class _Call:
    """A call of the model that has begun; `activations` is None until it may run."""

    model_input: Any = None
    inputs: range = range(0)
    activations: Activations | None = None
    returned: bool = False


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
    local = threading.local()

    def calls() -> list[_Call]:
        """Return the calls of this thread, each within the one before it."""
        found: list[_Call] = local.__dict__.setdefault("calls", [])
        return found

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = _Call(args[0] if args else kwargs)
        calls().append(call)  # first of all: `last` takes it off, whatever comes
        inputs = count(args, kwargs)
        if inputs is None:
            raise InputError(
                "attached() needs a model input that tells how many inputs it holds, such as a "
                "batch of tensors; for any other, call the tracer in place of the model"
            )
        call.activations = capture.begin()
        call.inputs = watch.begin(inputs)

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        call = calls()[-1]
        assert call.activations is not None  # or it would not have run
        capture.end(call.activations)
        watch.end(call.inputs, failed=False)
        call.returned = True
        parts = {name: _part(value, call.inputs) for name, value in values.items()}
        on_call(call.model_input, output, call.activations, call.inputs, parts)

    def last(*_: Any) -> None:
        # it alone runs when the model raised
        found = calls()
        if found:
            give_up(found.pop())

    def give_up(call: _Call) -> None:
        if call.activations is not None and not call.returned:
            capture.abandon(call.activations)
            watch.end(call.inputs, failed=True)

    hooks = [
        model.register_forward_pre_hook(Hook(before), with_kwargs=True),
        model.register_forward_hook(Hook(after)),
        model.register_forward_hook(Hook(last), always_call=True),
    ]
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()
        while found := calls():  # interrupted, or raised within a compiled model
            give_up(found.pop())


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
