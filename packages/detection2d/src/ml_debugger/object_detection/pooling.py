"""Features of boxes out of a layer's map."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ml_debugger.object_detection.output import Placement


def pool_boxes(
    values: Tensor, boxes: Tensor, size: tuple[int, int], placement: Placement | None
) -> Tensor:
    """Average a map over the cells that each box touches.

    Args:
        values: What the layer gave for one image, (channel, height, width).
        boxes: Corners x1, y1, x2, y2 in pixels of the image, shape (n, 4).
        size: Height and width of the image, in pixels.
        placement: Where the image lies in what the network saw; None where it is all of it.

    Returns:
        Shape (n, channel), float32.
    """
    channels, rows, columns = values.shape
    placement = placement or Placement((1.0, 1.0), (0.0, 0.0), size)
    ends = boxes.new_tensor([columns, rows])
    network = boxes.new_tensor([placement.size[1], placement.size[0]])
    scale, offset = boxes.new_tensor(placement.scale), boxes.new_tensor(placement.offset)
    corners = (boxes.reshape(-1, 2, 2) * scale + offset) * (ends / network)
    corners = torch.nan_to_num(corners)
    low = corners[:, 0].floor().clamp(min=torch.zeros_like(ends), max=ends - 1).long()
    high = torch.maximum(corners[:, 1].ceil().clamp(max=ends).long(), low + 1)
    # sums over every rectangle from the corner, in double, so that differences keep their digits
    total = values.new_zeros((channels, rows + 1, columns + 1), dtype=torch.float64)
    total[:, 1:, 1:] = values.double().cumsum(1).cumsum(2)
    (x1, y1), (x2, y2) = low.T, high.T
    inside = total[:, y2, x2] - total[:, y1, x2] - total[:, y2, x1] + total[:, y1, x1]
    cells = ((high - low).prod(1)).to(inside.dtype)
    return (inside / cells).T.float()


def pick_cells(maps: Sequence[Tensor], rows: Tensor, a_cell: Sequence[int]) -> Tensor:
    """Take the vectors of the cells that some of a head's rows look at.

    Rows are numbered level by level, cell by cell.

    Args:
        maps: Each level's, shape (channel, height, width).
        rows: Which rows, shape (n,), int64.
        a_cell: How many rows each cell of a level has.

    Returns:
        Shape (n, channel), float32; of levels with fewer channels than others, zeros at the end.
    """
    found = torch.zeros((len(rows), max(map(len, maps))), device=rows.device)
    start = 0
    for level, n in zip(maps, a_cell, strict=True):
        end = start + n * level.shape[1] * level.shape[2]
        here = ((start <= rows) & (rows < end)).nonzero().squeeze(1)
        vectors = level.flatten(1).index_select(1, (rows[here] - start) // n).T.float()
        found[here, : len(level)] = vectors.contiguous()  # twice as fast to put in place
        start = end
    return found
