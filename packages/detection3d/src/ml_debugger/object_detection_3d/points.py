"""Points of a cloud in boxes."""

import torch
from torch import Tensor

from ml_debugger.core.detection.keys import sort_keys

#: The cloud is cut into strips along y, this many metres wide or more, and this many at most.
_WIDTH, _STRIPS = 2.0, 256
#: Pairs of a box and a point near it that are looked at in one go.
_PAIRS = 1 << 18


def count_points(boxes: Tensor, cloud: Tensor) -> Tensor:
    """Count the points of a cloud that lie in each box.

    Args:
        boxes: As `frames` defines them, shape (n, 7) or (n, 9), on any device.
        cloud: Points x, y, z and more, in the same axes, shape (p, 3) or more. One at the origin,
            where the sensor is, is what batches are padded with.

    Returns:
        Shape (n,), int64, on the CPU; 0 for a box that is not finite.
    """
    cloud = cloud[:, :3].float()
    cloud = cloud[torch.isfinite(cloud).all(1) & cloud.any(1)]
    found = torch.zeros(len(boxes), dtype=torch.int64, device=cloud.device)
    boxes = boxes[:, :7].to(cloud.device, torch.float32)
    sound = torch.isfinite(boxes).all(1).nonzero().squeeze(1)
    if not len(cloud) or not len(sound):
        return found.cpu()
    boxes = boxes[sound]
    # points in the order of their strip, and of y in it: those near a box are few stretches
    low, high = cloud.amin(0), cloud.amax(0)
    width = ((high[0] - low[0]) / _STRIPS).clamp(min=_WIDTH)
    keys, order = sort_keys(((cloud[:, 0] - low[0]) / width).long(), cloud[:, 1]).sort()
    cloud = cloud[order]
    reach = boxes[:, 3:5].norm(dim=1) / 2
    x, y = boxes[:, :2].T
    ends = ((torch.stack([x - reach, x + reach]) - low[0]) / width).clamp(-1, _STRIPS + 1)
    first, last = ends.floor().long()
    box, strip = _spread(first, last - first + 1)
    start = torch.searchsorted(keys, sort_keys(strip, (y - reach)[box]))
    stop = torch.searchsorted(keys, sort_keys(strip, (y + reach)[box]), right=True)
    near = stop - start
    part = near.cumsum(0) // _PAIRS  # boxes may be as large as the cloud
    sizes = part.unique_consecutive(return_counts=True)[1].tolist()
    for piece in torch.arange(len(box), device=box.device).split(sizes):
        at, point = _spread(start[piece], near[piece])
        which = box[piece][at]
        found.index_add_(0, sound[which], _inside(boxes[which], cloud[point]).long())
    return found.cpu()


def _inside(boxes: Tensor, points: Tensor) -> Tensor:
    """Tell which points (k, 3) lie in their box (k, 7)."""
    x, y, up = (points - boxes[:, :3]).unbind(1)
    length, width, height, yaw = boxes[:, 3:].unbind(1)
    cos, sin = yaw.cos(), yaw.sin()
    ahead, left = x * cos + y * sin, y * cos - x * sin
    halves = (length / 2, width / 2, height / 2)
    near = [one.abs() <= half for one, half in zip((ahead, left, up), halves, strict=True)]
    return near[0] & near[1] & near[2]


def _spread(start: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Count on from each start: return whose each number is, and the numbers, one below another."""
    whose = torch.arange(len(count), device=count.device).repeat_interleave(count)
    before = count.cumsum(0) - count
    return whose, torch.arange(len(whose), device=count.device) + (start - before)[whose]
