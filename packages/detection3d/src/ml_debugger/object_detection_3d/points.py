"""Points of a cloud in boxes."""

import torch
from torch import Tensor


def count_points(boxes: Tensor, cloud: Tensor) -> Tensor:
    """Count the points of a cloud that lie in each box.

    Args:
        boxes: Centre of the bottom x, y, z, sides along x, y, z before it is turned, and heading
            about z in radians, in metres, shape (n, 7) or more.
        cloud: Points x, y, z and more, in the same axes, shape (p, 3) or more.

    Returns:
        Shape (n,), int64.
    """
    # a box has few points, so look only at those near it in x
    cloud = cloud[cloud[:, 0].argsort(), :3].float()
    reach = boxes[:, 3:5].norm(dim=1) / 2
    ends = torch.stack([boxes[:, 0] - reach, boxes[:, 0] + reach])
    first, last = torch.searchsorted(cloud[:, 0].contiguous(), ends).tolist()
    x, y, z, length, width, height, yaw = boxes[:, :7].unbind(1)
    cos, sin = yaw.cos(), yaw.sin()
    found = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    for i, near in enumerate(map(slice, first, last)):
        ahead, left, up = cloud[near, 0] - x[i], cloud[near, 1] - y[i], cloud[near, 2] - z[i]
        inside = (ahead * cos[i] + left * sin[i]).abs() <= length[i] / 2
        inside &= (left * cos[i] - ahead * sin[i]).abs() <= width[i] / 2
        inside &= (up - height[i] / 2).abs() <= height[i] / 2
        found[i] = inside.sum()
    return found
