"""Ground truth in the formats in use: the same scene is the same truth, and mistakes are named."""

from dataclasses import dataclass, field
from math import pi
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ml_debugger.core.errors import InputError
from ml_debugger.object_detection_3d.frames import (
    from_mmdet3d,
    pose,
    to_kitti,
    to_mmdet3d,
    to_nuscenes,
)
from ml_debugger.object_detection_3d.ground_truth import read_ground_truth

CLASSES = ["Pedestrian", "Cyclist", "Car"]
#: Of a KITTI frame.
CALIBRATION = """P0: 7.215377e+02 0 6.095593e+02 0 0 7.215377e+02 1.728540e+02 0 0 0 1 0
R0_rect: 9.999239e-01 9.837760e-03 -7.445048e-03 -9.869795e-03 9.999421e-01 -4.278459e-03 \
7.402527e-03 4.351614e-03 9.999631e-01
Tr_velo_to_cam: 7.533745e-03 -9.999714e-01 -6.166020e-04 -4.069766e-03 1.480249e-02 7.280733e-04 \
-9.998902e-01 -7.631618e-02 9.998621e-01 7.523790e-03 1.480755e-02 -2.717806e-01

"""
RECTIFY = [[0.9999239, 0.00983776, -0.007445048], [-0.009869795, 0.9999421, -0.004278459]]
RECTIFY += [[0.007402527, 0.004351614, 0.9999631]]
VELODYNE = [[0.007533745, -0.9999714, -0.000616602, -0.004069766]]
VELODYNE += [[0.01480249, 0.0007280733, -0.9998902, -0.07631618]]
VELODYNE += [[0.9998621, 0.00752379, 0.01480755, -0.2717806]]
LIDAR_TO_CAMERA = np.eye(4)
LIDAR_TO_CAMERA[:3] = np.array(RECTIFY) @ np.array(VELODYNE)
EGO = {"rotation": [0.8, 0.01, -0.02, 0.6], "translation": [411.3, 1180.9, 0.5]}
SENSOR = {"rotation": [0.7, 0, 0, -0.7], "translation": [0.94, 0, 1.84]}
NAMES = {0: "human.pedestrian.adult", 1: "vehicle.bicycle", 2: "vehicle.car"}


@dataclass
class Det3DDataSample:
    """A stand-in: only what the connector looks at."""

    gt_instances_3d: Any = None
    eval_ann_info: dict[str, Any] | None = None
    metainfo: dict[str, Any] = field(default_factory=dict)


class Instances(SimpleNamespace):
    def __contains__(self, name):
        return hasattr(self, name)


@st.composite
def scenes(draw):
    place, side = st.floats(-60, 60), st.floats(0.2, 12)
    one = st.tuples(place, place, place, side, side, side, st.floats(-3, 3))
    rows = draw(st.lists(one, max_size=4))
    labels = draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    return np.array(rows).reshape(-1, 7), np.array(labels, np.int64)


def pairs(boxes, labels):
    return (torch.from_numpy(boxes), labels.tolist())


def dicts(boxes, labels):
    return {"boxes": boxes.tolist(), "labels": torch.from_numpy(labels), "frame": "lidar"}


def samples(boxes, labels):
    return Det3DDataSample(Instances(bboxes_3d=torch.from_numpy(boxes), labels_3d=labels))


def infos(boxes, labels):
    none = np.array([[0, 0, 0, -1, -1, -1, 0.0]])[:, :7].clip(0)
    rows, numbers = np.concatenate([none, boxes]), np.append(-1, labels)
    return {"gt_bboxes_3d": rows, "gt_labels_3d": numbers}


def kitti(boxes, labels):
    lines = ["DontCare -1 -1 -10 503 169 590 190 -1 -1 -1 -1000 -1000 -1000 -10", "Tram 0 0 0 0"]
    for label, row in zip(labels, to_kitti(boxes, LIDAR_TO_CAMERA).tolist(), strict=True):
        lines.append(f"{CLASSES[label]} 0.00 0 1.5 1 2 3 4 {' '.join(map(repr, row))}")
    return {"label": "\n".join(lines) + "\n", "calibration": CALIBRATION, "classes": CLASSES}


def nuscenes(boxes, labels):
    sensor = pose(EGO["rotation"], EGO["translation"]) @ pose(
        SENSOR["rotation"], SENSOR["translation"]
    )
    found = [part.tolist() for part in to_nuscenes(boxes, sensor)]
    annotations: list[dict[str, Any]] = [
        {"translation": t, "size": s, "rotation": r, "category_name": NAMES[label]}
        for label, t, s, r in zip(labels.tolist(), *found[:3], strict=True)
    ]
    annotations.append({"translation": [], "size": [], "rotation": [], "category_name": "animal"})
    return {
        "annotations": annotations,
        "ego_pose": EGO,
        "calibrated_sensor": SENSOR,
        "classes": ["pedestrian", "bicycle", "car"],
    }


FORMATS = [pairs, dicts, samples, infos, kitti, nuscenes]


@given(st.lists(scenes(), min_size=1, max_size=3), st.sampled_from(FORMATS))
def test_same_scene_is_the_same_truth(batch, write):
    found = read_ground_truth([write(*one) for one in batch], len(batch))
    for truth, (boxes, labels) in zip(found, batch, strict=True):
        assert (truth.boxes.dtype, truth.labels.dtype) == (torch.float32, torch.int64)
        assert truth.frame == "lidar"
        assert len(truth) == len(labels)
        np.testing.assert_array_equal(truth.labels, labels)
        np.testing.assert_allclose(truth.boxes[:, :6], boxes[:, :6], atol=1e-4)
        apart = np.angle(np.exp(1j * (truth.boxes[:, 6].double().numpy() - boxes[:, 6])))
        np.testing.assert_allclose(apart, 0, atol=1e-5)
        assert not truth.ignored.any()
        assert (truth.points == -1).all()


@pytest.mark.filterwarnings("ignore")
@given(scenes(), st.sampled_from(["LiDAR", "Camera", "Depth"]))
def test_box_classes_of_mmdet3d(scene, name):
    structures: Any = pytest.importorskip("mmdet3d.structures", exc_type=ImportError)
    engine: Any = pytest.importorskip("mmengine.structures", exc_type=ImportError)
    boxes, labels = scene
    convention: Any = name.lower()
    raw = torch.from_numpy(to_mmdet3d(boxes, convention)).float()
    given = getattr(structures, f"{name}Instance3DBoxes")(raw)
    trained = structures.Det3DDataSample()
    trained.gt_instances_3d = engine.InstanceData(bboxes_3d=given, labels_3d=labels)
    tested = structures.Det3DDataSample()
    tested.gt_instances_3d = engine.InstanceData()
    tested.eval_ann_info = {"gt_bboxes_3d": given, "gt_labels_3d": labels}
    for entry in ((given, labels), {"boxes": given, "labels": labels}, trained, tested):
        (truth,) = read_ground_truth([entry], 1)
        assert truth.frame == convention
        np.testing.assert_allclose(truth.boxes[:, :6], boxes[:, :6], atol=1e-4)
        np.testing.assert_array_equal(truth.labels, labels)


def test_flags_points_and_velocities_are_kept():
    row = [1, 2, 3, 4, 2, 1.5, 0.3]
    entry = {
        "boxes": [[*row, 3, 1], [*row, np.nan, np.nan]],
        "labels": [1, 0],
        "ignored": [True, False],
        "num_points": [5, -1],
        "frame": "ego",
    }
    (truth,) = read_ground_truth([entry], None)
    assert (truth.ignored.tolist(), truth.points.tolist()) == ([True, False], [5, -1])
    assert (truth.boxes.shape, truth.frame) == ((2, 9), "ego")
    assert truth.boxes[0, 7:].tolist() == [3, 1]
    assert truth.boxes[1, 7:].isnan().all()


@pytest.mark.parametrize("none", [[], np.zeros((0, 7)), torch.zeros(0, 9), torch.zeros(0)])
def test_frame_without_objects(none):
    for truth in read_ground_truth([(none, []), (none, np.zeros(0))], 2):
        assert len(truth) == 0
        assert truth.boxes.shape[1] in (7, 9)


def test_truth_is_a_copy():
    boxes, labels = torch.ones(1, 7, requires_grad=True), torch.zeros(1, dtype=torch.int64)
    (truth,) = read_ground_truth([(boxes, labels)], 1)
    with torch.no_grad():
        boxes += 1
    labels += 1
    assert truth.boxes.tolist() == [[1] * 7]
    assert truth.labels.tolist() == [0]


def test_objects_that_kitti_does_not_count_are_ignored():
    car = "0 0 0 0 0 0 0 1.5 1.6 4 1 1.6 10 0.1"
    text = f"Van {car}\nPerson_sitting {car}\nTruck {car}\nMisc {car}\nCar {car} 0.9\n"
    entry = {"label": text, "calibration": {"R0_rect": RECTIFY, "Tr_velo_to_cam": VELODYNE}}
    (truth,) = read_ground_truth([{**entry, "classes": CLASSES}], 1)
    assert truth.labels.tolist() == [2, 0, 2]
    assert truth.ignored.tolist() == [True, True, False]
    (other,) = read_ground_truth([{**entry, "classes": {"Van": 7, "Car": 1}}], 1)
    assert (other.labels.tolist(), other.ignored.tolist()) == ([7, 1], [False, False])
    rows = [["Car", *map(float, car.split())]]
    (third,) = read_ground_truth(
        [{"label": rows, "calibration": LIDAR_TO_CAMERA, "classes": CLASSES}], 1
    )
    torch.testing.assert_close(third.boxes[0], truth.boxes[2], atol=1e-5, rtol=0)
    # ten metres ahead of a camera that is 0.27 m behind the LiDAR
    assert third.boxes[0, :6].tolist() == pytest.approx([10.3, -1.1, -0.8, 4, 1.6, 1.5], abs=0.2)
    assert third.boxes[0, 6].item() == pytest.approx(-pi / 2 - 0.1, abs=0.02)


def test_labels_of_kitti_for_a_camera():
    car = "Car 0 0 0 0 0 0 0 1.5 1.6 4 1 1.6 10 0.1"
    entry = {"label": car, "classes": CLASSES, "frame": "camera"}
    raw = [[1, 1.6, 10, 4, 1.5, 1.6, 0.1]]  # as CameraInstance3DBoxes has it
    for more in ({}, {"calibration": CALIBRATION}):
        (truth,) = read_ground_truth([entry | more], 1)
        assert truth.frame == "camera"
        np.testing.assert_allclose(truth.boxes, from_mmdet3d(np.array(raw), "camera"), atol=1e-6)


def test_what_else_is_in_files_of_kitti():
    """Blank lines, the time of calibration, and the names that the tracking benchmark has."""
    car = "Car 0 0 0 0 0 0 0 1.5 1.6 4 1 1.6 10 0.1"
    labels = [car, f"\n{car}\n\n \n", [car.split(), []]]
    tracking = CALIBRATION.replace("R0_rect:", "R_rect").replace("Tr_velo_to_cam:", "Tr_velo_cam")
    calibrations = [CALIBRATION, f"calib_time: 09-Jan-2012 13:57:47\n{CALIBRATION}\n", tracking]
    calibrations.append({"R_rect": RECTIFY, "Tr_velo_cam": VELODYNE})
    found = [
        read_ground_truth([{"label": one, "calibration": other, "classes": CLASSES}], 1)[0]
        for one in labels
        for other in calibrations
    ]
    for truth in found:
        torch.testing.assert_close(truth.boxes, found[0].boxes, atol=1e-5, rtol=0)
        assert truth.labels.tolist() == [2]


#: A camera that looks ahead from 1.5 m above the vehicle's origin.
CAMERA = {
    "rotation": [0.5, -0.5, 0.5, -0.5],
    "translation": [0, 0, 1.5],
    "camera_intrinsic": [[1000, 0, 800], [0, 1000, 450], [0, 0, 1]],
}


def test_annotations_of_nuscenes_for_a_camera():
    """Of a camera is what is in its image; where that is not known, what is in front of it."""
    at = {"rotation": [1, 0, 0, 0], "translation": [0, 0, 0]}
    car = {"size": [2, 4, 1.5], "rotation": [1, 0, 0, 0], "category_name": "vehicle.car"}
    places = [[20, 3, 1], [-20, 3, 1], [20, 40, 1], [20, 17.5, 1], [20, 0, 40], [0.5, 0, 1]]
    entry = {
        "annotations": [{**car, "translation": one, "velocity": (5, 1, 0)} for one in places],
        "classes": ["car"],
        "ego_pose": at,
        "calibrated_sensor": CAMERA,
    }
    (ahead,) = read_ground_truth([entry], 1)
    assert ahead.frame == "camera"
    expected = torch.tensor([20, 3, -0.5, 4, 2, 1.5, 0, 5, 1])
    torch.testing.assert_close(ahead.boxes[0], expected, atol=1e-5, rtol=0)
    assert len(ahead) == 5
    (seen,) = read_ground_truth([{**entry, "image_size": (1600, 900)}], 1)
    # the fourth is cut by the image's edge, and the last reaches behind the camera
    np.testing.assert_allclose(seen.boxes[:, :2], [[20, 3], [20, 17.5], [0.5, 0]], atol=1e-5)


def test_velocities_are_any_rows():
    one = {"translation": [1, 2, 3], "size": [2, 4, 1.5], "rotation": [1, 0, 0, 0]}
    one["category_name"] = "vehicle.car"
    given = [np.array([1.0, 2, 0]), torch.tensor([3.0, 4]), [0, 0], (None, None), None]
    given.append(np.full(3, np.nan))  # what nuScenes' box_velocity gives where there is none
    annotations = [{**one, "velocity": each} for each in given]
    (truth,) = read_ground_truth([{"annotations": annotations, "classes": ["car"]}], 1)
    assert truth.boxes[:3, 7:].tolist() == [[1, 2], [3, 4], [0, 0]]
    assert truth.boxes[3:, 7:].isnan().all()


def test_objects_that_no_point_hit_are_ignored():
    one = {"translation": [1, 2, 3], "size": [2, 4, 1.5], "rotation": [1, 0, 0, 0]}
    hit = [
        {**one, "category_name": "vehicle.car", "num_lidar_pts": 3, "velocity": [1, 2, 0]},
        {**one, "category_name": "car", "num_lidar_pts": 0, "num_radar_pts": 0},
        {**one, "category_name": "car", "num_lidar_pts": 0, "num_radar_pts": 2},
        {**one, "category_name": "car"},
        {**one, "category_name": "car", "num_lidar_pts": -1, "num_radar_pts": 1},
    ]
    (truth,) = read_ground_truth([{"annotations": hit, "classes": ["truck", "car"]}], 1)
    assert truth.labels.tolist() == [1, 1, 1, 1, 1]
    assert truth.ignored.tolist() == [False, True, False, False, False]
    assert truth.points.tolist() == [3, 0, 0, -1, -1]
    assert truth.boxes[0].tolist() == [1, 2, 3, 4, 2, 1.5, 0, 1, 2]
    assert truth.boxes[3, 7:].isnan().all()
    assert truth.frame == "global"


BOX = [0, 0, 0, 4, 2, 1, 0]
CAR_LINE = "Car 0 0 0 0 0 0 0 1.5 1.6 4 1 1.6"
CAR = {"translation": [1, 2, 3], "size": [2, 4, 1.5], "rotation": [1, 0, 0, 0]}
CAR["category_name"] = "vehicle.car"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"boxes": [], "labels": []}, "wrap it in a list"),
        ({"data_samples": [1], "inputs": 2}, "data_samples"),
        (torch.zeros(2, 7), "is a Tensor, not a list.*gravity"),
        ([1, 2], "begins with a int, no format known"),
        ([([BOX], [1]), ([BOX, BOX], [1])], "frame 1: 2 boxes but 1 labels"),
        ([([BOX[:6]], [1])], r"frame 0: boxes have shape \(1, 6\); expected \(n, 7\)"),
        ([([[0, 0, 0, 4, -2, 1, 0]], [1])], "side below 0"),
        ([([[0, 0, np.nan, 4, 2, 1, 0]], [1])], "must be finite"),
        ([([[16384, 0, 0, 4, 2, 1, 0]], [1])], r"\(16384, 0, 0\) m; .* float32.*Subtract"),
        ([([BOX], [-1])], "from 0"),
        ([([BOX], [0.5])], "whole numbers"),
        ([{"boxes": [BOX]}], "missing 'labels'"),
        ([{"boxes": [BOX], "labels": [1], "frame": "LIDAR"}], "'LIDAR'; expected one of lidar"),
        ([{"boxes": [BOX], "labels": [1], "ignored": [0, 1]}], r"'ignored' has shape \(2,\)"),
        ([{"boxes": [BOX], "labels": [1], "num_points": 3}], r"'num_points' has shape \(\)"),
        ([Det3DDataSample()], "has no ground truth; expected bboxes_3d"),
        ([{"gt_bboxes_3d": [BOX]}], "has no ground truth"),
        ([{"gt_bboxes_3d": [BOX], "gt_labels_3d": [1, 2]}], r"labels of shape \(2,\)"),
        ([{"label": "", "calibration": "R0_rect: 1", "classes": []}], "missing 'Tr_velo_to_cam'"),
        ([{"label": "", "calibration": CALIBRATION}], "missing 'classes'"),
        ([{"label": "", "calibration": CALIBRATION, "classes": 3}], "classes are 3"),
        (
            [{"label": CAR_LINE, "calibration": CALIBRATION, "classes": CLASSES}],
            "line 0 of the label.*at least 14",
        ),
        (
            [{"label": "", "calibration": CALIBRATION, "classes": ["car"]}],
            r"KITTI has no class 'car' \(did you mean 'Car'\?\); it has Car, Cyclist, Misc",
        ),
        ([{"label": "", "classes": CLASSES}], "missing 'calibration'"),
        (
            [{"label": "", "classes": CLASSES, "frame": "ego"}],
            "'ego'; expected 'lidar' or 'camera'",
        ),
        (
            [{"label": "", "calibration": "R0_rect: 1 x", "classes": []}],
            "line 'R0_rect: 1 x'; expected numbers after R0_rect",
        ),
        ([{"annotations": [{}], "classes": []}], "missing 'translation'"),
        ([{"annotations": [], "classes": ["Car"]}], r"nuScenes has no class 'Car' .*'car'\?"),
        (
            [{"annotations": [], "classes": ["car", "van"], "categories": ["VAN", "suv"]}],
            r"the list of 'categories' has no class 'van' \(did you mean 'VAN'",
        ),
        (
            [{"annotations": [{**CAR, "velocity": -1}], "classes": ["car"]}],
            "velocity is -1; expected vx, vy",
        ),
        (
            [
                {
                    "annotations": [],
                    "classes": ["car"],
                    "ego_pose": EGO,
                    "calibrated_sensor": {**CAMERA, "camera_intrinsic": [1, 2]},
                }
            ],
            r"camera_intrinsic has shape \(2,\)",
        ),
        ([{"annotations": [], "classes": [], "ego_pose": EGO}], "missing 'calibrated_sensor'"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(InputError, match=message):
        read_ground_truth(given, None)


def test_each_frame_has_an_entry():
    with pytest.raises(InputError, match="of 1 frames for 2 frames"):
        read_ground_truth([([], [])], 2)
