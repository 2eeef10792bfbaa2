"""Overlaps of 3D boxes: against shapely, against mmcv, and against what one can tell by hand."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ml_debugger.core.detection.pairs import Geometry, Pairs
from ml_debugger.core.errors import InputError
from ml_debugger.object_detection_3d import geometry
from ml_debugger.object_detection_3d.geometry import LIMIT, iou, overlaps, sound

from .slow_matching import shared

MEASURES = ["bev", "3d", "distance"]
CAR = [10.0, -5.0, 0.5, 4.0, 2.0, 1.5, 0.3]
BAD = [
    [0, 0, 0, 0, 2, 2, 0],
    [0, 0, 0, 4, 2, 0, 0],
    [0, 0, 0, -4, -2, 2, 0],  # the product of the sides is above 0
    [0, 0, 0, 4, 2, -1, 0],
    [np.nan, 0, 0, 4, 2, 2, 0],
    [0, np.inf, 0, 4, 2, 2, 0],
    [0, 0, 0, np.inf, 2, 2, 0],
    [0, 0, 0, 4, 2, 2, np.nan],
    [0, 0, 0, 1e200, 1e200, 1, 0],
    [0, 0, 0, 1e-200, 1e-200, 1, 0],
]

place = st.floats(-6, 6)
side = st.floats(0.1, 8)
#: Right angles and whole numbers make boxes that share edges and corners.
coarse = st.tuples(
    *[st.integers(-2, 2).map(float)] * 3,
    *[st.sampled_from([1.0, 2.0, 4.0])] * 3,
    st.integers(-9, 9).map(lambda quarter: quarter * np.pi / 4),
)
fine = st.tuples(place, place, place, side, side, side, st.floats(-10, 10))
box = (coarse | fine).map(list)


def box_lists(most):
    return st.lists(box | st.sampled_from(BAD), max_size=most).map(
        lambda some: np.array(some, float).reshape(-1, 7)
    )


def rectangle(one):
    x, y, _, dx, dy, _, yaw = one
    ahead = np.array([np.cos(yaw), np.sin(yaw)]) * dx / 2
    aside = np.array([-np.sin(yaw), np.cos(yaw)]) * dy / 2
    corners = (ahead + aside, aside - ahead, -ahead - aside, ahead - aside)
    return shapely.Polygon(np.add((x, y), corners))


def slow(a, b, measure):
    """Return IoU and both shares of two sound boxes, one by one, by shapely's polygons."""
    if measure == "distance":
        near = max(0, 1 - np.hypot(a[0] - b[0], a[1] - b[1]) / (2 * LIMIT))
        return near, near, near
    inter = shared(rectangle(a), rectangle(b))
    size_a, size_b = a[3] * a[4], b[3] * b[4]
    if measure == "3d":
        low, high = max(a[2] - a[5] / 2, b[2] - b[5] / 2), min(a[2] + a[5] / 2, b[2] + b[5] / 2)
        inter *= max(0, high - low)
        size_a, size_b = size_a * a[5], size_b * b[5]
    return inter / (size_a + size_b - inter), inter / size_a, inter / size_b


@given(box, box, st.sampled_from(MEASURES))
@example(
    [0.0, -1.0, 0.0, 2.8515625, 2.853450778448349, 1.0, 0.8936599964397747],
    [0.0, -1.0, 0.0, 7.3688485495941025, 2.853450778448349, 1.0, 0.8936599964397747],
    "bev",
)
@settings(max_examples=400)
def test_overlap_of_two_is_shapelys(a, b, measure):
    expected = np.array(slow(a, b, measure))
    pairs = overlaps([a], [1], [b], [1], measure)
    if len(pairs):
        found = np.array([pairs.iou[0], pairs.share_first[0], pairs.share_second[0]])
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
        assert ((found > 0) & (found <= 1)).all()
    else:
        assert (expected < 1e-8).all()


def test_rectangles_are_mmcvs():
    ops: Any = pytest.importorskip("mmcv.ops", exc_type=ImportError)
    random = np.random.default_rng(0)
    a, b = (
        np.concatenate(
            [
                random.uniform(-20, 20, (300, 3)),
                random.uniform(0.5, 8, (300, 3)),
                random.uniform(-7, 7, (300, 1)),
            ],
            1,
        )
        for _ in range(2)
    )
    flat = [torch.from_numpy(boxes[:, [0, 1, 3, 4, 6]]).float() for boxes in (a, b)]
    expected = ops.box_iou_rotated(*flat).numpy()
    found = iou(a, b)
    assert np.count_nonzero(found) > 1000
    np.testing.assert_allclose(found, expected, atol=2e-5)  # theirs is in single precision


@given(
    st.lists(st.tuples(box_lists(6), box_lists(4)), max_size=5),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from(MEASURES),
    st.sampled_from([(1 << 16, 1 << 13), (5, 2), (1, 1)]),
)
def test_many_frames_are_as_one_frame_at_a_time(scenes, least, measure, sizes):
    expected, start_a, start_b = [], 0, 0
    for a, b in scenes:
        for i, j in zip(*np.nonzero(iou(a, b, measure)), strict=True):
            found = iou(a[[i]], b[[j]], measure)[0, 0]
            if found >= least:
                expected.append((start_a + i, start_b + j, found))
        start_a, start_b = start_a + len(a), start_b + len(b)
    a = np.concatenate([np.zeros((0, 7)), *(a for a, _ in scenes)])
    b = np.concatenate([np.zeros((0, 7)), *(b for _, b in scenes)])
    counts = [len(a) for a, _ in scenes], [len(b) for _, b in scenes]
    with pytest.MonkeyPatch.context() as patch:  # however few pairs are looked at in one go
        patch.setattr(geometry, "_NEAR", sizes[0])
        patch.setattr(geometry, "_CLIPPED", sizes[1])
        pairs = overlaps(a, counts[0], b, counts[1], measure, least=least)
    found = sorted(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.iou, strict=True))
    assert found == sorted(expected)


@pytest.mark.parametrize("measure", ["bev", "3d"])
def test_every_pair_of_a_frame_is_looked_at(measure):
    """One box that is much longer than the others is near to many of them."""
    random = np.random.default_rng(1)
    some = np.concatenate(
        [random.uniform(-20, 20, (60, 3)), random.uniform(1, 5, (60, 3)), np.zeros((60, 1))], 1
    )
    some[0, 3:6] = 100, 1, 100
    some[:, 6] = random.uniform(-4, 4, 60)
    expected = [[slow(one, other, measure)[0] for other in some] for one in some]
    np.testing.assert_allclose(iou(some, some, measure), expected, atol=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("bad", BAD)
def test_box_without_volume_overlaps_nothing(bad, measure):
    good = [[0, 0, 0, 4, 2, 2, 0.1], CAR]
    assert sound([bad, *good]).tolist() == [False, True, True]
    found = iou([*good, bad], [bad, *good], measure)
    np.testing.assert_array_equal(found[:, 0], 0)
    np.testing.assert_array_equal(found[2], 0)
    np.testing.assert_array_equal(found[:2, 1:], iou(good, good, measure))


@pytest.mark.parametrize("measure", ["bev", "3d"])
@pytest.mark.parametrize("scale", [1e-90, 1e-6, 1.0, 1e6, 1e90])
@pytest.mark.parametrize("yaw", [0.0, 0.7, np.pi / 2, -np.pi, 40.0, 1e6])
def test_same_box_is_one_whatever_its_size(scale, yaw, measure):
    one = [0.1 * scale, 2 * scale, 3 * scale, 4 * scale, 2 * scale, 1.5 * scale, yaw]
    turned = [*one[:6], yaw + 2 * np.pi]
    backwards = [*one[:6], yaw - np.pi]
    across = [*one[:3], one[4], one[3], one[5], yaw + np.pi / 2]
    found = iou([one], [one, turned, backwards, across], measure)
    np.testing.assert_allclose(found, 1, rtol=0, atol=1e-9)
    assert (found <= 1).all()


@pytest.mark.parametrize("at", [0.0, 1e5, -1e5])
@pytest.mark.parametrize("yaw", [0.0, 0.3, np.pi / 4, 2.0, -5.0])
def test_touching_is_not_overlapping(yaw, at):
    one = [at, at, 0, 4, 2, 2, yaw]
    ahead = [at + 4 * np.cos(yaw), at + 4 * np.sin(yaw), 0, 4, 2, 2, yaw]
    aside = [at - 2 * np.sin(yaw), at + 2 * np.cos(yaw), 0, 4, 2, 2, yaw]
    above = [at, at, 2, 4, 2, 2, yaw]
    assert not iou([one], [ahead, aside], "bev").any()
    assert not iou([one], [ahead, aside, above], "3d").any()
    assert iou([one], [above], "bev") == pytest.approx(1)


@given(box, box)
def test_far_from_the_origin_nothing_changes(a, b):
    """At 1e5 m a double knows a place to 1e-11 m."""
    moved = [np.add(one, [1e5, -1e5, 1e3, 0, 0, 0, 0]) for one in (a, b)]
    for measure in MEASURES:
        np.testing.assert_allclose(
            iou([moved[0]], [moved[1]], measure), iou([a], [b], measure), atol=1e-8
        )


@given(box, box, st.floats(-4, 4), st.sampled_from(MEASURES))
def test_overlap_is_symmetric_and_turns_along(a, b, turn, measure):
    turned = []
    for x, y, z, dx, dy, dz, yaw in (a, b):
        cos, sin = np.cos(turn), np.sin(turn)
        turned.append([x * cos - y * sin, x * sin + y * cos, z, dx, dy, dz, yaw + turn])
    found = iou([a], [b], measure)
    np.testing.assert_allclose(iou([b], [a], measure), found, atol=1e-8)
    np.testing.assert_allclose(iou([turned[0]], [turned[1]], measure), found, atol=1e-8)


def test_small_box_in_a_huge_one():
    huge, tiny = [3e6, -2e6, 0, 1e7, 1e7, 10, 0.4], [12.0, 5.0, 0, 1e-2, 2e-2, 1, 1.3]
    for a, b in ((tiny, huge), (huge, tiny)):
        pairs = overlaps([a], [1], [b], [1], "bev")
        shares = sorted([pairs.share_first[0], pairs.share_second[0]])
        assert shares == pytest.approx([2e-18, 1], rel=1e-5)
        assert pairs.iou[0] == pytest.approx(2e-18, rel=1e-5)


def test_nearness_is_what_nuscenes_counts_by():
    """Two metres, the distance of its errors, is one half; at four, its widest, nothing is left."""
    one = [0, 0, 0, 1, 1, 1, 0]
    others = [[d, 0, 50, 3, 3, 3, 1] for d in (0, 0.5, 1, 2, 3.999, 4, 5)]
    found = iou([one], others, "distance")[0]
    np.testing.assert_allclose(found, [1, 0.875, 0.75, 0.5, 0.00025, 0, 0], atol=1e-12)
    pairs = overlaps([one], [1], others, [7], "distance", limit=1.0, least=0.25)
    assert dict(zip(pairs.second.tolist(), pairs.iou, strict=True)) == {0: 1, 1: 0.75, 2: 0.5}
    np.testing.assert_array_equal(pairs.share_first, pairs.iou)


def test_no_box_at_all():
    assert iou([], [CAR]).shape == (0, 1)
    for counts in ([], [0], [0, 0]):
        pairs = overlaps([], counts, np.zeros((0, 9), np.float32), counts)
        assert len(pairs) == 0
        assert (pairs.first.dtype, pairs.iou.dtype) == (np.int64, np.float64)


def test_tensors_and_velocities_are_taken():
    boxes = torch.tensor([[*CAR, 3.0, np.nan]], requires_grad=True)
    assert iou(boxes, boxes.detach().numpy()) == pytest.approx(1)


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_makes_a_geometry(measure):
    made = Geometry(
        ("x", "y", "z", "dx", "dy", "dz", "yaw"), sound, partial(overlaps, measure=measure)
    )
    boxes = made.array([CAR, CAR])
    assert made.sound(boxes).all()
    pairs = made.overlaps(boxes, np.array([2]), boxes[:1], np.array([1]), least=0.5)
    assert isinstance(pairs, Pairs)
    assert sorted(pairs.first.tolist()) == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CAR, [1], [], [0]), r"must have shape \(n, 7\).*\(7,\)"),
        (([CAR[:6]], [1], [], [0]), r"must have shape \(n, 7\).*\(1, 6\)"),
        (([CAR], [2], [], [0]), "add up to 2 for 1 boxes"),
        (([CAR], [2, -1], [], [0, 0]), r"shape \(2,\).*for 1 boxes"),
        (([CAR], [1, 0], [], [0]), "2 and 1 frames"),
        (([CAR], [1], [CAR], [1], "volume"), "'volume'; expected one of bev, 3d, distance"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        overlaps(*arguments)
    with pytest.raises(InputError, match="limit is 0"):
        overlaps([], [], [], [], "distance", limit=0)
