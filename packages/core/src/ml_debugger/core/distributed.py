"""Which process of a distributed job this is.

Every rank records into segments of its own; what is done once for all of them (export, upload,
evaluation) happens on the primary rank, after a barrier, and returns None elsewhere.
"""

import torch.distributed as dist


def is_distributed() -> bool:
    """Tell whether a process group is up in this process."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's rank; 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def is_primary() -> bool:
    """Tell whether this rank does what is done once."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here; nothing without a process group."""
    if is_distributed():
        dist.barrier()


def agree_on(value: str) -> str:
    """Return the primary rank's value on every rank. All ranks must call it."""
    if not is_distributed():
        return value
    box: list[str | None] = [value]
    dist.broadcast_object_list(box, src=0)
    agreed = box[0]
    assert agreed is not None  # the primary rank always puts a string into the box
    return agreed
