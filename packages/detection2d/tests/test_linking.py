"""Boxes find the row of the head that made them."""

import pytest
import torch

from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.object_detection.linking import link
from ml_debugger.object_detection.output import Detections, HeadRows

BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60], [5, 5, 9, 9]])
SCORES = torch.tensor([[0.0, 0.9], [0.0, 0.8], [0.0, 0.9], [0.7, 0.2]])


def rows(boxes=BOXES, scores=SCORES):
    return HeadRows(scores, boxes, scores, lambda at: {})


def seen(boxes, scores, labels):
    return Detections(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels))


def test_score_label_and_place_tell_the_row():
    found = seen([[50.0, 50, 60, 60], [0, 0, 10, 10], [5, 5, 9, 9]], [0.9, 0.9, 0.7], [1, 1, 0])
    assert link(found, rows()).tolist() == [2, 0, 3]


def test_of_equal_rows_the_first_is_taken():
    twice = torch.cat([BOXES, BOXES])
    found = seen([[0.0, 0, 10, 10]], [0.8], [1])
    assert link(found, rows(twice, torch.cat([SCORES, SCORES]))).tolist() == [1]


def test_no_box_has_no_row():
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert link(nothing, rows()).tolist() == []


@pytest.mark.parametrize(
    "found",
    [
        ([[0.0, 0, 10, 10]], [0.85], [1]),
        ([[20.0, 0, 30, 10]], [0.9], [1]),
        ([[0.0, 0, 10, 10]], [0.9], [0]),
    ],
)
def test_a_box_that_no_row_made_is_refused(found):
    with pytest.raises(UnsupportedModelError, match="box 0"):
        link(seen(*found), rows())


def test_what_is_not_finite_is_found_by_its_score():
    boxes = BOXES.clone()
    boxes[3] = torch.nan
    found = seen([[float("nan")] * 4], [0.7], [0])
    assert link(found, rows(boxes)).tolist() == [3]
    scores = SCORES.clone()
    scores[2, 1] = torch.nan
    found = seen([[50.0, 50, 60, 60], [0, 0, 10, 10]], [float("nan"), 0.8], [1, 1])
    assert link(found, rows(BOXES, scores)).tolist() == [2, 1]


def test_many_boxes_are_found_among_many_rows_with_equal_scores():
    generator = torch.Generator().manual_seed(0)
    low = torch.randint(0, 1000, (5000, 2), generator=generator).float()
    boxes = torch.cat([low, low + 9], 1)
    scores = torch.randint(0, 40, (5000, 6), generator=generator) / 64
    cell = scores.flatten().topk(4000).indices
    row, label = cell // 6, cell % 6
    said = Detections(boxes[row], scores[row, label], label)
    found = link(said, rows(boxes, scores))
    assert torch.equal(scores[found, label], said.scores)
    assert torch.equal(boxes[found], said.boxes)
    assert (found <= row).all()  # of equal ones the first
