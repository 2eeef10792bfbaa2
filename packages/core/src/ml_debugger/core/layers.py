"""Which layers of a model to record, and how a feature map becomes a vector.

A layer is written `path[:side][:reducer]`, as in `"layer3"`, `"fc:input"`, `"stem:flatten"` or
`"blocks.5:call0:first"`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from ml_debugger.core.errors import InputError, LayerNotFoundError, UnsupportedModelError

Reducer = Callable[[Tensor], Tensor]


def _auto(features: Tensor) -> Tensor:
    if features.ndim == 3:
        return features.mean(1)  # (n, token, channel), as transformers give
    channels_last = (
        features.ndim == 4 and features.shape[1] == features.shape[2] != features.shape[3]
    )
    return mean_last(features) if channels_last else mean(features)


def mean(features: Tensor) -> Tensor:
    """Average over all but batch and channel, the channel being dimension 1."""
    return features.flatten(2).mean(2) if features.ndim > 2 else features


def mean_last(features: Tensor) -> Tensor:
    """Average over all but batch and channel, the channel being the last dimension."""
    return features.flatten(1, -2).mean(1) if features.ndim > 2 else features


def maximum(features: Tensor) -> Tensor:
    """Take the maximum over all but batch and channel, the channel being dimension 1."""
    return features.flatten(2).amax(2) if features.ndim > 2 else features


def average_2x2(features: Tensor) -> Tensor:
    """Average in each quarter of a (n, channel, height, width) map; four values a channel."""
    if features.ndim != 4:
        raise InputError(
            f"reducer avg2x2 needs (n, channel, height, width), got {tuple(features.shape)}"
        )
    return nn.functional.adaptive_avg_pool2d(features, 2).flatten(1)


def first(features: Tensor) -> Tensor:
    """Take the first token of (n, token, channel): the class token of a transformer."""
    return features[:, 0] if features.ndim > 2 else features


REDUCERS: Mapping[str, Reducer] = {
    "auto": _auto,
    "mean": mean,
    "mean_last": mean_last,
    "max": maximum,
    "flatten": lambda features: features.flatten(1) if features.ndim > 2 else features,
    "avg2x2": average_2x2,
    "first": first,
    "raw": lambda features: features,
}


class Layer(NamedTuple):
    """A layer to record.

    Attributes:
        path: Dotted module path in the model.
        side: Its input or its output.
        call: Which of several calls in one forward pass; None for the last.
        reducer: From a feature map to a vector an input.
        text: How it is written, and stored.
    """

    path: str
    side: Literal["input", "output"]
    call: int | None
    reducer: Reducer
    text: str


_ALIAS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,62}")
#: Marks, in what is stored, a layer that a function of the user's reduces.
_OWN = ":function"
_CALL = re.compile(r"call(\d+)")


def parse_layers(target_layers: Any, model: nn.Module) -> dict[str, Layer]:
    """Read the layers a user names, or choose some.

    Args:
        target_layers: Layer by alias, each text `path[:side][:reducer]` or a pair of such a text
            and a callable that reduces (n, ...) to (n, d). None: `default_layers`.
        model: The model they are in.

    Raises:
        InputError: Not a mapping, a malformed alias, or an unknown reducer.
        LayerNotFoundError: A path leads nowhere in the model.
    """
    if target_layers is None:
        target_layers = default_layers(model)
    if not isinstance(target_layers, Mapping):
        raise InputError(
            f"target_layers must map aliases to module paths, got {type(target_layers).__name__}"
        )
    modules = dict(model.named_modules(remove_duplicate=False))  # a module may have two paths
    return {alias: _parse(alias, text, modules) for alias, text in target_layers.items()}


def _parse(alias: Any, given: Any, modules: Mapping[str, nn.Module]) -> Layer:
    if not isinstance(alias, str) or not _ALIAS.fullmatch(alias):
        raise InputError(f"layer alias {alias!r} must be 1 to 63 letters, digits, '_', '.' or '-'")
    reducer: Reducer | None = None
    if isinstance(given, tuple) and len(given) == 2 and callable(given[1]):
        given, reducer = given
    if not isinstance(given, str):
        raise InputError(
            f"layer {alias!r} must be 'path[:side][:reducer]' or a pair of that and a callable, "
            f"got {given!r}"
        )
    if given.endswith(_OWN):
        raise InputError(
            f"layer {alias!r} was reduced by a function of yours, which cannot be stored; "
            f"pass target_layers with the pair ({given.removesuffix(_OWN)!r}, function) again"
        )
    path, *words = given.split(":")
    side: Literal["input", "output"] = "output"
    call: int | None = None
    for word in words:
        if word == "input":
            side = "input"
        elif match := _CALL.fullmatch(word):
            call = int(match[1])
        elif word in REDUCERS and reducer is None:
            reducer = REDUCERS[word]
        elif word != "output":
            raise InputError(
                f"layer {alias!r}: {word!r} is none of input, output, call0, call1, ..., "
                f"{', '.join(REDUCERS)}"
            )
    if path not in modules:
        raise LayerNotFoundError(alias, path, [name for name in modules if name])
    own = reducer is not None and reducer not in REDUCERS.values()
    return Layer(path, side, call, reducer or REDUCERS["auto"], given + _OWN if own else given)


def default_layers(model: nn.Module) -> dict[str, str]:
    """Choose the classifier's input and the outputs of up to two earlier stages.

    The classifier is the last linear layer (or 1x1 convolution) that the model registers; stages
    are the parts of the container that holds most of the parameters before it.

    Raises:
        UnsupportedModelError: The model has no such layer.
    """
    classifier = None
    for path, module in model.named_modules():
        if _is_classifier(module):
            classifier = path
    if classifier is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no linear layer or 1x1 convolution to take the features "
            'before it; name layers yourself: target_layers={"features": "path.of.a.module"}'
        )
    layers = {f"stage{at}": path for at, path in enumerate(_stages(model, classifier), start=1)}
    return {**layers, "penultimate": f"{classifier}:input"}


def _is_classifier(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        # attention multiplies with this subclass's weights itself, so its hooks never run
        return type(module).__name__ != "NonDynamicallyQuantizableLinear"
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)


def _stages(model: nn.Module, classifier: str) -> list[str]:
    """Find the blocks in a row that make up the model, and take two from among them."""
    prefix, container = "", model
    while True:
        sizes = {
            name: sum(p.numel() for p in child.parameters())
            for name, child in container.named_children()
            if f"{prefix}{name}" != classifier
        }
        sizes = {name: size for name, size in sizes.items() if size}
        head = next((n for n in sizes if classifier.startswith(f"{prefix}{n}.")), None)
        if head is not None and sum(sizes.values()) - sizes[head] > 0.05 * sum(sizes.values()):
            del sizes[head]  # what leads into the classifier is near enough to its input
        largest = max(sizes, key=sizes.__getitem__, default=None)
        if largest is None or not _is_row(inner := container.get_submodule(largest)):
            break
        dominant = sizes[largest] > 0.9 * sum(sizes.values())
        if len(sizes) > 2 and not dominant and not isinstance(inner, nn.ModuleList):
            break
        prefix, container = f"{prefix}{largest}.", inner
    # a stem's lone convolution or norm is no stage
    blocks = [name for name, size in sizes.items() if size > 0.005 * sum(sizes.values())]
    earlier = blocks[:-1]  # the last one is near enough to what the classifier sees
    picked = sorted({len(earlier) // 3, 2 * len(earlier) // 3}) if earlier else []
    return [prefix + _settled(container, blocks, earlier[at]) for at in picked]


def _is_row(module: nn.Module) -> bool:
    """Tell whether a module is made of parts that hold parameters, and not itself a layer."""
    if isinstance(module, nn.MultiheadAttention):
        return False
    return any(True for child in module.children() for _ in child.parameters())


def _settled(container: nn.Module, blocks: list[str], block: str) -> str:
    """Return the last module of a sequence before the next block: after activation and pooling."""
    if not isinstance(container, nn.Sequential):
        return block
    names = [name for name, _ in container.named_children()]
    following = blocks[blocks.index(block) + 1]
    return names[names.index(following) - 1]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own module from inside `torch.compile` and DistributedDataParallel.

    Raises:
        UnsupportedModelError: DataParallel, whose replicas share our hooks and race.
    """
    while True:
        if isinstance(model, nn.DataParallel):
            raise UnsupportedModelError(
                "DataParallel runs replicas in threads, so activations of several replicas would "
                "mix; use DistributedDataParallel, or trace model.module on one device"
            )
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def architecture_of(model: nn.Module) -> list[str]:
    """List what makes an architecture: module classes, and parameter names, shapes and dtypes."""
    modules = [f"module {name or '.'}: {type(m).__qualname__}" for name, m in model.named_modules()]
    parameters = [
        f"parameter {name}: {'x'.join(map(str, p.shape))} {str(p.dtype).removeprefix('torch.')}"
        for name, p in model.named_parameters()
    ]
    return modules + parameters


def architecture_hash(architecture: Sequence[str]) -> str:
    """Return a hash of what `architecture_of` lists."""
    return sha256("\n".join(architecture).encode()).hexdigest()
