"""The precision in which a head's output was made into scores and boxes."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def as_computed(model: nn.Module, said: Tensor) -> AbstractContextManager[object]:
    """Compute under autocast if what the head said shows that the model did.

    Autocast takes some operations after the head in half precision and some in float32; in other
    precisions no score would be found to the last bit.
    """
    weights = next(model.parameters()).dtype
    if said.dtype.itemsize >= weights.itemsize:
        return nullcontext()
    return torch.autocast(said.device.type, said.dtype)
