"""Overlaps of boxes: against counted pixels and against one pair at a time."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ml_debugger.core.detection.pairs import Pairs
from ml_debugger.core.errors import InputError
from ml_debugger.object_detection import boxes
from ml_debugger.object_detection.boxes import covered, iou, overlaps, sound

from . import slow_matching as slow

BAD = [
    [0, 0, 0, 5],
    [5, 0, 0, 5],
    [4, 4, 0, 0],  # both sides are negative, so their product is not
    [np.nan, 0, 5, 5],
    [0, 0, np.inf, 5],
    [-np.inf, -np.inf, np.inf, np.inf],
    [0, 0, 1e300, 1e300],
    [0, 0, 1e-200, 1e-200],
]
corners = st.integers(-3, 12) | st.sampled_from([np.nan, np.inf, -np.inf, 0.5])


def box_lists(most):
    return st.integers(0, most).flatmap(lambda n: hnp.arrays(np.float32, (n, 4), elements=corners))


def pixels(box):
    """Mark what a box of whole numbers covers of 16 x 16 pixels."""
    ys, xs = np.mgrid[:16, :16]
    return (xs >= box[0]) & (xs < box[2]) & (ys >= box[1]) & (ys < box[3])


@given(hnp.arrays(np.int64, (4, 4), elements=st.integers(0, 16)))
def test_overlap_is_what_one_counts_in_pixels(some):
    for i, a in enumerate(some):
        for j, b in enumerate(some):
            both, either = (pixels(a) & pixels(b)).sum(), (pixels(a) | pixels(b)).sum()
            assert iou(some, some)[i, j] == (both / either if both else 0)
            assert covered(some, some)[i, j] == (both / pixels(a).sum() if both else 0)


@pytest.mark.parametrize("bad", BAD)
def test_box_without_area_overlaps_nothing(bad):
    good = [[-10, -10, 10, 10], [0, 0, 5, 5]]
    assert sound([bad, *good]).tolist() == [False, True, True]
    for overlap in (iou, covered):
        assert not overlap([bad], [bad, *good]).any()
        assert not overlap(good, [bad]).any()
        np.testing.assert_array_equal(
            overlap(good, [bad, *good]), np.pad(overlap(good, good), ((0, 0), (1, 0)))
        )
    assert set(overlaps([bad, *good], [3], [*good, bad], [3]).first) == {1, 2}
    assert set(overlaps([bad, *good], [3], [*good, bad], [3]).second) == {0, 1}


def test_no_box_at_all():
    assert iou([], [[0, 0, 1, 1]]).shape == (0, 1)
    assert covered([[0, 0, 1, 1]], np.zeros((0, 4))).shape == (1, 0)
    for counts in ([], [0], [0, 0]):
        pairs = overlaps([], counts, np.zeros((0, 4), np.float32), counts)
        assert len(pairs) == 0
        assert (pairs.first.dtype, pairs.iou.dtype) == (np.int64, np.float64)


def test_extremes_stay_in_range():
    huge, tiny = [0, 0, 1e153, 1e153], [0, 0, 1e-100, 1e-100]
    found = iou([huge, tiny], [huge, tiny])
    np.testing.assert_array_equal(found, [[1, 0], [0, 1]])  # what is left of 1e-506 is 0
    assert covered([tiny], [huge]) == 1
    pairs = overlaps([huge, tiny], [2], [huge, tiny], [2])
    assert pairs.iou.tolist() == [1, 1]


@given(
    hnp.arrays(np.float32, (5, 4), elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False))
)
@example(np.float32([[-845, -255, 1, 0.1], [-634, -95, 1, 1e-5]]))
def test_overlap_is_symmetric_and_at_most_one(some):
    found = iou(some, some)
    np.testing.assert_array_equal(found, found.T)
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_array_equal(found.diagonal(), sound(some))
    # of a box within the other both are the same share, but for the rounding of a sum
    assert (covered(some, some) >= found * (1 - 4 * np.finfo(float).eps)).all()


def as_rows(pairs):
    """Sort pairs to compare them, since their order means nothing."""
    columns = (pairs.first, pairs.second, pairs.iou, pairs.share_first, pairs.share_second)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


@given(
    st.lists(st.tuples(box_lists(7), box_lists(4)), max_size=6),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from([(1 << 16, 128), (6, 2), (1, 1)]),
)
def test_many_images_are_as_one_pair_at_a_time(scenes, least, sizes):
    expected, start_a, start_b = [], 0, 0
    for a, b in scenes:
        for i, one in enumerate(a.tolist()):
            for j, other in enumerate(b.tolist()):
                found = slow.iou(one, other)
                if found > 0 and found >= least:
                    shares = slow.share(one, other), slow.share(other, one)
                    expected.append((start_a + i, start_b + j, found, *shares))
        start_a, start_b = start_a + len(a), start_b + len(b)
    a = np.concatenate([np.zeros((0, 4)), *(a for a, _ in scenes)])
    b = np.concatenate([np.zeros((0, 4)), *(b for _, b in scenes)])
    with pytest.MonkeyPatch.context() as patch:  # however few pairs are looked at in one go
        patch.setattr(boxes, "_CELLS", sizes[0])
        patch.setattr(boxes, "_ROWS", sizes[1])
        found = overlaps(a, [len(a) for a, _ in scenes], b, [len(b) for _, b in scenes], least)
    assert as_rows(found) == expected


def test_image_with_more_boxes_than_are_looked_at_in_one_go():
    random = np.random.default_rng(0)
    at = random.integers(0, 60, (700, 2))
    some = np.concatenate([at, at + random.integers(1, 9, (700, 2))], 1)
    pairs = overlaps(some, [0, 300, 0, 400], some[::-1], [1, 299, 2, 398])
    dense = iou(some, some[::-1])
    image_a, image_b = np.repeat([1, 3], [300, 400]), np.repeat([0, 1, 2, 3], [1, 299, 2, 398])
    dense[image_a[:, None] != image_b] = 0
    found = np.zeros_like(dense)
    found[pairs.first, pairs.second] = pairs.iou
    np.testing.assert_array_equal(found, dense)
    assert len(pairs) == np.count_nonzero(dense) > 1000


def test_pairs_are_chosen_by_mask_or_position():
    pairs = overlaps([[0, 0, 2, 2], [0, 0, 1, 2]], [2], [[0, 0, 2, 2]], [1])
    assert isinstance(pairs, Pairs)
    order = np.argsort(-pairs.iou)
    assert as_rows(pairs[order[:1]]) == [(0, 0, 1.0, 1.0, 1.0)]
    assert as_rows(pairs[pairs.iou < 1]) == [(1, 0, 0.5, 1.0, 0.5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 0, 1, 1], [1], [], [0]), r"must have shape \(n, 4\).*\(4,\)"),
        (([[0, 0, 1]], [1], [], [0]), r"must have shape \(n, 4\).*\(1, 3\)"),
        (([[0, 0, 1, 1]], [2], [], [0]), "add up to 2 for 1 boxes"),
        (([[0, 0, 1, 1]], [2, -1], [], [0, 0]), r"shape \(2,\).*for 1 boxes"),
        (([[0, 0, 1, 1]], 1, [], [0]), r"shape \(\)"),
        (([[0, 0, 1, 1]], [1, 0], [], [0]), "2 and 1 images"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        overlaps(*arguments)
