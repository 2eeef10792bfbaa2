"""Which layers are chosen, how they are written, and how a map becomes a vector."""

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from ml_debugger.core.errors import InputError, LayerNotFoundError, UnsupportedModelError
from ml_debugger.core.layers import (
    REDUCERS,
    architecture_hash,
    architecture_of,
    default_layers,
    parse_layers,
    unwrap,
)

MODELS = {
    "resnet": (models.resnet18, 64, ["layer2", "layer3", "fc:input"]),
    "vgg": (models.vgg11, 64, ["features.10", "features.15", "classifier.6:input"]),
    "swin": (models.swin_t, 64, ["features.3", "features.5", "head:input"]),
    "vision transformer": (
        lambda: models.vit_b_16(image_size=32),
        32,
        ["encoder.layers.encoder_layer_3", "encoder.layers.encoder_layer_7", "heads.head:input"],
    ),
    "squeezenet": (
        models.squeezenet1_0,
        64,
        ["features.4", "features.8", "classifier.1:input"],
    ),
    "timm": (
        lambda: timm.create_model("convnext_atto"),
        64,
        ["stages.1", "stages.2", "head.fc:input"],
    ),
    "perceptron": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)
        ),
        2,
        ["2", "5:input"],
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_default_layers_run_and_are_vectors(name: str) -> None:
    build, size, expected = MODELS[name]
    model = build().eval()
    assert list(default_layers(model).values()) == expected
    seen: dict[str, torch.Size] = {}
    for alias, layer in parse_layers(None, model).items():
        module = model.get_submodule(layer.path)
        if layer.side == "input":
            module.register_forward_pre_hook(
                lambda _m, args, a=alias, r=layer.reducer: seen.update({a: r(args[0]).shape})
            )
        else:
            module.register_forward_hook(
                lambda _m, _i, out, a=alias, r=layer.reducer: seen.update({a: r(out).shape})
            )
    with torch.no_grad():
        model(torch.randn(2, 3, size, size))
    assert set(seen) == set(default_layers(model))
    assert all(len(shape) == 2 and shape[0] == 2 for shape in seen.values())


def test_a_model_without_a_classifier_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="target_layers="):
        default_layers(nn.Sequential(nn.ReLU()))


def test_attention_is_no_classifier() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 1))
    assert default_layers(model)["penultimate"] == "0:input"


@pytest.mark.parametrize(
    ("reducer", "shape", "expected"),
    [
        ("auto", (2, 5, 3, 4), (2, 5)),
        ("auto", (2, 4, 4, 7), (2, 7)),  # channels last
        ("auto", (2, 9, 7), (2, 7)),  # tokens
        ("auto", (2, 7), (2, 7)),
        ("mean", (2, 4, 4, 7), (2, 4)),
        ("mean_last", (2, 5, 3, 4), (2, 4)),
        ("max", (2, 5, 3, 4), (2, 5)),
        ("flatten", (2, 5, 3, 4), (2, 60)),
        ("avg2x2", (2, 5, 8, 8), (2, 20)),
        ("first", (2, 9, 7), (2, 7)),
        ("raw", (2, 5, 3, 4), (2, 5, 3, 4)),
    ],
)
def test_reducers(reducer: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert REDUCERS[reducer](torch.randn(shape)).shape == expected


def test_reducers_take_the_right_values() -> None:
    maps = torch.arange(2 * 3 * 2 * 2, dtype=torch.float32).reshape(2, 3, 2, 2)
    assert torch.equal(REDUCERS["mean"](maps)[1, 2], maps[1, 2].mean())
    assert torch.equal(REDUCERS["mean_last"](maps)[1, 1], maps[1, ..., 1].mean())
    assert torch.equal(REDUCERS["max"](maps)[0, 1], maps[0, 1].max())
    assert torch.equal(REDUCERS["avg2x2"](maps)[0], maps[0].flatten())
    with pytest.raises(InputError, match="avg2x2 needs"):
        REDUCERS["avg2x2"](torch.randn(2, 3))


def test_layers_as_written() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    layers = parse_layers(
        {"a": "0:input:call1:max", "b": ("1", lambda x: x[:, :1]), "c": ":input"}, model
    )
    assert (layers["a"].path, layers["a"].side, layers["a"].call) == ("0", "input", 1)
    assert layers["a"].reducer is REDUCERS["max"]
    assert layers["b"].reducer(torch.ones(2, 3)).shape == (2, 1)
    assert layers["c"].path == ""  # the model itself


def test_the_nearest_paths_are_named() -> None:
    with pytest.raises(LayerNotFoundError, match="layer4") as caught:
        parse_layers({"a": "layer44"}, models.resnet18())
    assert caught.value.path == "layer44"


def test_a_result_with_a_function_of_the_users_asks_for_it_again() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    stored = parse_layers({"a": ("0", torch.relu)}, model)["a"].text
    with pytest.raises(InputError, match="function"):
        parse_layers({"a": stored}, model)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_wrappers_are_seen_through() -> None:
    model = nn.Linear(4, 2)
    assert unwrap(torch.compile(model)) is model
    with pytest.raises(UnsupportedModelError, match="DistributedDataParallel"):
        unwrap(nn.DataParallel(model))


def test_architecture_is_names_shapes_dtypes_and_classes() -> None:
    def fingerprint(model: nn.Module) -> str:
        return architecture_hash(architecture_of(model))

    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    torch.manual_seed(1)
    assert fingerprint(first) == fingerprint(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    for other in (
        nn.Sequential(nn.Linear(4, 2), nn.ReLU()),
        nn.Sequential(nn.Linear(4, 3), nn.GELU()),
        nn.Sequential(nn.Linear(4, 3, dtype=torch.float64), nn.ReLU()),
        nn.Sequential(nn.ReLU(), nn.Linear(4, 3)),
    ):
        assert fingerprint(other) != fingerprint(first)


def test_a_module_that_is_shared_can_be_named_by_each_of_its_paths():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    layers = parse_layers({"first": "0:call0", "last": "2"}, model)
    assert [layer.path for layer in layers.values()] == ["0", "2"]
