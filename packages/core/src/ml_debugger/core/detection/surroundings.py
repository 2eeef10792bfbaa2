"""What the head said around each box: numbers that tell sound boxes from doubtful ones.

After MetaDetect (Schubert et al. 2020): a box that many candidates agree on is another thing than
one that stands alone, or that others claim for another class.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ml_debugger.core.detection.output import Detections, HeadRows

#: The numbers of a visible box, in their order. The first four compare it with other visible ones.
#: Of the candidates (a row of the head with a label), those count that are near it, itself left
#: out.
NAMES = (
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

#: What is said of an input: candidates that are near no visible box; those that are near each
#: other share one vote.
HIDDEN = ("hidden_count", "hidden_score_sum", "hidden_score_max")

#: Candidates with a lower score than this are not looked at, nor more than so many of an input.
FLOOR = 0.01
MOST = 1000
_MOST_HIDDEN = 200

#: Pairs of boxes that are compared at a time, which bounds the memory that many boxes take.
_PAIRS = 1 << 18


class Comparison(NamedTuple):
    """How boxes of a task are compared.

    Attributes:
        iou: Returns the IoU of boxes (n, d) and (m, d), shape (n, m), float32.
        corners: Returns the coordinates of boxes (n, d) that tell how far these agree, shape
            (n, c).
        size: Returns against what their differences are seen, of boxes (n, d), shape (n,).
        near: Least IoU of boxes that are about the same thing.
    """

    iou: Callable[[Tensor, Tensor], Tensor]
    corners: Callable[[Tensor], Tensor]
    size: Callable[[Tensor], Tensor]
    near: float


class Candidates(NamedTuple):
    """The boxes that a head proposes for an input, the highest scores first.

    Attributes:
        row: The row that each is of, shape (m,), int64.
        label: Shape (m,), int64.
        score: Shape (m,), float32.
        boxes: Shape (m, d), float32.
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


def surroundings(
    how: Comparison, seen: Detections, candidates: Candidates | None, made_by: Tensor | None
) -> Tensor:
    """Return the values of `NAMES` of the visible boxes of an input, shape (n, 14), float32.

    NaN where something is not known.

    Args:
        how: How boxes are compared.
        seen: The visible boxes, n of them.
        candidates: What the head proposed, or None.
        made_by: The row of each box, shape (n,), int64, or None.
    """
    found = [_in_parts(seen, len(seen), partial(_among, how, seen))]
    if candidates is None or made_by is None:
        rest = len(NAMES) - found[0].shape[1]
        unknown = torch.full((len(seen), rest), torch.nan, device=seen.scores.device)
        found.append(unknown)
    else:
        around = partial(_around, how, seen, candidates, made_by)
        found.append(_in_parts(seen, len(candidates.score), around))
    return torch.cat(found, 1)


def hidden(how: Comparison, seen: Detections, candidates: Candidates | None) -> tuple[float, ...]:
    """Return what the head said where the user sees no box: the values of `HIDDEN`, or NaN."""
    if candidates is None:
        return (float("nan"),) * len(HIDDEN)
    parts = candidates.boxes.split(max(1, _PAIRS // max(1, len(seen))))
    visible = seen.boxes.float()
    apart = torch.cat([(how.iou(one, visible) < how.near).all(1) for one in parts])
    boxes, score = (one[apart][:_MOST_HIDDEN] for one in (candidates.boxes, candidates.score))
    if len(score) == 0:
        return (0.0,) * len(HIDDEN)
    votes = (how.iou(boxes, boxes) >= how.near).sum(1).clamp(min=1)
    found = torch.stack([(1 / votes).sum(), (score / votes).sum(), score[0]])
    return tuple(found.tolist())


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


def _among(how: Comparison, seen: Detections, at: Tensor) -> list[Tensor]:
    """Say how far some boxes overlap others, and lie under others with higher scores.

    The last is how much higher the highest of those is.
    """
    boxes, odds = seen.boxes.float(), _log_odds(seen.scores)
    overlap = how.iou(boxes[at], boxes)
    overlap.scatter_(1, at[:, None], 0.0)  # itself is no other
    same = seen.labels[at, None] == seen.labels
    order, own = torch.arange(len(seen), device=at.device), odds[at, None]
    above = (odds > own) | ((odds == own) & (order < at[:, None]))
    margin = torch.where(above & (overlap >= how.near), odds - own, 0.0)
    return [
        _largest(overlap * same),
        _largest(overlap * ~same),
        _largest(overlap * above),
        _largest(margin),
    ]


def _log_odds(scores: Tensor) -> Tensor:
    return torch.logit(scores.float(), eps=1e-4)


def _around(
    how: Comparison, seen: Detections, candidates: Candidates, made_by: Tensor, at: Tensor
) -> list[Tensor]:
    """Say what the head proposed around some boxes."""
    row, label, score, boxes = candidates
    own = seen.boxes[at].float()
    iou = how.iou(own, boxes)
    itself = made_by[at, None] == row
    near = (iou >= how.near) & ~itself
    same = seen.labels[at, None] == label
    ours, rivals = near & same, near & ~same
    # sums over the candidates of each box are matrix products, in double for the differences
    values = torch.nan_to_num(torch.cat([score[:, None], how.corners(boxes)], 1)).double()
    ends = 1 + values.shape[1]
    sums = ours.double() @ torch.cat([torch.ones_like(values[:, :1]), values, values**2], 1)
    count = sums[:, 0].clamp(min=1)
    mean = sums[:, 1:ends] / count[:, None]
    spread = (sums[:, ends:] / count[:, None] - mean**2).clamp(min=0).sqrt()
    overlap = (iou * ours).double()
    iou_mean = overlap.sum(1) / count
    iou_spread = ((overlap**2).sum(1) / count - iou_mean**2).clamp(min=0).sqrt()
    # a box's own row may speak for another class as well
    rival = _largest(score * ((near | itself) & ~same))
    found = [
        sums[:, 0].log1p(),
        mean[:, 0],
        _largest(score * ours),
        spread[:, 0],
        iou_mean,
        iou_spread,
        spread[:, 1:].mean(1) / how.size(own),
        rivals.sum(1).log1p(),
        rival,
        _log_odds(rival) - _log_odds(seen.scores[at]),
    ]
    return [one.float() for one in found]


def _largest(values: Tensor) -> Tensor:
    if values.shape[1] == 0:
        return values.new_zeros(len(values))
    return values.amax(1)
