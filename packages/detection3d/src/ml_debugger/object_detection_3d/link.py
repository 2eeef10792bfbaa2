"""Which row of the head made each box that the user sees."""

import torch
from torch import Tensor

from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.object_detection_3d.output import Detections, HeadRows

#: A box may lie off by this share of its largest coordinate or side, for a model that computes
#: boxes in another order of operations than its adapter.
_TOLERANCE = 1e-3

_YAW = 6


def link(seen: Detections, rows: HeadRows) -> Tensor:
    """Find the head's row that each visible box came from.

    A row made a box if its score for the box's label is the same to the last bit and its box for
    that label lies there; of several, the nearest, and of equally near ones the first. Nothing has
    to be known of how the model suppresses boxes.

    Args:
        seen: The boxes that the user sees, n of them.
        rows: What the head said of the same frame.

    Returns:
        Row numbers, shape (n,), int64.

    Raises:
        UnsupportedModelError: A box came from no row, so what the adapter believes of this model
            is not true.
    """
    if len(seen) == 0:
        return torch.zeros(0, dtype=torch.int64, device=seen.scores.device)
    labels = seen.labels.long()
    # few rows score as high as the least of the visible boxes
    least = torch.nan_to_num(seen.scores).min()
    some = ((rows.scores >= least) | rows.scores.isnan()).any(1).nonzero().squeeze(1)
    columns = rows.scores.index_select(0, some).index_select(1, labels)
    wanted = seen.scores.to(rows.scores.dtype)
    equal = (columns == wanted) | (columns.isnan() & wanted.isnan())
    box, row = equal.T.nonzero(as_tuple=True)
    row = some[row]
    away = distance(rows.boxes_of(row, labels[box]), seen.boxes[box])
    sizes = seen.boxes[:, :_YAW].abs().amax(1).clamp(min=1.0)
    # what is not finite lies nowhere: there the score alone has to tell
    away = torch.where(torch.isfinite(seen.boxes[box]).all(1), away, torch.zeros_like(away))
    near = away <= _TOLERANCE * torch.nan_to_num(sizes[box], posinf=1.0)
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


def distance(boxes: Tensor, others: Tensor) -> Tensor:
    """Return how far boxes (n, 7) or (n, 9) differ, each from its other, shape (n,).

    The largest difference of a coordinate, a side or a velocity, or the sine of that of the
    headings: a heading near the end of its range may be given at the other end, half a turn away.
    """
    apart = (boxes - others).abs()
    apart[:, _YAW] = apart[:, _YAW].sin().abs()
    return apart.amax(1)
