"""Statistics of boxes in space, against a naive reading of their names."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_debugger.core.detection import surroundings as module
from ml_debugger.core.detection.surroundings import Candidates
from ml_debugger.object_detection_3d.geometry import iou
from ml_debugger.object_detection_3d.output import Detections, HeadRows
from ml_debugger.object_detection_3d.statistics import (
    COMPARISON,
    HIDDEN,
    NAMES,
    corners_above,
    distance,
    hidden,
    statistics,
)

from .slow_matching import above
from .slow_matching import iou as slow_iou


def scene(seed, rows=12, labels=3, visible=4, width=7):
    rng = np.random.default_rng(seed)
    boxes = np.concatenate(
        [
            rng.uniform(5, 11, (rows, 2)),
            rng.uniform(-1, 1, (rows, 1)),
            rng.uniform(2, 6, (rows, 3)),
            rng.uniform(-np.pi, np.pi, (rows, 1)),
            rng.normal(0, 3, (rows, width - 7)),
        ],
        1,
    ).astype(np.float32)
    scores = rng.uniform(0, 0.95, (rows, labels)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.3] = 0
    head = HeadRows(*map(torch.from_numpy, (scores, boxes, scores)), lambda at: {})
    flat = np.argsort(-scores.ravel())[:visible]
    row, label = flat // labels, flat % labels
    seen = Detections(
        torch.from_numpy(boxes[row]),
        torch.from_numpy(scores[row, label]),
        torch.from_numpy(label.astype(np.int64)),
    )
    return seen, head, torch.from_numpy(row)


def odds(score):
    score = min(max(score, 1e-4), 1 - 1e-4)
    return math.log(score / (1 - score))


def naive(seen, head, made_by, points):
    """Return the statistics of each box by name, box by box and candidate by candidate."""
    overlap = partial(slow_iou, "bev")
    scores, found = head.scores.tolist(), []
    visible, rows = seen.boxes[:, :7].tolist(), head.boxes[:, :7].tolist()
    own, label = seen.scores.tolist(), seen.labels.tolist()
    for at, (x, y, z, dx, dy, dz, yaw) in enumerate(visible):
        among = [overlap(visible[at], one) for one in visible]
        others = [k for k in range(len(own)) if k != at]
        higher = [k for k in others if (own[k], -k) > (own[at], -at)]
        near = [
            (r, k, scores[r][k], overlap(visible[at], rows[r]))
            for r in range(len(scores))
            for k in range(len(scores[r]))
            if scores[r][k] >= module.FLOOR
            and overlap(visible[at], rows[r]) >= 0.3
            and r != int(made_by[at])
        ]
        same = [one for one in near if one[1] == label[at]]
        rivals = [one for one in near if one[1] != label[at]]
        itself = [
            value
            for k, value in enumerate(scores[int(made_by[at])])
            if k != label[at] and value >= module.FLOOR
        ]
        rival = max([one[2] for one in rivals] + itself, default=0.0)
        corners = np.array([corners_of(rows[r]) for r, *_ in same]).reshape(-1, 8)
        found.append(
            {
                "log_length": math.log(dx),
                "log_width": math.log(dy),
                "log_height": math.log(dz),
                "log_distance": math.log(math.hypot(x, y)),
                "z": z,
                "side_on": abs(math.sin(yaw - math.atan2(y, x))),
                "log_speed": math.log1p(math.hypot(*seen.boxes[at, 7:].tolist())),
                "log_points": math.log1p(points[at]),
                "boxes_in_frame": math.log1p(len(own)),
                "overlap_same": max([among[k] for k in others if label[k] == label[at]] + [0]),
                "overlap_other": max([among[k] for k in others if label[k] != label[at]] + [0]),
                "shadow": max([among[k] for k in higher] + [0]),
                "shadow_margin": max(
                    [odds(own[k]) - odds(own[at]) for k in higher if among[k] >= 0.3] + [0]
                ),
                "candidates": math.log1p(len(same)),
                "candidate_score_mean": np.mean([s for _, _, s, _ in same]) if same else 0,
                "candidate_score_max": max([s for _, _, s, _ in same] + [0]),
                "candidate_score_sd": np.std([s for _, _, s, _ in same]) if same else 0,
                "candidate_iou_mean": np.mean([i for *_, i in same]) if same else 0,
                "candidate_iou_sd": np.std([i for *_, i in same]) if same else 0,
                "corner_sd": corners.std(0).mean() / math.sqrt(dx * dy) if same else 0,
                "rivals": math.log1p(len(rivals)),
                "rival_score_max": rival,
                "rival_margin": odds(rival) - odds(own[at]),
            }
        )
    return found


def corners_of(one):
    x, y, _, dx, dy, _, yaw = one
    cos, sin = math.cos(yaw), math.sin(yaw)
    places = [
        (x + a * dx / 2 * cos - b * dy / 2 * sin, y + a * dx / 2 * sin + b * dy / 2 * cos)
        for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))
    ]
    return [place[axis] for axis in (0, 1) for place in places]


@given(st.integers(0, 10_000), st.sampled_from([1, 5, 40, module._PAIRS]))
@settings(max_examples=40)
def test_statistics_are_what_their_names_say(seed, pairs):
    seen, head, made_by = scene(seed, width=9)
    points = torch.arange(len(seen))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PAIRS", pairs)  # whatever is compared at a time
        found = statistics(seen, Candidates.of(head), made_by, points, "lidar")
    expected = naive(seen, head, made_by, points.tolist())
    assert found.shape == (len(seen), len(NAMES))
    for at, one in enumerate(expected):
        assert list(one) == list(NAMES)
        np.testing.assert_allclose(found[at], list(one.values()), atol=2e-3, rtol=1e-4)


def test_corners_are_those_of_the_rectangle_and_turn_with_the_heading():
    seen, _, _ = scene(2)
    corners = corners_above(seen.boxes).reshape(-1, 2, 4)
    for places, one in zip(corners.tolist(), seen.boxes.tolist(), strict=True):
        found = sorted(zip(*places, strict=True))
        expected = sorted(above(one).exterior.coords[:4])
        np.testing.assert_allclose(found, expected, atol=1e-5)
    turned = seen.boxes.clone()
    turned[:, 6] += torch.pi
    # the same rectangle, but each corner is where the opposite one was
    again = corners_above(turned).reshape(-1, 2, 4).roll(2, 2)
    torch.testing.assert_close(again, corners, rtol=0, atol=1e-5)


def test_what_is_not_known_is_nan():
    seen, _, _ = scene(1)
    found = statistics(seen, None, None, None, "global")
    known = dict(zip(NAMES, found[0].tolist(), strict=True))
    unknown = {name for name, value in known.items() if math.isnan(value)}
    assert {"log_distance", "side_on", "log_speed", "log_points", "candidates"} <= unknown
    assert not {"log_length", "z", "shadow", "boxes_in_frame"} & unknown
    assert all(math.isnan(value) for value in hidden(seen, None))


def test_distance_is_seen_from_above():
    box = torch.tensor([[3.0, 4, 12, 1, 1, 1, 0]])
    assert distance(box, "camera").item() == 5
    assert math.isnan(distance(box, "global").item())


def test_hidden_candidates_share_a_vote_where_they_overlap():
    size = [4.0, 4, 2, 0]
    boxes = torch.tensor([[x, 0, 0, *size] for x in (0.0, 1, 30, 60)])
    scores = torch.tensor([[0.9], [0.3], [0.4], [0.005]])
    head = HeadRows(scores, boxes, scores, lambda at: {})
    nothing = Detections(torch.zeros(0, 7), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    count, total, best = hidden(nothing, Candidates.of(head))
    assert len(HIDDEN) == 3
    assert (count, total, best) == pytest.approx((2.0, 0.9 / 2 + 0.3 / 2 + 0.4, 0.9))
    seen = Detections(boxes[:1], scores[0], torch.tensor([0]))
    assert hidden(seen, Candidates.of(head)) == pytest.approx((1.0, 0.4, 0.4))


def test_candidates_that_are_not_finite_harm_no_others():
    seen, head, made_by = scene(5)
    row = torch.tensor([[torch.nan, 1, 1, 1, 1, 1, 1], [1e30, 1, 1, 1, torch.inf, 1, 1]])
    more = HeadRows(
        torch.cat([head.scores, torch.full((2, 3), 0.5)]),
        torch.cat([head.boxes, row]),
        torch.cat([head.logits, torch.zeros(2, 3)]),
        head.features,
    )
    found, same = (
        statistics(seen, Candidates.of(one), made_by, None, "lidar") for one in (head, more)
    )
    torch.testing.assert_close(found, same, equal_nan=True)


def test_many_boxes_are_compared_a_few_at_a_time(monkeypatch):
    seen, head, made_by = scene(1, rows=700, visible=700)
    shapes = []

    def noted(a, b):
        found = COMPARISON.iou(a, b)
        shapes.append(found.numel())
        return found

    how = COMPARISON._replace(iou=noted)
    monkeypatch.setattr(module, "_PAIRS", 20_000)
    candidates = Candidates.of(head)
    module.surroundings(how, seen, candidates, made_by)
    assert max(shapes) <= 20_000
    assert sum(shapes) == 700 * (700 + len(candidates.score))


def test_overlaps_are_those_of_the_package():
    seen, head, _ = scene(7)
    found = COMPARISON.iou(seen.boxes, head.boxes)
    assert found.dtype is torch.float32
    np.testing.assert_allclose(found, iou(seen.boxes, head.boxes), atol=1e-6)
