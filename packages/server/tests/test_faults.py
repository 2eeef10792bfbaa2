"""What breaks while records are sent or evaluated, for real; nothing is lost, nothing is doubled.

`MLD_FAULT_RUNS=20 python -m packages.server.tests.test_faults` breaks each thing as often, and
prints a table; words behind it choose faults by what is in their names.
"""

import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from ml_debugger.core import remote
from ml_debugger.core.records import ModelVersion
from ml_debugger.core.service import client, uploader
from ml_debugger.core.store import Store, sending
from ml_debugger.core.store.tables import SegmentRow
from ml_debugger.evaluator import Evaluator
from ml_debugger.server import objects
from ml_debugger.server.service import Service
from ml_debugger.server.settings import Settings
from ml_debugger.training import ClassificationTracer

from .machines import S3, Cut, Postgres, find_postgres
from .serving import (
    Server,
    Worker,
    chunks,
    content,
    evaluated_here,
    inputs_in,
    program,
    project_store,
    record,
    tracer,
    until,
)

pytestmark = pytest.mark.slow

RUNS = int(os.environ.get("MLD_FAULT_RUNS", "0"))  # 0: what is chosen below, once
CALLS = 30  # each a part of its own
TMPFS_BYTES = 24 << 20
LEASE = 2.0
LONG = 1.0  # no evaluation here takes less
CLOCK = Path(__file__).parent / "fault_programs" / "clock.c"


@dataclass
class Site:
    """A service with all that it stands on, and wires that can be cut between them."""

    folder: Path
    settings: Settings
    server: Server
    wire: Cut  # between clients and the server
    inside: Service  # the same tables and objects, by wires that are never cut
    worker: Worker | None = None
    postgres: Postgres | None = None
    s3: S3 | None = None
    database_wire: Cut | None = None
    objects_wire: Cut | None = None
    offset: Path | None = None  # how many seconds the clocks of the service are off

    @property
    def client(self) -> dict[str, str]:
        return {
            "api_endpoint": self.wire.through(self.server.endpoint),
            "api_key": self.server.key,
        }

    @property
    def store(self) -> Store:
        return project_store(self.inside)

    def shift(self, seconds: int) -> None:
        """Set the clocks of the service."""
        with self.offset.open("r+b") as file:
            file.write(struct.pack("<q", seconds))

    def heal(self) -> None:
        """Put everything up again."""
        if self.postgres is not None:
            self.postgres.start()
            self.s3.start()
            self.database_wire.restore()
            self.objects_wire.restore()
            self.shift(0)
        self.wire.restore()
        for one in (self.server, self.worker):
            if one is not None:
                one.start()


@contextmanager
def team(folder: Path, postgres: Postgres, s3: S3) -> Iterator[Site]:
    """A service over PostgreSQL and S3, with a worker; its clocks can be set."""
    with ExitStack() as stack:
        database = stack.enter_context(Cut(postgres.port))
        store = stack.enter_context(Cut(s3.port))
        url, bucket = postgres.new_database(), s3.new_bucket()
        settings = Settings(
            data=folder / "service",
            database=database.through(url),
            objects=f"{bucket}/objects",
            objects_options=s3.storage_options_at(store.through(s3.endpoint)),
            lease_seconds=LEASE,
            secret="the same for all processes, this one too",
        )
        offset = folder / "offset"
        offset.write_bytes(bytes(8))
        more = {"CLOCK_OFFSET": offset}
        if (compiler := shutil.which("cc")) is not None:
            clock = folder / "clock.so"
            subprocess.run([compiler, "-shared", "-fPIC", "-o", clock, CLOCK, "-ldl"], check=True)
            more["LD_PRELOAD"] = clock
        server = stack.enter_context(Server(settings, **more))
        direct = {"database": url, "objects_options": s3.storage_options, "data": folder / "look"}
        inside = stack.enter_context(Service(settings.model_copy(update=direct)))
        wire = stack.enter_context(Cut(server.port))
        worker = stack.enter_context(Worker(settings, **more))
        yield Site(
            folder, settings, server, wire, inside, worker, postgres, s3, database, store, offset
        )


@contextmanager
def small(folder: Path) -> Iterator[Site]:
    """A service over SQLite and files, on a file system that is soon full."""
    data = folder / "service"
    data.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", data]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", data], check=True)
        settings = Settings(data=data)
        server = stack.enter_context(Server(settings))
        inside = stack.enter_context(Service(settings))
        wire = stack.enter_context(Cut(server.port))
        yield Site(folder, settings, server, wire, inside)


@contextmanager
def hurried() -> Iterator[None]:
    """Send many small parts, and try again soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sending, "PART_CHUNKS", 1)
        for module in (uploader, client):
            patch.setattr(module, "LONGEST_PAUSE", 1.0)
        patch.setattr(client.patiently, "__defaults__", (120.0,))
        patch.setattr(remote, "JOB_PAUSE", 0.1)
        yield


# What breaks while records are sent. Each is called in the middle of it, and ends it all well.


def server_killed(site: Site, chance: random.Random) -> None:
    site.server.kill()
    site.server.start()


def database_killed(site: Site, chance: random.Random) -> None:
    site.postgres.kill()
    site.postgres.start()


def database_restarted(site: Site, chance: random.Random) -> None:
    site.postgres.restart(chance.choice(["fast", "immediate"]))


def database_cut(site: Site, chance: random.Random) -> None:
    cuts = site.database_wire.cuts
    site.database_wire.cut(chance.randrange(1, 3000), answers=chance.random() < 0.5)
    until(lambda: site.database_wire.cuts > cuts, "the cut")


def objects_refuse(site: Site, chance: random.Random) -> None:
    before = site.server.log.count("unavailable")
    site.objects_wire.refuse()
    site.objects_wire.cut()
    until(lambda: site.server.log.count("unavailable") > before, "a part to be refused")
    site.objects_wire.restore()


def objects_hang(site: Site, chance: random.Random) -> None:
    site.s3.pause()
    time.sleep(chance.random())
    site.s3.resume()


def disk_full(site: Site, chance: random.Random) -> None:
    before = site.server.log.count('"WARNING"') + site.server.log.count('"ERROR"')
    ballast = site.settings.data / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1 << 14))
    until(
        lambda: site.server.log.count('"WARNING"') + site.server.log.count('"ERROR"') > before,
        "the server to find its disk full",
    )
    ballast.unlink()


def request_cut(site: Site, chance: random.Random) -> None:
    for _ in range(3):
        cuts = site.wire.cuts
        site.wire.cut(chance.randrange(1, 6000))
        until(lambda before=cuts: site.wire.cuts > before, "the cut")


def answer_cut(site: Site, chance: random.Random) -> None:
    for _ in range(3):
        cuts = site.wire.cuts
        site.wire.cut(chance.randrange(300), answers=True)
        until(lambda before=cuts: site.wire.cuts > before, "the cut")


def clock_jumps(site: Site, chance: random.Random) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler: the clocks of other processes cannot be set")
    for _ in range(5):
        site.shift(chance.choice([-1, 1]) * chance.choice([1, 3600, 86_400, 400 * 86_400]))
        time.sleep(0.1)
    site.shift(0)


# What breaks while a worker evaluates


def worker_killed(site: Site, chance: random.Random) -> None:
    family = site.worker.family()
    assert len(family) > 1  # a job has a process of its own
    site.worker.kill()
    until(lambda: not site.worker.family(), "the processes of the worker to end with it")
    site.worker.start()


def job_killed(site: Site, chance: random.Random) -> None:
    for one in site.worker.family():
        if one != site.worker.pid:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)


def worker_frozen(site: Site, chance: random.Random) -> None:
    """A worker that is taken for dead and is not; the job that it began goes on meanwhile."""
    worker, *others = sorted(site.worker.family(), key=lambda one: one != site.worker.pid)
    for one in (worker, *others):  # these too, or the job may be done before it is taken over
        os.kill(one, signal.SIGSTOP)
    try:
        with Worker(site.settings):
            until(
                lambda: [one for one in site.inside.queue.running() if one.attempt == 2],
                "another worker to take over",
            )
            for one in others:
                os.kill(one, signal.SIGCONT)
            until(lambda: not waiting(site), "the job to be done")
    finally:
        for one in (*others, worker):
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGCONT)


def objects_refuse_the_worker(site: Site, chance: random.Random) -> None:
    site.objects_wire.refuse()
    site.objects_wire.cut()
    time.sleep(3 * chance.random())
    site.objects_wire.restore()


UPLOADS: dict[str, Callable[[Site, random.Random], None]] = {
    "server killed -9": server_killed,
    "PostgreSQL killed -9": database_killed,
    "PostgreSQL restarted": database_restarted,
    "connection to PostgreSQL cut": database_cut,
    "object store refuses": objects_refuse,
    "object store hangs": objects_hang,
    "connection cut mid-part": request_cut,
    "connection cut before its answer": answer_cut,
    "clock jumps": clock_jumps,
}
EVALUATIONS: dict[str, Callable[[Site, random.Random], None]] = {
    "worker killed -9": worker_killed,
    "job's process killed -9": job_killed,
    "worker frozen for longer than its lease": worker_frozen,
    "PostgreSQL killed -9": database_killed,
    "PostgreSQL restarted": database_restarted,
    "object store refuses": objects_refuse_the_worker,
    "server killed -9": server_killed,
    "clock jumps": clock_jumps,
}


QUICK = {
    "upload": [
        "server killed -9",
        "PostgreSQL killed -9",
        "connection cut mid-part",
        "connection cut before its answer",
    ],
    "evaluation": ["worker killed -9"],
}


@dataclass
class Outcome:
    """What a fault did: inputs that were recorded, and how many of them are not as they were."""

    records: int
    lost: int
    doubled: int
    seconds: float


def waiting(site: Site) -> list[str]:
    return site.inside.queue.waiting(site.store._name or site.store.home.name)


def pending(made: ClassificationTracer) -> int:
    repository = made._recording.repository
    return repository.outbox(made._service.project).pending().chunks


def compared(site: Site, home: Path, version: ModelVersion, began: float) -> Outcome:
    """Compare what a client has recorded with what the service has; nothing else may be left."""
    with Store(home) as here:
        ours, theirs = chunks(here, version), chunks(site.store, version)
        if ours == theirs:
            assert content(here, version) == content(site.store, version)
    lost, doubled = inputs_in(ours - theirs), inputs_in(theirs - ours)
    assert not waiting(site)
    data = site.settings.data
    assert list((data / "incoming").iterdir()) == []
    assert [one for one in data.rglob("*.tmp") if not one.is_relative_to(data / "incoming")] == []
    assert '"fault"' not in site.server.log
    return Outcome(inputs_in(ours), lost, doubled, time.monotonic() - began)


def sweep(site: Site) -> int:
    """Collect objects as if a day had passed; return how many nobody knew, and lose no other."""
    with site.store._catalogue.reading() as session:
        known = set(session.exec(select(SegmentRow.name)))
    segments = f"{site.store._name}/segments"

    def found() -> set[str]:
        listed = site.inside.projects.objects.ages(segments)
        return {one.removesuffix(objects.COMPRESSED) for one in listed}

    there = found()
    assert known <= there
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "ORPHAN_SECONDS", -1.0)
        site.store.compact()
    assert found() <= known
    return len(there - known)


def break_upload(
    site: Site, fault: Callable[[Site, random.Random], None], chance: random.Random, home: Path
) -> Outcome:
    """Break something while a version is sent."""
    began = time.monotonic()
    version = ModelVersion("net", home.name)
    with hurried(), tracer(home, version.version_name, **site.client) as made:
        record(made, range(CALLS))
        made.upload()
        start = CALLS - chance.randrange(1, 8)
        until(lambda: made._service.met and pending(made) <= start, "the upload to begin")
        assert pending(made) > 0
        fault(site, chance)
        site.heal()
        record(made, range(CALLS, CALLS + 3))
        made.wait_for_save(interval=0.05)
    return compared(site, home, version, began)


def kill_client(site: Site, chance: random.Random, home: Path) -> Outcome:
    """Kill a client while it records and sends, and start another."""
    began = time.monotonic()
    common = {"home": home, "version": home.name, "chunks": 1}
    common |= {"endpoint": site.client["api_endpoint"], "key": site.client["api_key"]}
    last = str(chance.randrange(3, 30))
    with program("trace", calls=list(range(500)), **common) as killed:
        for line in killed.stdout:
            if line.strip() == last:
                break
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    with program("trace", calls=list(range(500, 510)), end="wait", **common) as second:
        said, _ = second.communicate(timeout=120)
    assert second.returncode == 0, said
    with Store(home) as here:
        recorded = inputs_in(chunks(here, ModelVersion("net", home.name)))
        assert recorded >= 32 * (int(last) + 1 + 10)  # what it said was durable
    return compared(site, home, ModelVersion("net", home.name), began)


class Uploaded:
    """A version that the service has, and how it is evaluated where nothing breaks."""

    def __init__(self, site: Site, home: Path) -> None:
        self.home = home
        with tracer(home, home.name, **site.client) as made:
            record(made, range(20), inputs=200)
            made.wait_for_save(interval=0.05)
        self.version = home.name
        here = evaluated_here(home, ModelVersion("net", self.version), "undisturbed")
        self.units = (here.folder / "units.parquet").read_bytes()
        self.model = (here.folder / "model.safetensors").read_bytes()


def break_evaluation(
    site: Site,
    fault: Callable[[Site, random.Random], None],
    chance: random.Random,
    uploaded: Uploaded,
    name: str,
) -> Outcome:
    """Break something while a version is evaluated."""
    began = time.monotonic()
    found: list[Any] = []

    def ask() -> None:
        try:
            evaluator = Evaluator("net", uploaded.version, home=uploaded.home, **site.client)
            found.append(evaluator.request_evaluation(result_name=name))
        except BaseException as error:  # noqa: BLE001  # told below
            found.append(error)

    with hurried():
        thread = threading.Thread(target=ask)
        thread.start()
        (job,) = until(site.inside.queue.running, "the worker to begin")
        time.sleep(LONG * chance.random())
        assert site.inside.queue.running(), "it is done already, and there is nothing to break"
        fault(site, chance)
        site.heal()
        thread.join(180)
    assert not thread.is_alive()
    (result,) = found
    if isinstance(result, BaseException):
        raise result
    assert not waiting(site)
    listed = [one for one in site.store.results() if one.name == name]
    jobs = site.inside.queue.listed(site.store._name, 1000)
    jobs = [one for one in jobs if one.result_name == name]
    assert [(one.id, one.state) for one in jobs] == [(job.id, "done")]
    if fault in (worker_killed, job_killed, worker_frozen):
        assert jobs[0].attempt == 2
    assert (result.folder / "units.parquet").read_bytes() == uploaded.units
    assert (result.folder / "model.safetensors").read_bytes() == uploaded.model
    copy = site.store.result_folder(name)  # fetched from the object store
    for file in result.folder.iterdir():
        assert (copy / file.name).read_bytes() == file.read_bytes()
    outcome = compared(site, uploaded.home, ModelVersion("net", uploaded.version), began)
    return Outcome(
        result.manifest.rows.evaluated, int(not listed), len(listed) - 1, outcome.seconds
    )


# The suite


@pytest.fixture(scope="module")
def site(postgres: Postgres, s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with team(tmp_path_factory.mktemp("team"), postgres, s3) as made:
        yield made


@pytest.fixture(autouse=True)
def healed(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "site" in request.fixturenames:
        request.getfixturevalue("site").heal()


@pytest.fixture(scope="module")
def uploaded(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Uploaded:
    return Uploaded(site, tmp_path_factory.mktemp("uploaded"))


def whole(outcome: Outcome) -> None:
    assert (outcome.lost, outcome.doubled) == (0, 0)
    assert outcome.records


@pytest.mark.parametrize("run", range(RUNS or 1))
@pytest.mark.parametrize("fault", UPLOADS if RUNS else QUICK["upload"])
def test_an_upload_survives(site, fault, run, tmp_path_factory):
    home = tmp_path_factory.mktemp("client")
    whole(break_upload(site, UPLOADS[fault], random.Random(run), home))
    sweep(site)
    with Store(home) as here:
        version = ("net", home.name)
        assert content(here, version) == content(site.store, version)


@pytest.mark.parametrize("run", range(RUNS or 1))
def test_an_upload_survives_a_full_disk(run, tmp_path):
    with small(tmp_path) as site:
        whole(break_upload(site, disk_full, random.Random(run), tmp_path / "client"))


@pytest.mark.parametrize("run", range(RUNS or 1))
def test_an_upload_survives_its_client(site, run, tmp_path_factory):
    whole(kill_client(site, random.Random(run), tmp_path_factory.mktemp("client")))


@pytest.mark.parametrize("run", range(RUNS or 1))
@pytest.mark.parametrize("fault", EVALUATIONS if RUNS else QUICK["evaluation"])
def test_an_evaluation_survives(site, uploaded, fault, run):
    name = f"{fault} {run}"
    whole(break_evaluation(site, EVALUATIONS[fault], random.Random(run), uploaded, name))


def test_an_object_is_no_older_for_a_clock_that_has_jumped(s3, monkeypatch):
    place = objects.Objects(s3.new_bucket() + "/objects", s3.storage_options)
    place.write("segments/being_entered", [b"records"])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * objects.ORPHAN_SECONDS)
    assert place.ages("segments")["being_entered"] < 60
    assert list(place.ages("segments")) == ["being_entered"]
    assert place.ages("").keys() == {"segments"}


def test_drafts_of_killed_processes_go_after_a_day(site):
    results, cache = site.store.home / "results", site.store.home / "segments"
    with Store(site.folder / "local") as local:
        for folder, store in (
            (local.home / "results", local),
            (results, site.store),
            (cache, site.store),
        ):
            old, new = folder / ".old.tmp", folder / ".new.tmp"
            for one in (old, new):
                one.mkdir(parents=True)
                (one / "units.parquet").touch()
            file = folder / f".{'0' * 32}"
            file.touch()
            for one in (old, file):
                os.utime(one, (time.time() - 90_000,) * 2)
            store.compact()
            assert not old.exists()
            assert not file.exists()
            assert (new / "units.parquet").exists()
            shutil.rmtree(new)


def main() -> None:
    """Break each thing `RUNS` times, and print what became of it."""

    assert find_postgres() is not None
    os.environ["OMP_NUM_THREADS"] = "1"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres, s3 = stack.enter_context(Postgres(fsync=False)), stack.enter_context(S3())
        site = stack.enter_context(team(folder, postgres, s3))
        uploaded = Uploaded(site, folder / "uploaded")

        def act(kind: str, name: str, one: Callable[[random.Random, Path], Outcome]) -> None:
            if sys.argv[1:] and not any(word in f"{kind} {name}" for word in sys.argv[1:]):
                return
            found = [
                one(random.Random(run), folder / f"{kind} {name} {run}".replace(" ", "_"))
                for run in range(RUNS or 1)
            ]
            total = [
                sum(getattr(each, what) for each in found)
                for what in ("records", "lost", "doubled", "seconds")
            ]
            print(kind, name, len(found), *total, sep=" | ", flush=True)  # noqa: T201

        print("while | fault | runs | records | lost | doubled | seconds")  # noqa: T201
        for name, fault in UPLOADS.items():
            act("upload", name, lambda c, h, f=fault: break_upload(site, f, c, h))
        act("upload", "client killed -9", lambda c, h: kill_client(site, c, h))
        for name, fault in EVALUATIONS.items():
            act(
                "evaluation",
                name,
                lambda c, h, f=fault: break_evaluation(site, f, c, uploaded, h.name),
            )
        print(sweep(site), "objects were never entered, and collected after a day")  # noqa: T201
    with tempfile.TemporaryDirectory() as place, small(Path(place)) as site:
        folder = Path(place)
        act("upload", "disk full (tmpfs)", lambda c, h: break_upload(site, disk_full, c, h))


if __name__ == "__main__":
    sys.exit(main())
