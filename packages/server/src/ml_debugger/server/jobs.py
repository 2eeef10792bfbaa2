"""The queue of work for worker processes: rows of the service's own database."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from sqlalchemy import func, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import aliased
from sqlmodel import col, select

from ml_debugger.core.errors import InputError, StoreError
from ml_debugger.server.credentials import new_id
from ml_debugger.server.database import Database
from ml_debugger.server.problems import Problem
from ml_debugger.server.tables import JobRow

State = Literal["queued", "running", "done", "failed", "cancelled"]
OPEN = ("queued", "running")
FULL_SECONDS = 30  # after which a full queue may be asked again
MOST_ATTEMPTS = 5  # a job that takes its worker down as often will do so again


class Queue:
    """Jobs, those of a project in the order in which they were asked for; for several processes.

    No clock decides anything: a worker's `beat` is a counter, and who watches it uses a clock of
    its own that only ever runs forward.
    """

    def __init__(self, database: Database, most: int) -> None:
        """Use the service's tables; a project may have so many jobs that are not done."""
        self._database = database
        self._most = most

    def submit(
        self,
        project_id: str,
        kind: str,
        *,
        model_name: str,
        version_name: str,
        result_name: str,
        request: Mapping[str, Any],
        created_by: str,
        job_id: str | None = None,
    ) -> JobRow:
        """Add a job, under an id of its own if none is given.

        Raises:
            InputError: One that is not done yet makes a result of this name.
            Problem: 429; the project has too many that are not done.
        """
        if len(self.waiting(project_id)) >= self._most:
            raise Problem(
                429,
                f"the project has {self._most} jobs that are not done; wait, or cancel some",
                retry_after=FULL_SECONDS,
            )
        row = JobRow(
            id=job_id or new_id(),
            project_id=project_id,
            kind=kind,
            model_name=model_name,
            version_name=version_name,
            result_name=result_name,
            request=json.dumps(dict(request)),
            state="queued",
            created_by=created_by,
            created_at=time.time_ns(),
        )
        try:
            with self._database.writing() as session:
                session.add(row)
        except IntegrityError as error:
            raise InputError(
                f"a result {result_name!r} is being made already; choose another result_name, or "
                "wait for it"
            ) from error
        return row

    def submit_once(self, project_id: str, kind: str, *, result_name: str, **rest: Any) -> JobRow:
        """Add a job, or return the one that is at work for this result already."""
        query = select(JobRow).where(
            JobRow.project_id == project_id,
            JobRow.result_name == result_name,
            col(JobRow.state).in_(OPEN),
        )
        for _ in range(3):  # it may be done, or begun, between a look and the next
            with self._database.reading() as session:
                row = session.exec(query).first()
            if row is not None:
                return row
            with suppress(InputError):
                return self.submit(project_id, kind, result_name=result_name, **rest)
        raise InputError(f"jobs for the result {result_name!r} come and go; try again")

    def find(self, project_id: str, job_id: str) -> JobRow | None:
        """Return a job of a project."""
        with self._database.reading() as session:
            return session.exec(
                select(JobRow).where(JobRow.id == job_id, JobRow.project_id == project_id)
            ).first()

    def listed(self, project_id: str, limit: int, offset: int = 0) -> list[JobRow]:
        """Return a project's jobs, the newest first."""
        query = select(JobRow).where(JobRow.project_id == project_id)
        query = query.order_by(col(JobRow.created_at).desc(), col(JobRow.id))
        with self._database.reading() as session:
            return list(session.exec(query.offset(offset).limit(limit)))

    def waiting(self, project_id: str) -> list[str]:
        """Return the names of the results that a project's jobs are to make."""
        with self._database.reading() as session:
            query = select(JobRow.result_name).where(JobRow.project_id == project_id)
            return list(session.exec(query.where(col(JobRow.state).in_(OPEN))))

    def running(self) -> list[JobRow]:
        """Return the jobs that workers have taken."""
        with self._database.reading() as session:
            return list(session.exec(select(JobRow).where(JobRow.state == "running")))

    def cancel(self, project_id: str, job_id: str) -> None:
        """Drop a job that waits, and have its worker stop one that runs."""
        mine = (col(JobRow.id) == job_id, col(JobRow.project_id) == project_id)
        with self._database.writing() as session:
            session.execute(
                update(JobRow)
                .where(*mine, col(JobRow.state) == "queued")
                .values(state="cancelled", finished_at=time.time_ns())
            )
            session.execute(
                update(JobRow).where(*mine, col(JobRow.state) == "running").values(cancelled=True)
            )

    def take(self, worker: str) -> JobRow | None:
        """Give a worker a job; None if none waits.

        It is the oldest of the project whose last job began longest ago, so that nobody's queue
        keeps the others waiting.
        """
        other = aliased(JobRow)
        served = (
            select(func.max(other.started_at))
            .where(other.project_id == JobRow.project_id)
            .correlate(JobRow)
            .scalar_subquery()
        )
        with self._database.writing() as session:
            row = session.exec(
                select(JobRow)
                .where(JobRow.state == "queued")
                .order_by(func.coalesce(served, 0), col(JobRow.created_at), col(JobRow.id))
                .limit(1)
                .with_for_update(skip_locked=True)
            ).first()
            if row is not None:
                row.state, row.worker, row.attempt = "running", worker, row.attempt + 1
                row.started_at, row.progress = time.time_ns(), 0.0
                session.add(row)
            return row

    def beat(self, job: JobRow, progress: float) -> bool:
        """Say that a worker is still at its job; False if it is to stop.

        It is where the job was cancelled, or given to another worker.
        """
        with self._database.writing() as session:
            row = session.get(JobRow, job.id)
            if row is None or row.attempt != job.attempt or row.state != "running":
                return False
            row.beat += 1
            row.progress = progress
            session.add(row)
            return not row.cancelled

    def end(self, job: JobRow, state: State, message: str = "") -> bool:
        """Note how a worker's job ended; False if it is no longer its own."""
        with self._database.writing() as session:
            row = session.get(JobRow, job.id)
            if row is None or row.attempt != job.attempt or row.state != "running":
                return False
            if state == "queued" and row.attempt >= MOST_ATTEMPTS:
                state, message = "failed", f"{message}; given up after {row.attempt} attempts"
            if row.cancelled and state != "done":
                state, message = "cancelled", ""
            row.state, row.message = state, message
            if state != "queued":
                row.finished_at = time.time_ns()
            if state == "done":
                row.progress = 1.0
            session.add(row)
            return True


class Watch:
    """Finds jobs whose worker has been silent for long, by this process's own clock."""

    def __init__(self, queue: Queue, patience: float) -> None:
        """Watch a queue; a worker may be silent for `patience` seconds."""
        self._queue = queue
        self._patience = patience
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}

    def look(self) -> list[JobRow]:
        """Put abandoned jobs back into the queue, and return them."""
        try:
            running = self._queue.running()
        except StoreError:
            self._seen.clear()  # while nobody can look, nobody can beat
            raise
        now = time.monotonic()
        self._seen = {k: v for k, v in self._seen.items() if k in {one.id for one in running}}
        abandoned = []
        for one in running:
            state = (one.attempt, one.beat)
            before, since = self._seen.get(one.id, (None, now))
            if before != state:
                self._seen[one.id] = (state, now)
            elif now - since > self._patience and self._queue.end(
                one, "queued", f"the worker {one.worker} was silent for {now - since:.0f} s"
            ):
                abandoned.append(one)
        return abandoned
