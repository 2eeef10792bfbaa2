"""Numbers as users give them: tensors, arrays and lists, read with the same checks everywhere."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ml_debugger.core.errors import InputError


def class_numbers(values: Any) -> Tensor:
    """Read labels, shape (n,), int64.

    Raises:
        InputError: They are not whole numbers from 0.
    """
    labels = as_tensor(values, "labels")
    if labels.ndim != 1:
        raise InputError(
            f"labels have shape {tuple(labels.shape)}; expected one class number a box, (n,). "
            "For one-hot labels pass their argmax"
        )
    # whole numbers are exact in double up to 2 ** 53
    odd = (labels != labels.floor()) | (labels.abs() > 2**53)
    if odd.any():
        raise InputError(
            f"label {first(odd)} is {labels[odd][0].item()}; labels must be whole numbers. Pass "
            "class numbers, not scores"
        )
    if (labels < 0).any():
        raise InputError(
            f"label {first(labels < 0)} is {int(labels[labels < 0][0])}; labels must be class "
            "numbers from 0. Leave out boxes without a class"
        )
    return labels.to(torch.int64, copy=True)


def as_tensor(values: Any, what: str) -> Tensor:
    """Bring tensors, arrays and lists, on any device, to an int64 or float64 tensor on the CPU.

    Raises:
        InputError: There are other things than numbers in it, or rows of different lengths.
    """
    try:
        array = np.asarray(_plain(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} must be numbers, got {type(values).__name__}: {error}") from None
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"{what} must be numbers, got {type(values).__name__} of {array.dtype}; pass a "
            "tensor, an array or a list"
        )
    return torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))


def require(given: Mapping[Any, Any], *names: str) -> None:
    """Check that a mapping has these keys.

    Raises:
        InputError: It lacks some; those that it has are named.
    """
    missing = [name for name in names if name not in given]
    if missing:
        raise InputError(
            f"missing {' and '.join(map(repr, missing))}; found the keys {keys_of(given)}. "
            f"Expected {', '.join(map(repr, names))}: add or rename them"
        )


def keys_of(given: Mapping[Any, Any]) -> list[str]:
    """Return a mapping's keys for a message."""
    return [str(key) for key in given]


def first(mask: Tensor) -> int:
    """Return the position of the first True of a mask that has one."""
    return int(mask.nonzero()[0])


def _plain(values: Any) -> Any:
    """Bring tensors, also those inside lists, to what NumPy reads: also CUDA and bfloat16."""
    if isinstance(values, Tensor):
        host = values.detach().cpu().as_subclass(Tensor)
        return (host.double() if host.is_floating_point() else host).numpy()
    if isinstance(values, (list, tuple)):
        return [_plain(one) for one in values]
    return values
