"""What the head said around each box: numbers that tell sound boxes from doubtful ones.

After MetaDetect (Schubert et al. 2020): a box that many candidates agree on is another thing than
one that stands alone, or that others claim for another class.
"""

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
        best = torch.nan_to_num(rows.scores.amax(1))
        # the best candidates can only be of the rows that have the best one each
        some = best.topk(min(MOST, len(best))).indices
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
    overlap = pairwise_iou(boxes, boxes).fill_diagonal_(0)
    same = seen.labels[:, None] == seen.labels
    columns += [_largest(overlap * same), _largest(overlap * ~same)]
    columns += _shadow(seen, overlap)
    if candidates is None or made_by is None:
        return torch.stack([*columns, *[unknown] * (len(NAMES) - len(columns))], 1)
    return torch.stack([*columns, *_around(seen, candidates, made_by)], 1)


def _shadow(seen: Detections, overlap: Tensor) -> list[Tensor]:
    """Say how far a box lies under others with higher scores, and how much higher the best is."""
    odds = _log_odds(seen.scores)
    order = torch.arange(len(seen), device=odds.device)
    above = (odds > odds[:, None]) | ((odds == odds[:, None]) & (order < order[:, None]))
    margin = torch.where(above & (overlap >= _OVERLAP), odds - odds[:, None], 0.0)
    return [_largest(overlap * above), _largest(margin)]


def _log_odds(scores: Tensor) -> Tensor:
    return torch.logit(scores.float(), eps=1e-4)


def _around(seen: Detections, candidates: Candidates, made_by: Tensor) -> list[Tensor]:
    row, label, score, boxes = candidates
    iou = pairwise_iou(seen.boxes.float(), boxes)
    itself = made_by[:, None] == row
    near = (iou >= _OVERLAP) & ~itself
    same = seen.labels[:, None] == label
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
    scale = (seen.boxes[:, 2:] - seen.boxes[:, :2]).float().clamp(min=1e-3).prod(1).sqrt()
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
        _log_odds(rival) - _log_odds(seen.scores),
    ]
    return [one.float() for one in found]


def hidden(seen: Detections, candidates: Candidates | None) -> tuple[float, ...]:
    """Return what the head said where the user sees no box: the values of `HIDDEN`, or NaN."""
    if candidates is None:
        return (float("nan"),) * len(HIDDEN)
    overlap = pairwise_iou(candidates.boxes, seen.boxes.float())
    apart = (overlap < _OVERLAP).all(1)
    boxes, score = (one[apart][:_MOST_HIDDEN] for one in (candidates.boxes, candidates.score))
    if len(score) == 0:
        return (0.0,) * len(HIDDEN)
    votes = (pairwise_iou(boxes, boxes) >= _OVERLAP).sum(1).clamp(min=1)
    found = torch.stack([(1 / votes).sum(), (score / votes).sum(), score[0]])
    return tuple(found.tolist())


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of boxes (n, 4) and (m, 4), shape (n, m); 0 where both have no area."""
    low = torch.maximum(a[:, None, :2], b[:, :2])
    high = torch.minimum(a[:, None, 2:], b[:, 2:])
    inside = (high - low).clamp(min=0).prod(2)
    areas = [(x[:, 2:] - x[:, :2]).clamp(min=0).prod(1) for x in (a, b)]
    return inside / (areas[0][:, None] + areas[1] - inside).clamp(min=1e-9)


def _largest(values: Tensor) -> Tensor:
    if values.shape[1] == 0:
        return values.new_zeros(len(values))
    return values.amax(1)
