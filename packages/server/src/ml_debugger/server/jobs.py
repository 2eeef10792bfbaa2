"""The queue of work for worker processes: rows of the service's own database."""

import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from sqlalchemy import delete, func, update
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from ml_debugger.core.errors import InputError, StoreError
from ml_debugger.server.credentials import new_id
from ml_debugger.server.database import Database
from ml_debugger.server.problems import OvertakenError, Problem
from ml_debugger.server.tables import JobRow, ProjectRow

State = Literal["queued", "running", "done", "failed", "cancelled"]
Why = Literal["died", "stalled", "stopped"]
OPEN = ("queued", "running")
FULL_SECONDS = 30  # after which a full queue may be asked again
MOST_DEATHS = 5  # a job that takes its worker down as often will do so again
MOST_STALLS = 500  # a job that could not go on as often, a minute apart: eight hours of one worker
KEPT = 30 * 24 * 3600 * 10**9  # nanoseconds for which jobs are listed once they have ended


class Queue:
    """Jobs, those of a project in the order in which they were asked for; for several processes.

    No clock decides anything: a worker's `beat` is a counter, and who watches it uses a clock of
    its own that only ever runs forward.
    """

    def __init__(self, database: Database, most: int) -> None:
        """Use the service's tables; a project may have so many jobs that are not done."""
        self._database = database
        self._most = most
        self._turn = threading.Lock()

    def submit(
        self,
        project_id: str,
        kind: str,
        *,
        model_name: str,
        version_name: str,
        result_name: str | Callable[[Collection[str]], str],
        request: Mapping[str, Any],
        created_by: str,
        job_id: str | None = None,
        shared: bool = False,
    ) -> JobRow:
        """Add a job, or return the one of this id.

        Args:
            project_id: For whom.
            kind: What is to be done.
            model_name: Of what.
            version_name: Of which version.
            result_name: The result, or what chooses its name, given those that are being made.
            request: The arguments, as JSON.
            created_by: Who asks.
            job_id: The job's id; a new one if None.
            shared: Return the job that is at work for this result, if there is one.

        Raises:
            InputError: A job that is not done yet makes a result of this name.
            Problem: 404, there is no such project; 429, it has too many jobs that are not done.
        """
        # one of this process at a time: choosing a name may take a connection beside this one
        with self._turn, self._database.writing() as session:
            # others of the project wait here, and what is seen from here on holds
            if session.get(ProjectRow, project_id, with_for_update=True) is None:
                raise Problem(404, "there is no such project")
            same = None if job_id is None else session.get(JobRow, job_id)
            if same is not None:
                return same
            query = select(JobRow).where(JobRow.project_id == project_id)
            waiting = {
                one.result_name: one
                for one in session.exec(query.where(col(JobRow.state).in_(OPEN)))
            }
            name = result_name if isinstance(result_name, str) else result_name(waiting)
            if name in waiting and shared:
                return waiting[name]
            if name in waiting:
                raise InputError(
                    f"a result {name!r} is being made already; choose another result_name, or "
                    "wait for it"
                )
            if len(waiting) >= self._most:
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
                result_name=name,
                request=json.dumps(dict(request)),
                state="queued",
                created_by=created_by,
                created_at=time.time_ns(),
            )
            session.add(row)
        return row

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

    def cancel_all(self, project_id: str, *which: Any) -> None:
        """Cancel the jobs of a project that are not done, of those that conditions name."""
        query = select(JobRow.id).where(JobRow.project_id == project_id, *which)
        with self._database.reading() as session:
            found = list(session.exec(query.where(col(JobRow.state).in_(OPEN))))
        for one in found:
            self.cancel(project_id, one)

    def tidy(self) -> None:
        """Forget the jobs that ended long ago."""
        with self._database.writing() as session:
            session.execute(
                delete(JobRow).where(
                    col(JobRow.state).not_in(OPEN),
                    col(JobRow.finished_at) < time.time_ns() - KEPT,
                )
            )

    def take(self, worker: str, but: Collection[str] = ()) -> JobRow | None:
        """Give a worker a job, of an id that it does not refuse; None if none waits.

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
                .where(JobRow.state == "queued", col(JobRow.id).not_in(but))
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
            row = _held(session, job.id, job.attempt, "running", "done")
            if row is None:
                return False
            if row.state == "done":
                return True  # what it has made is entered, and it may come to its end
            row.beat += 1
            row.progress = progress
            session.add(row)
            return not row.cancelled

    @contextmanager
    def entering(self, job_id: str, attempt: int) -> Iterator[None]:
        """Let a worker enter what its job has made; the job is done then.

        Meanwhile nobody cancels the job, or gives it to another worker.

        Raises:
            OvertakenError: It was cancelled, or given away.
        """
        with self._database.writing() as session:
            row = _held(session, job_id, attempt)
            if row is None or row.cancelled:
                raise OvertakenError(f"attempt {attempt} at job {job_id} is not wanted any more")
            yield
            row.state, row.progress, row.finished_at = "done", 1.0, time.time_ns()
            session.add(row)

    def end(self, job: JobRow, state: State, message: str = "", *, why: Why = "died") -> bool:
        """Note how a worker's job ended; False if it is no longer its own.

        Args:
            job: As the worker took it.
            state: What it is now; "queued" for it to be taken again.
            message: For those who may see the job.
            why: What it is queued for: it took its worker down, it could not go on, which it may
                many more times, or its worker was told to stop, which does not count.
        """
        with self._database.writing() as session:
            row = _held(session, job.id, job.attempt, "running", "done")
            if row is None or row.state == "done":
                return row is not None and state == "done"
            if state == "queued":
                row.failures += why == "died"
                row.stalls += why == "stalled"
                if row.failures >= MOST_DEATHS or row.stalls >= MOST_STALLS:
                    state = "failed"
                    message = f"{message}; given up after {row.attempt} attempts"
            if row.cancelled and state != "done":
                state, message = "cancelled", ""
            row.state, row.message = state, message
            if state != "queued":
                row.finished_at = time.time_ns()
            if state == "done":
                row.progress = 1.0
            session.add(row)
            return True


def _held(session: Session, job_id: str, attempt: int, *states: State) -> JobRow | None:
    """Return a job if it is (still) this attempt's, and let nobody change it in the meantime."""
    row = session.get(JobRow, job_id, with_for_update=True)
    if row is None or row.attempt != attempt or row.state not in (states or ("running",)):
        return None
    return row


class Watch:
    """Finds jobs whose worker has been silent for long, by this process's own clock."""

    def __init__(self, queue: Queue, patience: float) -> None:
        """Watch a queue; a worker may be silent for `patience` seconds."""
        self._queue = queue
        self._patience = patience
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}
        self._looked = 0.0

    def look(self) -> list[JobRow]:
        """Put abandoned jobs back into the queue, and return them."""
        try:
            running = self._queue.running()
        except StoreError:
            self._seen.clear()  # while nobody can look, nobody can beat
            raise
        now = time.monotonic()
        if now - self._looked > self._patience / 2:  # asleep, it heard nobody
            self._seen.clear()
        self._looked = now
        self._seen = {k: v for k, v in self._seen.items() if k in {one.id for one in running}}
        abandoned = []
        for one in running:
            state = (one.attempt, one.beat)
            before, since = self._seen.get(one.id, (None, now))
            if before != state:
                self._seen[one.id] = (state, now)
            elif now - since > self._patience and self._queue.end(
                one, "queued", f"a worker was silent for {now - since:.0f} s"
            ):
                abandoned.append(one)
        return abandoned
