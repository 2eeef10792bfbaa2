"""What a test looks at to see that a user's model and random state are as they were."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a model's output, in their order."""
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, Mapping):
        parts: Any = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    else:
        parts = vars(value).values() if hasattr(value, "__dict__") else ()
    for part in parts:
        yield from tensors_of(part)


def assert_same(mine: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    """Raise AssertionError unless two sequences of tensors are equal bit for bit."""
    assert len(mine) == len(other)
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)


def hooks_of(model: nn.Module) -> list[dict[str, list[Any]]]:
    """List the ids of all hooks of each module; they are in attributes named so."""
    return [
        {name: list(kept) for name, kept in vars(module).items() if name.endswith("_hooks")}
        for module in model.modules()
    ]


def seed_everything() -> None:
    """Put Python's, NumPy's and torch's random generators into one known state."""
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)


def next_random_numbers() -> tuple[float, ...]:
    """Draw a number from each generator; equal numbers mean that nobody drew in between."""
    return random.random(), float(np.random.random()), float(torch.rand(()))
