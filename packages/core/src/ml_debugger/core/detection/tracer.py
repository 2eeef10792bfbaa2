"""How detectors are recorded, whatever a box is."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, Generic

from torch import Tensor, nn
from typing_extensions import override

from ml_debugger.core.capture import Activations, Call, Capture
from ml_debugger.core.detection.adapter import Adapter, Config, Said
from ml_debugger.core.detection.families import Families
from ml_debugger.core.detection.output import NMSSettings
from ml_debugger.core.detection.settings import lend
from ml_debugger.core.detection.units import BoxOutput
from ml_debugger.core.errors import InputError, LayerNotCapturedError, UnsupportedModelError
from ml_debugger.core.layers import Layer, unwrap
from ml_debugger.core.records import Settings, Units
from ml_debugger.core.tracer import Tracer


def _nothing() -> None:
    """Restore nothing."""


class DetectionTracer(Tracer, Generic[Said, Config]):
    """How a detector is recorded; a task says what a box is, and every purpose shares it.

    For a detector that no adapter knows, a user derives from a task's public class, and overrides
    `detect`, `_get_n_class`, `_register_model_hooks` and `_parse_model_output`; if it has such
    settings, `_apply_nms_config` to give them and `_get_nms_config` to read them, so that the
    model gets its own back.

    Attributes:
        families: The families of detectors that the task knows.
        config: The class of its settings.
    """

    families: ClassVar[Families[Any]]
    config: ClassVar[type[Any]]

    _wanted: Config | None = None
    _given_classes: int | None = None

    def configure(self, n_class: int | None, **settings: Any) -> None:
        """Take what only detectors have; before the rest of the constructor.

        Raises:
            InputError: A value is out of its range.
        """
        if n_class is not None and (type(n_class) is not int or n_class < 1):
            raise InputError(f"n_class must be a positive int or None, got {n_class!r}")
        self._given_classes = n_class
        self._wanted = self.config.of(**settings)

    # What a detector of a family that is not known needs

    @staticmethod
    @abstractmethod
    def detect(model: nn.Module) -> bool:
        """Tell whether this class can trace a model."""

    def _get_n_class(self, model: nn.Module) -> int:
        """Return the number of classes, background included where the model numbers it."""
        return self._known(model, "_get_n_class").n_class(model)

    def _register_model_hooks(self, model: nn.Module) -> Sequence[Any]:
        """Register forward hooks of your own; the handles returned are removed by `close`."""
        return ()

    def _apply_nms_config(self, model: nn.Module, nms_config: Config) -> None:
        """Give the model settings: those that the user asked for, and its own when it is closed.

        Args:
            model: The model.
            nms_config: Of these, None leaves the model's own.
        """
        self._known(model, "_apply_nms_config").apply_nms(model, nms_config)

    def _get_nms_config(self, model: nn.Module) -> Config:
        """Return the settings that the model has now; None for those that it does not tell."""
        adapter = self.families.of(model)
        found: Config = self.config() if adapter is None else adapter.nms(model)
        return found

    # What a task says

    @abstractmethod
    def read_outputs(self, output: Any, activations: Activations) -> Sequence[BoxOutput]:
        """Read and check what the model returned: what is recorded of each input."""

    @abstractmethod
    def units_of(
        self, outputs: Sequence[Any], features: Mapping[str, Sequence[Tensor]]
    ) -> Units[Tensor]:
        """Put the boxes of a batch into columns.

        Args:
            outputs: What `read_outputs` returned.
            features: For each target layer, the feature vectors of each input's boxes.
        """

    @abstractmethod
    def pool(self, values: Tensor, output: Any, number: int) -> Tensor:
        """Return what a layer says of the boxes of an input, shape (n, channels), float32.

        Args:
            values: What the layer gave for the batch.
            output: What `read_outputs` returned of the input.
            number: The place of the input in the batch.
        """

    # What core asks for

    @property
    def n_class(self) -> int:
        """The number of classes, background included where the model numbers it."""
        return self._n_class

    @property
    def nms_config(self) -> Config:
        """The settings that decide which boxes the user sees, as they are now."""
        now = self._get_nms_config(unwrap(self.model))
        return now.model_copy(update=self._held) if self._held else now

    @override
    def accept(self, model: nn.Module) -> None:
        if not self.detect(model):
            absent = self.families.absent(unwrap(model))
            if absent is not None:
                raise UnsupportedModelError(f"{type(unwrap(model)).__name__} cannot run: {absent}")
            for one in self.families.known:
                one.refuse(unwrap(model))
            known = ", ".join(one.family for one in self.families.known)
            raise UnsupportedModelError(
                f"{type(model).__name__} is no detector that is known; known are {known}. Install "
                f"a package with an adapter for it (entry points in {self.families.group}), write "
                "a DetectionAdapter, or derive from this class and override detect, _get_n_class "
                "and _parse_model_output"
            )
        adapter = self.families.of(unwrap(model))
        if adapter is not None:
            adapter.accept(unwrap(model))
        self._n_class = self._count_classes(model)

    @override
    def default_layers(self, model: nn.Module) -> dict[str, str]:
        adapter = self.families.of(model)
        found: dict[str, str] = {} if adapter is None else adapter.layers(model)
        return found

    @override
    def settings(self) -> Settings:
        wanted = self._wanted.model_dump(exclude_none=True) if self._wanted else {}
        return {**self.nms_config.model_dump(), **wanted}

    @override
    def hook(self, model: nn.Module) -> Capture:
        inner = unwrap(model)
        adapter = self._adapter = self.families.of(inner)
        self._own = {} if adapter is None else adapter.layers(inner)
        taps = {} if adapter is None else adapter.taps(inner)
        before = self._get_nms_config(inner)
        network = model if adapter is None else adapter.running(inner)
        capture = Capture(network, {}, taps, self._layers)
        try:
            capture.own(self._register_model_hooks(inner) or ())
            wanted = self._wanted.model_dump(exclude_none=True) if self._wanted else {}
            if self._wanted and wanted:
                shared = () if adapter is None else adapter.shared(inner)
                self._restore = lend(inner, before, self._wanted, self._applier(adapter), shared)
                now = self._get_nms_config(inner)
                self._held = {k: v for k, v in wanted.items() if getattr(now, k) != v}
                if adapter is None:
                    _warn_of_lost(wanted, before)
        except BaseException:
            self._restore()
            capture.close()
            raise
        return capture

    @override
    def unhook(self) -> None:
        try:
            self._restore()
        finally:
            super().unhook()

    def __del__(self) -> None:
        """Give a model its settings back if the tracer was forgotten."""
        self._restore()

    @contextmanager
    @override
    def _attached(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        inner = unwrap(self.model)
        if self._adapter is not None and self._adapter.running(inner) is not inner:
            raise UnsupportedModelError(
                f"{type(inner).__name__} runs a copy of its network, whose calls attached() cannot "
                "see; call the tracer in place of the model"
            )
        with super()._attached(*args, **kwargs):
            yield

    @override
    def run_model(self, model_input: Any) -> Any:
        if self._adapter is None:
            return super().run_model(model_input)
        return self._adapter.run(self.model, model_input)

    @override
    def count_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
        given = args[0] if args else kwargs
        return self.count_images(given) if self._adapter is None else self._adapter.images(given)

    def count_images(self, model_input: Any) -> int | None:
        """Return how many inputs the input of a model without an adapter holds, where it tells."""
        return None

    @override
    def get_hooked_features(self, layer_name: str) -> Any:
        """Return what a layer produced in the latest call, as the model made it.

        Args:
            layer_name: Alias of the layer.

        Returns:
            A detached copy; a list where the layer ran several times, once a level for example.

        Raises:
            LayerNotCapturedError: (a KeyError) Nothing has been captured for it.
        """
        known = self._capture.latest.copies
        if layer_name not in known:
            raise LayerNotCapturedError(layer_name, known)
        found = [value.clone() for call in known[layer_name] for value in call]
        return found[0] if len(found) == 1 else found

    @override
    def parse_output(self, output: Any, activations: Activations) -> Units[Tensor]:
        outputs = self.read_outputs(output, activations)
        features = {
            alias: [
                self._features(alias, layer, one, number, len(outputs), activations)
                for number, one in enumerate(outputs)
            ]
            for alias, layer in activations.layers.items()
        }
        return self.units_of(outputs, features)

    def warn_of_labels(self, labels: Tensor) -> None:
        """Say once if there are true boxes that the model can never get right."""
        background = None if self._adapter is None else self._adapter.background
        odd = labels[(labels >= self.n_class) | (labels == background)]
        if len(odd) and not self._warned:
            self._warned = True
            warnings.warn(
                f"true boxes have the labels {sorted(set(odd.tolist()))}, which "
                f"{type(self.model).__name__} never gives: its own are below {self.n_class}"
                + ("" if background is None else f", and {background} stands for background")
                + ". Number labels as the model does; as they are, these boxes count as errors",
                stacklevel=2,
            )

    _warned = False
    _held: Mapping[str, Any] = MappingProxyType({})  # wishes that no model keeps: `parse` does
    _restore: Callable[[], Any] = staticmethod(_nothing)

    def _said(self, model_output: Any) -> list[Said]:
        """Let the adapter read what the model returned."""
        model = unwrap(self.model)
        adapter = self._known(model, "_parse_model_output")
        taps = _Taps(self._capture.latest, adapter.silence)
        return adapter.parse(model, model_output, taps, self.nms_config)

    def _known(self, model: nn.Module, method: str) -> Adapter[Said, Config]:
        adapter: Adapter[Said, Config] | None = self.families.of(model)
        if adapter is None:
            raise UnsupportedModelError(
                f"no adapter knows {type(model).__name__}: override {method} in the tracer's class"
            )
        return adapter

    def _count_classes(self, model: nn.Module) -> int:
        """Return the number of classes that the model tells, or else the user."""
        given = self._given_classes
        try:
            told = self._get_n_class(model)
        except (AttributeError, UnsupportedModelError) as error:  # a head of the user's own
            if given is None:
                raise UnsupportedModelError(
                    f"{type(model).__name__} does not tell its number of classes ({error}); pass "
                    "n_class"
                ) from error
            return given
        if given not in (None, told):
            raise InputError(
                f"n_class is {given}, but {type(model).__name__} has {told} classes, background "
                "included where it numbers it; leave n_class out"
            )
        return told

    def _features(
        self,
        alias: str,
        layer: Layer,
        output: BoxOutput,
        number: int,
        inputs: int,
        activations: Activations,
    ) -> Tensor:
        """Return the feature vectors of an input's boxes, for a target layer."""
        own = next((a for a, path in self._own.items() if path == layer.path), alias)
        if output.features is not None and own in output.features:
            return output.features[own]
        values = self._value(alias, layer, activations)
        if len(values) != inputs:
            raise UnsupportedModelError(
                f"layer {alias!r} ({layer.text}) gave shape {tuple(values.shape)} for {inputs} "
                "inputs; name one whose first dimension is the batch"
            )
        return self.pool(values, output, number)

    def _value(self, alias: str, layer: Layer, activations: Activations) -> Tensor:
        """Return what a target layer gave, where that is one tensor."""
        calls = activations.copies.get(alias, [])
        if not calls or not calls[0]:
            raise LayerNotCapturedError(alias, activations.copies)
        if len(calls) > 1 and layer.call is None:
            raise UnsupportedModelError(
                f"layer {alias!r} ({layer.text}) ran {len(calls)} times; say which call: "
                f"'{layer.path}:call0' to '{layer.path}:call{len(calls) - 1}'"
            )
        at = layer.call or 0
        if at >= len(calls):
            raise UnsupportedModelError(
                f"layer {alias!r} ({layer.text}) ran {len(calls)} times only; the first is call0"
            )
        if len(calls[at]) > 1:
            parts = [f"'{layer.path}.{one}'" for one in _parts(self._network(layer.path))]
            raise UnsupportedModelError(
                f"layer {alias!r} ({layer.text}) gave {len(calls[at])} tensors in one call; name "
                "a layer that gives a single one for the batch"
                + (f", one of its parts for example: {', '.join(parts)}" if parts else "")
            )
        return calls[at][0]

    def _network(self, path: str) -> nn.Module:
        """Return a module of the network that runs."""
        inner = unwrap(self.model)
        network = inner if self._adapter is None else self._adapter.running(inner)
        return network.get_submodule(path)

    def _applier(
        self, adapter: Adapter[Said, Config] | None
    ) -> Callable[[nn.Module, Config], None]:
        """Return what gives the model settings: the user's way where there is one."""
        own = type(self)._apply_nms_config is not DetectionTracer._apply_nms_config  # noqa: SLF001
        return self._apply_nms_config if adapter is None or own else adapter.apply_nms


def _warn_of_lost(wanted: Mapping[str, Any], before: NMSSettings) -> None:
    lost = [name for name in wanted if getattr(before, name) is None]
    if lost:
        warnings.warn(
            f"what the model had for {' and '.join(lost)} is not known, so close() cannot give it "
            "back; override _get_nms_config",
            stacklevel=2,
        )


def _parts(module: nn.Module, most: int = 8) -> list[str]:
    """Return the names of those parts of a module that probably give one of its outputs each."""
    rows = [name for name, part in module.named_modules() if isinstance(part, nn.ModuleList)]
    if rows:  # the last is where a pyramid's levels leave it
        return [f"{rows[-1]}.{at}" for at in range(len(module.get_submodule(rows[-1])))][:most]  # type: ignore[arg-type]
    return [name for name, _ in module.named_children()][:most]


class _Taps:
    """The calls of an adapter's modules."""

    def __init__(self, activations: Activations, silence: str) -> None:
        self._activations, self._silence = activations, silence

    def __getitem__(self, name: str) -> Sequence[Call]:
        calls = self._activations.taps.get(name)
        if not calls:
            raise UnsupportedModelError(
                f"the part of the model that is known as {name!r} did not run; {self._silence}"
            )
        return calls
