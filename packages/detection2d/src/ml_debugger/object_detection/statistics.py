"""What the head said around each box: numbers that tell sound boxes from doubtful ones.

After MetaDetect (Schubert et al. 2020): a box that many candidates agree on is another thing than
one that stands alone, or that others claim for another class.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ml_debugger.object_detection.output import Detections, HeadRows

#: The statistics, in their order. Of the candidates (a row of the head with a label), those count
#: that overlap the box by an IoU of at least 0.5, itself left out.
NAMES = (
    "log_width",
    "log_height",
    "log_aspect",
    "sides_touched",
    "boxes_in_image",
    "overlap_same",
    "overlap_other",
    "shadow",
    "shadow_margin",
    "candidates",
    "candidate_score_mean",
    "candidate_score_max",
    "candidate_score_sd",
    "candidate_iou_mean",
    "candidate_iou_sd",
    "corner_sd",
    "rivals",
    "rival_score_max",
    "rival_margin",
)

#: What is said of an image: candidates that overlap no visible box by an IoU of at least 0.5;
#: those that overlap each other share one vote.
HIDDEN = ("hidden_count", "hidden_score_sum", "hidden_score_max")

#: Candidates with a lower score than this are not looked at, nor more than so many of an image.
FLOOR = 0.01
MOST = 1000
_MOST_HIDDEN = 200

_OVERLAP = 0.5
#: Pairs of boxes that are compared at a time, which bounds the memory that many boxes take.
_PAIRS = 1 << 18


class Candidates(NamedTuple):
    """The boxes that a head proposes for an image, the highest scores first.

    Attributes:
        row: The row that each is of, shape (m,), int64.
        label: Shape (m,), int64.
        score: Shape (m,), float32.
        boxes: Corners, shape (m, 4), float32.
    """

    row: Tensor
    label: Tensor
    score: Tensor
    boxes: Tensor

    @classmethod
    def of(cls, rows: HeadRows) -> Self:
        """Take the best `MOST` with a score of at least `FLOOR`."""
        best = torch.nan_to_num(rows.scores.amax(1), nan=torch.inf)  # the others may be numbers
        some = (best >= FLOOR).nonzero().squeeze(1)  # few, of a trained detector
        if len(some) > MOST:  # the best candidates can only be of the rows that have the best ones
            some = best.topk(MOST).indices
        scores = torch.nan_to_num(rows.scores[some]).flatten()
        score, at = scores.topk(min(MOST, len(scores)))
        at = at[: int((score >= FLOOR).sum())]
        labels = rows.scores.shape[1]
        row, label = some[at.div(labels, rounding_mode="floor")], at % labels
        return cls(row, label, scores[at].float(), rows.boxes_of(row, label).float())


def statistics(
    seen: Detections,
    candidates: Candidates | None,
    made_by: Tensor | None,
    size: tuple[int, int] | None,
) -> Tensor:
    """Return the statistics of the visible boxes of an image, shape (n, 19), float32.

    NaN where something is not known.

    Args:
        seen: The visible boxes, n of them.
        candidates: What the head proposed, or None.
        made_by: The row of each box, shape (n,), int64, or None.
        size: Height and width of the image, in pixels, or None.
    """
    boxes = seen.boxes.float()
    width = (boxes[:, 2] - boxes[:, 0]).clamp(min=1e-3)
    height = (boxes[:, 3] - boxes[:, 1]).clamp(min=1e-3)
    unknown = torch.full_like(width, torch.nan)
    columns = [width.log(), height.log(), (width / height).log(), unknown]
    if size is not None:
        ends = torch.tensor([size[1], size[0]], device=boxes.device)
        columns[3] = ((boxes[:, :2] <= 1).sum(1) + (boxes[:, 2:] >= ends - 1).sum(1)).float()
    columns.append(torch.full_like(width, len(seen)).log1p())
    found = [torch.stack(columns, 1), _in_parts(seen, len(seen), partial(_among, seen))]
    if candidates is None or made_by is None:
        rest = len(NAMES) - sum(part.shape[1] for part in found)
        found.append(unknown[:, None].expand(-1, rest))
    else:
        around = partial(_around, seen, candidates, made_by)
        found.append(_in_parts(seen, len(candidates.score), around))
    return torch.cat(found, 1)


def _in_parts(seen: Detections, others: int, of: Callable[[Tensor], list[Tensor]]) -> Tensor:
    """Say something of visible boxes, of so many at a time as may be compared with the others.

    Args:
        seen: The visible boxes, n of them.
        others: How many boxes each is compared with.
        of: Returns the columns (k,) for the visible boxes of some numbers (k,).
    """
    numbers = torch.arange(len(seen), device=seen.scores.device)
    parts = numbers.split(max(1, _PAIRS // max(1, others)))
    return torch.cat([torch.stack(of(at), 1) for at in parts])


def _among(seen: Detections, at: Tensor) -> list[Tensor]:
    """Say how far some boxes overlap others, and lie under others with higher scores.

    The last is how much higher the highest of those is.
    """
    boxes, odds = seen.boxes.float(), _log_odds(seen.scores)
    overlap = pairwise_iou(boxes[at], boxes)
    overlap.scatter_(1, at[:, None], 0.0)  # itself is no other
    same = seen.labels[at, None] == seen.labels
    order, own = torch.arange(len(seen), device=at.device), odds[at, None]
    above = (odds > own) | ((odds == own) & (order < at[:, None]))
    margin = torch.where(above & (overlap >= _OVERLAP), odds - own, 0.0)
    return [
        _largest(overlap * same),
        _largest(overlap * ~same),
        _largest(overlap * above),
        _largest(margin),
    ]


def _log_odds(scores: Tensor) -> Tensor:
    return torch.logit(scores.float(), eps=1e-4)


def _around(seen: Detections, candidates: Candidates, made_by: Tensor, at: Tensor) -> list[Tensor]:
    """Say what the head proposed around some boxes."""
    row, label, score, boxes = candidates
    own = seen.boxes[at].float()
    iou = pairwise_iou(own, boxes)
    itself = made_by[at, None] == row
    near = (iou >= _OVERLAP) & ~itself
    same = seen.labels[at, None] == label
    ours, rivals = near & same, near & ~same
    # sums over the candidates of each box are matrix products, in double for the differences
    values = torch.cat([score[:, None], boxes], 1).double()
    sums = ours.double() @ torch.cat([torch.ones_like(values[:, :1]), values, values**2], 1)
    count = sums[:, 0].clamp(min=1)
    mean = sums[:, 1:6] / count[:, None]
    spread = (sums[:, 6:] / count[:, None] - mean**2).clamp(min=0).sqrt()
    overlap = (iou * ours).double()
    iou_mean = overlap.sum(1) / count
    iou_spread = ((overlap**2).sum(1) / count - iou_mean**2).clamp(min=0).sqrt()
    scale = (own[:, 2:] - own[:, :2]).clamp(min=1e-3).prod(1).sqrt()
    # a box's own row may speak for another class as well
    rival = _largest(score * ((near | itself) & ~same))
    found = [
        sums[:, 0].log1p(),
        mean[:, 0],
        _largest(score * ours),
        spread[:, 0],
        iou_mean,
        iou_spread,
        spread[:, 1:].mean(1) / scale,
        rivals.sum(1).log1p(),
        rival,
        _log_odds(rival) - _log_odds(seen.scores[at]),
    ]
    return [one.float() for one in found]


def hidden(seen: Detections, candidates: Candidates | None) -> tuple[float, ...]:
    """Return what the head said where the user sees no box: the values of `HIDDEN`, or NaN."""
    if candidates is None:
        return (float("nan"),) * len(HIDDEN)
    parts = candidates.boxes.split(max(1, _PAIRS // max(1, len(seen))))
    visible = seen.boxes.float()
    apart = torch.cat([(pairwise_iou(one, visible) < _OVERLAP).all(1) for one in parts])
    boxes, score = (one[apart][:_MOST_HIDDEN] for one in (candidates.boxes, candidates.score))
    if len(score) == 0:
        return (0.0,) * len(HIDDEN)
    votes = (pairwise_iou(boxes, boxes) >= _OVERLAP).sum(1).clamp(min=1)
    found = torch.stack([(1 / votes).sum(), (score / votes).sum(), score[0]])
    return tuple(found.tolist())


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of boxes (n, 4) and (m, 4), shape (n, m); 0 where both have no area."""
    # side by side, and in place: it is what most of the time goes into
    sides = [
        torch.minimum(a[:, None, axis + 2], b[:, axis + 2])
        .sub_(torch.maximum(a[:, None, axis], b[:, axis]))
        .clamp_(min=0)
        for axis in (0, 1)
    ]
    inside = sides[0].mul_(sides[1])
    areas = [(x[:, 2:] - x[:, :2]).clamp(min=0).prod(1) for x in (a, b)]
    return inside.div_((areas[0][:, None] + areas[1]).sub_(inside).clamp_(min=1e-9))


def _largest(values: Tensor) -> Tensor:
    if values.shape[1] == 0:
        return values.new_zeros(len(values))
    return values.amax(1)
