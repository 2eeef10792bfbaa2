"""Trace a model in a process of its own; the arguments are a JSON object.

It says `ready` once it has a tracer, and the number of each call once that is durable.
"""

import json
import sys
import warnings
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from ml_debugger.core.store import sending

from ..serving import record, tracer


def say(what: Any) -> None:
    print(what, flush=True)  # noqa: T201  # whoever started this reads it


def main(
    home: str,
    endpoint: str,
    key: str,
    calls: list[int],
    version: str = "v1",
    inputs: int = 32,
    auto: bool = True,
    end: str = "close",
    chunks: int = sending.PART_CHUNKS,
    rank: int = 0,
    ranks: int = 1,
    store: str = "",
    timeout: float = 1800.0,
) -> None:
    sending.PART_CHUNKS = chunks
    if ranks > 1:
        meeting = dist.FileStore(store, ranks)
        meeting.set(str(rank), "here")
        meeting.wait([str(one) for one in range(ranks)])  # before a short timeout begins to count
        dist.init_process_group(
            "gloo", store=meeting, rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout)
        )
    made = tracer(home, version, auto_sync=auto, api_endpoint=endpoint, api_key=key)
    say("ready")
    for number in calls:
        record(made, [number], inputs=inputs)
        say(number)
    if end in ("wait", "again"):
        made.wait_for_save(interval=0.05)
    if end == "again":
        made.wait_for_save(interval=0.05, force=True)
    if end in ("wait", "again", "close"):
        made.close()
    if ranks > 1:
        dist.destroy_process_group()
    # else the interpreter's exit is what ends it


if __name__ == "__main__":
    warnings.simplefilter("default")
    main(**json.loads(sys.argv[1]))
