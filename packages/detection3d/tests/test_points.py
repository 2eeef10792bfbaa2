"""Points in boxes, predicted and true."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ml_debugger.core import ModelVersion, Store
from ml_debugger.object_detection_3d.frames import to_mmdet3d
from ml_debugger.object_detection_3d.output import Detection3DOutput
from ml_debugger.object_detection_3d.points import count_points
from ml_debugger.training import ObjectDetection3DTracer

from . import small


def slow(boxes, cloud):
    """Look at each point of each box."""
    found = []
    for x, y, z, *sides, yaw in boxes.double()[:, :7].tolist():
        off = cloud[:, :3].double() - torch.tensor([x, y, z], dtype=torch.float64)
        cos, sin = np.cos(yaw), np.sin(yaw)
        turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
        found.append(int(((off @ turn).abs() <= torch.tensor(sides) / 2).all(1).sum()))
    return torch.tensor(found, dtype=torch.int64)


def scene(seed, boxes, points, reach):
    generator = torch.Generator().manual_seed(seed)

    def within(low, high, *shape):
        return low + (high - low) * torch.rand(shape, generator=generator)

    found = torch.cat(
        [within(-reach, reach, boxes, 2), within(-1, 1, boxes, 1), within(0.3, 9, boxes, 3),
         within(-7, 7, boxes, 1)], 1
    )  # fmt: skip
    cloud = torch.cat([within(-reach, reach, points, 2), within(-2, 2, points, 2)], 1)
    return found, cloud


@given(st.integers(0, 1000), st.integers(0, 30), st.integers(0, 400), st.sampled_from([3, 40, 900]))
def test_points_are_those_that_lie_in_the_box(seed, boxes, points, reach):
    found, cloud = scene(seed, boxes, points, reach)
    assert torch.equal(count_points(found, cloud), slow(found, cloud))


def test_as_mmcv_counts_them():
    ops = pytest.importorskip("mmcv.ops", exc_type=ImportError)
    boxes, cloud = scene(0, 60, 30_000, 20)
    theirs = to_mmdet3d(boxes, "lidar")
    inside = ops.points_in_boxes_cpu(cloud[None, :, :3].contiguous(), theirs[None])
    assert torch.equal(count_points(boxes, cloud), inside[0].sum(0).long())
    assert inside.sum() > 1000


def test_what_is_not_finite_has_no_points():
    boxes, cloud = scene(0, 8, 3000, 5)
    boxes[:, 3:6] = 20.0
    cloud[0] = torch.nan
    cloud[1, 0], cloud[2, 1] = torch.inf, 1e30  # far, and alone there
    boxes[1, 6], boxes[2, 0], boxes[3, 3], boxes[4, 4] = torch.nan, torch.inf, 1e30, -1.0
    found = count_points(boxes, cloud)
    assert found[[1, 2, 4]].tolist() == [0, 0, 0]
    assert (found[[0, 3, 5, 6, 7]] > 100).all()


def recorded(table):
    with Store() as store:
        records = store.open(ModelVersion("m", "v")).records()
        return np.asarray(records.column(f"{table}/points"))


class Two(torch.nn.Module):
    """Finds two boxes in anything."""

    def forward(self, *args, **kwargs):
        return [torch.tensor([[0.0, 0, 0, 2, 2, 2, 0], [50, 0, 0, 2, 2, 2, 0]])]


class TwoTracer(ObjectDetection3DTracer):
    @staticmethod
    def detect(model):
        return isinstance(model, Two)

    def _get_n_class(self, model):
        return 1

    def _parse_model_output(self, model_output):
        score, label = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
        return [Detection3DOutput(one, score, label) for one in model_output]


class OfVehicle(TwoTracer):
    frame = "ego"


def traced(model_input, truth, kind=TwoTracer):
    with kind(Two(), "m", "v") as tracer:
        tracer(model_input, [truth], ["a"], "val")


TRUTH = {"boxes": [[0.0, 0, 0, 4, 4, 4, 0]], "labels": [0], "num_points": [77]}
CLOUD = torch.tensor([[0.5, 0.5, 0.5, 9], [-1.5, 0, 0, 9], [8, 8, 8, 9]])


@pytest.mark.parametrize(
    "model_input",
    [
        CLOUD,
        CLOUD[None],
        [CLOUD],
        {"points": [CLOUD], "img_metas": [{}]},
        {"inputs": {"points": [CLOUD], "voxels": {}}, "data_samples": [None]},
    ],
)
def test_predicted_and_true_boxes_are_counted_in_the_same_cloud(model_input):
    traced(model_input, TRUTH)
    assert recorded("predicted").tolist() == [1, 0]
    assert recorded("actual").tolist() == [2]  # whatever a label file says of one of its sweeps


@pytest.mark.parametrize(
    ("model_input", "kind", "frame"),
    [
        ({"img": torch.zeros(1, 3, 8, 8)}, TwoTracer, "lidar"),
        ([CLOUD], OfVehicle, "ego"),  # where the cloud is not
    ],
)
def test_without_a_cloud_there_is_what_was_given(model_input, kind, frame):
    traced(model_input, TRUTH | {"frame": frame}, kind)
    assert np.isnan(recorded("predicted")).all()
    assert recorded("actual").tolist() == [77]


@pytest.mark.usefixtures("known")
def test_an_adapters_boxes_are_counted():
    model, clouds = small.pillars(), small.clouds()
    with ObjectDetection3DTracer(model, "m", "v") as tracer, torch.no_grad():
        tracer(clouds, small.truths(model, clouds), range(2), "val")
    assert (recorded("predicted") >= 0).all()
    assert (recorded("actual") >= 0).all()


@pytest.mark.parametrize(
    "model_input",
    [
        torch.rand(1, 4, 1000) - 0.5,  # as PointNet has them
        torch.rand(1, 40, 60),  # a map of what is where
    ],
)
def test_what_has_no_points_in_rows_is_no_cloud(model_input):
    traced(model_input, TRUTH)
    assert np.isnan(recorded("predicted")).all()
    assert recorded("actual").tolist() == [77]


def test_padding_is_no_point():
    padded = torch.cat([CLOUD, torch.zeros(500, 4)])
    traced(padded[None], TRUTH)
    assert recorded("predicted").tolist() == [1, 0]


def test_boxes_as_large_as_the_cloud():
    boxes, cloud = scene(0, 40, 20_000, 30)
    boxes[:, 3:6] = 200.0
    assert torch.equal(count_points(boxes, cloud), slow(boxes, cloud))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_boxes_and_cloud_may_be_on_different_devices():
    boxes, cloud = scene(0, 40, 2000, 30)
    found = [count_points(a, b) for a in (boxes, boxes.cuda()) for b in (cloud, cloud.cuda())]
    assert all(torch.equal(one, found[0]) for one in found)
