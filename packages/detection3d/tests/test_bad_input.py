# ruff: noqa: E501  a case a line reads best
"""What users of 3D detectors get wrong: each case says what, and nothing is recorded.

`python -m packages.detection3d.tests.test_bad_input` from the root prints every case.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ml_debugger.core import MLDebuggerError, Store
from ml_debugger.data_filter import ObjectDetection3DDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.monitoring import ObjectDetection3DLogger
from ml_debugger.object_detection_3d.adapters import FAMILIES
from ml_debugger.object_detection_3d.frames import Frame
from ml_debugger.object_detection_3d.output import Detection3DOutput
from ml_debugger.training import ObjectDetection3DTracer

from . import small

BOX = [[2.0, 3.0, 0.0, 4.0, 2.0, 1.5, 0.3]]
RANGE = [-8.0, -8, -3, 8, 8, 3]


@dataclass
class Bench:
    """A traced and evaluated detector, and the tools around it."""

    home: Path
    model: nn.Module
    tracer: ObjectDetection3DTracer
    data_filter: ObjectDetection3DDataFilter
    result: Any
    clouds: list[torch.Tensor]
    truths: list[dict[str, torch.Tensor]]
    ran: list[int] = field(default_factory=list)

    def rows(self) -> int:
        self.tracer.flush()
        self.data_filter.flush()
        with Store(self.home) as store:
            return sum(one.records for one in store.versions())


def make(folder: Path) -> Bench:
    home, model = folder / "home", small.pillars()
    tracer = ObjectDetection3DTracer(model, "net", "v1", home=home)
    given = small.clouds(12)
    with torch.no_grad():
        tracer(given, small.truths(model, given), range(12), "val", n_epoch=0)
        tracer.flush()
        result = Evaluator("net", "v1", home=home).request_evaluation()
        data_filter = ObjectDetection3DDataFilter(model, "net", "v1", result.result_name, home=home)
        data_filter(given[:4], ["a", "b", "c", "d"])
    two = given[:2]
    bench = Bench(home, model, tracer, data_filter, result, two, small.truths(model, two))
    model.register_forward_pre_hook(lambda *_: bench.ran.append(1))
    return bench


def call(b: Bench, **changed: Any) -> Any:
    """Call the tracer with one argument changed."""
    given = {
        "model_input": b.clouds, "ground_truth": b.truths, "input_ids": [1, 2],
        "dataset_type": "val", "n_epoch": 1,
    }  # fmt: skip
    return b.tracer(**(given | changed))


def truth(b: Bench, *truths: Any) -> Any:
    """Call the tracer with other ground truth; the second frame is empty if one is given."""
    empty = {"boxes": torch.zeros(0, 7), "labels": torch.zeros(0, dtype=torch.int64)}
    return call(b, ground_truth=list(truths) + [empty] * (2 - len(truths)))


def frame(boxes: Any = BOX, labels: Any = (1,), **more: Any) -> dict[str, Any]:
    return {"boxes": boxes, "labels": labels, **more}


def new(b: Bench, kind: Any = ObjectDetection3DTracer, **changed: Any) -> Any:
    given = {"model": b.model, "model_name": "other", "version_name": "v1", "home": b.home}
    return kind(**(given | changed))


def query(b: Bench, strategy: Any, **more: Any) -> Any:
    return b.data_filter.query(5, strategy, **more)


def provided(b: Bench, provider: Any) -> Any:
    """Trace without ground truth, where a provider has it."""
    with new(b, model_name="provided", ground_truth_provider=provider) as tracer:
        return tracer(b.clouds, None, [1, 2])


def parsed(b: Bench, output: Any) -> Any:
    """Trace with a parser of the user's own that returns something."""

    class Own(ObjectDetection3DTracer):
        def _parse_model_output(self, model_output: Any) -> Any:
            return output

    with new(b, Own, model_name="own") as tracer, torch.no_grad():
        return tracer(b.clouds, None, [1, 2])


def placed(b: Bench, at: float, where: Frame) -> Any:
    """Trace a model that no adapter knows, and that sees a box at a place."""

    class Own(ObjectDetection3DTracer):
        frame = where

        @staticmethod
        def detect(model: nn.Module) -> bool:
            return True

        def _get_n_class(self, model: nn.Module) -> int:
            return 1

        def _parse_model_output(self, model_output: Any) -> Any:
            box = torch.tensor([[0, at, 0, 4, 2, 1.5, 0.3]], dtype=torch.float64)
            return [Detection3DOutput(box, torch.ones(1), torch.zeros(1).long())]

    with new(b, Own, model=nn.Identity(), model_name=where) as tracer:
        return tracer(b.clouds[:1], None, [1])


def changing(b: Bench) -> Any:
    """Trace a model that moves its boxes after its head."""

    class Moved(small.Pillars):
        def forward(self, *args: Any) -> Any:
            return [{**one, "boxes": one["boxes"] + 9} for one in super().forward(*args)]

    model = small.pillars()
    model.__class__ = Moved
    with new(b, model=model, model_name="moved") as tracer, torch.no_grad():
        return tracer(b.clouds, None, [1, 2])


def evaluate(b: Bench, **options: Any) -> Any:
    return Evaluator("net", "v1", home=b.home).request_evaluation(options=options)


def output(n: int = 2, width: int = 7, **more: Any) -> Detection3DOutput:
    return Detection3DOutput(torch.ones(n, width), torch.ones(n), torch.zeros(n).long(), **more)


#: What is done, the error's class among the built-in ones, and words of its message.
CASES: dict[str, tuple[Callable[[Bench], Any], Any, str]] = {
    # the detector
    "no detector": (lambda b: new(b, model=nn.Linear(2, 2)), TypeError, "no detector that is known"),
    "no model": (lambda b: new(b, model="centerpoint.pth"), ValueError, "torch.nn.Module"),
    "a threshold above one": (lambda b: new(b, score_thresh=1.5), ValueError, "score_thresh"),
    "a threshold that is a text": (lambda b: new(b, score_thresh="0.5"), ValueError, "score_thresh"),
    "a negative IoU": (lambda b: new(b, iou_thresh=-0.1), ValueError, "iou_thresh"),
    "no boxes at most": (lambda b: new(b, max_detections_per_frame=0), ValueError, "max_detections"),
    "half a box at most": (lambda b: new(b, max_detections_per_frame=1.5), ValueError, "max_detections"),
    "classes that the model does not have": (lambda b: new(b, n_class=9), ValueError, "n_class is 9, but"),
    "no classes": (lambda b: new(b, n_class=0), ValueError, "n_class"),
    "a layer that is not there": (lambda b: new(b, target_layers={"a": "feature"}), ValueError, "features"),
    "a field that the task fills": (
        lambda b: new(b, additional_fields=[{"name": "frame", "type": "str"}]), ValueError, "frame"),
    "another architecture under the name": (
        lambda b: new(b, model=small.pillars(extra=nn.Tanh()), model_name="net"), ValueError, "architecture"),
    # the range
    "a range of four numbers": (lambda b: new(b, pc_range=RANGE[:4]), ValueError, "x_min, y_min"),
    "a range the other way round": (lambda b: new(b, pc_range=RANGE[3:] + RANGE[:3]), ValueError, "pc_range"),
    "an endless range": (lambda b: new(b, pc_range=[*RANGE[:5], np.inf]), ValueError, "pc_range"),
    "a range in words": (lambda b: new(b, pc_range="all"), ValueError, "pc_range"),
    # the provider
    "a provider that gives nothing": (lambda b: new(b, ground_truth_provider=3), ValueError, "ground_truth_provider"),
    "a provider that was not made": (lambda b: new(b, ground_truth_provider=dict), ValueError, "make one"),
    "frames without truth": (lambda b: provided(b, {"1": frame()}), ValueError, "1 of 2 ids: '2'"),
    "a provider by numbers": (lambda b: new(b, ground_truth_provider={1: frame()}), ValueError, "key 1, a int.*as text"),
    "a provider of something else": (lambda b: provided(b, {"1": 3, "2": 4}), ValueError, "ground_truth"),
    # the call
    "an id too few": (lambda b: call(b, input_ids=[1]), ValueError, "1 input_ids for a batch of 2"),
    "truth of one frame for two": (lambda b: call(b, ground_truth=b.truths[:1]), ValueError, "1 frames for 2"),
    "two clouds as one": (lambda b: call(b, model_input=torch.zeros(9, 4)), ValueError, "batch of 1"),
    "a dict for a batch": (lambda b: call(b, ground_truth=b.truths[0]), ValueError, "list"),
    "a number as truth": (lambda b: call(b, ground_truth=3), ValueError, "int"),
    "None for a frame": (lambda b: truth(b, None), ValueError, "None"),
    "an epoch that is a text": (lambda b: call(b, n_epoch="1"), TypeError, "n_epoch"),
    "boxes moved after the head": (changing, TypeError, "none that the head proposed"),
    # the truth
    "no labels": (lambda b: truth(b, {"boxes": BOX}), ValueError, "labels"),
    "a label too many": (lambda b: truth(b, frame(labels=[1, 2])), ValueError, "2"),
    "half a class": (lambda b: truth(b, frame(labels=[1.5])), ValueError, "whole"),
    "a negative class": (lambda b: truth(b, frame(labels=[-1])), ValueError, "-1"),
    "names as classes": (lambda b: truth(b, frame(labels=["car"])), ValueError, "label"),
    "boxes of an image": (lambda b: truth(b, frame([[1.0, 2, 3, 4]])), ValueError, "dx, dy, dz, yaw"),
    "corners": (lambda b: truth(b, frame(np.zeros((1, 8, 3)))), ValueError, "yaw"),
    "a negative side": (lambda b: truth(b, frame([[1.0, 2, 0, -4, 2, 1, 0]])), ValueError, "below 0"),
    "a box that is not finite": (lambda b: truth(b, frame([[1.0, 2, np.nan, 4, 2, 1, 0]])), ValueError, "finite"),
    "flags of another number": (lambda b: truth(b, frame(ignored=[0, 1])), ValueError, "ignored"),
    "a frame that does not exist": (lambda b: truth(b, frame(frame="radar")), ValueError, "lidar"),
    "boxes of a map": (lambda b: truth(b, frame([[5e5, 5.5e6, 0, 4, 2, 1, 0]])), ValueError, "Subtract"),
    "a class of KITTI that it lacks": (
        lambda b: truth(b, {"label": "", "calibration": {}, "classes": ["car"]}), ValueError, "did you mean 'Car'"),
    "a class of nuScenes that it lacks": (
        lambda b: truth(b, {"annotations": [], "classes": ["Car"]}), ValueError, "did you mean 'car'"),
    "boxes of another frame": (lambda b: truth(b, frame(frame="camera")), ValueError, "'camera'.*'lidar'"),
    "KITTI without a calibration": (lambda b: truth(b, {"label": "", "classes": ["Car"]}), ValueError, "label"),
    # a parser of one's own
    "a parser that returns nothing": (lambda b: parsed(b, None), TypeError, "Detection3DOutput"),
    "a parser that returns dicts": (lambda b: parsed(b, [{}, {}]), TypeError, "Detection3DOutput"),
    "outputs of three frames for two": (lambda b: parsed(b, [Detection3DOutput.empty()] * 3), TypeError, "3 inputs"),
    "outputs of eight numbers": (lambda b: parsed(b, [output(width=8)] * 2), TypeError, r"\(n, 7\) or \(n, 9\)"),
    "outputs with points of another number": (lambda b: parsed(b, [output(points=torch.ones(3))] * 2), TypeError, "points"),
    "outputs with a logit too many": (lambda b: parsed(b, [output(logits=torch.ones(3, 2))] * 2), TypeError, "logits"),
    "outputs on a map far from its origin": (lambda b: placed(b, 5.5e6, "global"), ValueError, "Subtract"),
    # evaluations and queries
    "an overlap that does not exist": (lambda b: evaluate(b, overlap="giou"), ValueError, "overlap"),
    "a column that is no estimate": (lambda b: query(b, {"target_column": "score"}), ValueError, "target_column"),
    "an aggregation that does not exist": (lambda b: query(b, {"aggregation": "max"}), ValueError, "aggregation"),
    "a weight that is not recorded": (lambda b: query(b, {"weight_column": "volume"}), ValueError, "volume"),
    "a condition on what is not recorded": (
        lambda b: query(b, {"bbox_filter": {"conditions": [{"range": "<3"}]}}), ValueError, "range"),
    "flags without an evaluation": (
        lambda b: new(b, ObjectDetection3DDataFilter, filter_config={"img_error_threshold": 0.5}), ValueError, "result_name"),
    "a logger of another model": (
        lambda b: new(b, ObjectDetection3DLogger, result_name=b.result.result_name), ValueError, "belongs to"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FAMILIES, "known", (small.PillarAdapter(), *FAMILIES.known))
        made = make(tmp_path_factory.mktemp("bench"))
        yield made
        made.tracer.close()
        made.data_filter.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_says_what_is_wrong_and_records_nothing(name: str, bench: Bench) -> None:
    act, kind, words = CASES[name]
    before, settings = bench.rows(), bench.tracer.nms_config
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in bench.model.modules()]
    bench.ran.clear()
    with pytest.raises(kind, match=words) as caught:
        act(bench)
    assert isinstance(caught.value, MLDebuggerError)
    assert len(str(caught.value)) > 20
    assert bench.rows() == before
    assert not bench.ran or "parser" in name or "outputs" in name
    after = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in bench.model.modules()]
    assert after == hooks
    assert bench.model.score_thresh == settings.score_thresh


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("at", [5.5e6, 1e30, np.inf, np.nan])
def test_a_diverged_model_is_recorded(at: float, bench: Bench) -> None:
    places: list[Frame] = ["lidar"] if np.isfinite(at) else ["lidar", "global"]
    before = bench.rows()
    for where in places:
        placed(bench, at, where)
    assert bench.rows() > before


def main() -> None:
    """Print each case with its error and message."""
    os.environ.pop("MLD_API_ENDPOINT", None)
    FAMILIES.known = (small.PillarAdapter(), *FAMILIES.known)
    with tempfile.TemporaryDirectory() as folder:
        bench = make(Path(folder))
        for at, (name, (act, _, _)) in enumerate(CASES.items(), start=1):
            try:
                act(bench)
            except MLDebuggerError as error:
                said = str(error).replace(folder, "TMP")
                print(f"{at:2}. {name}: {type(error).__name__}: {said}")  # noqa: T201
            else:
                raise AssertionError(f"{name} raised nothing")


if __name__ == "__main__":
    main()
