# ruff: noqa: E501  a case a line reads best
"""What users of detectors get wrong: each case says what, and nothing is recorded.

`python -m packages.detection2d.tests.test_bad_input` from the root prints every case.
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
from ml_debugger.data_filter import ObjectDetectionDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.monitoring import ObjectDetectionLogger
from ml_debugger.object_detection.analysis import error_types
from ml_debugger.object_detection.output import DetectionOutput
from ml_debugger.training import ObjectDetectionTracer

from . import small

BOX = [[2.0, 3.0, 30.0, 40.0]]


@dataclass
class Bench:
    """A traced and evaluated detector, and the tools around it."""

    home: Path
    model: nn.Module
    tracer: ObjectDetectionTracer
    data_filter: ObjectDetectionDataFilter
    result: Any
    images: list[torch.Tensor]
    truths: list[dict[str, torch.Tensor]]
    ran: list[int] = field(default_factory=list)

    def rows(self) -> int:
        self.tracer.flush()
        self.data_filter.flush()
        with Store(self.home) as store:
            return sum(one.records for one in store.versions())


def make(folder: Path) -> Bench:
    home, model = folder / "home", small.faster_rcnn()
    tracer = ObjectDetectionTracer(model, "net", "v1", home=home)
    given = small.images(12)
    with torch.no_grad():
        tracer(given, small.truths(model, given), range(12), "val", n_epoch=0)
        tracer.flush()
        result = Evaluator("net", "v1", home=home).request_evaluation()
        data_filter = ObjectDetectionDataFilter(model, "net", "v1", result.result_name, home=home)
        data_filter(given[:4], ["a", "b", "c", "d"])
    two = given[:2]
    bench = Bench(home, model, tracer, data_filter, result, two, small.truths(model, two))
    model.register_forward_pre_hook(lambda *_: bench.ran.append(1))
    return bench


def call(b: Bench, **changed: Any) -> Any:
    """Call the tracer with one argument changed."""
    given = {
        "model_input": b.images, "ground_truth": b.truths, "input_ids": [1, 2],
        "dataset_type": "val", "n_epoch": 1,
    }  # fmt: skip
    return b.tracer(**(given | changed))


def truth(b: Bench, *truths: Any) -> Any:
    """Call the tracer with other ground truth; the second image is empty if one is given."""
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return call(b, ground_truth=list(truths) + [empty] * (2 - len(truths)))


def image(boxes: Any = BOX, labels: Any = (1,), **more: Any) -> dict[str, Any]:
    return {"boxes": boxes, "labels": labels, **more}


def new(b: Bench, kind: Any = ObjectDetectionTracer, **changed: Any) -> Any:
    given = {"model": b.model, "model_name": "other", "version_name": "v1", "home": b.home}
    return kind(**(given | changed))


def query(b: Bench, strategy: Any, **more: Any) -> Any:
    return b.data_filter.query(5, strategy, **more)


def parsed(b: Bench, output: Any) -> Any:
    """Trace with a parser of the user's own that returns something."""

    class Own(ObjectDetectionTracer):
        def _parse_model_output(self, model_output: Any, img_sizes: Any) -> Any:
            return output

    with new(b, Own, model_name="own") as tracer, torch.no_grad():
        return tracer(b.images, None, [1, 2])


def changing(b: Bench) -> Any:
    """Trace a model that moves its boxes after its head."""

    class Moved(type(b.model)):  # type: ignore[misc]
        def forward(self, *args: Any) -> Any:
            return [{**one, "boxes": one["boxes"] + 9} for one in super().forward(*args)]

    model = small.faster_rcnn()
    model.__class__ = Moved
    with new(b, model=model, model_name="moved") as tracer, torch.no_grad():
        return tracer(b.images, None, [1, 2])


def losses(b: Bench) -> Any:
    model = small.faster_rcnn().train()
    with new(b, model=model, model_name="losses") as tracer:
        model.forward = lambda _: {"loss": torch.zeros(1)}  # type: ignore[method-assign,assignment]
        return tracer(b.images, None, [1, 2])


#: What is done, the error's class among the built-in ones, and words of its message.
CASES: dict[str, tuple[Callable[[Bench], Any], Any, str]] = {
    # the detector
    "no detector": (lambda b: new(b, model=nn.Linear(2, 2)), TypeError, "no detector that is known"),
    "no model": (lambda b: new(b, model="yolov8n.pt"), ValueError, "torch.nn.Module"),
    "a threshold above one": (lambda b: new(b, score_thresh=1.5), ValueError, "score_thresh"),
    "a threshold that is a text": (lambda b: new(b, score_thresh="0.5"), ValueError, "score_thresh"),
    "a negative IoU": (lambda b: new(b, iou_thresh=-0.1), ValueError, "iou_thresh"),
    "no boxes at most": (lambda b: new(b, max_detections_per_image=0), ValueError, "max_detections"),
    "half a box at most": (lambda b: new(b, max_detections_per_image=1.5), ValueError, "max_detections"),
    "classes that the model does not have": (lambda b: new(b, n_class=9), ValueError, "n_class is 9, but"),
    "no classes": (lambda b: new(b, n_class=0), ValueError, "n_class"),
    "a layer that is not there": (lambda b: new(b, target_layers={"a": "roi_heads.box"}), ValueError, "box_head"),
    "a field that the task fills": (
        lambda b: new(b, additional_fields=[{"name": "image_width", "type": "int"}]), ValueError, "image_width"),
    "another architecture under the name": (
        lambda b: new(b, model=small.faster_rcnn(extra=nn.Tanh()), model_name="net"),
        ValueError, "architecture"),
    # the call
    "an id too few": (lambda b: call(b, input_ids=[1]), ValueError, "1 input_ids for a batch of 2"),
    "truth of one image for two": (lambda b: call(b, ground_truth=b.truths[:1]), ValueError, "1 images for 2"),
    "a dict for a batch": (lambda b: call(b, ground_truth=b.truths[0]), ValueError, "list"),
    "a number as truth": (lambda b: call(b, ground_truth=3), ValueError, "int"),
    "None for an image": (lambda b: truth(b, None), ValueError, "None"),
    "an epoch that is a text": (lambda b: call(b, n_epoch="1"), TypeError, "n_epoch"),
    "a losses dict": (losses, TypeError, r"model\.eval"),
    "boxes moved after the head": (changing, TypeError, "none that the head proposed"),
    # the truth
    "no labels": (lambda b: truth(b, {"boxes": BOX}), ValueError, "labels"),
    "a label too many": (lambda b: truth(b, image(labels=[1, 2])), ValueError, "2"),
    "half a class": (lambda b: truth(b, image(labels=[1.5])), ValueError, "whole"),
    "a negative class": (lambda b: truth(b, image(labels=[-1])), ValueError, "-1"),
    "names as classes": (lambda b: truth(b, image(labels=["car"])), ValueError, "label"),
    "corner, width and height": (lambda b: truth(b, image([[30.0, 40.0, 10.0, 10.0]])), ValueError, "xywh"),
    "boxes of five numbers": (lambda b: truth(b, image([[1.0, 2, 3, 4, 5]])), ValueError, "5"),
    "normalised boxes": (lambda b: truth(b, image([[0.1, 0.2, 0.5, 0.6]])), ValueError, "normalis"),
    "a box that is not finite": (lambda b: truth(b, image([[1.0, 2, np.nan, 4]])), ValueError, "finite"),
    "an unknown box format": (lambda b: truth(b, image(box_format="yxyx")), ValueError, "box_format"),
    "crowds of another number": (lambda b: truth(b, image(iscrowd=[0, 1])), ValueError, "iscrowd"),
    "COCO without a category": (lambda b: truth(b, [{"bbox": [1, 2, 3, 4]}]), ValueError, "bbox"),
    "normalised without a size": (
        lambda b: truth(b, {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.1, 0.1]])}), ValueError, "size"),
    # a parser of one's own
    "a parser that returns nothing": (lambda b: parsed(b, None), TypeError, "DetectionOutput"),
    "a parser that returns dicts": (lambda b: parsed(b, [{}, {}]), TypeError, "DetectionOutput"),
    "outputs of three images for two": (lambda b: parsed(b, [DetectionOutput.empty()] * 3), TypeError, "3 inputs"),
    "scores of another number": (
        lambda b: parsed(b, [DetectionOutput(torch.zeros(2, 4), torch.zeros(3), torch.zeros(2).long())] * 2), TypeError, "scores"),
    # queries
    "a column that is no estimate": (lambda b: query(b, {"target_column": "score"}), ValueError, "target_column"),
    "an aggregation that does not exist": (lambda b: query(b, {"aggregation": "max"}), ValueError, "aggregation"),
    "no boxes to aggregate": (lambda b: query(b, {"top_n": 0}), ValueError, "top_n"),
    "a weight that is not recorded": (lambda b: query(b, {"weight_column": "area"}), ValueError, "area"),
    "a weight that is a text": (lambda b: query(b, {"weight_column": "run"}), ValueError, "number"),
    "an empty box filter": (lambda b: query(b, {"bbox_filter": {}}), ValueError, "target_zones"),
    "a zone that does not exist": (lambda b: query(b, {"bbox_filter": {"target_zones": ["hot"]}}), ValueError, "target_zones"),
    "a field that does not exist": (lambda b: query(b, {"worst": 3}), ValueError, "worst"),
    "empty images spread over features": (
        lambda b: query(b, "high_error_proba", include_empty=True, diverse=True), ValueError, "include_empty"),
    "a threshold for flags above one": (
        lambda b: new(b, ObjectDetectionDataFilter, filter_config={"img_error_threshold": 1.1}), ValueError, "img_error_threshold"),
    "flags without an evaluation": (
        lambda b: new(b, ObjectDetectionDataFilter, filter_config={"img_error_threshold": 0.5}), ValueError, "result_name"),
    "a logger of another model": (
        lambda b: new(b, ObjectDetectionLogger, result_name=b.result.result_name), ValueError, "belongs to"),
    # tables
    "error types by weather": (lambda b: error_types(b.result, by="weather"), ValueError, "weather"),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
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
    assert not bench.ran or "parser" in name or "outputs" in name or "scores" in name
    after = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in bench.model.modules()]
    assert after == hooks
    assert bench.model.roi_heads.score_thresh == settings.score_thresh  # type: ignore[union-attr]


def main() -> None:
    """Print each case with its error and message."""
    os.environ.pop("MLD_API_ENDPOINT", None)
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
