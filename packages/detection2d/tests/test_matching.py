"""Matching: scenes by hand, a slow reference, and what must not change the outcome."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_debugger.core.detection import pairs
from ml_debugger.core.detection.matching import KINDS, match, match_boxes
from ml_debugger.core.detection.pairs import Pairs
from ml_debugger.core.errors import InputError
from ml_debugger.object_detection.boxes import GEOMETRY, overlaps

from . import slow_matching as slow

CAR, BUS = 1, 2
NAN = float("nan")


def run(images, **thresholds):
    """Match images given as (boxes, scores, labels, truth boxes, truth labels, crowd)."""
    columns = [[value for image in images for value in image[i]] for i in range(6)]
    n, m = ([len(image[i]) for image in images] for i in (0, 3))
    boxes, truth_boxes = (np.array(columns[i], np.float32).reshape(-1, 4) for i in (0, 3))
    return match_boxes(
        GEOMETRY,
        boxes,
        np.array(columns[1], np.float32),
        np.array(columns[2], np.int64),
        n,
        truth_boxes,
        np.array(columns[4], np.int64),
        m,
        np.array(columns[5], bool),
        **thresholds,
    )


def kinds_of(found):
    return [KINDS[k] for k in found.kind]


def x(left, right, label=CAR, top=0, bottom=10):
    """Return a box that is ten high, so that areas are ten times widths."""
    return [left, top, right, bottom], label


def scene(predicted, true, regions=()):
    """Return an image in which predictions have descending scores."""
    scores = [1 - i / 100 for i in range(len(predicted))]
    truths = [*true, *regions]
    return (
        [box for box, _ in predicted],
        scores,
        [label for _, label in predicted],
        [box for box, _ in truths],
        [label for _, label in truths],
        [False] * len(true) + [True] * len(regions),
    )


# name: predictions by descending score, truths, ignore regions, kinds, truths of them, found by
SCENES = {
    "exact": ([x(0, 10)], [x(0, 10)], [], "A", [0], [0]),
    "exactly half": ([x(0, 5)], [x(0, 10)], [], "A", [0], [0]),
    "just below half": ([x(0, 4)], [x(0, 10)], [], "M", [0], [0]),
    "exactly a tenth": ([x(0, 1)], [x(0, 10)], [], "M", [0], [0]),
    "just below a tenth": ([x(0, 1)], [x(0, 11)], [], "N", [-1], [-1]),
    "edges that touch": ([x(0, 10)], [x(10, 20)], [], "N", [-1], [-1]),
    "other class": ([x(0, 10, BUS)], [x(0, 10)], [], "A", [0], [0]),
    "own class goes first": (
        [x(0, 10, BUS), x(0, 8)], [x(0, 10)], [], "D A", [0, 0], [1],
    ),
    "each its own class": (
        [x(0, 10), x(0, 9, BUS)], [x(0, 10, BUS), x(0, 9)], [], "A A", [1, 0], [1, 0],
    ),
    "second choice": (
        [x(0, 10), x(0, 9)], [x(0, 10), x(2, 10)], [], "A A", [0, 1], [0, 1],
    ),
    "of equal truths the first": (
        [x(0, 10), x(0, 10), x(0, 10)], [x(0, 10), x(0, 10)], [], "A A D", [0, 1, 0], [0, 1],
    ),
    "duplicate at a tenth": ([x(0, 10), x(9, 19)], [x(0, 18)], [], "A D", [0, 0], [0]),
    "duplicate, aligned with what is taken": (
        [x(0, 10), x(0, 9)], [x(0, 10)], [], "A D", [0, 0], [0],
    ),
    "duplicate of the nearest": (
        [x(0, 10), x(10, 20), x(4, 14)], [x(0, 10), x(10, 20)], [], "A A D", [0, 1, 0], [0, 1],
    ),
    "merged": ([x(0, 20)], [x(0, 8), x(11, 20)], [], "SG", [1], [0, 0]),
    "not merged: one is half outside": (
        [x(0, 20)], [x(0, 8), x(16, 28)], [], "M", [0], [0, -1],
    ),
    "not merged: one is too small": ([x(0, 20)], [x(0, 8), x(18, 19)], [], "M", [0], [0, -1]),
    "not merged: one is aligned": ([x(0, 20)], [x(0, 11), x(11, 20)], [], "A", [0], [0, -1]),
    "merged twice": (
        [x(0, 20), x(0, 19)], [x(0, 8), x(11, 19)], [], "SG D", [0, 0], [0, 0],
    ),
    "three to merge, two predictions": (
        [x(0, 20), x(8, 32)], [x(0, 8), x(11, 20), x(21, 30)], [], "SG M", [1, 2], [0, 0, 1],
    ),
    "merging goes before pieces": (
        [x(0, 24), x(0, 4), x(5, 9)],
        [x(0, 10), x(12, 24, BUS, 0, 9)],
        [],
        "SG D D",
        [1, 0, 0],
        [0, 0],
    ),
    "split": ([x(0, 4), x(6, 10)], [x(0, 10)], [], "SP SP", [0, 0], [0]),
    "split in three, best in the middle": (
        [x(0, 3), x(3, 7), x(7, 10, BUS)], [x(0, 10)], [], "SP SP SP", [0, 0, 0], [1],
    ),
    "half inside is inside": ([x(-4, 4), x(6, 10)], [x(0, 10)], [], "SP SP", [0, 0], [1]),
    "one piece is not enough": ([x(-5, 4), x(6, 10)], [x(0, 10)], [], "M D", [0, 0], [0]),
    "no pieces of what is aligned": (
        [x(0, 4), x(0, 9)], [x(0, 10)], [], "D A", [0, 0], [1],
    ),
    "pieces of two truths": (
        [x(0, 4), x(6, 10), x(20, 24), x(26, 30)],
        [x(0, 10), x(20, 30)],
        [],
        "SP SP SP SP",
        [0, 0, 1, 1],
        [0, 2],
    ),
    "a piece belongs to the nearest": (
        [x(0, 4), x(6, 10)], [x(0, 10), x(5, 14)], [], "M M", [0, 1], [0, 1],
    ),
    "overlaps a prediction": (
        [x(0, 10), x(20, 30), x(29, 39)], [x(0, 10)], [], "A N N", [0, -1, -1], [0],
    ),
    "overlaps a prediction at a tenth": (
        [x(0, 10), x(20, 30), x(28, 38)], [x(0, 10)], [], "A ON ON", [0, -1, -1], [0],
    ),
    "overlaps an aligned prediction": (
        [x(0, 12), x(10, 20)], [x(0, 8)], [], "A ON", [0, -1], [0],
    ),
    "ignored": ([x(0, 10)], [], [x(0, 100)], "U", [-1], [-1]),
    "half of it ignored": ([x(0, 10)], [], [x(5, 100)], "U", [-1], [-1]),
    "less than half of it ignored": ([x(0, 10)], [], [x(6, 100)], "N", [-1], [-1]),
    "half of it in two regions": ([x(0, 10)], [], [x(0, 3), x(7, 10)], "N", [-1], [-1, -1]),
    "aligned in an ignore region": ([x(0, 10)], [x(0, 10)], [x(0, 100)], "A", [0], [0, -1]),
    "not poorly placed in one": ([x(0, 10)], [x(0, 4)], [x(0, 100)], "U", [-1], [-1, -1]),
    "no duplicate in one": (
        [x(0, 10), x(0, 10)], [x(0, 10)], [x(0, 100)], "A U", [0, -1], [0, -1],
    ),
    "ignored ones leave no pieces": (
        [x(0, 4), x(6, 10)], [x(0, 10)], [x(5, 100)], "M U", [0, -1], [0, -1],
    ),
    "an ignored one is a neighbour": (
        [x(0, 10), x(5, 15)], [], [x(0, 7)], "U ON", [-1, -1], [-1],
    ),
    "without area": ([x(5, 5), x(5, 4)], [x(0, 10)], [x(0, 10)], "U U", [-1, -1], [-1, -1]),
    "not finite": ([x(NAN, 5), x(0, 10)], [x(0, 10)], [], "U A", [-1, 0], [1]),
    "truth without area": ([x(0, 10)], [x(0, 0)], [], "N", [-1], [-1]),
    "truth that is not finite": ([x(0, 10)], [x(0, NAN)], [], "N", [-1], [-1]),
    "nothing is true": ([x(0, 10)], [], [], "N", [-1], []),
    "nothing is predicted": ([], [x(0, 10)], [], "", [], [-1]),
    "nothing at all": ([], [], [], "", [], []),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENES)
def test_scene(name):
    predicted, true, regions, kinds, truth, by = SCENES[name]
    image = scene(predicted, true, regions)
    found = run([image])
    assert kinds_of(found) == kinds.split()
    assert found.truth.tolist() == truth
    assert found.by.tolist() == by
    assert found.found.tolist() == [p >= 0 for p in by]
    assert kinds_of(run([image])) == slow.match_image(*image)["kind"]


def test_ignored_and_undecidable_are_told_apart():
    found = run([scene([x(0, 10), x(3, 3)], [x(0, 0), x(50, 60)], [x(0, 100), x(7, 7)])])
    assert kinds_of(found) == ["U", "U"]
    assert found.ignored.tolist() == [True, False]
    assert found.undecidable.tolist() == [True, False, False, False]


def test_iou_is_that_with_the_truth():
    found = run([scene([x(0, 10), x(0, 5), x(50, 60)], [x(0, 10)])])
    assert found.iou.tolist() == [1, 0.5, 0]
    assert [found.kind.dtype, found.truth.dtype, found.iou.dtype] == [np.int8, int, np.float32]


def test_equal_scores_go_by_order_and_nan_last():
    boxes, _, labels, *true = scene([x(0, 9), x(0, 10), x(0, 10)], [x(0, 10)])
    assert kinds_of(run([(boxes, [0.5, 0.5, 0.5], labels, *true)])) == ["A", "D", "D"]
    assert kinds_of(run([(boxes, [NAN, 0.5, 0.5], labels, *true)])) == ["D", "A", "D"]
    assert kinds_of(run([(boxes, [NAN, NAN, 0.0], labels, *true)])) == ["D", "D", "A"]


def test_thresholds_are_the_callers():
    image = scene([x(0, 4), x(30, 34), x(33, 37)], [x(0, 10)])
    assert kinds_of(run([image])) == ["M", "ON", "ON"]
    assert kinds_of(run([image], aligned=0.4)) == ["A", "ON", "ON"]
    assert kinds_of(run([image], matched=0.2)) == ["M", "N", "N"]
    assert kinds_of(run([image], matched=0.45)) == ["N", "N", "N"]


@pytest.mark.parametrize(("aligned", "matched"), [(0.1, 0.5), (1.5, 0.5), (0.5, 0), (NAN, 0.1)])
def test_threshold_out_of_range_is_refused(aligned, matched):
    with pytest.raises(InputError, match="0 < matched <= aligned <= 1"):
        run([scene([], [])], aligned=aligned, matched=matched)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: [[0, 0, 1]]}, r"shape \(n, 4\)"),
        ({1: [0.5, 0.5]}, "for 2 boxes, scores or labels"),
        ({2: []}, "for 0 boxes, scores or labels"),
        ({3: [2]}, "add up to 2 for 1 boxes"),
        ({5: [1, 2]}, "add up to 1 for 2 boxes"),
        ({6: [1, 0]}, "counts of 1 and 2 images"),
        ({7: [True, False]}, "add up to 1 for 2 boxes"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    fitting = [[[0, 0, 1, 1]], [0.5], [1], [1], [[0, 0, 1, 1]], [1], [1], [False]]
    assert kinds_of(match_boxes(GEOMETRY, *fitting)) == ["A"]
    with pytest.raises(InputError, match=message):
        match_boxes(GEOMETRY, *(change.get(i, one) for i, one in enumerate(fitting)))


def test_overlap_may_mean_anything():
    """Two predictions and a truth that only their pairs know of, neighbours in one direction."""
    pairs = Pairs(*(np.array([v, v]) for v in (0, 0, 0.9, 0.9, 0.9)))[np.array([0])]
    between = Pairs(*(np.array([v]) for v in (1, 2, 0.3, 0.5, 0.5)))
    itself = Pairs(*(np.array([v]) for v in (3, 3, 1.0, 1.0, 1.0)))
    neighbours = Pairs(
        *(
            np.concatenate([getattr(between, name), getattr(itself, name)])
            for name in ("first", "second", "iou", "share_first", "share_second")
        )
    )
    found = match(
        pairs,
        neighbours,
        scores=np.full(4, 0.5),
        labels=np.zeros(4, int),
        decidable=np.ones(4, bool),
        truth_labels=np.zeros(1, int),
        truth_decidable=np.ones(1, bool),
        crowd=np.zeros(1, bool),
    )
    assert kinds_of(found) == ["A", "ON", "ON", "N"]


def test_order_of_pairs_means_nothing():
    """Truths that lie in one place, so that there are ties wherever there can be any."""
    random = np.random.default_rng(0)
    for _ in range(20):
        image = crowded_image(random, 20, 6)
        boxes, truth_boxes = np.array(image[0]), np.repeat(image[3], 2, axis=0)
        pairs = overlaps(boxes, [20], truth_boxes, [12])
        neighbours = overlaps(boxes, [20], boxes, [20])
        sides = {
            "scores": np.array(image[1]),
            "labels": np.array(image[2]),
            "decidable": np.ones(20, bool),
            "truth_labels": np.repeat(image[4], 2),
            "truth_decidable": np.ones(12, bool),
            "crowd": np.zeros(12, bool),
        }
        found = match(pairs, neighbours, **sides)
        pairs = pairs[random.permutation(len(pairs))]
        changed = match(pairs, neighbours[random.permutation(len(neighbours))], **sides)
        for name in ("kind", "truth", "by"):
            np.testing.assert_array_equal(getattr(changed, name), getattr(found, name))


# random images against the slow reference

side = st.integers(0, 6) | st.sampled_from([NAN, np.inf])
size = st.integers(-1, 6) | st.integers(1, 6)


@st.composite
def corners(draw):
    left, top = draw(side), draw(side)
    return [left, top, left + draw(size), top + draw(size)]


@st.composite
def images(draw, most=8):
    n, m = draw(st.integers(0, most)), draw(st.integers(0, most - 2))
    labels = st.sampled_from([CAR, BUS])
    return (
        draw(st.lists(corners(), min_size=n, max_size=n)),
        draw(st.lists(st.sampled_from([0.25, 0.5, 0.75]), min_size=n, max_size=n)),
        draw(st.lists(labels, min_size=n, max_size=n)),
        draw(st.lists(corners(), min_size=m, max_size=m)),
        draw(st.lists(labels, min_size=m, max_size=m)),
        draw(st.lists(st.sampled_from([False, False, False, True]), min_size=m, max_size=m)),
    )


thresholds = st.sampled_from([(0.5, 0.1), (0.5, 0.1), (0.5, 0.5), (0.7, 0.3), (1.0, 0.05)])


def by_image(found, some):
    """Take the matches of many images apart, with positions that count through each image."""
    parts, row, column = [], 0, 0
    for image in some:
        rows = slice(row, row + len(image[0]))
        columns = slice(column, column + len(image[3]))
        parts.append(
            {
                "kind": [KINDS[k] for k in found.kind[rows]],
                "truth": [t - column if t >= 0 else -1 for t in found.truth[rows].tolist()],
                "iou": found.iou[rows].tolist(),
                "ignored": found.ignored[rows].tolist(),
                "found": found.found[columns].tolist(),
                "by": [p - row if p >= 0 else -1 for p in found.by[columns].tolist()],
                "undecidable": found.undecidable[columns].tolist(),
            }
        )
        row, column = rows.stop, columns.stop
    return parts


@settings(max_examples=300)
@given(st.lists(images(), max_size=3), thresholds, st.sampled_from([1, 40, 1 << 21]))
def test_fast_is_as_slow(some, limits, cells):
    aligned, matched = limits
    with pytest.MonkeyPatch.context() as patch:  # however few images make a group
        patch.setattr(pairs, "_GROUP", cells)
        found = by_image(run(some, aligned=aligned, matched=matched), some)
    for one, image in zip(found, some, strict=True):
        expected = slow.match_image(*image, aligned=aligned, matched=matched)
        expected["iou"] = np.float32(expected["iou"]).tolist()
        assert one == expected


def crowded_image(random, n=60, m=25):
    """Return an image with so many boxes that every rule has work to do."""

    def some(count):
        at, sides = random.integers(0, 40, (count, 2)), random.integers(1, 25, (count, 2))
        return np.concatenate([at, at + sides], 1).tolist()

    return (
        some(n),
        random.integers(0, 20, n).tolist(),
        random.integers(0, 3, n).tolist(),
        some(m),
        random.integers(0, 3, m).tolist(),
        (random.random(m) < 0.05).tolist(),
    )


def test_fast_is_as_slow_in_crowded_images():
    random = np.random.default_rng(0)
    some = [crowded_image(random) for _ in range(25)]
    some += [crowded_image(random, n=9, m=30) for _ in range(25)]
    found = by_image(run(some), some)
    for one, image in zip(found, some, strict=True):
        expected = slow.match_image(*image)
        expected["iou"] = np.float32(expected["iou"]).tolist()
        assert one == expected
    seen = [kind for one in found for kind in one["kind"]]
    assert min(seen.count(kind) for kind in KINDS) > 10


# what must not change the outcome


@given(st.lists(images(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_order_of_images_and_chunks_change_nothing(some, random):
    found = by_image(run(some), some)
    order = list(range(len(some)))
    random.shuffle(order)
    shuffled = [some[i] for i in order]
    assert by_image(run(shuffled), shuffled) == [found[i] for i in order]
    assert [part for image in some for part in by_image(run([image]), [image])] == found


def real_boxes(random, count):
    """Return boxes whose overlaps are all different."""
    at, sides = random.uniform(0, 40, (count, 2)), random.uniform(1, 25, (count, 2))
    return np.concatenate([at, at + sides], 1).astype(np.float32).tolist()


@given(st.integers(0, 2**32 - 1))
def test_order_of_truths_changes_nothing_but_ties(seed):
    random = np.random.default_rng(seed)
    boxes, scores, labels, _, truth_labels, crowd = crowded_image(random, 30, 12)
    true = real_boxes(random, 12)
    order = random.permutation(12)
    found = run([(boxes, scores, labels, true, truth_labels, crowd)])
    changed = run(
        [(boxes, scores, labels, *([one[i] for i in order] for one in (true, truth_labels, crowd)))]
    )
    assert changed.kind.tolist() == found.kind.tolist()
    assert changed.by.tolist() == found.by[order].tolist()
    assert [order[t] if t >= 0 else -1 for t in changed.truth] == found.truth.tolist()


@given(st.integers(0, 2**32 - 1))
def test_order_of_predictions_with_different_scores_changes_nothing(seed):
    random = np.random.default_rng(seed)
    boxes, _, labels, *true = crowded_image(random, 30, 12)
    boxes, scores = real_boxes(random, 30), random.permutation(30).tolist()
    order = random.permutation(30)
    found = run([(boxes, scores, labels, *true)])
    changed = run([(*([one[i] for i in order] for one in (boxes, scores, labels)), *true)])
    assert changed.kind.tolist() == found.kind[order].tolist()
    assert changed.truth.tolist() == found.truth[order].tolist()


@given(images(), st.sampled_from([0.1, 0.5, 0.9]))
def test_boxes_far_away_change_nothing_for_others(image, score):
    boxes, scores, labels, truth_boxes, truth_labels, crowd = image
    far = [[900, 900, 910, 910], [905, 900, 915, 910], [990, 990, 995, 995]]
    more = (
        boxes + far,
        [*scores, score, score, score],
        [*labels, CAR, CAR, CAR],
        [*truth_boxes, [900, 900, 910, 910], [700, 700, 710, 710]],
        [*truth_labels, BUS, CAR],
        [*crowd, False, False],
    )
    (found,), (changed,) = by_image(run([image]), [image]), by_image(run([more]), [more])
    for name, values in found.items():
        assert changed[name][: len(values)] == values
    assert changed["kind"][-3:] == ["A", "D", "N"]
    assert changed["found"][-2:] == [True, False]


@given(images())
def test_copies_of_what_stands_alone_are_its_neighbours(image):
    """Predictions off all truths, with the lowest scores, make others ON and nothing else."""
    boxes, scores, labels, *true = image
    found = run([image])
    lone = [i for i, kind in enumerate(kinds_of(found)) if kind == "N"]
    more = [boxes[i] for i in lone]
    changed = run([(boxes + more, scores + [0.0] * len(more), labels + [CAR] * len(more), *true)])
    expected = [{"N": "ON"}.get(kind, kind) for kind in kinds_of(found)]
    assert kinds_of(changed) == expected + ["ON"] * len(more)
    assert changed.by.tolist() == found.by.tolist()
