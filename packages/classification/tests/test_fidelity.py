"""What is recorded equals an independent computation, and the model is left as it was."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, squeezenet1_0, vit_b_16
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig
from transformers import ViTForImageClassification as HFViT

from ml_debugger.core import ModelVersion, Store
from ml_debugger.training import ClassificationTracer

INPUTS = 3


class Tuple(nn.Module):
    """Returns (logits, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).relu()
        return self.head(features), features


class Shared(nn.Module):
    """Runs one submodule twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.block(x).relu()))


class InPlace(nn.Module):
    """Changes a recorded activation after it was recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.act, self.head = nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.body(x)).mul_(2))


class OwnCall(nn.Module):
    """Does things around forward in `__call__`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.calls = nn.Linear(6, 5), nn.Linear(5, 4), 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().__call__(x * 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 4))


def user_hooks() -> nn.Module:
    model = linear()
    model[0].register_forward_hook(lambda _m, _a, out: out * 3)
    model[3].register_forward_pre_hook(lambda _m, args: (args[0] + 1,))
    return model


@contextmanager
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


@dataclass
class Shape:
    """A model shape: how to build it, call it, and which layers to compare."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    layers: dict[str, str] = field(default_factory=lambda: {"hidden": "0", "last": "3:input"})
    around: Callable[[], Any] = nullcontext
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    mode: str = "eval"


def flat() -> Tensor:
    return torch.randn(INPUTS, 6)


def images(size: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(INPUTS, 3, size, size)


HF_VIT = ViTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    image_size=32, patch_size=8, num_labels=4,
)  # fmt: skip
HF_RESNET = ResNetConfig(
    embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4
)

SHAPES = {
    "linear head": Shape(linear, flat),
    "conv head": Shape(
        lambda: squeezenet1_0(num_classes=4),
        images(64),
        {"map": "features.5", "last": "classifier.1:input"},
    ),
    "residual network": Shape(
        lambda: resnet18(num_classes=4), images(64), {"map": "layer3", "last": "fc:input"}
    ),
    "Hugging Face output": Shape(
        lambda: HFViT(HF_VIT), images(32), {"map": "vit.layers.1", "last": "classifier:input"}
    ),
    "Hugging Face convolutional": Shape(
        lambda: ResNetForImageClassification(HF_RESNET),
        images(32),
        {"map": "resnet.encoder.stages.0", "last": "classifier.1:input"},
    ),
    "tuple": Shape(Tuple, flat, {"hidden": "body", "last": "head:input"}),
    "vision transformer": Shape(
        lambda: vit_b_16(num_classes=4, image_size=32, weights=None),
        images(32),
        {"map": "encoder.layers.encoder_layer_5", "last": "heads.head:input"},
    ),
    "timm": Shape(
        lambda: timm.create_model("resnet10t", num_classes=4),
        images(64),
        {"map": "layer2", "last": "fc:input"},
    ),
    "compiled": Shape(linear, flat, wrap=torch.compile),
    "compiled without fusion": Shape(
        linear, flat, wrap=lambda m: torch.compile(m, backend="aot_eager")
    ),
    "compiled in place": Shape(
        InPlace,
        flat,
        {"hidden": "body", "last": "head:input"},
        around=torch.no_grad,
        wrap=lambda m: torch.compile(m, backend="aot_eager", fullgraph=True),
    ),
    "half precision": Shape(lambda: linear().half(), lambda: flat().half()),
    "bfloat16": Shape(lambda: linear().bfloat16(), lambda: flat().bfloat16()),
    "double": Shape(lambda: linear().double(), lambda: flat().double()),
    "autocast": Shape(linear, flat, around=autocast),
    "train mode with backward": Shape(linear, flat, mode="train"),
    "shared submodule called twice": Shape(Shared, flat, {"hidden": "block", "last": "head:input"}),
    "in-place change later": Shape(InPlace, flat, {"hidden": "body", "last": "head:input"}),
    "user hooks set before": Shape(user_hooks, flat),
    "inference_mode": Shape(linear, flat, around=torch.inference_mode),
    "no_grad": Shape(linear, flat, around=torch.no_grad),
    "subclassed __call__": Shape(OwnCall, flat, {"hidden": "body", "last": "head:input"}),
}


def logits_in(output: Any) -> Tensor:
    if isinstance(output, tuple):
        return output[0]
    return getattr(output, "logits", output)


def expected(model: nn.Module, shape: Shape, x: Tensor, seed: int) -> tuple[Any, dict[str, Tensor]]:
    """Run a bare model with the plainest of hooks; the last call of a layer counts."""
    seen: dict[str, Tensor] = {}
    handles = []
    for alias, text in shape.layers.items():
        path, *side = text.split(":")
        module = getattr(model, "_orig_mod", model).get_submodule(path)
        if side:
            handles.append(
                module.register_forward_pre_hook(
                    lambda _m, args, alias=alias: seen.update({alias: args[0].clone().detach()})
                )
            )
        else:
            handles.append(
                module.register_forward_hook(
                    lambda _m, _a, out, alias=alias: seen.update({alias: out.clone().detach()})
                )
            )
    torch.manual_seed(seed)
    with shape.around():
        output = model(x)
    for handle in handles:
        handle.remove()
    pooled = {}
    for alias, value in seen.items():
        wide = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        if wide.ndim == 4:
            wide = wide.flatten(2).mean(2)
        elif wide.ndim == 3:
            wide = wide.mean(1)
        pooled[alias] = wide
    return output, pooled


def as_stored(values: Tensor) -> np.ndarray:
    values = values.detach()
    return (values.float() if values.dtype is torch.bfloat16 else values).numpy()


@pytest.mark.filterwarnings("ignore")  # of the frameworks under test
@pytest.mark.parametrize("name", SHAPES)
def test_recorded_equals_independent_computation(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    torch.manual_seed(0)
    torch.compiler.reset()
    original = shape.build().train(shape.mode == "train")
    x = shape.inputs()
    bare = shape.wrap(copy.deepcopy(original))
    wanted, features = expected(bare, shape, x, seed=1)

    model = shape.wrap(original)
    hooks_before = _hooks(original)
    with ClassificationTracer(model, "m", "v", shape.layers, home=tmp_path) as tracer:
        torch.manual_seed(1)
        with shape.around():
            output = tracer(x, [0, 1, 2], ["a", "b", "c"], "val", n_epoch=3)
        random_after = torch.get_rng_state()
        tracer.flush()
        modes = [m.training for m in getattr(bare, "_orig_mod", bare).modules()]
        assert [m.training for m in original.modules()] == modes
        hooked = {alias: tracer.get_hooked_features(alias) for alias in shape.layers}

    assert type(output) is type(wanted)
    assert torch.equal(logits_in(output), logits_in(wanted))
    assert logits_in(output).requires_grad == logits_in(wanted).requires_grad
    assert _hooks(original) == hooks_before
    torch.manual_seed(1)
    with shape.around():
        bare(x)
    assert torch.equal(torch.get_rng_state(), random_after)

    store = Store(tmp_path)
    records = store.open(ModelVersion("m", "v")).records()
    assert records.ids().to_pylist() == ["a", "b", "c"]
    logits = records.column("predicted/logits")
    assert logits.dtype == as_stored(logits_in(wanted)).dtype
    assert logits.tobytes() == as_stored(logits_in(wanted)).tobytes()
    for alias, values in features.items():
        recorded = records.column(f"predicted/feature.{alias}")
        assert recorded.dtype == as_stored(values).dtype
        assert recorded.tobytes() == as_stored(values).tobytes(), alias
        assert torch.equal(hooked[alias].float().cpu(), torch.from_numpy(recorded).float())
    assert records.column("predicted/prediction").tolist() == logits_in(wanted).argmax(1).tolist()
    probability = logits_in(wanted).detach().float().softmax(1).max(1).values.numpy()
    assert records.column("predicted/score").tobytes() == probability.tobytes()
    assert records.column("actual/label").tolist() == [0, 1, 2]
    store.close()


def _hooks(model: nn.Module) -> list[tuple[int, int]]:
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


def test_gradients_are_those_of_the_bare_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = linear().train()
    bare = copy.deepcopy(model)
    x, y = flat(), torch.tensor([0, 1, 2])
    torch.manual_seed(1)
    nn.functional.cross_entropy(bare(x), y).backward()
    with ClassificationTracer(model, "m", "v", home=tmp_path) as tracer:
        torch.manual_seed(1)
        nn.functional.cross_entropy(tracer(x, y, [1, 2, 3]), y).backward()
    for ours, theirs in zip(model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_the_user_may_change_the_output_in_place(tmp_path: Path) -> None:
    model = linear().eval()
    x = flat()
    with torch.no_grad(), ClassificationTracer(model, "m", "v", home=tmp_path) as tracer:
        wanted = model(x).numpy().copy()
        tracer(x, None, [1, 2, 3]).zero_()
    store = Store(tmp_path)
    recorded = store.open(ModelVersion("m", "v")).records().column("predicted/logits")
    assert recorded.tobytes() == wanted.tobytes()
    store.close()
