"""What a tracer of 3D detectors records, and what it leaves alone."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ml_debugger.core import ModelVersion, Store
from ml_debugger.core.errors import InputError, UnsupportedModelError
from ml_debugger.data_filter import ObjectDetection3DDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.monitoring import ObjectDetection3DLogger
from ml_debugger.object_detection_3d.clouds import count_frames
from ml_debugger.object_detection_3d.frames import from_mmdet3d
from ml_debugger.object_detection_3d.geometry import iou
from ml_debugger.object_detection_3d.output import Detection3DOutput, NMSConfig
from ml_debugger.object_detection_3d.schema import SCHEMA
from ml_debugger.object_detection_3d.statistics import HIDDEN, NAMES
from ml_debugger.training import ObjectDetection3DTracer

from . import small


class OwnTracer(small.Own, ObjectDetection3DTracer):
    """Traces the small detector by the documented methods."""


class OwnLogger(small.Own, ObjectDetection3DLogger):
    pass


class OwnFilter(small.Own, ObjectDetection3DDataFilter):
    pass


def stored():
    with Store() as store:
        records = store.open(ModelVersion("m", "v")).records()
        names = [name for name in records.names() if name.startswith(("predicted", "actual"))]
        return {name: records.column(name) for name in names}, records.counts("predicted")


def of_inputs(name):
    with Store() as store:
        return store.open(ModelVersion("m", "v")).records().column(f"input/{name}").to_pylist()


def trace(n=2, kind=ObjectDetection3DTracer, truths=None, ids=None, **arguments):
    model, given = small.pillars(), small.clouds(n)
    ids = range(n) if ids is None else ids
    with kind(model, "m", "v", **arguments) as tracer, torch.no_grad():
        truths = small.truths(model, given) if truths is None else truths
        return model, given, tracer(given, truths, ids, "val")


@pytest.mark.usefixtures("known")
def test_what_is_recorded_of_each_box():
    _, _, output = trace()
    columns, counts = stored()
    assert counts.tolist() == [len(one["boxes"]) for one in output]
    assert counts.min() >= 3
    boxes = torch.cat([from_mmdet3d(one["boxes"], "lidar") for one in output])
    for at, name in enumerate(small.NAMES):
        assert np.array_equal(columns[f"predicted/{name}"], boxes[:, at])
    assert np.isnan(columns["predicted/vx"]).all()
    assert np.array_equal(columns["predicted/pred_size"], boxes[:, 3] * boxes[:, 4])
    assert np.allclose(columns["predicted/distance"], boxes[:, 0].hypot(boxes[:, 1]))
    labels = torch.cat([one["labels"] for one in output])
    scores = torch.cat([one["scores"] for one in output])
    assert np.array_equal(columns["predicted/prediction"], labels)
    assert np.array_equal(columns["predicted/score"], scores)
    logits = torch.from_numpy(columns["predicted/logits"].copy())
    assert torch.equal(logits.sigmoid()[torch.arange(len(labels)), labels], scores)
    assert columns["predicted/finite"].all()  # though nobody knows the velocity
    assert columns["predicted/statistics"].shape == (len(boxes), len(NAMES))
    assert columns["predicted/points"].min() >= 0
    assert columns["predicted/points"].max() > 0
    assert of_inputs("frame") == ["lidar", "lidar"]
    assert all(value >= 0 for name in HIDDEN for value in of_inputs(name))


@pytest.mark.usefixtures("known")
def test_each_box_is_of_the_cell_that_made_it():
    model, given, output = trace()
    columns, _ = stored()
    with torch.no_grad():
        maps = model.features(torch.stack([small.scatter(one) for one in given]))
    owner = np.repeat(np.arange(2), [len(one["boxes"]) for one in output])
    assert (columns["predicted/cell_level"] == 0).all()
    row, column = columns["predicted/cell_row"], columns["predicted/cell_column"]
    assert np.array_equal(columns["predicted/feature.cell"], maps[owner, :, row, column])
    for name, cell in (("x", column), ("y", row)):
        middle = cell - small.REACH + 0.5
        assert (np.abs(columns[f"predicted/{name}"] - middle) <= 1).all()


@pytest.mark.usefixtures("known")
def test_settings_are_the_models_own_and_come_back():
    model, given = small.pillars(), small.clouds()
    wanted = {"score_thresh": 0.5, "iou_thresh": 0.0, "max_detections_per_frame": 2}
    bare = small.pillars(score_thresh=0.5, iou_thresh=0.0, most=2)
    before = small.PillarAdapter().nms(model)
    with ObjectDetection3DTracer(model, "m", "v") as tracer:
        assert tracer.nms_config == before
        assert tracer.layers == {"cell": "features"}
        assert tracer.n_class == small.CLASSES
    with ObjectDetection3DTracer(model, "m", "v", **wanted) as tracer, torch.no_grad():
        assert tracer.nms_config == NMSConfig(**wanted)
        for ours, alone in zip(tracer(given, None, ["a", "b"]), bare(given), strict=True):
            assert all(torch.equal(ours[name], alone[name]) for name in alone)
    assert small.PillarAdapter().nms(model) == before


def test_a_detector_of_no_family_by_the_documented_methods():
    model, given, output = trace(kind=OwnTracer, target_layers={"map": "features"})
    columns, counts = stored()
    assert counts.tolist() == [len(one["boxes"]) for one in output]
    assert set(columns["predicted/cell_row"]) == {-1}
    assert (columns["predicted/points"] >= 0).all()
    numbers = dict(zip(NAMES, columns["predicted/statistics"].T, strict=True))
    alone = ("log_length", "log_distance", "side_on", "log_points", "boxes_in_frame", "shadow")
    assert all(np.isfinite(numbers[name]).all() for name in alone)
    assert np.isnan(numbers["candidates"]).all()  # which only an adapter knows
    assert "predicted/logits" not in columns
    with torch.no_grad():
        maps = model.features(torch.stack([small.scatter(one) for one in given]))
    means = maps.mean((2, 3)).repeat_interleave(torch.from_numpy(counts), 0)
    np.testing.assert_allclose(columns["predicted/feature.map"], means, atol=1e-6)
    assert all(np.isnan(of_inputs(name)).all() for name in HIDDEN)
    result = Evaluator("m", "v").request_evaluation()
    assert result.method_name == "od3d_v1"
    assert len(result) == counts.sum()


def test_a_model_of_no_known_family_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"Linear.*MMDetection3D CenterPoint"):
        ObjectDetection3DTracer(nn.Linear(2, 2), "m", "v")


def test_velocities_are_recorded_where_they_are_known():
    class Moving(OwnTracer):
        def _parse_model_output(self, model_output: Any) -> list[Detection3DOutput]:
            first, second = super()._parse_model_output(model_output)
            speed = torch.ones(len(first), 2)
            boxes = torch.cat([first.boxes, speed], 1)
            return [Detection3DOutput(boxes, first.scores, first.labels), second]

    truth = {"boxes": [[1.0, 2, 0, 4, 2, 1, 0, 3, np.nan]], "labels": [1]}
    trace(kind=Moving, truths=[truth, {"boxes": [], "labels": []}])
    columns, counts = stored()
    assert (columns["predicted/vx"][: counts[0]] == 1).all()
    assert np.isnan(columns["predicted/vx"][counts[0] :]).all()
    assert columns["predicted/finite"].all()
    assert columns["actual/vx"].tolist() == [3]
    assert np.isnan(columns["actual/vy"]).all()


# Where the boxes are


def truth_in(frame):
    return [{"boxes": [[1.0, 2, 0, 4, 2, 1, 0]], "labels": [1], "frame": frame}] * 2


def test_truth_of_another_frame_is_refused_before_the_model_runs():
    ran = []
    model = small.pillars()
    model.register_forward_pre_hook(lambda *_: ran.append(1))
    with (
        OwnTracer(model, "m", "v") as tracer,
        pytest.raises(
            InputError, match=r"frame 0 is in the frame 'camera'.*Pillars are in 'lidar'"
        ),
    ):
        tracer(small.clouds(), truth_in("camera"), ["a", "b"])
    assert not ran


def test_a_tracer_of_ones_own_says_where_boxes_are():
    class OnMap(OwnTracer):
        frame = "global"

    trace(kind=OnMap, truths=truth_in("global"))
    assert of_inputs("frame") == ["global"] * 2
    columns, _ = stored()
    assert np.isnan(columns["predicted/distance"]).all()  # nobody knows where the sensor is
    assert columns["predicted/finite"].all()


def test_versions_in_other_frames_are_not_followed():
    class OnMap(OwnTracer):
        frame = "global"

    results = []
    for version, kind in (("v1", OwnTracer), ("v2", OnMap), ("v3", OwnTracer)):
        model, given = small.pillars(), small.clouds(6)
        truths = [{**one, "frame": kind.frame} for one in small.truths(model, given)]
        with kind(model, "m", version) as tracer, torch.no_grad():
            tracer(given, truths, range(6), "val")
        results.append(Evaluator("m", version).request_evaluation())
    with pytest.raises(InputError, match="'lidar'.*'global'"):
        results[0].flow(results[1])
    same = results[0].flow(results[2])
    assert same.moved.empty
    assert same.relabelled == 0
    assert same.outcomes.to_numpy().sum() > 6


def test_truths_outside_the_range_are_neither_missed_nor_found():
    truths = [
        {"boxes": [[1.0, 2, 0, 4, 2, 1, 0], [90.0, 2, 0, 4, 2, 1, 0]], "labels": [1, 1]},
        {"boxes": [[1.0, 2, 5, 4, 2, 1, 0]], "labels": [1]},
    ]
    kind = {"pc_range": [-8, -8, -3, 8, 8, 3], "kind": OwnTracer}
    _, _, output = trace(truths=truths, **kind)
    columns, _ = stored()
    assert columns["actual/ignored"].tolist() == [False, True, True]
    assert len(columns["predicted/x"]) == sum(len(one["boxes"]) for one in output)
    truths = Evaluator("m", "v").request_evaluation().truths()
    assert not truths.missed.to_numpy()[1:].any()


# Where truth comes from


def given_by(model, clouds, names):
    return dict(zip(names, small.truths(model, clouds), strict=True))


@pytest.mark.parametrize("as_", [dict, lambda known: known.get], ids=["dict", "callable"])
def test_a_provider_gives_the_truth_that_a_call_leaves_out(as_):
    model, given = small.pillars(), small.clouds()
    known = as_(given_by(model, given, ["0", "1"]))
    with OwnTracer(model, "m", "v", ground_truth_provider=known) as tracer, torch.no_grad():
        tracer(given, None, [0, 1], "val", n_epoch=1)
        tracer(given, small.truths(model, given)[::-1], [0, 1], "val", n_epoch=2)
        with tracer.attached(None, [0, 1], "val", n_epoch=3):
            model(given)
    columns, _ = stored()
    own = np.concatenate([one["boxes"][:, 0] for one in small.truths(model, given)])
    n = len(own)
    assert np.array_equal(columns["actual/x"][:n], own)
    assert not np.array_equal(columns["actual/x"][n : 2 * n], own)
    assert np.array_equal(columns["actual/x"][2 * n :], own)


def test_ids_that_a_provider_does_not_know_are_named():
    model, given, ran = small.pillars(), small.clouds(), []
    model.register_forward_pre_hook(lambda *_: ran.append(1))
    with (
        OwnTracer(model, "m", "v", ground_truth_provider={"a": truth_in("lidar")[0]}) as tracer,
        pytest.raises(InputError, match="nothing for 1 of 2 ids: 'b'"),
    ):
        tracer(given, None, ["a", "b"])
    assert not ran


# What a call may be given


CLOUD = torch.zeros(5, 4)


@pytest.mark.parametrize(
    ("given", "frames"),
    [
        (CLOUD, 1),
        (CLOUD[None].expand(3, 5, 4), 3),
        ([CLOUD, CLOUD], 2),
        ((CLOUD,), 1),
        ([], 0),
        ({"points": [CLOUD, CLOUD], "img": torch.zeros(2, 3, 4, 4), "img_metas": [{}, {}]}, 2),
        ({"points": CLOUD}, 1),
        ({"img": torch.zeros(2, 3, 4, 4)}, 2),
        ({"inputs": {"points": [CLOUD]}, "data_samples": [object()]}, 1),
        ({"inputs": {"points": [CLOUD] * 3}}, 3),
        ({"data_samples": [object()] * 2}, 2),
        ({"else": CLOUD}, None),
        (3, None),
        ("cloud.bin", None),
    ],
)
def test_frames_are_counted(given, frames):
    assert count_frames(given) == frames


class Single(nn.Module):
    """Takes one cloud, or MMDetection3D's dict."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small.pillars()

    def forward(self, points: Any, img_metas: Any = None) -> Any:
        return self.model([points] if isinstance(points, torch.Tensor) else points)


def test_a_cloud_is_one_frame_however_many_points_it_has():
    class SingleTracer(OwnTracer):
        @staticmethod
        def detect(model: nn.Module) -> bool:
            return isinstance(model, Single)

    model, (cloud, other) = Single(), small.clouds()
    with SingleTracer(model, "m", "v") as tracer, torch.no_grad():
        tracer(cloud, None, ["a"])
        tracer({"points": [cloud, other], "img_metas": [{}, {}]}, None, ["b", "c"])
        with pytest.raises(InputError, match="2 input_ids for a batch of 1"):
            tracer(cloud, None, ["d", "e"])
    _, counts = stored()
    assert counts[0] == counts[1]
    assert len(counts) == 3


@pytest.mark.usefixtures("known")
def test_frames_without_boxes_are_recorded():
    given = [small.clouds(1)[0], small.blank()]
    truth = [{"boxes": [[1.0, 2, 0, 4, 2, 1, 0]], "labels": [1]}] * 2
    with ObjectDetection3DTracer(small.pillars(), "m", "v") as tracer, torch.no_grad():
        tracer(given, truth, ["a", "b"], "val")
    _, counts = stored()
    assert counts[0] > 0
    assert counts[1] == 0
    result = Evaluator("m", "v").request_evaluation()
    assert result.truths().missed.to_numpy()[1]
    assert result.inputs().expected_missed.notna().all()
    assert list(result.inputs().frame) == ["lidar"] * 2


# What becomes of it


def evaluated(n=16, kind=ObjectDetection3DTracer):
    model, given = small.pillars(), small.clouds(n)
    with kind(model, "m", "v") as tracer, torch.no_grad():
        truths = small.truths(model, given)
        for one in truths:
            far = torch.tensor([[30.0, 30, 0, 4, 2, 1, 0]])
            one["boxes"] = torch.cat([one["boxes"], far])
            one["labels"] = torch.cat([one["labels"], torch.tensor([1])])
        tracer(given, truths, range(n), "val")
    return model, Evaluator("m", "v").request_evaluation()


@pytest.mark.usefixtures("known")
def test_an_evaluation_tells_what_was_missed_and_how_each_box_is_wrong():
    _, result = evaluated()
    units = result.to_pandas()
    right = (units.kind == "A") & (units.label == units.prediction)
    assert (units.wrong == ~right).all()
    assert right.any()
    assert units.code.str.startswith("DET:").all()
    for name in ("error_proba", "det_error_proba", "cls_error_proba"):
        assert units[name].between(0, 1).all()
    truths = result.truths()
    assert truths.missed.sum() >= 16
    codes = result.error_codes()
    missed = codes[codes.code.str.startswith("DET:no_prediction")]
    assert missed.n.sum() == truths.missed.sum()
    columns = {column.name for column in SCHEMA.extracted_feature}
    assert columns <= set(result.samples().columns)


@pytest.mark.usefixtures("known")
def test_frames_are_ranked_by_their_boxes():
    model, result = evaluated()
    pool = [*small.clouds(6, seed=5), small.blank()]
    ids = [*map(str, range(6)), "blank"]
    config = {"img_error_threshold": 0.5, "weight_column": "pred_size"}
    with (
        ObjectDetection3DDataFilter(
            model, "m", "v", result.result_name, filter_config=config
        ) as data_filter,
        torch.no_grad(),
    ):
        _, flags = data_filter(pool, ids)
        assert flags[-1] is False
        found = data_filter.query(20, config, explain=True)
        flagged = set(found.input_id[found.rank_value >= 0.5])
        assert flagged == {name for name, flag in zip(ids, flags, strict=True) if flag}
        assert "blank" not in data_filter.query(20, "high_error_proba")
        assert "blank" in data_filter.query(20, "high_error_proba", include_empty=True)
        near = {"conditions": [{"distance": "<3", "points": ">=0"}]}
        assert set(data_filter.query(20, {"bbox_filter": near})) <= set(ids)
        everywhere = {"conditions": [{"frame": "==lidar"}]}
        assert len(data_filter.query(20, {"bbox_filter": everywhere})) == 6


@pytest.mark.usefixtures("known")
def test_a_logger_needs_neither_ids_nor_truth():
    model, result = evaluated()
    with ObjectDetection3DLogger(model, "m", "v", result.result_name) as logger, torch.no_grad():
        for at in range(4):
            logger(small.clouds(2, seed=at))
        logger([small.blank()])
        health = logger.health(window=4)
    assert health.n.sum() > 0
    seen = health[health.n > 0]  # the frame without a box is a window of its own
    assert seen.estimated_accuracy.between(0, 1).all()


def test_loggers_and_filters_of_ones_own():
    model, given = small.pillars(), small.clouds()
    with OwnLogger(model, "m", "v") as logger, torch.no_grad():
        logger(given)
    with OwnFilter(model, "m", "v") as data_filter, torch.no_grad():
        _, flags = data_filter(given, ["a", "b"])
        assert flags == [None, None]
    assert len(stored()[1]) == 4


@pytest.mark.usefixtures("known")
def test_boxes_that_are_not_finite_are_told_and_harm_no_others():
    model, given = small.pillars(), small.clouds()
    with torch.no_grad():
        model.boxes.weight[6] = torch.nan  # headings
    with ObjectDetection3DTracer(model, "m", "v") as tracer, torch.no_grad():
        tracer(given, None, ["a", "b"])
    columns, counts = stored()
    assert counts.sum() > 0
    assert not columns["predicted/finite"].any()


@pytest.mark.usefixtures("known")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_detector_on_a_gpu_is_recorded_as_one_on_a_cpu():
    model, given = small.pillars().cuda(), [one.cuda() for one in small.clouds()]
    with ObjectDetection3DTracer(model, "m", "v") as tracer, torch.no_grad():
        output = tracer(given, small.truths(model, given), ["a", "b"], "val")
    columns, counts = stored()
    assert counts.tolist() == [len(one["boxes"]) for one in output]
    boxes = torch.cat([from_mmdet3d(one["boxes"], "lidar") for one in output]).cpu()
    assert np.array_equal(columns["predicted/x"], boxes[:, 0])
    numbers = dict(zip(NAMES, columns["predicted/statistics"].T, strict=True))
    assert np.isfinite(numbers["candidates"]).all()
    assert (columns["predicted/points"] >= 0).all()
    assert (columns["predicted/cell_row"] >= 0).all()


def test_iou_of_the_option_is_that_of_the_package():
    _, result = evaluated(kind=OwnTracer)
    units, truths = result.to_pandas(), result.truths()
    found = units[units.kind == "A"].iloc[0]
    true = truths[truths.input_id == found.input_id]
    overlap = iou([[found[name] for name in small.NAMES]], true[list(small.NAMES)].to_numpy())
    assert overlap.max() == pytest.approx(found.iou, abs=1e-5)


class Counted(torch.nn.Module):
    """Finds as many boxes in a cloud as it has points."""

    def forward(self, clouds):
        return [torch.ones(len(one), 7) for one in clouds]


class CountedTracer(ObjectDetection3DTracer):
    width = len(NAMES)

    @staticmethod
    def detect(model):
        return isinstance(model, Counted)

    def _get_n_class(self, model):
        return 1

    def _parse_model_output(self, model_output):
        return [
            Detection3DOutput(
                one,
                one[:, 0],
                one[:, 0].long() * 0,
                statistics=torch.ones(len(one), self.width) if len(one) else None,
            )
            for one in model_output
        ]


def count(*sizes, kind=CountedTracer):
    with kind(Counted(), "m", "v", {}) as tracer:
        for number, size in enumerate(sizes):
            tracer([torch.ones(size, 4)], [{"boxes": [], "labels": []}], [str(number)], "val")


@pytest.mark.parametrize("sizes", [(3, 0, 2), (0, 3)])
def test_a_batch_without_boxes_goes_with_numbers_of_ones_own(sizes):
    count(*sizes)
    columns, counts = stored()
    assert sorted(counts.tolist()) == sorted(sizes)
    assert (columns["predicted/statistics"] == np.ones((sum(sizes), len(NAMES)))).all()


def test_numbers_of_ones_own_are_those_of_the_task():
    class Odd(CountedTracer):
        width = 5

    with pytest.raises(UnsupportedModelError, match=r"\(2, 5\); expected \(n, 23\), or None"):
        count(2, kind=Odd)
