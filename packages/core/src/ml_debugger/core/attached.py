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
from ml_debugger.core.inputs import as_epoch, as_input_ids, as_name

#: What stands for one value, though it has a length.
_SINGLE = (str, bytes, Mapping, int, float, bool, datetime)

#: Tells how many inputs the arguments of a call of a model hold; None if it cannot.
Count = Callable[[tuple[Any, ...], Mapping[str, Any]], int | None]


class Record(Protocol):
    """What a tracer does after each call."""

    def __call__(
        self,
        model_input: Any,
        output: Any,
        activations: Activations,
        ids: Sequence[str],
        dataset_type: str,
        n_epoch: int | None,
        values: dict[str, Any],
    ) -> object:
        """Check and save one call; what it raises leaves the model's call.

        Args:
            model_input: The first argument of the call, or the keyword arguments if it is one.
            output: What the model returned.
            activations: What its layers produced.
            ids: One id an input of the call.
            dataset_type: The split.
            n_epoch: The epoch, or None.
            values: The call's part of the values that the block was given.
        """


class Blocks:
    """The blocks of one tracer in which other code calls its model, one at a time.

    Attributes:
        running: Whether a block has begun and not ended.
        counted: The number of inputs that blocks without ids have seen, by split and epoch.
    """

    def __init__(self) -> None:
        self.running = False
        self.counted: dict[tuple[str, int | None], int] = {}

    @contextmanager
    def run(
        self,
        model: nn.Module,
        capture: Capture,
        count: Count,
        record: Record,
        values: Mapping[str, Any],
        input_ids: Any,
        dataset_type: str,
        n_epoch: int | None,
    ) -> Iterator[None]:
        """Record each call of a model within the block.

        Args:
            model: The model that other code calls.
            capture: What its layers' outputs are kept with.
            count: Counts the inputs of a call.
            record: Told of each call.
            values: By name, one value for all inputs of the block, or something sliceable with
                one for each.
            input_ids: The ids of all inputs of the block; None counts on from the block before.
            dataset_type: The split.
            n_epoch: The epoch, or None.

        Raises:
            InputError: Something does not fit: the values the ids, before the block begins, or the
                ids what the model saw, when it ends.
        """
        ids = None if input_ids is None else as_input_ids(input_ids, None)
        if ids is not None:
            _check_lengths(values, ids)
        part = (as_name(dataset_type, "dataset_type"), as_epoch(n_epoch))
        first = self.counted.get(part, 0)

        def on_call(model_input: Any, output: Any, activations: Activations, inputs: range) -> None:
            span = slice(inputs.start, inputs.stop)
            counted = [first + at for at in inputs]
            names = as_input_ids(counted if ids is None else ids[span], len(inputs))
            own = {name: v if _is_single(v) else v[span] for name, v in values.items()}
            record(model_input, output, activations, names, dataset_type, n_epoch, own)

        self.running = True
        try:
            with _watching(model, capture, count, on_call) as watch:
                try:
                    yield
                finally:
                    if ids is None:
                        self.counted[part] = first + watch.seen
        finally:
            self.running = False
        if watch.running:
            raise InputError(
                f"attached() ended before calls of the model in other threads ({watch.running}) "
                "did; nothing of these was recorded. Wait for them within the block"
            )
        if ids is not None and watch.seen != len(ids):
            raise InputError(
                f"attached() was given {len(ids)} ids, but the model saw {watch.seen} inputs"
            )


class _Watch:
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
def _watching(
    model: nn.Module,
    capture: Capture,
    count: Count,
    on_call: Callable[[Any, Any, Activations, range], None],
) -> Iterator[_Watch]:
    """Capture each call of a model within the block, and tell which inputs of the block it has."""
    watch = _Watch()
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
        on_call(call.model_input, output, call.activations, call.inputs)

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


def _check_lengths(values: Mapping[str, Any], ids: Sequence[str]) -> None:
    """Refuse, before a block begins, values that cannot be those of its inputs."""
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


def _is_single(value: Any) -> bool:
    return value is None or isinstance(value, _SINGLE) or not hasattr(value, "__len__")
