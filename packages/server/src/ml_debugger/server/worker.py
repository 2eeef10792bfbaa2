"""The process that does the queued work, one job at a time, each in a process of its own.

A job's process can be stopped, and cannot take its worker down. Killed at any moment it leaves
nothing half done: a result is entered whole or not at all.
"""

import json
import logging
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from ml_debugger.core.errors import MLDebuggerError, SchemaError, StoreError
from ml_debugger.core.evaluation.method import evaluate
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.evaluation.scoring import score_missing
from ml_debugger.core.progress import listening
from ml_debugger.core.records import ModelVersion
from ml_debugger.server.jobs import State, Watch, Why
from ml_debugger.server.observe import log_as_json
from ml_debugger.server.picking import scope_of
from ml_debugger.server.problems import OvertakenError
from ml_debugger.server.projects import ProjectStore
from ml_debugger.server.retention import tidy
from ml_debugger.server.service import Service
from ml_debugger.server.settings import Settings
from ml_debugger.server.tables import JobRow

POLL = 0.5
TIDY_EVERY = 3600.0
TIDY_FIRST = 60.0  # after a start: the jobs that wait come first
SAID_EVERY = 0.2
LONGEST_REST = 60.0

log = logging.getLogger("ml_debugger.server.worker")


class Worker:
    """Takes jobs until it is told to stop."""

    def __init__(self, service: Service, name: str | None = None) -> None:
        """Work for a service; the name is for people."""
        self._service = service
        self._queue = service.queue
        self._name = name or f"{socket.gethostname()}:{os.getpid()}"
        self._lease = service.settings.lease_seconds
        self._watch = Watch(self._queue, self._lease)
        self._resting: dict[str, float] = {}  # until when, by this process's own clock
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload([__name__])

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop; a job that is not done then is left to other workers."""
        # soon after it starts too: one that is started anew every half hour would never tidy
        tidied = time.monotonic() - TIDY_EVERY + TIDY_FIRST
        while not stop.is_set():
            try:
                self._look()
                if time.monotonic() - tidied > TIDY_EVERY:
                    tidied = time.monotonic()
                    tidy(self._service)
                job = self._queue.take(self._name, self._refused())
            except StoreError as error:
                log.warning("cannot look for jobs", extra={"cause": str(error)})
                stop.wait(POLL * 4)
                continue
            if job is None:
                stop.wait(POLL)
            else:
                self._do(job, stop)

    def _look(self) -> None:
        for one in self._watch.look():
            log.warning("job abandoned", extra={"job": one.id, "worker": one.worker})

    def _refused(self) -> list[str]:
        """Return the jobs that could not go on here, and are to rest a while."""
        now = time.monotonic()
        self._resting = {job: end for job, end in self._resting.items() if end > now}
        return list(self._resting)

    def _do(self, job: JobRow, stop: threading.Event) -> None:
        log.info("job begun", extra={"job": job.id, "kind": job.kind, "attempt": job.attempt})
        mine, theirs = self._processes.Pipe()
        arguments = (self._service.settings, job.model_dump(), theirs)
        process = self._processes.Process(target=_child, args=arguments, daemon=True)
        state: State = "queued"
        why: Why = "died"
        message = "its process died"
        try:
            found = self._begin(job, process, theirs) or self._attend(job, process, mine, stop)
            if found is None:  # cancelled, or no longer ours
                state, message = "cancelled", ""
            elif found:
                state, message = found
                if state == "queued":
                    why = "stalled"
                    # what it stands on was away, and may soon be back; other jobs go on meanwhile
                    rest = min(4.0 ** min(job.stalls + 1, 10), LONGEST_REST)
                    self._resting[job.id] = time.monotonic() + rest
        finally:
            if process.pid is not None:
                process.kill()
                process.join()
            mine.close()
        self._end(job, state, message, stop, "stopped" if stop.is_set() else why)

    def _begin(self, job: JobRow, process: Any, theirs: Connection) -> tuple[State, str] | None:
        """Start a job's process; where that cannot be, say how the job ended."""
        try:
            process.start()
        except (OSError, EOFError) as error:  # the machine has no room, or has killed the server
            log.warning("no process", extra={"job": job.id, "cause": type(error).__name__})
            return "queued", "no process could be started for it"
        finally:
            theirs.close()  # or it would not be seen that the process has ended
        return None

    def _attend(
        self, job: JobRow, process: Any, said: Connection, stop: threading.Event
    ) -> tuple[State, str] | tuple[()] | None:
        """Keep a job until its process has said how it ended; () if it cannot any more."""
        progress, beaten = 0.0, 0.0
        while True:
            if stop.is_set():
                return "queued", "its worker was stopped"
            try:
                while said.poll(POLL):
                    what, *rest = said.recv()
                    if what != "progress":
                        return what, rest[0]
                    progress = rest[0]
                    if time.monotonic() - beaten > self._lease / 6:
                        break
            except (EOFError, OSError):  # the latter in the middle of a word
                return ()
            if not process.is_alive() and not said.poll():
                return ()
            if time.monotonic() - beaten > self._lease / 6:
                try:
                    if not self._queue.beat(job, progress):
                        return None
                    beaten = time.monotonic()
                    self._look()  # jobs of others may have to wait for an hour else
                except StoreError as error:  # the job goes on meanwhile
                    log.warning("cannot say that a job goes on", extra={"cause": str(error)})

    def _end(
        self, job: JobRow, state: State, message: str, stop: threading.Event, why: Why
    ) -> None:
        while True:
            try:
                kept = self._queue.end(job, state, message, why=why)
            except StoreError as error:
                log.warning("cannot say how a job ended", extra={"cause": str(error)})
                if stop.wait(POLL * 4):
                    return
            else:
                about = {"job": job.id, "state": state if kept else "taken over"}
                log.info("job ended", extra=about)
                return


def _child(settings: Settings, job: dict[str, Any], connection: Connection) -> None:
    """Do one job, and say how it went."""
    log_as_json()
    threading.Thread(target=_die_with_parent, args=(connection,), daemon=True).start()
    lock = threading.Lock()

    def say(*what: Any) -> None:
        with lock:
            connection.send(what)

    said = 0.0

    def advance(share: float) -> None:
        nonlocal said
        if time.monotonic() - said > SAID_EVERY:
            said = time.monotonic()
            say("progress", share)

    say(*_outcome(settings, job, advance))


def _outcome(
    settings: Settings, job: dict[str, Any], advance: Callable[[float], None]
) -> tuple[State, str]:
    """Do a job, and return how it ended, with a message for those who may see the job."""
    try:
        with Service(settings) as service, listening(advance):
            store = service.projects.store(job["project_id"])
            store.fence = partial(service.queue.entering, job["id"], job["attempt"])
            _KINDS[job["kind"]](store, job, json.loads(job["request"]))
    except OvertakenError:
        return "cancelled", ""
    except (StoreError, SchemaError) as error:  # they may name places, the operator's business
        log.warning("job cannot go on", extra={"job": job["id"], "cause": str(error)})
        return "queued", "StoreError: the service cannot do this just now"
    except MLDebuggerError as error:
        return "failed", f"{type(error).__name__}: {error}"
    except Exception as error:  # told to whoever asked, in the log with all its frames
        log.exception("job failed", extra={"job": job["id"]})
        return "failed", f"Fault: the service has one: {type(error).__name__}"
    return "done", ""


def _evaluate(store: ProjectStore, job: dict[str, Any], request: dict[str, Any]) -> None:
    name = job["result_name"]
    if store.result_named(name) is not None:
        return  # by a worker that died before it could say so: the name was kept for this job
    evaluate(
        store,
        ModelVersion(job["model_name"], job["version_name"]),
        method_name=request["method_name"],
        result_name=name,
        n_epoch=request["n_epoch"],
        options=request["options"],
    )


def _estimate(store: ProjectStore, job: dict[str, Any], request: dict[str, Any]) -> None:
    info = store.result(job["result_name"])
    repository = store.repository_of(info.version)
    records = repository.records(scope_of(repository, info, request))
    score_missing(records, Result.load(store.result_folder(info.name)))


_KINDS: dict[str, Callable[[ProjectStore, dict[str, Any], dict[str, Any]], None]] = {
    "evaluation": _evaluate,
    "estimates": _estimate,
}


def _die_with_parent(connection: Connection) -> None:
    """End this process when the worker is gone, which closes its side of the pipe."""
    with suppress(OSError):
        connection.poll(None)
    os._exit(1)
