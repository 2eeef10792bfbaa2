"""Boxes in space are matched as the slow reference says, with overlaps of another library."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_debugger.core.detection.matching import KINDS, match_boxes
from ml_debugger.core.evaluation.options import EvaluationOptions
from ml_debugger.core.records import Units
from ml_debugger.object_detection_3d.geometry import BOX, geometry
from ml_debugger.object_detection_3d.task import ObjectDetection3DTask
from ml_debugger.testing.slow_matching import match_input

from .slow_matching import iou, share, slow

MEASURES = ("bev", "3d", "distance")
#: Values nearer than this to a threshold or to each other may fall on either side of it.
NEAR = 1e-6


def some_boxes(random, n):
    """Return boxes that crowd each other, one in ten of them odd."""
    found = np.concatenate(
        [
            random.uniform(-6, 6, (n, 2)),
            random.uniform(-0.6, 0.6, (n, 1)),
            random.uniform(0.8, 6, (n, 2)),
            random.uniform(1, 2, (n, 1)),
            random.uniform(-np.pi, np.pi, (n, 1)),
        ],
        1,
    )
    odd = random.random(n) < 0.05
    found[odd, 3] = random.choice([0.0, np.nan], odd.sum())
    return found


def some_frame(random, n, m):
    boxes, true = some_boxes(random, n), some_boxes(random, m)
    copied = random.random(n) < 0.5  # of truths, moved a little: else few are aligned
    if m:
        of = random.integers(0, m, n)
        boxes[copied] = true[of][copied] + random.normal(0, 0.15, (n, 7))[copied]
    labels, truth_labels = random.integers(0, 2, n), random.integers(0, 2, m)
    return (
        boxes.tolist(),
        random.permutation(n).tolist(),
        labels.tolist(),
        true.tolist(),
        truth_labels.tolist(),
        (random.random(m) < 0.15).tolist(),
    )


def clear(frame, measure, thresholds) -> bool:
    """Tell whether no value is so near a threshold, or another, that rounding may decide."""
    boxes, _, _, true, _, _ = frame
    values = [
        [iou(measure, a, b) for b in true] + [iou(measure, a, b) for b in boxes if b is not a]
        for a in boxes
    ]
    shares = [share(measure, *pair) for a in boxes for b in true for pair in ((a, b), (b, a))]
    flat = [value for row in values for value in row if value > 0]
    limits = [abs(value - limit) for value in flat for limit in thresholds]
    limits += [abs(value - 0.5) for value in shares]
    ties = [
        gap
        for row in values
        for gap in np.diff(sorted(value for value in row[: len(true)] if value > 0))
    ]
    return min([*limits, *ties], default=1.0) > NEAR


def found_in(frames, measure, **thresholds):
    columns = [[value for frame in frames for value in frame[i]] for i in range(6)]
    n, m = ([len(frame[i]) for frame in frames] for i in (0, 3))
    boxes, true = (np.array(columns[i], float).reshape(-1, 7) for i in (0, 3))
    return match_boxes(
        geometry(measure),
        boxes,
        np.array(columns[1], float),
        np.array(columns[2], np.int64),
        n,
        true,
        np.array(columns[4], np.int64),
        m,
        np.array(columns[5], bool),
        **thresholds,
    )


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(MEASURES),
    st.sampled_from([(0.5, 0.1), (0.7, 0.3), (0.5, 0.5)]),
)
def test_fast_is_as_slow(seed, measure, limits):
    random = np.random.default_rng(seed)
    frames = [some_frame(random, *random.integers(0, 12, 2)) for _ in range(3)]
    frames = [one for one in frames if clear(one, measure, limits)]
    aligned, matched = limits
    found = found_in(frames, measure, aligned=aligned, matched=matched)
    row = column = 0
    for frame in frames:
        expected = match_input(slow(measure), *frame, aligned=aligned, matched=matched)
        rows = slice(row, row + len(frame[0]))
        columns = slice(column, column + len(frame[3]))
        assert [KINDS[k] for k in found.kind[rows]] == expected["kind"]
        assert [t - column if t >= 0 else -1 for t in found.truth[rows]] == expected["truth"]
        np.testing.assert_allclose(found.iou[rows], expected["iou"], atol=1e-5)
        assert found.ignored[rows].tolist() == expected["ignored"]
        for name in ("found", "undecidable"):
            assert getattr(found, name)[columns].tolist() == expected[name]
        assert [p - row if p >= 0 else -1 for p in found.by[columns]] == expected["by"]
        row, column = rows.stop, columns.stop


def test_every_kind_is_among_them():
    random = np.random.default_rng(0)
    frames = [some_frame(random, 20, 12) for _ in range(60)]
    for measure in MEASURES:
        # by distance a box that is near enough to be a piece, or to merge, is near enough for A
        some = set(KINDS) - ({"SP", "SG"} if measure == "distance" else set())
        seen = [KINDS[k] for k in found_in(frames, measure).kind]
        assert set(seen) == some
        assert min(map(seen.count, some)) > 3, measure


def units(boxes, **columns):
    values = np.array(boxes, np.float32).reshape(-1, 7)
    own = dict(zip(BOX, values.T, strict=True))
    return Units({**own, **{k: np.array(v) for k, v in columns.items()}}, np.array([len(values)]))


CAR = [10.0, 5, 0, 4, 2, 1.5, 0.3]


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({}, "AAA"),
        ({2: 2.0}, "ANA"),  # above it
        ({2: 0.6}, "AMA"),
        ({0: 13.4}, "NNM"),  # 3.4 m on: beside it
        ({6: 0.3 + np.pi}, "AAA"),  # the other way round
        ({3: 8.0, 4: 4.0}, "MMA"),  # four times as large
    ],
)
def test_overlap_is_what_the_option_says(change, kinds):
    moved = [change.get(at, value) for at, value in enumerate(CAR)]
    predicted = units([moved], prediction=[1], score=[0.9])
    actual = units([CAR], label=[1], ignored=[False])
    for measure, kind in zip(MEASURES, kinds, strict=True):
        options = EvaluationOptions.read({"overlap": measure})
        verdict = ObjectDetection3DTask.judge(predicted, actual, options)
        assert KINDS[verdict.kind[0]] == kind, measure
