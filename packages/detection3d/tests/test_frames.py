"""Forms of 3D boxes: there and back again, as MMDetection3D has them, and by hand."""

from math import pi
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_debugger.core.errors import InputError
from ml_debugger.object_detection_3d.frames import (
    camera_axes,
    from_kitti,
    from_mmdet3d,
    from_nuscenes,
    moved,
    moved_back,
    pose,
    refuse_far,
    to_kitti,
    to_mmdet3d,
    to_nuscenes,
)

CONVENTIONS = ["lidar", "camera", "depth"]
#: Of a KITTI frame: the axes change, and the sensors are not quite parallel.
LIDAR_TO_CAMERA = np.array(
    [
        [2.347736981471e-04, -9.999441545438e-01, -1.056347781105e-02, -2.796816941295e-03],
        [1.044940741659e-02, 1.056535364138e-02, -9.998895741176e-01, -7.510879138296e-02],
        [9.999453885620e-01, 1.243653783865e-04, 1.045130299567e-02, -2.721327964059e-01],
        [0, 0, 0, 1],
    ]
)
#: The same without the lean, so that all that is left is a turn of the axes.
STRAIGHT = np.array([[0, -1, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, -0.3], [0, 0, 0, 1.0]])

place = st.floats(-100, 100)
side = st.floats(0.1, 20)
turn = st.floats(-pi, pi, exclude_max=True)
box = st.tuples(place, place, place, side, side, side, turn)
fast = st.tuples(st.floats(-30, 30), st.floats(-30, 30))


@st.composite
def many(draw, width=9):
    n = draw(st.integers(0, 4))
    rows = [(*draw(box), *draw(fast)) for _ in range(n)]
    return np.array(rows).reshape(n, 9)[:, :width]


@st.composite
def sensors(draw):
    """What moves a sensor on a vehicle that may lean by some degrees to a map kilometres wide."""
    lean = st.floats(-0.1, 0.1)
    far = st.tuples(st.floats(-5000, 5000), st.floats(-5000, 5000), st.floats(-50, 50))
    quaternion = [draw(st.floats(-1, 1)), draw(lean), draw(lean), 1.0]
    near = pose([draw(st.floats(0.5, 1)), 0, 0, draw(st.floats(-1, 1))], [0.9, 0, 1.8])
    return pose(quaternion, draw(far)) @ near


def same(found, expected, atol=1e-5):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found[:, :6], expected[:, :6], rtol=0, atol=atol)
    apart = np.angle(np.exp(1j * (found[:, 6] - expected[:, 6])))
    np.testing.assert_allclose(apart, 0, atol=atol)
    np.testing.assert_allclose(found[:, 7:], expected[:, 7:], rtol=0, atol=atol)


def corners(boxes):
    """Return the corners of boxes in our form in some order, shape (n, 8, 3)."""
    signs = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 3, indexing="ij"), -1).reshape(8, 3)
    at = signs * boxes[:, None, 3:6]
    cos, sin = np.cos(boxes[:, 6, None]), np.sin(boxes[:, 6, None])
    x, y, z = np.moveaxis(at, 2, 0)
    return np.stack([x * cos - y * sin, x * sin + y * cos, z], 2) + boxes[:, None, :3]


@given(many(), sensors())
@settings(max_examples=200)
def test_kitti_lidar_and_nuscenes_there_and_back(boxes, sensor):
    labels = to_kitti(boxes, LIDAR_TO_CAMERA)
    same(from_kitti(labels, LIDAR_TO_CAMERA), boxes[:, :7])
    again = from_nuscenes(*to_nuscenes(boxes, sensor), sensor)
    same(again, boxes)
    same(to_kitti(again, LIDAR_TO_CAMERA), labels)
    same(from_nuscenes(*to_nuscenes(boxes)), boxes)
    same(moved_back(moved(boxes, sensor), sensor), boxes)


@given(many(), st.sampled_from(CONVENTIONS), st.sampled_from([7, 9]))
def test_mmdet3d_there_and_back(boxes, convention, width):
    boxes = boxes[:, :width]
    same(from_mmdet3d(to_mmdet3d(boxes, convention), convention), boxes)
    same(to_mmdet3d(from_mmdet3d(boxes, convention), convention), boxes)


@given(many(), st.sampled_from(CONVENTIONS))
def test_tensors_are_as_arrays_and_types_stay(boxes, convention):
    boxes = boxes.astype(np.float32)
    found = from_mmdet3d(torch.from_numpy(boxes), convention)
    assert found.dtype == torch.float32
    assert from_mmdet3d(boxes, convention).dtype == np.float32
    np.testing.assert_array_equal(found.numpy(), from_mmdet3d(boxes, convention))
    kitti = to_kitti(torch.from_numpy(boxes), LIDAR_TO_CAMERA)
    np.testing.assert_array_equal(kitti.numpy(), to_kitti(boxes, LIDAR_TO_CAMERA))


@pytest.mark.filterwarnings("ignore")
@given(many(), st.sampled_from(CONVENTIONS))
def test_boxes_are_where_mmdet3d_has_them(boxes, convention):
    structures: Any = pytest.importorskip("mmdet3d.structures", exc_type=ImportError)
    kinds = {
        "lidar": structures.LiDARInstance3DBoxes,
        "camera": structures.CameraInstance3DBoxes,
        "depth": structures.DepthInstance3DBoxes,
    }
    modes = {"lidar": 0, "camera": 1, "depth": 2}
    raw = torch.from_numpy(boxes)
    theirs = kinds[convention](raw.float(), box_dim=9)
    ours = from_mmdet3d(raw, convention)
    for other in CONVENTIONS:
        # in MMDetection3D's frames the sensors are at one place, and velocities are not turned
        expected = theirs.convert_to(modes[other]).tensor.numpy()
        same(to_mmdet3d(ours, other).numpy()[:, :7], expected[:, :7], 1e-4)
    lidar = theirs.convert_to(modes["lidar"])
    np.testing.assert_allclose(ours[:, :3], lidar.gravity_center, atol=1e-4)
    lidar_corners = lidar.corners.numpy().reshape(-1, 8, 3)
    for mine, other in zip(corners(ours.numpy()), lidar_corners, strict=True):
        apart = np.linalg.norm(mine[:, None] - other[None], axis=2)
        assert apart.min(0).max() < 1e-3
        assert apart.min(1).max() < 1e-3
    own = np.moveaxis(theirs.corners.numpy().reshape(-1, 8, 3), 2, 0)
    x, y, z = own
    turned = {"lidar": (x, y, z), "camera": (z, -x, -y), "depth": (y, -x, z)}[convention]
    for mine, other in zip(corners(ours.numpy()), np.stack(turned, 2), strict=True):
        assert np.linalg.norm(mine[:, None] - other[None], axis=2).min(0).max() < 1e-3


@pytest.mark.filterwarnings("ignore")
@given(many(7))
def test_kitti_is_what_mmdet3d_reads(boxes):
    """Where the sensors are parallel; where they are not, mmdet3d leaves the heading as it was."""
    structures: Any = pytest.importorskip("mmdet3d.structures", exc_type=ImportError)
    labels = to_kitti(boxes, STRAIGHT)
    camera = structures.CameraInstance3DBoxes(
        torch.from_numpy(labels[:, [3, 4, 5, 2, 0, 1, 6]]).float()
    )
    for calibration, atol in ((STRAIGHT, 1e-4), (LIDAR_TO_CAMERA, 0.15)):
        lidar = camera.convert_to(0, np.linalg.inv(calibration), correct_yaw=True)
        expected = torch.cat([lidar.gravity_center, lidar.tensor[:, 3:]], 1).numpy()
        found = from_kitti(labels, calibration)
        # they turn the centre of the bottom: half of a leaning box's height lies elsewhere
        np.testing.assert_allclose(found[:, :6], expected[:, :6], atol=atol)
        apart = np.angle(np.exp(1j * (found[:, 6] - expected[:, 6])))
        np.testing.assert_allclose(apart, 0, atol=1e-4 if calibration is STRAIGHT else 1e-3)


def test_a_car_ahead_of_a_camera():
    """Ten metres ahead, two to the right, on the ground, and driving away to the front."""
    camera = [[2, 1.6, 10, 4, 1.5, 2, -pi / 2, 0.5, 3]]
    expected = np.array([[10, -2, -0.85, 4, 2, 1.5, 0, 3, -0.5]])
    same(from_mmdet3d(np.array(camera), "camera"), expected, 1e-12)
    depth = [[2, 10, -1.6, 4, 2, 1.5, pi / 2, 0.5, 3]]
    same(from_mmdet3d(np.array(depth), "depth"), expected, 1e-12)
    lidar = [[10, -2, -1.6, 4, 2, 1.5, 0, 3, -0.5]]
    same(from_mmdet3d(np.array(lidar), "lidar"), expected, 1e-12)
    kitti = [[1.5, 2, 4, 2.1, 1.6 - 0.2, 10 - 0.3, -pi / 2]]
    same(from_kitti(np.array(kitti), STRAIGHT), expected[:, :7], 1e-12)


@pytest.mark.filterwarnings("ignore")
@given(many(), st.floats(-pi, pi), st.tuples(place, place, place))
def test_nuscenes_in_a_camera_is_what_mmdet3d_has(boxes, heading, at):
    """A level camera on a map: `Box3DMode` moves the boxes, and converters turn velocities so."""
    structures: Any = pytest.importorskip("mmdet3d.structures", exc_type=ImportError)
    vehicle = pose([np.cos(heading / 2), 0, 0, np.sin(heading / 2)], at)
    camera = vehicle @ pose([0.5, -0.5, 0.5, -0.5], [1.7, 0.1, 1.5])
    found = from_nuscenes(*to_nuscenes(boxes), camera @ camera_axes())
    modes, given = structures.Box3DMode, torch.from_numpy(to_mmdet3d(boxes, "lidar"))
    moving = torch.linalg.inv(camera)
    theirs = modes.convert(given[:, :7], modes.LIDAR, modes.CAM, moving, correct_yaw=True)
    speed = torch.nn.functional.pad(given[:, 7:], (0, 1)) @ moving[:3, :3].T
    expected = from_mmdet3d(torch.cat([theirs, speed[:, 0::2]], 1), "camera")
    same(found, expected.numpy())


def test_velocity_turns_with_the_frame():
    """The vehicle looks north; what drives north on the map drives to its front."""
    north = pose([np.sqrt(0.5), 0, 0, np.sqrt(0.5)], [100, 200, 0])
    found = from_nuscenes(
        np.array([[100.0, 210, 1]]),
        np.array([[2.0, 4, 1.5]]),
        np.array([[np.sqrt(0.5), 0, 0, np.sqrt(0.5)]]),
        np.array([[0.0, 7, 0]]),
        north,
    )
    same(found, np.array([[10, 0, 1, 4, 2, 1.5, 0, 7, 0]]), 1e-9)


def test_unknown_velocity_stays_unknown():
    boxes = np.array([[1, 2, 3, 4, 2, 1.5, 0.3, np.nan, np.nan]])
    for found in (from_mmdet3d(boxes, "camera"), moved(boxes, pose([1, 0, 0, 0], [1, 1, 1]))):
        assert np.isnan(found[:, 7:]).all()
        assert np.isfinite(found[:, :7]).all()


def test_whole_numbers_become_fractions():
    found = from_mmdet3d(np.array([[0, 0, 0, 4, 2, 1, 7]]), "lidar")
    np.testing.assert_allclose(found, [[0, 0, 0.5, 4, 2, 1, 7 - 2 * pi]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_mmdet3d(np.zeros((2, 8)), "lidar"), r"\(2, 8\); expected \(n, 7\) or"),
        (lambda: to_mmdet3d(np.zeros(7), "lidar"), r"\(7,\)"),
        (lambda: from_mmdet3d(np.zeros((2, 7)), "waymo"), "'waymo'; expected one of lidar, camera"),
        (lambda: from_kitti(np.zeros((1, 9)), STRAIGHT), r"\(1, 9\); expected \(n, 7\)"),
        (lambda: from_kitti(np.zeros((1, 7)), np.eye(3)), r"\(3, 3\); expected \(4, 4\)"),
        (lambda: from_kitti(np.zeros((1, 7)), np.linalg.inv(STRAIGHT)), "60 degrees"),
        (lambda: moved(np.zeros((1, 7)), STRAIGHT), "60 degrees.*direction"),
        (lambda: pose([0, 0, 0, 0], [0, 0, 0]), "no quaternion"),
        (lambda: refuse_far(torch.tensor([[0, -16384.0, 0, 1, 1, 1, 0]])), "origin of the map"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_what_float32_resolves_is_let_through():
    near = [16383.9, 0, 0, 4, 2, 1, 0]
    diverged = [np.nan, np.inf, 0, 4, 2, 1, 0]
    refuse_far(torch.tensor([near, diverged], dtype=torch.float64))
    refuse_far(torch.zeros(0, 9))
