"""Do a job as a worker's process does, up to one point; the arguments are a JSON object.

There it says `here`, and kills or stops itself. What it says after that is how the job ended.
"""

import json
import os
import signal
import sys
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from ml_debugger.core.store import Store
from ml_debugger.server import worker
from ml_debugger.server.projects import ProjectStore
from ml_debugger.server.settings import Settings


def say(what: Any) -> None:
    print(what, flush=True)  # noqa: T201  # whoever started this reads it


def at_the_point(end: str) -> None:
    say("here")
    os.kill(os.getpid(), signal.Signals[end])


def main(settings: dict[str, Any], job: dict[str, Any], point: str, end: str) -> None:
    if point == "entering":  # the folder is where it belongs, and not listed yet
        take_place = Store._take_place

        def taken(self: Store, draft: Path, folder: Path) -> None:
            take_place(self, draft, folder)
            at_the_point(end)

        Store._take_place = taken  # type: ignore[method-assign]
    else:  # it has everything, and is about to enter it
        add_result = ProjectStore.add_result

        def added(self: ProjectStore, **given: Any) -> None:
            at_the_point(end)
            add_result(self, **given)

        ProjectStore.add_result = added  # type: ignore[method-assign]
    said, theirs = Pipe()
    worker._child(Settings(**settings), job, theirs)
    while said.poll():
        state, *_ = said.recv()
    say(state)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
