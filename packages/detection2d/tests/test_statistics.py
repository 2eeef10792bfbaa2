"""Statistics of boxes, against a naive reading of their names."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_debugger.core.detection import surroundings as module
from ml_debugger.core.detection.surroundings import Candidates
from ml_debugger.object_detection import statistics as ours
from ml_debugger.object_detection.output import Detections, HeadRows
from ml_debugger.object_detection.statistics import (
    HIDDEN,
    NAMES,
    hidden,
    pairwise_iou,
    statistics,
)

SIZE = (40, 50)


def scene(seed, rows=12, labels=3, visible=4):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 12, (rows, 2)).astype(np.float32)
    boxes = np.concatenate([low, low + rng.integers(4, 14, (rows, 2))], 1).astype(np.float32)
    scores = rng.uniform(0, 0.95, (rows, labels)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.3] = 0
    head = HeadRows(
        torch.from_numpy(scores),
        torch.from_numpy(boxes),
        torch.from_numpy(scores),
        lambda at: {"box": torch.zeros(len(at), 1)},
    )
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


def naive(seen, head, made_by):
    """Return the statistics of each box by name, box by box and candidate by candidate."""
    iou = pairwise_iou(seen.boxes, head.boxes).tolist()
    among = pairwise_iou(seen.boxes, seen.boxes).tolist()
    scores, found = head.scores.tolist(), []
    own, label = seen.scores.tolist(), seen.labels.tolist()
    for at, (x1, y1, x2, y2) in enumerate(seen.boxes.tolist()):
        others = [k for k in range(len(own)) if k != at]
        above = [k for k in others if (own[k], -k) > (own[at], -at)]
        near = [
            (r, k, scores[r][k], iou[at][r])
            for r in range(len(scores))
            for k in range(len(scores[r]))
            if scores[r][k] >= module.FLOOR and iou[at][r] >= 0.5 and r != int(made_by[at])
        ]
        same = [one for one in near if one[1] == label[at]]
        rivals = [one for one in near if one[1] != label[at]]
        itself = [
            value
            for k, value in enumerate(scores[int(made_by[at])])
            if k != label[at] and value >= module.FLOOR
        ]
        rival = max([one[2] for one in rivals] + itself, default=0.0)
        corners = np.array([head.boxes[r].tolist() for r, *_ in same]).reshape(-1, 4)
        found.append(
            {
                "log_width": math.log(x2 - x1),
                "log_height": math.log(y2 - y1),
                "log_aspect": math.log((x2 - x1) / (y2 - y1)),
                "sides_touched": (x1 <= 1) + (y1 <= 1) + (x2 >= SIZE[1] - 1) + (y2 >= SIZE[0] - 1),
                "boxes_in_image": math.log1p(len(own)),
                "overlap_same": max([among[at][k] for k in others if label[k] == label[at]] + [0]),
                "overlap_other": max([among[at][k] for k in others if label[k] != label[at]] + [0]),
                "shadow": max([among[at][k] for k in above] + [0]),
                "shadow_margin": max(
                    [odds(own[k]) - odds(own[at]) for k in above if among[at][k] >= 0.5] + [0]
                ),
                "candidates": math.log1p(len(same)),
                "candidate_score_mean": np.mean([s for _, _, s, _ in same]) if same else 0,
                "candidate_score_max": max([s for _, _, s, _ in same] + [0]),
                "candidate_score_sd": np.std([s for _, _, s, _ in same]) if same else 0,
                "candidate_iou_mean": np.mean([i for *_, i in same]) if same else 0,
                "candidate_iou_sd": np.std([i for *_, i in same]) if same else 0,
                "corner_sd": corners.std(0).mean() / math.sqrt((x2 - x1) * (y2 - y1))
                if same
                else 0,
                "rivals": math.log1p(len(rivals)),
                "rival_score_max": rival,
                "rival_margin": odds(rival) - odds(own[at]),
            }
        )
    return found


@given(st.integers(0, 10_000), st.sampled_from([1, 5, 40, module._PAIRS]))
@settings(max_examples=100, deadline=None)
def test_statistics_are_what_their_names_say(seed, pairs):
    seen, head, made_by = scene(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PAIRS", pairs)  # whatever is compared at a time
        found = statistics(seen, Candidates.of(head), made_by, SIZE)
    expected = naive(seen, head, made_by)
    assert found.shape == (len(seen), len(NAMES))
    for at, one in enumerate(expected):
        assert list(one) == list(NAMES)
        np.testing.assert_allclose(found[at], list(one.values()), atol=2e-3, rtol=1e-4)


def test_what_is_not_known_is_nan():
    seen, _, _ = scene(1)
    found = statistics(seen, None, None, None)
    known = dict(zip(NAMES, found[0].tolist(), strict=True))
    assert math.isnan(known["sides_touched"])
    assert math.isnan(known["candidates"])
    assert not math.isnan(known["shadow"])
    assert all(math.isnan(value) for value in hidden(seen, None))


def test_hidden_candidates_share_a_vote_where_they_overlap():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [30, 30, 40, 40], [20, 0, 30, 10]])
    scores = torch.tensor([[0.9], [0.3], [0.4], [0.005]])
    head = HeadRows(scores, boxes, scores, lambda at: {})
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    count, total, best = hidden(nothing, Candidates.of(head))
    assert len(HIDDEN) == 3
    assert (count, total, best) == pytest.approx((2.0, 0.9 / 2 + 0.3 / 2 + 0.4, 0.9))
    seen = Detections(boxes[:1], scores[0], torch.tensor([0]))
    assert hidden(seen, Candidates.of(head)) == pytest.approx((1.0, 0.4, 0.4))


def test_the_best_candidates_are_kept_where_there_are_many(monkeypatch):
    monkeypatch.setattr(module, "MOST", 5)
    _, head, _ = scene(3, rows=30)
    found = Candidates.of(head)
    expected = head.scores.flatten().sort(descending=True).values[:5]
    assert torch.equal(found.score, expected)
    assert torch.equal(head.scores[found.row, found.label], found.score)


def test_many_boxes_are_compared_a_few_at_a_time(monkeypatch):
    seen, head, made_by = scene(1, rows=4000, visible=4000)
    shapes = []

    def noted(a, b):
        found = pairwise_iou(a, b)
        shapes.append(found.shape)
        return found

    monkeypatch.setattr(ours, "COMPARISON", ours.COMPARISON._replace(iou=noted))
    candidates = Candidates.of(head)
    found = statistics(seen, candidates, made_by, SIZE)
    about = hidden(seen, candidates)
    pairs = [shape.numel() for shape in shapes]
    assert max(pairs) <= module._PAIRS
    assert sum(pairs) >= 4000 * (4000 + 2 * len(candidates.score))  # all that there are
    monkeypatch.setattr(module, "_PAIRS", 4000 * 4000)
    assert torch.equal(found, statistics(seen, candidates, made_by, SIZE))
    assert about == hidden(seen, candidates)


def test_of_few_rows_with_a_score_all_are_candidates():
    _, head, _ = scene(4, rows=30)
    head.scores[3, 1] = torch.nan
    found = Candidates.of(head)
    expected = {
        (row, label)
        for row, scores in enumerate(head.scores.tolist())
        for label, score in enumerate(scores)
        if score >= module.FLOOR
    }
    assert {*zip(found.row.tolist(), found.label.tolist(), strict=True)} == expected
    assert (found.score.diff() <= 0).all()
