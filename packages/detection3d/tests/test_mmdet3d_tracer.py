"""Detectors of MMDetection3D under a tracer, from the call to the evaluation."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from ml_debugger.core import ModelVersion, Store
from ml_debugger.core.errors import InputError, UnsupportedModelError
from ml_debugger.evaluator import Evaluator
from ml_debugger.object_detection_3d.frames import from_mmdet3d
from ml_debugger.object_detection_3d.geometry import BOX
from ml_debugger.object_detection_3d.statistics import NAMES
from ml_debugger.training import ObjectDetection3DTracer

from .mmdetection3d_models import FAMILIES, built, configuration, raw
from .mmdetection3d_runs import QUIET, assert_same, each_family, predicted, smaller, tensors, traced

pytest.importorskip("mmcv.ops", exc_type=ImportError)
pytest.importorskip("mmdet3d.models")

pytestmark = QUIET


def call(model: Any, name: str) -> dict[str, Any]:
    """Return what the model's `forward` is called with."""
    return {**model.data_preprocessor(raw(FAMILIES[name]), False), "mode": "predict"}


def frame_of(name: str) -> str:
    return "lidar" if FAMILIES[name].cloud else "camera"


def boxes_of(output: Any, name: str) -> list[torch.Tensor]:
    return [from_mmdet3d(one, frame_of(name)) for one in tensors(output)[::3]]


def stored() -> tuple[dict[str, Any], list[int], list[str]]:
    with Store() as store:
        records = store.open(ModelVersion("m", "v")).records()
        names = [name for name in records.names() if name.startswith("predicted")]
        found = {name.partition("/")[2]: records.column(name) for name in names}
        frames = records.column("input/frame").to_pylist()
        return found, records.counts("predicted").tolist(), frames


@each_family
def test_records_what_the_user_sees(name: str) -> None:
    model = smaller(name)
    given = call(model, name)
    with ObjectDetection3DTracer(model, "m", "v") as tracer, torch.no_grad():
        output = tracer(given, None, ["a", "b"], "val")
    assert_same(output, predicted(model, name))
    columns, counts, frames = stored()
    boxes = boxes_of(output, name)
    assert counts == [len(one) for one in boxes]
    assert frames == [frame_of(name)] * 2
    found = np.stack([columns[column] for column in BOX], 1)
    assert np.array_equal(found, torch.cat(boxes)[:, :7])
    assert np.isnan(columns["vx"]).all() == (boxes[0].shape[1] == 7)
    assert columns["finite"].all()
    assert (columns["points"] >= 0).all() == FAMILIES[name].cloud
    assert (columns["cell_row"] >= 0).all()
    numbers = dict(zip(NAMES, columns["statistics"].T, strict=True))
    assert np.isfinite(numbers["candidates"]).all()
    assert np.isfinite(numbers["side_on"]).all()
    vector = next(values for column, values in columns.items() if column.startswith("feature."))
    assert len(vector) == sum(counts)


@pytest.mark.parametrize("name", ["PointPillars", "CenterPoint", "SMOKE"])
def test_a_test_step_is_recorded_and_evaluated(name: str) -> None:
    model = smaller(name)
    bare = traced(name).bare
    truths = [
        {"boxes": boxes[::2], "labels": one.pred_instances_3d.labels_3d[::2]} | where
        for boxes, one in zip(boxes_of(bare, name), bare, strict=True)
        for where in [{"frame": frame_of(name)}]
    ]
    with ObjectDetection3DTracer(model, "m", "v") as tracer, torch.no_grad():
        with tracer.attached(truths, ["a", "b"], "val"):
            model.test_step(raw(FAMILIES[name]))
        if name == "SMOKE":  # a camera's boxes are not where a LiDAR's are
            with pytest.raises(InputError, match="'lidar'.*'camera'"):
                tracer(call(model, name), [{**one, "frame": "lidar"} for one in truths], [1, 2])
    units = Evaluator("m", "v").request_evaluation().to_pandas()
    right = units[(units.kind == "A") & ~units.wrong]
    assert len(right) == sum(len(one["labels"]) for one in truths)


def test_settings_are_lent_and_given_back() -> None:
    model, name = smaller("PointPillars"), "PointPillars"
    before = deepcopy(model.bbox_head.test_cfg)
    with (
        ObjectDetection3DTracer(model, "m", "v", max_detections_per_frame=3) as tracer,
        torch.no_grad(),
    ):
        output = tracer(call(model, name), None, ["a", "b"])
    assert [len(one) for one in boxes_of(output, name)] == [3, 3]
    assert model.bbox_head.test_cfg == before


HEADS = {
    "PointPillars": ({"bbox_head.use_direction_classifier": False}, "Anchor3DHead", "use_direc"),
    "FCOS3D": ({"bbox_head.use_direction_classifier": False}, "FCOSMono3DHead", "use_direc"),
    "PointPillars, levels": ({"pts_bbox_head.type": "OwnHead"}, "Anchor3DHead", "forward_single"),
    "SSN": ({"pts_bbox_head.type": "OwnHead"}, "ShapeAwareHead", "forward_single"),
    "CenterPoint": ({"pts_bbox_head.type": "OwnHead"}, "CenterHead", "predict_by_feat"),
    "PGD": ({"bbox_head.type": "OwnHead"}, "PGDHead", "predict_by_feat"),
    "SMOKE": ({"bbox_head.type": "OwnHead"}, "SMOKEMono3DHead", "_decode_heatmap"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_differs_is_named_and_how(name: str) -> None:
    from mmdet3d.registry import MODELS

    family, (change, owner, what) = FAMILIES[name], HEADS[name]
    theirs = MODELS.get(owner)

    def otherwise(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(theirs, what)(self, *args, **kwargs)

    own = type("OwnHead", (theirs,), {what: otherwise})
    MODELS.register_module(module=own, force=True)
    model = built(configuration(family.config, {**family.changes, **change}))
    head = type(model.pts_bbox_head if hasattr(model, "pts_bbox_head") else model.bbox_head)
    said = rf"its head \({head.__name__}\) differs from the {owner} that is known in {what}"
    with pytest.raises(UnsupportedModelError, match=said):
        ObjectDetection3DTracer(model, "m", "v")


def of_half(name: str) -> tuple[Any, dict[str, Any]]:
    """A model whose weights are in half precision, and its loader's batch."""
    data = raw(FAMILIES[name])
    data["inputs"] = {key: [one.half() for one in some] for key, some in data["inputs"].items()}
    return smaller(name).half(), data


@pytest.mark.parametrize(
    ("name", "autocast"),  # on a CPU other models fail themselves: MMCV suppresses no boxes there
    [("CenterPoint, circles", True), ("CenterPoint, circles", False), ("SMOKE", True)],
)
def test_half_precision(name: str, autocast: bool) -> None:
    model, data = (smaller(name), raw(FAMILIES[name])) if autocast else of_half(name)
    with torch.no_grad(), torch.autocast("cpu", torch.float16, enabled=autocast):
        bare = model.test_step(data)
        assert len(tensors(bare)[0]) > 20
        with ObjectDetection3DTracer(model, "m", "v") as tracer:
            output = tracer(data, None, ["a", "b"])
    assert_same(output, bare)
    columns, counts, _ = stored()
    assert counts == [len(one) for one in tensors(bare)[::3]]
    scores = torch.from_numpy(columns["score"])
    assert torch.equal(scores, torch.cat(tensors(bare)[1::3]).float())
    assert (columns["cell_row"] >= 0).all()


def test_boxes_of_another_class_than_the_familys_are_refused() -> None:
    model = smaller("PointPillars")
    given = call(model, "PointPillars")
    from mmdet3d.structures import DepthInstance3DBoxes

    for one in given["data_samples"]:
        one.set_metainfo({"box_type_3d": DepthInstance3DBoxes})
    with (
        ObjectDetection3DTracer(model, "m", "v") as tracer,
        torch.no_grad(),
        pytest.raises(UnsupportedModelError, match="'depth'.*'lidar'"),
    ):
        tracer(given, None, ["a", "b"])


def test_losses_are_no_boxes() -> None:
    model = smaller("PointPillars")
    given = {**call(model, "PointPillars"), "mode": "tensor"}
    with (
        ObjectDetection3DTracer(model, "m", "v") as tracer,
        torch.no_grad(),
        pytest.raises(UnsupportedModelError, match="mode='predict'"),
    ):
        tracer(given, None, ["a", "b"])
