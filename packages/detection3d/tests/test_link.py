"""Boxes are linked to the rows that made them."""

import pytest
import torch
from torch import Tensor

from ml_debugger.core.detection import linking
from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.object_detection_3d.link import link
from ml_debugger.object_detection_3d.output import Detections, HeadRows


def made(count: int = 50, labels: int = 3, width: int = 9, *, each: bool = False) -> HeadRows:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(count, labels, generator=generator)
    shape = (count, labels, width) if each else (count, width)
    boxes = torch.rand(shape, generator=generator) * 20
    boxes[..., 6] = torch.rand(shape[:-1], generator=generator) * 6 - 3
    return HeadRows(scores, boxes, scores.logit(), lambda _: {})


def kept(rows: HeadRows, at: Tensor, labels: Tensor) -> Detections:
    return Detections(rows.boxes_of(at, labels).clone(), rows.scores[at, labels], labels)


AT, LABELS = torch.tensor([7, 3, 3, 40]), torch.tensor([0, 1, 2, 2])


@pytest.mark.parametrize("width", [7, 9])
@pytest.mark.parametrize("each", [False, True])
def test_finds_the_rows(width: int, each: bool) -> None:
    rows = made(width=width, each=each)
    assert torch.equal(link(kept(rows, AT, LABELS), rows), AT)


def test_of_equal_scores_the_nearest_box_tells() -> None:
    rows = made()
    rows.scores[:] = 0.5
    seen = kept(rows, AT, LABELS)
    seen.boxes[:] += 1e-4
    assert torch.equal(link(seen, rows), AT)


def test_of_equal_rows_the_first_is_taken() -> None:
    rows = made()
    rows.scores[9], rows.boxes[9] = rows.scores[7], rows.boxes[7]
    at = torch.tensor([9])
    assert link(kept(rows, at, torch.tensor([0])), rows).tolist() == [7]


def test_a_heading_may_be_given_half_a_turn_away() -> None:
    rows = made()
    for turn in (torch.pi, -torch.pi, 2 * torch.pi):
        seen = kept(rows, AT, LABELS)
        seen.boxes[:, 6] += turn
        assert torch.equal(link(seen, rows), AT)


@pytest.mark.parametrize("column", range(9))
def test_refuses_a_box_that_no_row_made(column: int) -> None:
    rows = made()
    seen = kept(rows, AT, LABELS)
    seen.boxes[2, column] += 0.5
    with pytest.raises(UnsupportedModelError, match="box 2 .*changes boxes or scores"):
        link(seen, rows)


def test_refuses_a_score_that_no_row_has() -> None:
    rows = made()
    seen = kept(rows, AT, LABELS)
    seen.scores[1] = seen.scores[1].nextafter(torch.tensor(1.0))
    with pytest.raises(UnsupportedModelError, match="box 1"):
        link(seen, rows)


def test_what_is_not_finite_is_linked_by_its_score() -> None:
    rows = made()
    rows.boxes[7, 0] = torch.nan
    rows.scores[40, 2] = torch.nan
    assert torch.equal(link(kept(rows, AT, LABELS), rows), AT)


def test_no_boxes() -> None:
    rows = made()
    none = torch.zeros(0, dtype=torch.int64)
    found = link(kept(rows, none, none), rows)
    assert found.shape == (0,)
    assert found.dtype is torch.int64


def test_a_score_of_very_many_rows_costs_little() -> None:
    """As that of all cells without a point; the pairs of equal scores would fill the memory."""
    count = 300_000
    rows = made(count, width=7)
    rows.scores[:] = 1.0
    at = torch.arange(0, count, 500)
    seen = kept(rows, at, torch.ones_like(at))
    assert torch.equal(link(seen, rows), at)
    reach = torch.full((len(at),), 0.01)
    assert len(linking._alike(seen, seen.labels, reach, rows)[0]) < 10_000 * len(at)


@pytest.mark.parametrize("lost", [torch.nan, torch.inf, -torch.inf])
def test_where_a_row_begins_may_not_be_known(lost: float) -> None:
    rows = made()
    rows.boxes[3, 0] = lost
    rows.boxes[7, 0] = -5.0  # as do those behind the sensor
    assert torch.equal(link(kept(rows, AT, LABELS), rows), AT)


def test_a_model_that_diverged_costs_little() -> None:
    rows = made(300_000, width=7)
    rows.scores[:], rows.boxes[:] = torch.nan, torch.nan
    at = torch.arange(0, 300_000, 500)
    seen = kept(rows, at, torch.ones_like(at))
    assert not link(seen, rows).any()  # the first is as good as any
    assert len(linking._alike(seen, seen.labels, torch.ones(len(at)), rows)[0]) == len(at)


def test_a_box_that_is_not_finite_may_begin_elsewhere() -> None:
    rows = made(width=7)
    seen = kept(rows, AT, LABELS)
    seen.boxes[0, 0] += 0.01
    seen.boxes[0, 5] = torch.inf
    seen.boxes[1, 0] += 1e-5
    seen.boxes[1, 1] = torch.nan
    assert torch.equal(link(seen, rows), AT)
