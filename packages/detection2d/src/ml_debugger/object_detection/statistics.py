"""What is known of each box beside its class: its shape, and what the head said around it."""

import torch
from torch import Tensor

from ml_debugger.core.detection import surroundings as shared
from ml_debugger.core.detection.output import Detections
from ml_debugger.core.detection.surroundings import HIDDEN as HIDDEN
from ml_debugger.core.detection.surroundings import Candidates, Comparison

#: The statistics, in their order.
NAMES = (
    "log_width",
    "log_height",
    "log_aspect",
    "sides_touched",
    "boxes_in_image",
    *shared.NAMES,
)


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
    width, height = _sides(boxes).unbind(1)
    columns = [width.log(), height.log(), (width / height).log()]
    if size is None:
        columns.append(torch.full_like(width, torch.nan))
    else:
        ends = torch.tensor([size[1], size[0]], device=boxes.device)
        columns.append(((boxes[:, :2] <= 1).sum(1) + (boxes[:, 2:] >= ends - 1).sum(1)).float())
    columns.append(torch.full_like(width, len(seen)).log1p())
    around = shared.surroundings(COMPARISON, seen, candidates, made_by)
    return torch.cat([torch.stack(columns, 1), around], 1)


def hidden(seen: Detections, candidates: Candidates | None) -> tuple[float, ...]:
    """Return what the head said where the user sees no box: the values of `HIDDEN`, or NaN."""
    return shared.hidden(COMPARISON, seen, candidates)


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


def _sides(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3)


COMPARISON = Comparison(pairwise_iou, lambda boxes: boxes, lambda b: _sides(b).prod(1).sqrt(), 0.5)
