"""Which row of the head made each box that the user sees."""

from collections.abc import Callable

import torch
from torch import Tensor

from ml_debugger.core.detection.keys import sort_keys
from ml_debugger.core.detection.output import Detections, HeadRows
from ml_debugger.core.errors import UnsupportedModelError

#: A box may lie off by this share of its size, for a model that computes boxes in another order of
#: operations than its adapter.
_TOLERANCE = 1e-3


def link(
    seen: Detections,
    rows: HeadRows,
    apart: Callable[[Tensor, Tensor], Tensor],
    size: Callable[[Tensor], Tensor],
) -> Tensor:
    """Find the head's row that each visible box came from.

    A row made a box if its score for the box's label is the same to the last bit and its box for
    that label lies there; of several, the nearest, and of equally near ones the first. Nothing has
    to be known of how the model suppresses boxes.

    Args:
        seen: The boxes that the user sees, n of them.
        rows: What the head said of the same input.
        apart: Tells how far boxes (p, d) are from others (p, d), shape (p,); no less than their
            first numbers are.
        size: Tells against what that is to be seen, of boxes (n, d), shape (n,).

    Returns:
        Row numbers, shape (n,), int64.

    Raises:
        UnsupportedModelError: A box came from no row, so what the adapter believes of this model
            is not true.
    """
    if len(seen) == 0:
        return torch.zeros(0, dtype=torch.int64, device=seen.scores.device)
    labels, reach = seen.labels.long(), _TOLERANCE * torch.nan_to_num(size(seen.boxes), posinf=1.0)
    box, row = _alike(seen, labels, reach, rows)
    away = apart(rows.boxes_of(row, labels[box]), seen.boxes[box])
    # what is not finite lies nowhere: there the score alone has to tell
    away = torch.where(torch.isfinite(seen.boxes[box]).all(1), away, torch.zeros_like(away))
    near = away <= reach[box]
    box, row, away = box[near], row[near], away[near]
    nearest = torch.full((len(seen),), torch.inf, device=away.device, dtype=away.dtype)
    nearest.scatter_reduce_(0, box, away, "amin")
    if not torch.isfinite(nearest).all():
        lost = int((~torch.isfinite(nearest)).nonzero()[0])
        raise UnsupportedModelError(
            f"box {lost} (score {float(seen.scores[lost]):.6g}, label {int(labels[lost])}) is none "
            "that the head proposed: the model changes boxes or scores after its head. Subclass "
            "the tracer and override _parse_model_output, or write an adapter"
        )
    found = torch.full((len(seen),), len(rows.scores), device=row.device)
    best = away == nearest[box]
    return found.scatter_reduce_(0, box[best], row[best], "amin")


def _alike(
    seen: Detections, labels: Tensor, reach: Tensor, rows: HeadRows
) -> tuple[Tensor, Tensor]:
    """Return the pairs of a box and a row (p,) that have the same score and begin near each other.

    Args:
        seen: The boxes, n of them.
        labels: Of the boxes, shape (n,), int64.
        reach: How far the first number of a row's box may be off, shape (n,).
        rows: The rows.
    """
    # few rows score as high as the least of the visible boxes; NaN is lower than nothing
    least = torch.nan_to_num(seen.scores).min()
    some = (~(rows.scores.amax(1) < least)).nonzero().squeeze(1)
    high = rows.scores[some]
    row, label = (~(high < least)).nonzero(as_tuple=True)
    scores, group = sort_keys(labels, seen.scores).unique(return_inverse=True)
    said = sort_keys(label, high[row, label])
    of = torch.searchsorted(scores, said).clamp(max=len(scores) - 1)
    same = scores[of] == said
    row, label, of = some[row[same]], label[same], of[same]
    # a score may be that of very many rows, as of all cells without a point: then place tells
    keys, order = sort_keys(of, rows.boxes_of(row, label)[:, 0]).sort(stable=True)
    begin, around = seen.boxes[:, 0], 2 * reach  # twice: differences are rounded
    first = torch.searchsorted(keys, sort_keys(group, begin - around))
    each = torch.searchsorted(keys, sort_keys(group, begin + around), right=True) - first
    # of boxes that are not finite nothing more can tell, nor need they begin where the row does
    broken, end = ~torch.isfinite(seen.boxes).all(1), torch.full_like(begin, torch.inf)
    start = torch.searchsorted(keys, sort_keys(group, -end))
    there = torch.searchsorted(keys, sort_keys(group, end), right=True) > start
    first = torch.where(broken & (each == 0), start, first)
    each = torch.where(broken, there.long(), each)
    box = torch.arange(len(labels), device=labels.device).repeat_interleave(each)
    before = each.cumsum(0) - each  # pairs of earlier boxes
    at = torch.arange(len(box), device=box.device) + (first - before)[box]
    return box, row[order[at]]
