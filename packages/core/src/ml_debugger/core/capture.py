"""Keep what a model's layers produce while it runs."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from ml_debugger.core.errors import (
    InputError,
    LayerNotCapturedError,
    LayerNotFiredError,
    UnsupportedModelError,
)
from ml_debugger.core.inputs import tensors_in
from ml_debugger.core.layers import Layer, unwrap


class Call(NamedTuple):
    """One call of a tapped module: the model's own values, to be read before it runs again.

    Attributes:
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        output: What it returned.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


class Activations:
    """What the layers produced in one forward pass, by alias; detached copies of our own.

    Attributes:
        layers: The layers to record, by alias.
        calls: How often each of them ran that is kept reduced.
        forms: Shape and dtype of what each of those gave, before reduction.
        taps: The calls of each tapped module, in their order.
        copies: Tensors of each call of each copied layer, detached, in the order of the calls.
        model_input: What the model was called with; None before the output is read.
        read: What the model returned and what was read in it; None before.
    """

    def __init__(
        self, layers: Mapping[str, Layer] | None = None, outer: "Activations | None" = None
    ) -> None:
        self.layers = layers or {}
        self.outer = outer
        self._vectors: dict[str, Tensor] = {}
        self._maps: dict[str, Tensor] = {}
        self.calls: dict[str, int] = {}
        self.forms: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self.taps: dict[str, list[Call]] = {}
        self.copies: dict[str, list[list[Tensor]]] = {}
        self.model_input: Any = None
        self.read: tuple[Any, Any] | None = None

    def __getitem__(self, alias: str) -> Tensor:
        """Return a layer's reduced activation.

        Raises:
            LayerNotCapturedError: No layer of this alias ran.
        """
        try:
            return self._vectors[alias]
        except KeyError:
            raise LayerNotCapturedError(alias, self._vectors) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    def owns(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is one of these copies, so that it needs no other."""
        return any(tensor is mine for mine in self._vectors.values())

    def keep(self, alias: str, layer: Layer, value: Tensor) -> None:
        """Keep one call's activation. Runs inside the user's forward pass."""
        call = self.calls.get(alias, 0)
        self.calls[alias] = call + 1
        if layer.call is not None and layer.call != call:
            return
        value = value.detach()
        if torch.compiler.is_compiling():
            # reducing in the compiled graph would fuse it and change the last bits
            self._maps[alias] = value.clone()
        else:
            self._reduce(alias, layer, value)

    def only(self, aliases: Iterable[str]) -> "Activations":
        """Return what was kept of this pass, as if no other layers were to be recorded."""
        part = copy(self)
        part.layers = {alias: self.layers[alias] for alias in aliases}
        part._vectors = {a: v for a, v in self._vectors.items() if a in part.layers}  # noqa: SLF001  our own
        part.read = None
        return part

    def release(self) -> None:
        """Let go of what is the model's own, and large: all but the layers."""
        self.taps.clear()
        self.model_input = self.read = None

    def finish(self, layers: Mapping[str, Layer]) -> None:
        """Reduce what a compiled model left as it was."""
        for alias, value in self._maps.items():
            self._reduce(alias, layers[alias], value)
        self._maps.clear()

    def _reduce(self, alias: str, layer: Layer, value: Tensor) -> None:
        self.forms[alias] = (tuple(value.shape), value.dtype)
        self._vectors[alias] = _reduce(layer, value)

    def require(self, layers: Mapping[str, Layer]) -> None:
        """Check that nothing is missing.

        Raises:
            LayerNotFiredError: A layer did not run.
        """
        missing = [alias for alias in layers if alias not in self._vectors]
        if missing:
            raise LayerNotFiredError(
                "; ".join(f"layer {a!r} ({layers[a].text}) did not run" for a in missing)
                + ". Was the model compiled and run before it was traced (trace it first, or call "
                "torch.compiler.reset()), scripted, fused, or is the layer unused? "
                "tracer.check(model_input) tells which layers run"
            )


def _reduce(layer: Layer, value: Tensor) -> Tensor:
    with outside_autocast(value.device):
        # half precision would lose bits in the mean over a map
        wide = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        reduced = layer.reducer(wide).detach()
    shares = reduced.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
    return reduced.clone() if shares else reduced


def outside_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Leave the user's autocast, so that what is computed has the precision it asks for."""
    kind = device.type
    # entering a context costs more than all else here, and there is rarely one to leave
    enabled = kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if enabled else _NOWHERE


_NOWHERE = nullcontext()


class Capture:
    """The activations of named layers, recorded while asked to.

    Owns its hooks: they are attached once, stay silent outside `recording`, and `close` removes
    them and no others. Safe to use from several threads and recursively: each forward pass keeps
    its own activations.

    Example:
        >>> import torch
        >>> from ml_debugger.core.layers import parse_layers
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> with Capture(model, parse_layers({"hidden": "0"}, model)) as capture:
        ...     with capture.recording() as activations:
        ...         _ = model(torch.zeros(1, 2))
        >>> activations["hidden"].shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        taps: Mapping[str, str] | None = None,
        copied: Mapping[str, Layer] | None = None,
    ) -> None:
        """Attach a hook to each module, below any compilation or DDP wrapper.

        Args:
            model: The model.
            layers: The layers to keep reduced, by alias.
            taps: Paths of modules whose calls are kept whole, by name; "" is the model itself.
            copied: Layers of whose calls detached copies of the tensors are kept, by name.
        """
        self.layers = dict(layers)
        self._recorded = {**layers, **(copied or {})}
        self._closed = False
        self._newest = Activations()
        self._passes = threading.local()
        self._handles: list[Any] = []
        inner = unwrap(model)
        for alias, layer in self.layers.items():
            module = inner.get_submodule(layer.path)
            if layer.side == "input":
                hook = module.register_forward_pre_hook(
                    Hook(self._input_keeper(alias, layer)), with_kwargs=True
                )
            else:
                hook = module.register_forward_hook(Hook(self._output_keeper(alias, layer)))
            self._handles.append(hook)
        for name, path in (taps or {}).items():
            tap = Hook(self._tap(name))
            module = inner.get_submodule(path)
            self._handles.append(module.register_forward_hook(tap, with_kwargs=True))
        for name, layer in (copied or {}).items():
            module = inner.get_submodule(layer.path)
            if layer.side == "input":
                hook = module.register_forward_pre_hook(
                    Hook(self._copy_of_input(name)), with_kwargs=True
                )
            else:
                hook = module.register_forward_hook(Hook(self._copy_of_output(name)))
            self._handles.append(hook)

    def own(self, handles: Iterable[Any]) -> None:
        """Take hooks that someone else attached, to remove them with ours."""
        self._handles.extend(handles)

    @property
    def latest(self) -> Activations:
        """The activations of the pass that ended last in this thread, or else in any."""
        found: Activations = getattr(self._passes, "ended", self._newest)
        return found

    def begin(self) -> Activations:
        """Start keeping what the layers produce in this thread; `end` or `abandon` must follow.

        Raises:
            InputError: It is closed.
        """
        self._check_open()
        activations = Activations(self._recorded, getattr(self._passes, "current", None))
        self._passes.current = activations
        return activations

    def end(self, activations: Activations, *, complete: bool = True) -> None:
        """Stop keeping.

        Args:
            activations: As `begin` returned them.
            complete: Whether all layers must have run.

        Raises:
            LayerNotFiredError: A layer did not run.
            InputError: It was closed meanwhile.
        """
        self.abandon(activations)
        self._check_open()
        activations.finish(self.layers)
        if complete:
            activations.require(self.layers)
        self._passes.ended = self._newest = activations

    def abandon(self, activations: Activations) -> None:
        """Stop keeping, whatever was or was not captured."""
        self._passes.current = activations.outer

    @contextmanager
    def recording(self, *, complete: bool = True) -> Iterator[Activations]:
        """Keep what the layers produce in this thread until the block ends.

        Args:
            complete: Whether all layers must have run.

        Raises:
            LayerNotFiredError: At the end of the block, when a layer did not run.
            InputError: It is closed, or was when the block ended.
        """
        activations = self.begin()
        try:
            yield activations
        except BaseException:
            self.abandon(activations)
            raise
        self.end(activations, complete=complete)

    def close(self) -> None:
        """Take our hooks off the model; activations already captured stay readable."""
        self._closed = True
        while self._handles:
            self._handles.pop().remove()

    def _check_open(self) -> None:
        if self._closed:
            raise InputError(
                "the tracer was closed before this call of the model ended, so nothing of it was "
                "recorded; close it once all calls are done"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _output_keeper(self, alias: str, layer: Layer) -> Callable[..., None]:
        def keep(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            activations = getattr(self._passes, "current", None)
            if activations is not None:
                activations.keep(alias, layer, _tensor_of(output, alias, layer))

        return keep

    def _input_keeper(self, alias: str, layer: Layer) -> Callable[..., None]:
        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            activations = getattr(self._passes, "current", None)
            if activations is not None:
                given = args or tuple(kwargs.values())
                activations.keep(alias, layer, _tensor_of(given, alias, layer))

        return keep

    def _copy_of_input(self, name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._copy(name, [*args, kwargs])

        return keep

    def _copy_of_output(self, name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            self._copy(name, output)

        return keep

    def _copy(self, name: str, value: Any) -> None:
        activations = getattr(self._passes, "current", None)
        if activations is not None:
            tensors = [one.detach().clone() for one in tensors_in(value)]
            activations.copies.setdefault(name, []).append(tensors)

    def _tap(self, name: str) -> Callable[..., None]:
        def keep(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            activations = getattr(self._passes, "current", None)
            if activations is not None:
                activations.taps.setdefault(name, []).append(Call(args, kwargs, output))

        return keep


class Hook:
    """A forward hook of ours that belongs to one model, and not to copies of it.

    A traced model can be copied and saved as if nobody looked: in a copy or a file, this does
    nothing.
    """

    def __init__(self, act: Callable[..., None] | None = None) -> None:
        self._act = act

    def __call__(self, *args: Any) -> None:
        """Do what is to be done at this module."""
        if self._act is not None:
            self._act(*args)

    def __deepcopy__(self, _memo: object) -> "Hook":
        return Hook()

    def __reduce__(self) -> tuple[type["Hook"], tuple[()]]:
        return Hook, ()


def _tensor_of(value: Any, alias: str, layer: Layer) -> Tensor:
    """Return the first tensor of what a module took or gave."""
    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, Mapping) else value
    # a tuple of types, since torch.compile of torch 2.4 cannot follow a union here
    if isinstance(parts, (tuple, list)) or isinstance(value, Mapping):
        for part in parts:
            if isinstance(part, Tensor):
                return part
    raise UnsupportedModelError(
        f"layer {alias!r} ({layer.text}) has no tensor as its {layer.side}, "
        f"but {type(value).__name__}; choose another layer"
    )
