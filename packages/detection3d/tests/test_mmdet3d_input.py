"""What MMDetection3D's detectors can be called with under a tracer, a filter and a logger."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ml_debugger.core import ModelVersion, Store
from ml_debugger.core.errors import InputError, UnsupportedModelError
from ml_debugger.data_filter import ObjectDetection3DDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.monitoring import ObjectDetection3DLogger
from ml_debugger.training import ObjectDetection3DTracer

from .mmdetection3d_models import FAMILIES, raw
from .mmdetection3d_runs import QUIET, assert_same, each_family, smaller, tensors, traced

pytest.importorskip("mmcv.ops", exc_type=ImportError)
pytest.importorskip("mmdet3d.models")

pytestmark = QUIET

Shape = Callable[[Any, dict[str, Any]], Any]


def metas(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is known of each frame, without what the tracer knows of itself."""
    unknown = {"box_type_3d", "box_mode_3d"}
    known = [one.metainfo for one in data["data_samples"]]
    return [{key: one[key] for key in one.keys() - unknown} for one in known]


def batched(data: dict[str, Any]) -> torch.Tensor:
    """Return both clouds in one tensor; the shorter has a point several times."""
    first, second = data["inputs"]["points"]
    more = second[:1].expand(len(first) - len(second), -1)
    return torch.stack([first, torch.cat([second, more])])


#: Two frames each, from a loader's batch.
ANY: dict[str, Shape] = {
    "preprocessed": lambda model, data: {**model.data_preprocessor(data, False), "mode": "predict"},
    "a loader's": lambda model, data: data,
    "points, img, data_samples": lambda model, data: {
        **data["inputs"],
        "data_samples": data["data_samples"],
    },
    "points, img, img_metas": lambda model, data: {**data["inputs"], "img_metas": metas(data)},
}
CLOUDS: dict[str, Shape] = {
    "clouds": lambda model, data: data["inputs"]["points"],
    "a tuple of clouds": lambda model, data: tuple(data["inputs"]["points"]),
    "named clouds": lambda model, data: {"points": data["inputs"]["points"]},
    "inputs alone": lambda model, data: {"inputs": data["inputs"]},
}
NAMES = ["PointPillars", "CenterPoint", "SMOKE", "PointPillars and camera"]
SHAPES = [(name, shape) for name in NAMES for shape in ANY] + [
    (name, shape) for name in ("PointPillars", "CenterPoint") for shape in CLOUDS
]
each_shape = pytest.mark.parametrize(("name", "shape"), SHAPES)


def given(model: Any, name: str, shape: str) -> Any:
    return (ANY | CLOUDS)[shape](model, raw(FAMILIES[name]))  # anew: models change their voxels


def frames_stored() -> int:
    with Store() as store:
        return len(store.open(ModelVersion("m", "v")).records().counts("predicted"))


@each_shape
def test_every_shape_gives_what_the_model_gives(name: str, shape: str) -> None:
    model = smaller(name)
    with ObjectDetection3DTracer(model, "m", "v") as tracer, torch.no_grad():
        said = tracer.check(given(model, name, shape))
        assert "class" in repr(said)
        with pytest.raises(InputError, match="3 input_ids for a batch of 2"):
            tracer(given(model, name, shape), None, ["a", "b", "c"])
        output = tracer(given(model, name, shape), [([], [])] * 2, ["a", "b"])
    assert_same(output, traced(name).bare)
    assert frames_stored() == 2


@each_family
def test_a_loaders_batch_is_all_that_a_call_needs(name: str) -> None:
    from mmengine.structures import InstanceData

    model, data = smaller(name), raw(FAMILIES[name])
    for sample, seen in zip(data["data_samples"], traced(name).bare, strict=True):
        theirs = seen.pred_instances_3d
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=theirs.bboxes_3d[::2], labels_3d=theirs.labels_3d[::2]
        )
    with ObjectDetection3DTracer(model, "m", "v") as tracer, torch.no_grad():
        assert_same(tracer(data, data["data_samples"], ["a", "b"], "val"), traced(name).bare)
    units = Evaluator("m", "v").request_evaluation().to_pandas()
    right = units[(units.kind == "A") & ~units.wrong]
    assert len(right) == sum(len(one.gt_instances_3d) for one in data["data_samples"])


@pytest.mark.parametrize("name", ["PointPillars", "CenterPoint"])
def test_one_cloud_and_a_batch_of_clouds(name: str) -> None:
    model, data = smaller(name), raw(FAMILIES[name])
    cloud, batch = data["inputs"]["points"][0], batched(data)
    samples = data["data_samples"]
    with ObjectDetection3DTracer(model, "m", "v") as tracer, torch.no_grad():
        alone = {"inputs": {"points": [cloud]}, "data_samples": samples[:1]}
        assert_same(tracer(cloud, None, ["a"]), model.test_step(alone))
        assert_same(tracer({"points": cloud}, None, ["a"]), model.test_step(alone))
        both = {"inputs": {"points": list(batch)}, "data_samples": samples}
        assert_same(tracer(batch, None, ["a", "b"]), model.test_step(both))
        assert_same(tracer({"points": batch}, None, ["a", "b"]), model.test_step(both))


def test_one_image_and_a_batch_of_images() -> None:
    model, data = smaller("SMOKE"), raw(FAMILIES["SMOKE"])
    images, known = data["inputs"]["img"], metas(data)
    with ObjectDetection3DTracer(model, "m", "v") as tracer, torch.no_grad():
        alone = {"inputs": {"img": images[:1]}, "data_samples": data["data_samples"][:1]}
        one = tracer({"img": images[0], "img_metas": known[:1]}, None, ["a"])
        assert_same(one, model.test_step(alone))
        two = tracer({"img": torch.stack(images), "img_metas": known}, None, ["a", "b"])
    assert_same(two, traced("SMOKE").bare)


@pytest.mark.parametrize("name", ["PointPillars", "SMOKE"])
def test_what_is_given_is_not_changed(name: str) -> None:
    model, data, as_it_was = smaller(name), raw(FAMILIES[name]), raw(FAMILIES[name])
    with ObjectDetection3DTracer(model, "m", "v") as tracer, torch.no_grad():
        tracer(data, None, ["a", "b"])
    for key, values in as_it_was["inputs"].items():
        assert all(map(torch.equal, data["inputs"][key], values))
    for ours, before in zip(data["data_samples"], as_it_was["data_samples"], strict=True):
        assert ours.keys() == before.keys() == []
        assert ours.metainfo_keys() == before.metainfo_keys()


@pytest.mark.filterwarnings("ignore:Dynamo does not know:UserWarning")
def test_a_wrapped_model_is_called_itself() -> None:
    model = smaller("PointPillars")
    wrapped = torch.compile(model, backend="eager")
    calls: list[Any] = []
    wrapped.register_forward_pre_hook(lambda *_: calls.append(1))
    with ObjectDetection3DTracer(wrapped, "m", "v") as tracer, torch.no_grad():
        output = tracer(raw(FAMILIES["PointPillars"]), None, ["a", "b"])
    assert_same(output, traced("PointPillars").bare)
    assert calls == [1]


def test_the_users_choice_of_a_mode_is_passed_on() -> None:
    model = smaller("PointPillars").train()
    modes: list[Any] = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: modes.append(kwargs.get("mode")), with_kwargs=True
    )
    with ObjectDetection3DTracer(model, "m", "v") as tracer, torch.no_grad():
        ready = [model.data_preprocessor(raw(FAMILIES["PointPillars"]), False) for _ in range(2)]
        with pytest.raises(UnsupportedModelError, match="mode='predict'"):
            tracer({**ready[0], "mode": "tensor"}, None, ["a", "b"])
        for call in (ready[1], raw(FAMILIES["PointPillars"])):
            tracer(call, None, ["a", "b"])
        assert model.training
    assert modes == ["tensor", "predict", "predict"]


WRONG = [
    (
        "SMOKE",
        torch.zeros(5, 4),
        r"given \['points'\], but needs images: .*data loader",
    ),
    ("SMOKE", {"img_metas": [{}]}, "needs images"),
    ("PointPillars", {"img": [torch.zeros(3, 8, 8)]}, r"given \['img'\], but needs point clouds"),
    ("PointPillars", {}, "given nothing, but needs point clouds"),
    ("PointPillars", torch.zeros(5), r"not shape \(5,\)"),
    ("PointPillars", [torch.zeros(5, 2)], r"not shape \(5, 2\)"),
    ("PointPillars", [{"inputs": {}}], "not dict"),
    (
        "PointPillars",
        {"points": [torch.zeros(5, 4)], "img_metas": []},
        "0 data .* 1 frames",
    ),
    (
        "PointPillars",
        {"points": [torch.zeros(5, 4)], "img": [torch.zeros(3, 8, 8)] * 2},
        "1 points, 2 img",
    ),
]


@pytest.mark.parametrize(("name", "wrong", "said"), WRONG, ids=[said for *_, said in WRONG])
def test_what_a_model_cannot_be_called_with_is_refused(name: str, wrong: Any, said: str) -> None:
    ran: list[Any] = []
    model = smaller(name)
    model.register_forward_pre_hook(lambda *_: ran.append(1))
    with (
        ObjectDetection3DTracer(model, "m", "v") as tracer,
        pytest.raises(InputError, match=said),
    ):
        tracer(wrong, None, ["a"])
    assert ran == []


@pytest.mark.parametrize("name", ["PointPillars", "CenterPoint", "SMOKE"])
def test_a_filter_and_a_logger_of_a_traced_model(name: str) -> None:
    model, data = smaller(name), raw(FAMILIES[name])
    truths = [{"boxes": [], "labels": []}] * 2
    shapes = [shape for of, shape in SHAPES if of == name]
    with ObjectDetection3DTracer(model, "m", "v") as tracer, torch.no_grad():
        for at in range(4):
            tracer(data, truths, [2 * at, 2 * at + 1], "val")
    result = Evaluator("m", "v").request_evaluation().result_name
    config = {"img_error_threshold": 0.5}
    with (
        ObjectDetection3DDataFilter(model, "m", "v", result, filter_config=config) as data_filter,
        torch.no_grad(),
    ):
        ids = []
        for shape in shapes:
            ids += [(shape, 0), (shape, 1)]
            output, flags = data_filter(given(model, name, shape), list(map(str, ids[-2:])))
            assert_same(output, traced(name).bare)
            assert all(type(flag) is bool for flag in flags)
        found = data_filter.query(100, config, explain=True)
        assert {*map(str, ids)} == {*found.input_id}
    with ObjectDetection3DLogger(model, "m", "v", result) as logger, torch.no_grad():
        for shape in shapes:
            assert_same(logger(given(model, name, shape)), traced(name).bare)
        health = logger.health(window=100)
    assert health.n.sum() == len(shapes) * sum(map(len, tensors(traced(name).bare)[::3]))
