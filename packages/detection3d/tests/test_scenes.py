"""Generated scenes: the same again, true to what they say, and as a LiDAR sees them."""

import numpy as np
import pytest
import torch

from ml_debugger.object_detection_3d.geometry import iou, sound
from ml_debugger.object_detection_3d.ground_truth import read_ground_truth
from ml_debugger.object_detection_3d.scenes import CLASSES, GROUND, make_scenes

REACH = 20.0


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(150, seed=3)


def together(scenes, name):
    return np.concatenate([getattr(one, name) for one in scenes])


def from_box(points, box):
    """Return where points are from the centre of a box, along its sides, shape (p, 3)."""
    cos, sin = np.cos(box[6]), np.sin(box[6])
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return (points[:, :3].astype(float) - box[:3]) @ turn


def test_the_same_seed_makes_the_same_scenes(scenes):
    for one, again in zip(scenes[:4], make_scenes(4, seed=3), strict=True):
        assert all(np.array_equal(*pair) for pair in zip(one, again, strict=True))
    other = make_scenes(1, seed=4)[0]
    assert other.points.shape != scenes[0].points.shape or (other.points != scenes[0].points).any()


def test_shapes_types_and_ranges(scenes):
    for one in scenes:
        n = len(one.boxes)
        assert (one.points.dtype, one.points.shape[1]) == (np.float32, 4)
        assert (one.boxes.dtype, one.boxes.shape) == (np.float32, (n, 7))
        assert (one.labels.dtype, one.labels.shape) == (np.int64, (n,))
        assert (one.num_points.dtype, one.num_points.shape) == (np.int64, (n,))
        assert (one.ignored.dtype, one.ignored.shape) == (np.bool_, (n,))
        assert np.isfinite(one.points).all()
        assert (abs(one.points[:, :2]) < REACH).all()
        assert ((one.points[:, 3] >= 0) & (one.points[:, 3] <= 1)).all()
        assert (abs(one.boxes[:, :2]) <= REACH - 1).all()
        assert sound(one.boxes).all()
        bottom = one.boxes[:, 2] - one.boxes[:, 5] / 2
        assert (abs(bottom - GROUND) < 0.06).all()
    assert 5000 < np.mean([len(one.points) for one in scenes]) < 10_000
    assert set(together(scenes, "labels")) == set(range(len(CLASSES)))
    sides = together(scenes, "boxes")[:, 3:6]
    for label, size in enumerate([(4.2, 1.8, 1.6), (0.7, 0.7, 1.75), (1.8, 0.7, 1.7)]):
        middle = np.median(sides[together(scenes, "labels") == label], 0)
        assert middle == pytest.approx(size, rel=0.05)


def test_points_are_counted_in_boxes(scenes):
    for one in scenes[:40]:
        for box, count in zip(one.boxes.astype(float), one.num_points, strict=True):
            inside = (2 * abs(from_box(one.points, box)) <= box[3:6]).all(1)
            assert inside.sum() == count
        assert np.array_equal(one.ignored, one.num_points < 5)
    assert 0.05 < together(scenes, "ignored").mean() < 0.3


def test_boxes_are_where_the_objects_are():
    """Just outside of a box, at the object's height, there is next to nothing."""
    inside = around = 0
    for one in make_scenes(60, seed=1, noise=0.0):
        for box in one.boxes.astype(float):
            away = from_box(one.points, box)
            aloft = (away[:, 2] > 0.1 - box[5] / 2) & (away[:, 2] <= box[5] / 2)
            wide = (2 * abs(away[:, :2]) <= box[3:5] + 0.3).all(1) & aloft
            within = (2 * abs(away[:, :2]) <= box[3:5] + 1e-4).all(1) & aloft
            inside, around = inside + within.sum(), around + (wide & ~within).sum()
    assert inside > 10_000
    assert around < 0.01 * inside


def test_boxes_do_not_overlap(scenes):
    for one in scenes[:50]:
        assert (iou(one.boxes, one.boxes) > 0).sum() == len(one.boxes)


def test_what_is_far_has_few_points(scenes):
    counts, labels = together(scenes, "num_points"), together(scenes, "labels")
    away = np.hypot(*together(scenes, "boxes")[:, :2].T)
    for label in range(len(CLASSES)):
        of_class = labels == label
        means = [
            counts[of_class & (away >= low) & (away < high)].mean()
            for low, high in ((3, 8), (8, 14), (14, 30))
        ]
        assert means[0] > 2 * means[1] > 4 * means[2] > 0


def test_what_is_hidden_has_no_points():
    """No ray goes through the lower half of a car; dust, which is anywhere, is little."""
    share = np.linspace(0.05, 0.97, 200)[:, None, None]
    through = cars = 0
    for one in make_scenes(40, seed=2, noise=0.0):
        for box in one.boxes[one.labels == 0].astype(float):
            middle = box - [0, 0, 0.15 * box[5], 0, 0, 0, 0]
            off = np.linalg.norm(one.points[:, :2] - box[:2], axis=1)
            behind = np.hypot(*one.points[:, :2].T) > np.hypot(*box[:2])
            ahead = one.points[:, :2].astype(float) @ box[:2] > 0
            some = one.points[behind & ahead & (off < 30), :3]
            places = from_box((share * some).reshape(-1, 3), middle).reshape(len(share), -1, 3)
            hit = (abs(places) < box[3:6] * [0.45, 0.4, 0.2]).all(2).any(0)
            through, cars = through + hit.sum(), cars + 1
    assert cars > 80
    assert through < cars / 4


def test_noise_moves_points_and_not_boxes():
    clear, noisy = (make_scenes(3, seed=5, noise=noise) for noise in (0.0, 0.1))
    for one, other in zip(clear, noisy, strict=True):
        assert np.array_equal(one.boxes, other.boxes)
        off = from_box(one.points[:3], np.zeros(7)), from_box(other.points[:3], np.zeros(7))
        assert (off[0] != off[1]).any()


@pytest.mark.parametrize("reach", [8.0, 30.0])
def test_reach(reach):
    for one in make_scenes(20, seed=1, reach=reach):
        assert (abs(one.points[:, :2]) < reach).all()
        assert (abs(one.boxes[:, :2]) <= reach - 1).all()


def test_none():
    assert make_scenes(0) == []


def test_they_are_ground_truth(scenes):
    names = ("boxes", "labels", "num_points", "ignored")
    given = [{name: torch.from_numpy(getattr(one, name)) for name in names} for one in scenes[:5]]
    for one, truth in zip(scenes, read_ground_truth(given, 5), strict=False):
        assert np.array_equal(one.boxes, truth.boxes)
        assert np.array_equal(one.labels, truth.labels)
        assert np.array_equal(one.num_points, truth.points)
        assert np.array_equal(one.ignored, truth.ignored)
        assert truth.frame == "lidar"
