"""Bring a batch's tensors to the host without making the model wait."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ml_debugger.core.records import Units

#: Says of a tensor that no one else will change it, so that no copy is needed.
Owned = Callable[[Tensor], bool]


@cache
def _side_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)


class HostCopy:
    """Copies of device tensors on their way into pinned memory.

    On CUDA the copies run on a side stream, behind the model's own work and beside what comes
    after it; `wait` blocks until they are there. The writer calls it, in its own thread. On other
    devices everything is there at once.
    """

    def __init__(self) -> None:
        self._events: list[Any] = []

    def units(self, units: Units[Tensor], owned: Owned) -> Units[Tensor]:
        """Return units on the host, no tensor shared with the model's output."""
        counts = None if units.counts is None else self._host(units.counts, owned)
        return Units({k: self._host(v, owned) for k, v in units.columns.items()}, counts)

    @property
    def pending(self) -> bool:
        """Whether there is something to wait for."""
        return bool(self._events)

    def wait(self) -> None:
        """Block until every tensor holds its values."""
        for event in self._events:
            event.synchronize()

    def _host(self, tensor: Tensor, owned: Owned) -> Tensor:
        mine = owned(tensor)
        tensor = tensor.detach()
        if tensor.dtype is torch.bfloat16:  # NumPy has no such type; widening is exact
            tensor, mine = tensor.float(), True
        if tensor.device.type == "cpu":
            return (tensor if mine else tensor.clone()).contiguous()
        if tensor.device.type != "cuda":
            return tensor.cpu().contiguous()
        tensor = (tensor if mine else tensor.clone()).contiguous()
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        stream = _side_stream(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            host.copy_(tensor, non_blocking=True)
            event = torch.cuda.Event()
            event.record(stream)
        tensor.record_stream(stream)  # its memory is not given away before the copy is done
        self._events.append(event)
        return host
