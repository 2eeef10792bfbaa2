"""What a tracer of detectors records, and what it leaves alone."""

import gc
import re
from collections import OrderedDict
from contextlib import nullcontext
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import roi_align

from ml_debugger.core import ModelVersion, Store
from ml_debugger.core.detection import families
from ml_debugger.core.errors import (
    InputError,
    LayerNotCapturedError,
    NothingToEvaluateError,
    StrategyError,
    UnsupportedModelError,
)
from ml_debugger.data_filter import ObjectDetectionDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.monitoring import ObjectDetectionLogger
from ml_debugger.object_detection.adapters.torchvision_rcnn import TorchvisionRCNN
from ml_debugger.object_detection.output import DetectionOutput, NMSConfig
from ml_debugger.object_detection.statistics import NAMES
from ml_debugger.training import ObjectDetectionTracer

from . import small


def stored():
    with Store() as store:
        records = store.open(ModelVersion("m", "v")).records()
        names = [name for name in records.names() if not name.startswith("input/")]
        return {name: records.column(name) for name in names}, records.counts("predicted")


def trace(model, n=2, **arguments):
    given = small.images(n)
    with ObjectDetectionTracer(model, "m", "v", **arguments) as tracer, torch.no_grad():
        output = tracer(given, small.truths(model, given), range(n), "val")
    return given, output


def test_what_is_recorded_of_each_box():
    model = small.faster_rcnn()
    _, output = trace(model)
    columns, counts = stored()
    assert counts.tolist() == [len(one["boxes"]) for one in output]
    boxes = torch.cat([one["boxes"] for one in output])
    for at, name in enumerate(("x1", "y1", "x2", "y2")):
        assert np.array_equal(columns[f"predicted/{name}"], boxes[:, at])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    assert np.array_equal(columns["predicted/pred_size"], area)
    labels = torch.cat([one["labels"] for one in output])
    scores = torch.cat([one["scores"] for one in output])
    assert np.array_equal(columns["predicted/prediction"], labels)
    assert np.array_equal(columns["predicted/score"], scores)
    logits = torch.from_numpy(columns["predicted/logits"].copy())
    share = logits.softmax(1)
    assert torch.allclose(share[torch.arange(len(labels)), labels], scores, atol=1e-6)
    assert columns["predicted/finite"].all()
    assert columns["predicted/statistics"].shape == (len(boxes), len(NAMES))


def test_features_are_those_of_the_head_that_scored_the_box():
    model = small.faster_rcnn()
    given, _ = trace(model)
    seen = []
    handle = model.roi_heads.box_head.register_forward_hook(lambda *a: seen.append(a[2]))
    with torch.no_grad():
        model(given)
    handle.remove()
    columns, _ = stored()
    features = torch.from_numpy(columns["predicted/feature.box"].copy())
    logits = torch.from_numpy(columns["predicted/logits"].copy())
    with torch.no_grad():
        again = model.roi_heads.box_predictor.cls_score(features)
    assert torch.allclose(again, logits, atol=1e-5)
    rows = (features[:, None] == seen[0]).all(2).any(1)
    assert rows.all()


def test_a_named_layer_is_pooled_inside_each_box():
    model = small.faster_rcnn()
    layers = {"box": "roi_heads.box_head", "map": "backbone.3"}
    given = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(2))]
    with ObjectDetectionTracer(model, "m", "v", layers) as tracer, torch.no_grad():
        (output,) = tracer(given, None, ["a"], "val")
        hooked = tracer.get_hooked_features("map")
    assert hooked.shape[1] == 16
    columns, _ = stored()
    found = torch.from_numpy(columns["predicted/feature.map"].copy())
    boxes = output["boxes"] / 64 * hooked.shape[-1]
    cells = torch.stack([boxes[:, 0].floor(), boxes[:, 1].floor(), *boxes[:, 2:].ceil().T], 1)
    # a sample in the middle of every whole cell
    expected = [
        roi_align(
            hooked,
            [cell[None]],
            (int(cell[3] - cell[1]), int(cell[2] - cell[0])),
            1.0,
            1,
            aligned=True,
        ).mean((0, 2, 3))
        for cell in cells
    ]
    assert torch.allclose(found, torch.stack(expected), atol=1e-4)


def test_an_unknown_alias_was_not_captured():
    with ObjectDetectionTracer(small.faster_rcnn(), "m", "v") as tracer, torch.no_grad():
        tracer(small.images(), None, ["a", "b"], "val")
        with pytest.raises(LayerNotCapturedError, match="box"):
            tracer.get_hooked_features("nothing")


def test_settings_are_the_models_own_and_come_back():
    model = small.faster_rcnn()
    before = TorchvisionRCNN().nms(model)
    with ObjectDetectionTracer(model, "m", "v") as tracer:
        assert tracer.nms_config == before
        assert tracer.n_class == small.CLASSES
        assert tracer.layers == {"box": "roi_heads.box_head"}
    wanted = {"score_thresh": 0.4, "iou_thresh": 0.1, "max_detections_per_image": 3}
    bare = small.faster_rcnn(box_score_thresh=0.4, box_nms_thresh=0.1, box_detections_per_img=3)
    given = small.images()
    with ObjectDetectionTracer(model, "m", "v", **wanted) as tracer, torch.no_grad():
        assert tracer.nms_config == NMSConfig(**wanted)
        output = tracer(given, None, ["a", "b"], "val")
        for ours, alone in zip(output, bare(given), strict=True):
            assert all(torch.equal(ours[name], alone[name]) for name in alone)
    assert TorchvisionRCNN().nms(model) == before


def test_a_forgotten_tracer_gives_the_settings_back():
    model = small.faster_rcnn()
    before = TorchvisionRCNN().nms(model)
    tracer = ObjectDetectionTracer(model, "m", "v", score_thresh=0.9)
    assert model.roi_heads.score_thresh == 0.9
    del tracer
    gc.collect()
    assert TorchvisionRCNN().nms(model) == before


def test_a_closed_tracer_that_is_forgotten_leaves_the_next_ones_settings():
    model = small.faster_rcnn()
    first = ObjectDetectionTracer(model, "m", "v", score_thresh=0.9)
    first.close()
    with ObjectDetectionTracer(model, "m", "v", score_thresh=0.7):
        del first
        gc.collect()
        assert model.roi_heads.score_thresh == 0.7
    assert model.roi_heads.score_thresh == 0.3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"score_thresh": 1.5}, "score_thresh"),
        ({"score_thresh": "high"}, "score_thresh"),
        ({"iou_thresh": -0.1}, "iou_thresh"),
        ({"max_detections_per_image": 0}, "max_detections_per_image"),
        ({"max_detections_per_image": 2.5}, "max_detections_per_image"),
        ({"n_class": 0}, "n_class"),
        ({"n_class": True}, "n_class"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_happens(arguments, said, home):
    model = small.faster_rcnn()
    with pytest.raises(InputError, match=said):
        ObjectDetectionTracer(model, "m", "v", **arguments)
    assert not home.exists()
    assert not model._forward_hooks


def test_losses_are_no_boxes():
    model = small.faster_rcnn().train()
    given = small.images()
    targets = [{"boxes": torch.tensor([[1.0, 1, 30, 30]]), "labels": torch.tensor([1])}] * 2

    class Loss(ObjectDetectionTracer):
        def run_model(self, model_input: Any) -> Any:
            return self.model(model_input, targets)

    with (
        Loss(model, "m", "v") as tracer,
        pytest.raises(UnsupportedModelError, match=r"model\.eval"),
    ):
        tracer(given, targets, ["a", "b"], "train")


def test_a_model_of_no_known_family_is_refused():
    with pytest.raises(UnsupportedModelError, match="torchvision R-CNN"):
        ObjectDetectionTracer(nn.Linear(2, 2), "m", "v")


class Peaks(nn.Module):
    """A detector of no family: a box around the brightest pixel of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 3, 1)

    def forward(self, images: Any) -> dict[str, Any]:
        heat = self.head(images)
        width = heat.shape[3]
        top, at = heat.flatten(2).max(2)
        middle = torch.stack([at % width, at // width], 2).float()
        return {"boxes": torch.cat([middle - 3, middle + 4], 2), "scores": top.sigmoid()}


class PeaksTracer(ObjectDetectionTracer):
    """Traces it by the documented methods."""

    hooked: ClassVar[list[Any]] = []

    @staticmethod
    def detect(model: nn.Module) -> bool:
        return isinstance(model, Peaks)

    def _get_n_class(self, model: nn.Module) -> int:
        return 3

    def _register_model_hooks(self, model: nn.Module) -> Any:
        return [model.head.register_forward_hook(lambda *_: self.hooked.append(1))]

    def _parse_model_output(self, model_output: Any, img_sizes: Any) -> list[DetectionOutput]:
        assert img_sizes == [(16, 16)] * 2
        pairs = zip(model_output["boxes"], model_output["scores"], strict=True)
        return [DetectionOutput(box, score, torch.arange(3)) for box, score in pairs]


def test_a_detector_of_no_family_by_the_documented_methods():
    torch.manual_seed(0)
    model, images = Peaks(), torch.rand(2, 3, 16, 16)
    truth = [{"boxes": torch.tensor([[2.0, 2, 9, 9]]), "labels": torch.tensor([1])}] * 2
    with PeaksTracer(model, "m", "v") as tracer, torch.no_grad():
        output = tracer(images, truth, ["a", "b"], "val")
        assert tracer.n_class == 3
    assert PeaksTracer.hooked
    assert not model.head._forward_hooks
    columns, counts = stored()
    assert counts.tolist() == [3, 3]
    assert np.array_equal(columns["predicted/score"], output["scores"].flatten())
    result = Evaluator("m", "v").request_evaluation()
    assert len(result) == 6
    with pytest.raises(UnsupportedModelError, match="Peaks"):
        ObjectDetectionTracer(model, "m2", "v")


def test_an_adapter_of_another_package_is_asked_first(monkeypatch):
    class Mine(TorchvisionRCNN):
        family = "mine"

    class Entry:
        name = "mine"

        def load(self) -> type[Mine]:
            return Mine

    groups = []
    monkeypatch.setattr(families, "entry_points", lambda group: groups.append(group) or [Entry()])
    known = families.Families("a_group", [TorchvisionRCNN])
    assert known.of(small.faster_rcnn()).family == "mine"
    assert groups == ["a_group"]


def evaluated(n=16):
    model = small.faster_rcnn()
    given = small.images(n)
    with ObjectDetectionTracer(model, "m", "v") as tracer, torch.no_grad():
        for at in range(0, n, 2):
            batch = given[at : at + 2]
            truths = small.truths(model, batch)
            truths[1]["boxes"] = torch.cat([truths[1]["boxes"], torch.tensor([[0.0, 0, 63, 63]])])
            truths[1]["labels"] = torch.cat([truths[1]["labels"], torch.tensor([1])])
            tracer(batch, truths, [f"{at}", f"{at + 1}"], "val")
    return model, Evaluator("m", "v").request_evaluation()


def test_an_evaluation_tells_what_was_missed_and_how_each_box_is_wrong():
    _, result = evaluated()
    units = result.to_pandas()
    assert result.method_name == "od_v1"
    assert set(units.kind) <= {"A", "M", "SP", "SG", "D", "ON", "N", "U"}
    right = (units.kind == "A") & (units.label == units.prediction)
    assert (units.wrong == ~right).all()
    assert units.code.str.startswith("DET:").all()
    for name in ("error_proba", "det_error_proba", "cls_error_proba"):
        assert units[name].between(0, 1).all()
    truths = result.truths()
    assert truths.missed.sum() == len(result.truths(missed=True))
    codes = result.error_codes()
    missed = codes[codes.code.str.startswith("DET:no_prediction")]
    assert missed.n.sum() == truths.missed.sum() > 0


def test_images_are_ranked_by_their_boxes():
    model, result = evaluated()
    name, pool = result.result_name, small.images(8, seed=5)
    with (
        ObjectDetectionDataFilter(
            model, "m", "v", name, filter_config={"img_error_threshold": 0.5, "top_n": 2}
        ) as data_filter,
        torch.no_grad(),
    ):
        _, flags = data_filter([*pool, small.blank()], [*map(str, range(8)), "blank"])
        assert flags[-1] is False
        by_mean = data_filter.query(20, "high_error_proba")
        assert "blank" not in by_mean
        assert by_mean == data_filter.query(20, {"aggregation": "mean"})
        for vectors in ({"weight_column": "statistics"}, {"conditions": [{"statistics": ">=1"}]}):
            with pytest.raises(StrategyError, match="no column 'statistics'"):
                data_filter.query(20, vectors)
        found = data_filter.query(20, {"top_n": 2}, explain=True)
        flagged = set(found.input_id[found.rank_value >= 0.5])
        assert flagged == {str(at) for at, flag in enumerate(flags) if flag}
        assert found.rank_value.is_monotonic_decreasing
        assert found.reason.str.contains("of its (?:2 worst boxes|1 box), place").all()
        ascending = data_filter.query(20, {"sort": "asc"}, explain=True)
        assert ascending.rank_value.is_monotonic_increasing
        units = data_filter.query(20, {"bbox_filter": {"conditions": [{"score": ">2"}]}})
        assert units == []
        zones = data_filter.query(20, {"target_zones": ["critical_hotspot", "hotspot"]})
        assert set(zones) <= set(by_mean)
        for strategy, said in (
            ({"target_column": "nothing"}, "target_column"),
            ({"aggregation": "max"}, "aggregation"),
            ({"top_n": 0}, "top_n"),
            ({"weight_column": "nothing"}, "nothing"),
            ({"img_error_threshold": 2}, "img_error_threshold"),
            ({"colour": 1}, "colour"),
        ):
            with pytest.raises(ValueError, match=said):
                data_filter.query(20, strategy)


def test_a_logger_needs_neither_ids_nor_truth():
    model, result = evaluated()
    with ObjectDetectionLogger(model, "m", "v", result.result_name) as logger, torch.no_grad():
        for at in range(4):
            logger(small.images(2, seed=at))
        logger([small.blank()])
        health = logger.health(window=4)
    assert health.inputs.tolist() == [4, 4, 1]
    assert (health.n > 0).tolist() == [True, True, False]
    assert health.estimated_accuracy[:2].between(0, 1).all()
    assert health.estimated_accuracy[2:].isna().all()  # nothing is known of an image without a box


def test_boxes_in_ignore_regions_do_not_count():
    model = small.faster_rcnn()
    given = small.images(6)
    with ObjectDetectionTracer(model, "m", "v") as tracer, torch.no_grad():
        crowd = {
            "boxes": torch.tensor([[0.0, 0, 100, 100]]),
            "labels": torch.tensor([1]),
            "iscrowd": torch.tensor([1]),
        }
        truths = small.truths(model, given)
        output = tracer(given, [*truths[:4], crowd, crowd], range(6), "val")
    result = Evaluator("m", "v").request_evaluation()
    inside = sum(len(one["boxes"]) for one in output[4:])
    assert inside > 0
    assert result.manifest.rows.ignored == inside
    assert len(result) == sum(len(one["boxes"]) for one in output[:4]) == len(result.to_pandas())
    assert not result.truths().missed[-2:].any()


def test_thresholds_of_the_matching_are_options_of_the_evaluation():
    model, given = small.faster_rcnn(), small.images(8)
    moved = [{**one, "boxes": one["boxes"] + 3} for one in small.truths(model, given)]
    with ObjectDetectionTracer(model, "m", "v") as tracer, torch.no_grad():
        tracer(given, moved, range(8), "val")
    strict = Evaluator("m", "v").request_evaluation(options={"aligned_iou": 1.0})
    loose = Evaluator("m", "v").request_evaluation(options={"aligned_iou": 0.3})
    aligned = [(one.to_pandas().kind == "A").sum() for one in (strict, loose)]
    assert aligned[0] < aligned[1]
    with pytest.raises(InputError, match="above aligned_iou"):
        Evaluator("m", "v").request_evaluation(options={"matched_iou": 0.9})


def test_a_detector_that_sees_nothing_is_nothing_to_evaluate():
    model = small.faster_rcnn()
    truth = {"boxes": torch.tensor([[1.0, 1, 30, 30]]), "labels": torch.tensor([1])}
    with ObjectDetectionTracer(model, "m", "v") as tracer, torch.no_grad():
        tracer([small.blank()] * 2, [truth] * 2, ["a", "b"], "val")
    with pytest.raises(NothingToEvaluateError, match="2 labelled inputs"):
        Evaluator("m", "v").request_evaluation()


@pytest.mark.filterwarnings("ignore:Epoch none mixes records of 2 runs")
def test_what_is_missed_in_images_without_boxes_counts():
    model, _ = evaluated()
    truth = {"boxes": torch.tensor([[1.0, 1, 30, 30]]), "labels": torch.tensor([1])}
    before = Evaluator("m", "v").request_evaluation().truths().missed.sum()
    with ObjectDetectionTracer(model, "m", "v") as tracer, torch.no_grad():
        tracer([small.blank()] * 2, [truth] * 2, ["x", "y"], "val")
    result = Evaluator("m", "v").request_evaluation()
    assert result.truths().missed.sum() == before + 2
    inputs = result.inputs().set_index("input_id")
    assert inputs.units[["x", "y"]].tolist() == [0, 0]
    assert inputs.missed[["x", "y"]].tolist() == [1, 1]


def test_two_tracers_of_one_model_give_its_settings_back_in_any_order():
    model = small.faster_rcnn()
    first = ObjectDetectionTracer(model, "m", "v", score_thresh=0.4)
    second = ObjectDetectionTracer(model, "m", "v", score_thresh=0.6)
    first.close()
    assert model.roi_heads.score_thresh == 0.6
    second.close()
    assert model.roi_heads.score_thresh == 0.3


def test_only_what_was_lent_is_taken_back():
    model = small.faster_rcnn()
    heads = model.roi_heads
    first = ObjectDetectionTracer(model, "m", "v", score_thresh=0.4)
    heads.detections_per_img = 9
    second = ObjectDetectionTracer(model, "m", "v", iou_thresh=0.1)
    first.close()
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.3, 0.1, 9)
    heads.score_thresh = 0.2
    second.close()
    assert (heads.score_thresh, heads.detections_per_img) == (0.2, 9)
    assert heads.nms_thresh == small.faster_rcnn().roi_heads.nms_thresh


def test_settings_come_back_where_giving_them_fails():
    class Failing(ObjectDetectionTracer):
        def _apply_nms_config(self, model: nn.Module, nms_config: NMSConfig) -> None:
            super()._apply_nms_config(model, nms_config)
            if nms_config.score_thresh == 0.9:
                raise RuntimeError("no")

    model = small.faster_rcnn()
    with pytest.raises(RuntimeError, match="no"):
        Failing(model, "m", "v", score_thresh=0.9)
    assert model.roi_heads.score_thresh == 0.3


def test_a_layer_of_the_head_is_the_boxes_whatever_its_alias():
    layers = {"head": "roi_heads.box_head", "box": "roi_heads.box_head"}
    trace(small.faster_rcnn(), target_layers=layers)
    columns, _ = stored()
    assert np.array_equal(columns["predicted/feature.head"], columns["predicted/feature.box"])
    assert len(np.unique(columns["predicted/feature.head"], axis=0)) > 2


@pytest.mark.parametrize(
    ("path", "said"), [("roi_heads.box_roi_pool", "inputs"), ("rpn.anchor_generator", "tensors")]
)
def test_a_layer_that_does_not_belong_to_images_is_refused(path, said):
    model = small.faster_rcnn()
    with (
        ObjectDetectionTracer(model, "m", "v", {"mine": path}) as tracer,
        torch.no_grad(),
        pytest.raises(UnsupportedModelError, match=said),
    ):
        tracer(small.images(), None, ["a", "b"], "val")


def test_what_a_layer_gave_is_kept_before_it_is_overwritten():
    class Overwriting(nn.Module):
        def forward(self, values: Any) -> Any:
            return values.relu_()

    model = small.faster_rcnn()
    model.backbone[4] = Overwriting()
    with ObjectDetectionTracer(model, "m", "v", {"map": "backbone.3"}) as tracer, torch.no_grad():
        tracer(small.images(), None, ["a", "b"], "val")
        assert tracer.get_hooked_features("map").min() < 0


@pytest.mark.parametrize("name", ["iou", "x1", "kind", "missed", "units", "det_error_proba"])
def test_a_field_cannot_be_called_like_a_column_of_a_result(name):
    fields = [{"name": name, "type": "float", "nullable": True}]
    with pytest.raises(InputError, match=name):
        ObjectDetectionTracer(small.faster_rcnn(), "m", "v", additional_fields=fields)


def test_estimates_of_a_box_do_not_contradict_each_other():
    _, result = evaluated()
    units = result.to_pandas()
    assert (units.error_proba >= units.det_error_proba - 1e-5).all()
    together = 1 - (1 - units.det_error_proba) * (1 - units.cls_error_proba)
    np.testing.assert_allclose(units.error_proba, together, atol=1e-4)


def test_only_boxes_where_nobody_is_to_look_are_nothing_to_evaluate():
    model, given = small.faster_rcnn(), small.images()
    crowd = {
        "boxes": torch.tensor([[-50.0, -50, 200, 200]]),
        "labels": torch.tensor([1]),
        "iscrowd": torch.tensor([1]),
    }
    with ObjectDetectionTracer(model, "m", "v") as tracer, torch.no_grad():
        tracer(given, [crowd] * 2, ["a", "b"], "val")
    with pytest.raises(NothingToEvaluateError, match="not to look"):
        Evaluator("m", "v").request_evaluation()


def test_images_may_be_given_by_keyword():
    model, given = small.faster_rcnn(), small.images()
    with ObjectDetectionTracer(model, "m", "v") as tracer, torch.no_grad():
        output = tracer({"images": given}, small.truths(model, given), ["a", "b"], "val")
    assert len(output) == 2
    assert stored()[1].tolist() == [len(one["boxes"]) for one in output]


class Threshold(Peaks):
    """One with a setting, and a reading of what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.least = 0.1


class ThresholdTracer(ObjectDetectionTracer):
    """Gives it the setting by the documented method; what is not documented is not overridden."""

    @staticmethod
    def detect(model: nn.Module) -> bool:
        return isinstance(model, Threshold)

    def _get_n_class(self, model: nn.Module) -> int:
        return 3

    def _apply_nms_config(self, model: nn.Module, nms_config: NMSConfig) -> None:
        if nms_config.score_thresh is not None:
            model.least = nms_config.score_thresh  # type: ignore[assignment]

    def _parse_model_output(self, model_output: Any, img_sizes: Any) -> list[DetectionOutput]:
        pairs = zip(model_output["boxes"], model_output["scores"], strict=True)
        return [DetectionOutput(box, score, torch.arange(3)) for box, score in pairs]


class ReadingTracer(ThresholdTracer):
    def _get_nms_config(self, model: nn.Module) -> NMSConfig:
        return NMSConfig(score_thresh=model.least)  # type: ignore[arg-type]


def test_settings_of_a_detector_of_no_family_come_back():
    model = Threshold()
    with ReadingTracer(model, "m", "v") as tracer:
        assert tracer.nms_config.score_thresh == 0.1
    first = ReadingTracer(model, "m", "v", score_thresh=0.4)
    second = ReadingTracer(model, "m", "v", score_thresh=0.6)
    assert (model.least, second.nms_config.score_thresh) == (0.6, 0.6)
    first.close()
    assert model.least == 0.6
    second.close()
    assert model.least == 0.1


def test_settings_that_cannot_come_back_are_warned_of():
    model = Threshold()
    with (
        pytest.warns(UserWarning, match=r"score_thresh.*override _get_nms_config"),
        ThresholdTracer(model, "m", "v", score_thresh=0.4),
    ):
        assert model.least == 0.4


def test_settings_need_a_way_to_give_them():
    model = Peaks()
    with pytest.raises(UnsupportedModelError, match="override _apply_nms_config"):
        PeaksTracer(model, "m", "v", score_thresh=0.4)
    assert not model.head._forward_hooks


class Several(nn.Module):
    """A detector of no family that takes images in any number, none too, and sees their middle."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Identity()

    def forward(self, images: Any, note: str = "") -> list[Any]:
        return [float(self.scale(image.mean()).sigmoid()) for image in images]


class SeveralTraced:
    """Reads it; notes the sizes that it is told."""

    told: ClassVar[list[Any]] = []

    @staticmethod
    def detect(model: nn.Module) -> bool:
        return isinstance(model, Several)

    def _get_n_class(self, model: nn.Module) -> int:
        return 1

    def _parse_model_output(self, model_output: Any, img_sizes: Any) -> list[DetectionOutput]:
        self.told.append(img_sizes)
        box, label = torch.tensor([[1.0, 1, 9, 9]]), torch.zeros(1, dtype=torch.int64)
        return [DetectionOutput(box, torch.tensor([one]), label) for one in model_output]


class SeveralTracer(SeveralTraced, ObjectDetectionTracer):
    pass


class SeveralLogger(SeveralTraced, ObjectDetectionLogger):
    pass


class SeveralFilter(SeveralTraced, ObjectDetectionDataFilter):
    pass


IMAGE = torch.arange(600.0).reshape(3, 10, 20) / 600


@pytest.mark.parametrize("kind", [SeveralTracer, SeveralLogger, SeveralFilter])
def test_a_batch_of_no_images_records_nothing(kind):
    with kind(Several(), "m", "v") as tracer:
        truth = [[]] if kind is SeveralTracer else []
        output = tracer([], *truth, input_ids=[])
        assert output == (([], []) if kind is SeveralFilter else [])
        if kind is SeveralLogger:
            assert tracer([]) == []
        tracer.flush()
        with Store() as store:
            assert [one.records for one in store.versions()] == [0]
        tracer([IMAGE], *([None] if truth else []), input_ids=["a"])  # it goes on
    assert stored()[1].tolist() == [1]


def test_images_in_a_tuple_are_not_the_arguments_of_a_call():
    model = Several()
    with SeveralTracer(model, "m", "v") as tracer:
        tracer.told.clear()
        tracer((IMAGE,), None, ["a"])
        tracer((IMAGE, IMAGE[:, 2:]), None, ["b", "c"])
        tracer((IMAGE[None],), None, ["d"])  # sizes are of images, each of three dimensions
        with tracer.attached(None, ["e", "f", "g"]):
            model((IMAGE,))
            model(IMAGE[None])
            model(images=IMAGE[None], note="by keyword")
        one = [(10, 20)]
        assert tracer.told == [one, [(10, 20), (8, 20)], None, one, one, one]


def test_a_number_of_images_that_only_the_output_tells_is_not_guessed():
    given = [{"of": IMAGE}, {"of": IMAGE}]  # three channels are not three images

    class Named(Several):
        def forward(self, images: Any, note: str = "") -> list[Any]:
            return super().forward([one["of"] for one in images])

    model = Named()
    with SeveralTracer(model, "m", "v") as tracer:
        tracer(given, None, ["a", "b"])
        tracer({"images": given}, None, ["c", "d"])
        with pytest.raises(InputError, match="holds 2 inputs but 3 ids"):
            tracer(given, None, ["e", "f", "g"])
        with (
            pytest.raises(InputError, match="tells how many inputs it holds"),
            tracer.attached(None, ["h", "i"]),
        ):
            model(given)
    assert stored()[1].tolist() == [1] * 4
    with SeveralLogger(model, "m", "w") as logger:
        logger.told.clear()
        logger(given)
        assert logger.told == [None]  # read once


def test_an_output_is_read_once_and_told_the_sizes():
    """Where the ids are made up after the output says how many."""

    class Uncounted(SeveralLogger):
        def count_inputs(self, args: Any, kwargs: Any) -> int | None:
            return None

    with Uncounted(Several(), "m", "v") as logger:
        logger.told.clear()
        logger([IMAGE, IMAGE])
        assert logger.told == [[(10, 20)] * 2]
    assert stored()[1].tolist() == [1, 1]


def test_an_argument_that_is_no_field_is_refused():
    with (
        ObjectDetectionTracer(small.faster_rcnn(), "m", "v") as tracer,
        pytest.raises(InputError, match="unexpected argument 'wether'"),
    ):
        tracer(small.images(), None, ["a", "b"], "val", wether="rain")


def fpn() -> FasterRCNN:
    torch.manual_seed(0)
    backbone = BackboneWithFPN(
        nn.Sequential(
            OrderedDict(
                low=nn.Conv2d(3, 8, 3, 4, 1), middle=nn.Conv2d(8, 8, 3, 2, 1), high=nn.ReLU()
            )
        ),
        {"low": "0", "high": "1"},
        [8, 8],
        16,
    )
    anchors = AnchorGenerator(((12,), (24,), (48,)), ((1.0,),) * 3)
    model = FasterRCNN(backbone, 4, 64, 96, rpn_anchor_generator=anchors, box_score_thresh=0.05)
    return model.eval()


@pytest.mark.parametrize("path", ["backbone", "backbone.fpn"])
def test_a_layer_of_several_maps_says_what_to_name_in_its_place(path):
    model, given = fpn(), small.images()
    with (
        ObjectDetectionTracer(model, "m", "v", {"map": path}) as tracer,
        torch.no_grad(),
        pytest.raises(UnsupportedModelError, match="3 tensors in one call") as caught,
    ):
        tracer(given, None, ["a", "b"], "val")
    named = re.findall(r"'(\S+layer_blocks\.\d)'", str(caught.value))
    assert named == ["backbone.fpn.layer_blocks.0", "backbone.fpn.layer_blocks.1"]
    layers = {str(at): one for at, one in enumerate(named)}
    with ObjectDetectionTracer(model, "m", "v", layers) as tracer, torch.no_grad():
        output = tracer(given, None, ["a", "b"], "val")
    boxes = sum(len(one["boxes"]) for one in output)
    columns, _ = stored()
    assert columns["predicted/feature.0"].shape == (boxes, 16)


def test_a_layer_that_runs_for_each_level_says_which_calls_there_are():
    model, path = fpn(), "rpn.head.cls_logits"
    with (
        ObjectDetectionTracer(model, "m", "v", {"map": path}) as tracer,
        torch.no_grad(),
        pytest.raises(UnsupportedModelError, match=f"ran 3 times.*{path}:call0' to .*:call2"),
    ):
        tracer(small.images(), None, ["a", "b"], "val")
    for call, said in ((2, None), (3, "ran 3 times only")):
        layers = {"map": f"{path}:call{call}"}
        with (
            ObjectDetectionTracer(model, "m", f"v{call}", layers) as tracer,
            torch.no_grad(),
            nullcontext() if said is None else pytest.raises(UnsupportedModelError, match=said),
        ):
            tracer(small.images(), None, ["a", "b"], "val")


def test_another_number_of_classes_than_the_models_is_refused(home):
    model = small.faster_rcnn()
    with pytest.raises(InputError, match=f"n_class is 3, but FasterRCNN has {small.CLASSES}"):
        ObjectDetectionTracer(model, "m", "v", n_class=3)
    assert not home.exists()
    with ObjectDetectionTracer(model, "m", "v", n_class=small.CLASSES) as tracer:
        assert tracer.n_class == small.CLASSES


class Predictor(FastRCNNPredictor):
    """A predictor whose layers have other names."""

    def __init__(self) -> None:
        super().__init__(12, small.CLASSES)
        self.mine, self.box = self.cls_score, self.bbox_pred
        del self.cls_score, self.bbox_pred

    def forward(self, x: Any) -> Any:
        return self.mine(x), self.box(x)


def test_a_model_that_does_not_tell_its_classes_has_the_users(home):
    model = small.faster_rcnn()
    model.roi_heads.box_predictor = Predictor()
    with pytest.raises(UnsupportedModelError, match="pass n_class"):
        ObjectDetectionTracer(model, "m", "v")
    assert not home.exists()
    with ObjectDetectionTracer(model, "m", "v", n_class=4) as tracer, torch.no_grad():
        tracer(small.images(), None, ["a", "b"], "val")
        assert tracer.n_class == 4


def parsed(images: list[DetectionOutput]) -> None:
    class Parsed(PeaksTracer):
        def _parse_model_output(self, model_output: Any, img_sizes: Any) -> list[DetectionOutput]:
            return images

    with Parsed(Peaks(), "m", "v") as tracer, torch.no_grad():
        ids = [f"{at}" for at in range(len(images))]
        tracer(torch.rand(len(images), 3, 16, 16), None, ids, "val")


def boxes_with(**vectors: Any) -> DetectionOutput:
    box = torch.tensor([[1.0, 1, 9, 9]])
    return DetectionOutput(box, torch.ones(1), torch.ones(1, dtype=torch.int64), **vectors)


@pytest.mark.parametrize(
    "vectors",
    [
        {"logits": torch.ones(1, 3)},
        {"statistics": torch.ones(1, 19)},
        {"features": {"emb": torch.ones(1, 2)}},
    ],
)
def test_vectors_are_of_every_image_with_boxes_or_of_none(vectors):
    (name,) = vectors
    with pytest.raises(UnsupportedModelError, match=f"input 2 has no vectors.*0 has {name[:7]}"):
        parsed([boxes_with(**vectors), DetectionOutput.empty(), boxes_with()])
    parsed([DetectionOutput.empty(), boxes_with(**vectors), boxes_with(**vectors)])
    columns, counts = stored()
    assert counts.tolist() == [0, 1, 1]
    if name != "features":  # of these only target layers are recorded
        assert columns[f"predicted/{name}"].shape == (2, vectors[name].shape[1])


def test_features_of_another_number_than_boxes_are_refused():
    with pytest.raises(UnsupportedModelError, match="does not fit together"):
        parsed([boxes_with(features={"emb": torch.ones(2, 2)})])


class Configurable(nn.Module):
    """A detector of the user's own, with a threshold."""

    def __init__(self):
        super().__init__()
        self.head, self.thresh = nn.Conv2d(3, 2, 1), 0.5

    def forward(self, images):
        return self.head(images)


class ConfigurableTracer(ObjectDetectionTracer):
    @staticmethod
    def detect(model):
        return isinstance(model, Configurable)

    def _get_n_class(self, model):
        return 2

    def _apply_nms_config(self, model, nms_config):
        model.thresh = nms_config.score_thresh

    def _get_nms_config(self, model):
        return NMSConfig(score_thresh=model.thresh)


def test_a_forgotten_tracer_of_ones_own_gives_settings_back():
    model = Configurable()
    tracer = ConfigurableTracer(model, "own", "v", {"head": "head"}, score_thresh=0.7)
    assert model.thresh == 0.7
    del tracer
    gc.collect()
    assert model.thresh == 0.5
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


def test_settings_are_told_as_they_are_now():
    model = small.faster_rcnn()
    with ObjectDetectionTracer(model, "now", "v", score_thresh=0.7) as first:
        assert first.nms_config.score_thresh == 0.7
        with ObjectDetectionTracer(model, "now", "v", score_thresh=0.4) as second:
            assert first.nms_config == second.nms_config == second.nms_config
            assert first.nms_config.score_thresh == 0.4
        model.roi_heads.score_thresh = 0.2
        assert first.nms_config.score_thresh == 0.2


def test_labels_that_the_model_never_gives_are_told_once():
    model, given = small.faster_rcnn(), small.images()
    wrong = [{"boxes": torch.tensor([[1.0, 1, 9, 9]]), "labels": torch.tensor([n])} for n in (0, 9)]
    with ObjectDetectionTracer(model, "labels", "v") as tracer, torch.no_grad():
        with pytest.warns(UserWarning, match=r"labels \[0, 9\].*below 4, and 0 stands for backgr"):
            tracer(given, wrong, ["a", "b"], "val")
        tracer(given, wrong, ["c", "d"], "val")


@pytest.mark.parametrize("tokens", [False, True])
def test_a_layer_of_an_image_of_unknown_size_is_averaged_over_places(home, tokens):
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.flat = nn.Conv2d(3, 5, 1), nn.Flatten(2)

        def forward(self, images):
            return self.flat(self.layer(images))

    class CustomTracer(ObjectDetectionTracer):
        @staticmethod
        def detect(model):
            return True

        def _get_n_class(self, model):
            return 2

        def _parse_model_output(self, model_output, img_sizes):
            box, one = torch.tensor([[0.0, 0, 4, 4]]), torch.ones(1)
            return [DetectionOutput(box, one, one.long()) for _ in model_output]

    class Transposed(Custom):
        def __init__(self):
            super().__init__()
            self.flat = nn.Sequential(nn.Flatten(2), Swapped())

    class Swapped(nn.Module):
        def forward(self, values):
            return values.transpose(1, 2)

    model = Transposed() if tokens else Custom()
    given = torch.rand(2, 3, 6, 8)
    layers = {"of": "flat" if tokens else "layer"}
    with CustomTracer(model, "m", "v", layers) as tracer, torch.no_grad():
        tracer(given, None, ["a", "b"], "val")
        expected = model.layer(given).mean((2, 3)).numpy()
    found, _ = stored()
    np.testing.assert_allclose(found["predicted/feature.of"], expected, atol=1e-6)
