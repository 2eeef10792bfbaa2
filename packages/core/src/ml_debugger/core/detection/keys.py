"""Keys for searching in many groups at once."""

import torch
from torch import Tensor


def sort_keys(groups: Tensor, values: Tensor) -> Tensor:
    """Return whole numbers (n,) in the order of group, and in a group of value.

    Args:
        groups: Shape (n,), int64.
        values: Shape (n,); as float32, -0 as 0, and NaN as infinity.
    """
    inf = torch.inf
    values = torch.nan_to_num(values.float(), nan=inf, posinf=inf, neginf=-inf) + 0.0  # no -0
    bits = values.view(torch.int32)
    return groups * 2**32 + torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
