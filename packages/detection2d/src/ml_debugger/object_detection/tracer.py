"""From a detector's output and ground truth to units: one a visible box."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ml_debugger.core.capture import Activations, Call, Capture
from ml_debugger.core.errors import InputError, LayerNotCapturedError, UnsupportedModelError
from ml_debugger.core.layers import Layer, unwrap
from ml_debugger.core.records import Settings, Units
from ml_debugger.core.tracer import Tracer
from ml_debugger.object_detection.adapters import adapter_of, adapters
from ml_debugger.object_detection.adapters.base import DetectionAdapter
from ml_debugger.object_detection.ground_truth import Truth, read_ground_truth
from ml_debugger.object_detection.linking import link
from ml_debugger.object_detection.output import DetectionOutput, ImageOutput, NMSConfig
from ml_debugger.object_detection.pooling import pool_boxes
from ml_debugger.object_detection.schema import CORNERS, SCHEMA
from ml_debugger.object_detection.settings import Apply, lend
from ml_debugger.object_detection.statistics import HIDDEN, Candidates, hidden, statistics


def _nothing() -> None:
    """Restore nothing."""


class ObjectDetectionTorchTracer(Tracer):
    """How a detector is recorded; shared by every purpose.

    For a detector that no adapter knows, derive from a public class (`ObjectDetectionTracer`,
    ...), and override `detect`, `_get_n_class`, `_register_model_hooks` and
    `_parse_model_output`; if it has such settings, `_apply_nms_config` to give them and
    `_get_nms_config` to read them, so that the model gets its own back.
    """

    schema = SCHEMA
    _wanted = NMSConfig()
    _given_classes: int | None = None

    def configure(
        self,
        n_class: int | None,
        score_thresh: float | None,
        iou_thresh: float | None,
        max_detections_per_image: int | None,
    ) -> None:
        """Take what only detectors have; before the rest of the constructor.

        Raises:
            InputError: A value is out of its range.
        """
        if n_class is not None and (type(n_class) is not int or n_class < 1):
            raise InputError(f"n_class must be a positive int or None, got {n_class!r}")
        self._given_classes = n_class
        self._wanted = NMSConfig.of(score_thresh, iou_thresh, max_detections_per_image)

    # What a detector of a family that is not known needs

    @staticmethod
    def detect(model: nn.Module) -> bool:
        """Tell whether this class can trace a model."""
        return adapter_of(unwrap(model)) is not None

    def _get_n_class(self, model: nn.Module) -> int:
        """Return the number of classes, background included where the model numbers it."""
        return self._known(model, "_get_n_class").n_class(model)

    def _register_model_hooks(self, model: nn.Module) -> Sequence[Any]:
        """Register forward hooks of your own; the handles returned are removed by `close`."""
        return ()

    def _parse_model_output(
        self, model_output: Any, img_sizes: Sequence[tuple[int, int]] | None
    ) -> Sequence[DetectionOutput]:
        """Read what the model returned, an output for each image.

        Args:
            model_output: What it returned; not to be changed.
            img_sizes: Height and width of each image of the call; None where the model input
                does not tell.

        Raises:
            UnsupportedModelError: It is not the output of a detector.
        """
        model = unwrap(self.model)
        adapter = self._known(model, "_parse_model_output")
        taps = _Taps(self._capture.latest, adapter.silence)
        found = adapter.parse(model, model_output, taps, self.nms_config)
        return [_recorded(one) for one in found]

    def _apply_nms_config(self, model: nn.Module, nms_config: NMSConfig) -> None:
        """Give the model settings: those that the user asked for, and its own when it is closed.

        Args:
            model: The model.
            nms_config: Of these, None leaves the model's own.
        """
        self._known(model, "_apply_nms_config").apply_nms(model, nms_config)

    def _get_nms_config(self, model: nn.Module) -> NMSConfig:
        """Return the settings that the model has now; None for those that it does not tell."""
        adapter = adapter_of(model)
        return NMSConfig() if adapter is None else adapter.nms(model)

    # What core asks for

    @property
    def n_class(self) -> int:
        """The number of classes, background included where the model numbers it."""
        return self._n_class

    @property
    def nms_config(self) -> NMSConfig:
        """The settings that decide which boxes the user sees, as they are now."""
        now = self._get_nms_config(unwrap(self.model))
        return now.model_copy(update=self._held) if self._held else now

    @override
    def accept(self, model: nn.Module) -> None:
        if not self.detect(model):
            raise UnsupportedModelError(
                f"{type(model).__name__} is no detector that is known; known are "
                f"{', '.join(one.family for one in adapters())}. Write a DetectionAdapter, or "
                "derive from this class and override detect and _parse_model_output"
            )
        self._n_class = self._count_classes(model)

    @override
    def default_layers(self, model: nn.Module) -> dict[str, str]:
        adapter = adapter_of(model)
        return {} if adapter is None else adapter.layers(model)

    @override
    def settings(self) -> Settings:
        wanted = self._wanted.model_dump(exclude_none=True)
        return {**self.nms_config.model_dump(), **wanted}

    @override
    def hook(self, model: nn.Module) -> Capture:
        inner = unwrap(model)
        adapter = self._adapter = adapter_of(inner)
        self._own = {} if adapter is None else adapter.layers(inner)
        taps = {} if adapter is None else adapter.taps(inner)
        before = self._get_nms_config(inner)
        network = model if adapter is None else adapter.running(inner)
        capture = Capture(network, {}, taps, self._layers)
        try:
            capture.own(self._register_model_hooks(inner) or ())
            wanted = self._wanted.model_dump(exclude_none=True)
            if wanted:
                self._restore = lend(inner, before, self._wanted, self._applier(adapter))
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
    def count_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
        given = args[0] if args else kwargs
        return _images(given) if self._adapter is None else self._adapter.images(given)

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
        images = self._parse_model_output(output, _sizes(activations.model_input))
        outputs = _checked(images)
        features = [
            self._features(one, at, len(outputs), activations) for at, one in enumerate(outputs)
        ]
        return _units(outputs, features, activations.layers)

    @override
    def parse_ground_truth(self, ground_truth: Any, inputs: int | None) -> Units[Tensor]:
        frame = "original" if self._adapter is None else self._adapter.frame
        units = _actual(read_ground_truth(ground_truth, inputs, frame=frame))
        self._warn_of_labels(units["label"])
        return units

    def _warn_of_labels(self, labels: Tensor) -> None:
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

    def _known(self, model: nn.Module, method: str) -> DetectionAdapter:
        adapter = adapter_of(model)
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
        self, image: DetectionOutput, number: int, images: int, activations: Activations
    ) -> dict[str, Tensor]:
        """Return the feature vectors of an image's boxes, for each target layer."""
        given = dict(image.features or {})
        found = {}
        for alias, layer in activations.layers.items():
            own = next((a for a, path in self._own.items() if path == layer.path), alias)
            if own in given:
                found[alias] = given[own]
                continue
            values = self._value(alias, layer, activations)
            if len(values) != images:
                raise UnsupportedModelError(
                    f"layer {alias!r} ({layer.text}) gave shape {tuple(values.shape)} for {images} "
                    "images; name one whose first dimension is the batch"
                )
            found[alias] = _of_layer(values, image, number)
        return found

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

    def _applier(self, adapter: DetectionAdapter | None) -> Apply:
        """Return what gives the model settings: the user's way where there is one."""
        ours = ObjectDetectionTorchTracer._apply_nms_config
        if adapter is None or type(self)._apply_nms_config is not ours:  # noqa: SLF001  our own
            return self._apply_nms_config
        return adapter.apply_nms


def _warn_of_lost(wanted: Mapping[str, Any], before: NMSConfig) -> None:
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


def _recorded(image: ImageOutput) -> DetectionOutput:
    """Link the visible boxes of an image to the head's rows, and take what is recorded of them."""
    seen, rows = image.seen, image.rows
    made_by = None if rows is None else link(seen, rows)
    candidates = None if rows is None else Candidates.of(rows)
    return DetectionOutput(
        boxes=seen.boxes,
        scores=seen.scores,
        labels=seen.labels,
        logits=None if rows is None or made_by is None else rows.logits[made_by],
        features=None if rows is None or made_by is None else rows.features(made_by),
        statistics=statistics(seen, candidates, made_by, image.size),
        size=image.size,
        placement=image.placement,
        hidden=hidden(seen, candidates),
    )


def _checked(images: Any) -> list[DetectionOutput]:
    """Return the outputs of a batch, if that is what they are.

    Raises:
        UnsupportedModelError: They are something else, or do not fit together.
    """
    if isinstance(images, DetectionOutput):
        return [images]
    if not isinstance(images, Sequence) or not all(isinstance(i, DetectionOutput) for i in images):
        raise UnsupportedModelError(
            "_parse_model_output must return one DetectionOutput an image, got "
            f"{type(images).__name__}"
            + (f" of {type(images[0]).__name__}" if isinstance(images, Sequence) and images else "")
        )
    for number, one in enumerate(images):
        lengths = {"boxes": len(one.boxes), "scores": len(one.scores), "labels": len(one.labels)}
        lengths |= {name: len(values) for name, values in _vectors(one).items()}
        if len(set(lengths.values())) > 1 or one.boxes.shape[1:] != (4,):
            raise UnsupportedModelError(
                f"DetectionOutput of image {number} does not fit together: {lengths}, boxes "
                f"{tuple(one.boxes.shape)}; expected one of each for every box, boxes (n, 4)"
            )
    return _alike(images)


def _alike(images: Sequence[DetectionOutput]) -> list[DetectionOutput]:
    """Give images without boxes the vectors that the others have, in no rows.

    Raises:
        UnsupportedModelError: Of the others, some have vectors that some do not have.
    """
    some = [number for number, one in enumerate(images) if len(one)]
    if not some:
        return list(images)
    first = images[some[0]]
    vectors = _vectors(first)
    for number in some:
        if (found := _vectors(images[number])).keys() != vectors.keys():
            raise UnsupportedModelError(
                f"DetectionOutput of image {number} has {_listed(found)}, but that of image "
                f"{some[0]} has {_listed(vectors)}; expected the same of every image with boxes"
            )
    logits = None if first.logits is None else first.logits[:0]
    numbers = None if first.statistics is None else first.statistics[:0]
    features = {alias: values[:0] for alias, values in (first.features or {}).items()}
    return [
        one if len(one) else replace(one, logits=logits, statistics=numbers, features=features)
        for one in images
    ]


def _vectors(one: DetectionOutput) -> dict[str, Tensor]:
    found = {"logits": one.logits, "statistics": one.statistics}
    found |= {f"feature {alias!r}": values for alias, values in (one.features or {}).items()}
    return {name: values for name, values in found.items() if values is not None}


def _listed(vectors: Mapping[str, Tensor]) -> str:
    return " and ".join(vectors) or "no vectors"


def _of_layer(values: Tensor, image: DetectionOutput, number: int) -> Tensor:
    """Return what a layer says of the boxes of an image: pooled where it gives a map."""
    if values.ndim == 4 and image.size is not None:
        return pool_boxes(values[number], image.boxes.float(), image.size, image.placement)
    one = values[number].float()
    if one.ndim > 1:  # a map of an image whose size is not known, or a row for each part of it
        one = one.flatten(1).mean(1) if one.ndim > 2 else one.mean(0)
    return one.expand(len(image), -1)


def _units(
    images: Sequence[DetectionOutput],
    features: Sequence[Mapping[str, Tensor]],
    layers: Mapping[str, Any],
) -> Units[Tensor]:
    if not images:
        return Units({}, torch.zeros(0, dtype=torch.int32))
    boxes = torch.cat([one.boxes.reshape(-1, 4).float() for one in images])
    columns = {
        "prediction": torch.cat([one.labels for one in images]).int(),
        "score": torch.cat([one.scores for one in images]).float(),
    }
    columns |= dict(zip(CORNERS, boxes.unbind(1), strict=True))
    columns["pred_size"] = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    if all(one.logits is not None for one in images):
        columns["logits"] = _stacked([one.logits for one in images])
    if all(one.statistics is not None for one in images):
        columns["statistics"] = _stacked([one.statistics for one in images]).float()
    for alias in layers:
        columns[f"feature.{alias}"] = _stacked([one[alias] for one in features])
    finite = torch.isfinite(boxes).all(1) & torch.isfinite(columns["score"])
    for name, values in columns.items():
        if name == "logits" or name.startswith("feature."):
            finite &= (values * 0).sum(1) == 0
    counts = torch.tensor([len(one) for one in images], dtype=torch.int32)
    return Units({**columns, "finite": finite}, counts, _of_images(images))


def _of_images(images: Sequence[DetectionOutput]) -> dict[str, Tensor]:
    nothing = (float("nan"),) * len(HIDDEN)
    about = torch.tensor([one.hidden or nothing for one in images]).reshape(-1, len(HIDDEN))
    found = dict(zip(HIDDEN, about.unbind(1), strict=True))
    if all(one.size is not None for one in images):
        sizes = torch.tensor([one.size for one in images], dtype=torch.int64).reshape(-1, 2)
        found |= {"image_height": sizes[:, 0], "image_width": sizes[:, 1]}
    return found


def _stacked(parts: Sequence[Tensor | None]) -> Tensor:
    """Put matrices below each other; those without a row may be of any width."""
    some = [one for one in parts if one is not None and len(one)]
    first = parts[0]
    assert first is not None  # the caller has looked
    return torch.cat(some) if some else first


def _actual(truths: Sequence[Truth]) -> Units[Tensor]:
    boxes = torch.cat([one.boxes for one in truths]) if truths else torch.zeros((0, 4))
    labels = [one.labels for one in truths] or [torch.zeros(0, dtype=torch.int64)]
    ignored = [one.ignored for one in truths] or [torch.zeros(0, dtype=torch.bool)]
    columns = {
        "label": torch.cat(labels),
        **dict(zip(CORNERS, boxes.unbind(1), strict=True)),
        "ignored": torch.cat(ignored),
    }
    return Units(columns, torch.tensor([len(one) for one in truths], dtype=torch.int32))


def _sizes(model_input: Any) -> list[tuple[int, int]] | None:
    """Return height and width of each image of a model input, where it tells."""
    if isinstance(model_input, Mapping):
        first = next(iter(model_input.values()), None)
        model_input = model_input.get("pixel_values", first)
    if isinstance(model_input, Tensor):
        model_input = list(model_input) if model_input.ndim == 4 else None
    if not isinstance(model_input, Sequence) or isinstance(model_input, str):
        return None
    if not all(isinstance(one, Tensor) and one.ndim in (2, 3) for one in model_input):
        return None
    return [(int(one.shape[-2]), int(one.shape[-1])) for one in model_input]


def _images(model_input: Any) -> int | None:
    sizes = _sizes(model_input)
    return None if sizes is None else len(sizes)
