"""What `check` says of detectors, against what a call then records."""

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

from ml_debugger.core import ModelVersion, Scope, Store
from ml_debugger.core.checkup import Checkup
from ml_debugger.core.errors import ArchitectureMismatchError, UnsupportedModelError
from ml_debugger.training import ObjectDetectionTracer

from .small import blank, faster_rcnn, images


def built(module: str, name: str) -> tuple[nn.Module, Any]:
    """Return a model of another file of tests and its input: that file may skip."""
    if module == "test_ultralytics":
        pytest.importorskip("ultralytics")
    contract = getattr(import_module(f".{module}", __package__), name)()
    return contract.model(), contract.model_input()


def checked(model: nn.Module, given: Any, layers: Any = None) -> Checkup:
    """Return what `check` says, after seeing that a call records just that."""
    with ObjectDetectionTracer(model, "net", "v1", layers, score_thresh=0.3) as tracer:
        found = tracer.check(given)
        with torch.no_grad():
            tracer(given, None, ["a", "b"])
    records = Store().open(ModelVersion("net", "v1")).records(Scope())
    assert records.ids().to_pylist() == ["a", "b"]  # of the check there is nothing
    assert found.ok
    assert [one.alias for one in found.layers] == list(tracer.layers)
    for one in found.layers:
        features = records.column(f"predicted/feature.{one.alias}")
        assert one.width == features.shape[1]
        assert one.bytes_per_sample == features.nbytes / 2 > 0
        assert found.units_per_sample == len(features) / 2
    assert found.bytes_per_sample > sum(one.bytes_per_sample for one in found.layers)
    assert "units a sample as in this batch" in str(found)
    return found


def test_faster_rcnn() -> None:
    found = checked(faster_rcnn(), images())
    box = found.layers[0]
    assert (box.alias, box.calls, box.dtype) == ("box", 1, "float32")
    assert box.shape is not None
    assert box.shape[1] == box.width == 12
    assert not box.batch_first  # a row is a proposal


def test_a_layer_of_the_users_own() -> None:
    found = checked(faster_rcnn(), images(), {"box": "roi_heads.box_head", "map": "backbone"})
    of_map = found.layers[1]
    assert of_map.shape is not None
    assert of_map.shape[:2] == (2, 16)
    assert of_map.batch_first
    assert of_map.width == 16


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("test_torchvision", "TestRetinaNet"),
        ("test_huggingface", "TestDetr"),
        ("test_ultralytics", "TestYolov8"),
        ("test_ultralytics", "TestRTDETR"),
    ],
)
def test_other_families(module: str, name: str) -> None:
    model, given = built(module, name)
    modes = [part.training for part in model.modules()]
    found = checked(model, given)
    assert [part.training for part in model.modules()] == modes
    assert found.notes == ()


def test_what_cannot_be_recorded_is_said_of_its_layer() -> None:
    layers = {
        "box": "roi_heads.box_head",
        "late": "roi_heads.box_head.1:call3",
        "rows": "roi_heads.box_head.1",
        "idle": "roi_heads.box_roi_pool",
    }
    model = faster_rcnn()
    model.add_module("unused", nn.Linear(2, 2))
    model.train()  # in which it returns losses
    with ObjectDetectionTracer(model, "net", "v1", {**layers, "never": "unused"}) as tracer:
        found = tracer.check(images())
    assert model.training
    problems = {one.alias: one.problem for one in found.layers}
    assert problems.pop("box") is None
    assert problems.pop("never") == "did not run"
    assert problems.pop("late") == "ran 1 times, not as often as named"
    assert all("for 2 inputs" in str(one) for one in problems.values())
    assert not found.ok
    assert found.layers[0].bytes_per_sample > 0


def test_a_batch_without_boxes_tells_no_size() -> None:
    with ObjectDetectionTracer(faster_rcnn(), "net", "v1", score_thresh=0.99) as tracer:
        found = tracer.check([blank()])
    assert found.ok
    assert found.layers[0].width == 12
    assert found.units_per_sample == found.bytes_per_sample == 0
    assert "no units in this batch" in str(found)


def test_settings_that_are_refused_leave_no_trace() -> None:
    model, _ = built("test_huggingface", "TestDetr")
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="no iou_thresh"):
            ObjectDetectionTracer(model, "net", "v1", iou_thresh=0.2)
    with ObjectDetectionTracer(faster_rcnn(), "net", "v1") as tracer:
        tracer(images(), None, ["a", "b"])
    store = Store()
    assert len(store.versions()) == 1
    assert len(store.open(ModelVersion("net", "v1")).runs()) == 1
    store.close()


def test_a_name_that_is_refused_gives_the_model_back_its_settings() -> None:
    ObjectDetectionTracer(faster_rcnn(), "net", "v1").close()
    other = faster_rcnn(extra=nn.Sigmoid())
    own = other.roi_heads.score_thresh
    with pytest.raises(ArchitectureMismatchError) as error:  # it keeps the tracer alive
        ObjectDetectionTracer(other, "net", "v1", score_thresh=0.9)
    assert other.roi_heads.score_thresh == own
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in other.modules())
    assert "net" in str(error.value)
