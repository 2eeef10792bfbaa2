"""A real SDK and a real service, over loopback: what gets there, when, and what is told."""

import gc
import json
import math
import socket
import threading
import time
import warnings
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from sqlalchemy import delete, update
from sqlmodel import select
from typer.testing import CliRunner

from ml_debugger.core import cli, remote
from ml_debugger.core.errors import (
    ArchitectureMismatchError,
    EndpointError,
    InputError,
    LicenseError,
    MLDebuggerError,
    NothingToEvaluateError,
    ResultNotFoundError,
    SyncError,
)
from ml_debugger.core.records import Batch, ModelVersion, Units
from ml_debugger.core.service import client as service
from ml_debugger.core.service import delivery, transport, uploader
from ml_debugger.core.service.client import RefusedError, UnavailableError, UnfitError
from ml_debugger.core.store import Store, sending
from ml_debugger.core.store.tables import ChunkRow, RunRow, SegmentRow, VersionRow
from ml_debugger.data_filter import ClassificationDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.server.people import admin_key
from ml_debugger.server.service import Service
from ml_debugger.server.settings import Settings
from ml_debugger.server.tables import KeyRow, OrganizationRow
from ml_debugger.training import ClassificationTracer

from .machines import HOST, Cut
from .serving import (
    Server,
    Worker,
    chunks,
    content,
    evaluated_here,
    inputs_in,
    model,
    program,
    project_store,
    record,
    tracer,
    until,
)

V1 = ModelVersion("net", "v1")


class Site:
    """A service, a wire before it, and its insides."""

    def __init__(self, settings):
        self.settings = settings
        self.server = Server(settings)
        self.wire = Cut(self.server.port)
        self.endpoint = self.wire.through(self.server.endpoint)
        self.inside = Service(settings)
        self.store = project_store(self.inside)
        self.key = self.server.key
        self.numbers = iter(range(1_000_000))

    @property
    def client(self):
        return {"api_endpoint": self.endpoint, "api_key": self.key}

    def version(self):
        """Return the name of a version that nobody has used."""
        return f"v{next(self.numbers)}"

    def same(self, home, version):
        """Compare the local store of a client with the service's."""
        version = ModelVersion("net", version)
        with Store(home) as here:
            assert chunks(self.store, version) == chunks(here, version)
            assert content(self.store, version) == content(here, version)
            return inputs_in(chunks(here, version))

    def count(self, version):
        found = [one for one in self.store.versions() if one.version == ("net", version)]
        return found[0].records if found else 0

    def close(self):
        self.wire.close()
        self.inside.close()
        self.server.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    found = Site(Settings(data=tmp_path_factory.mktemp("service"), lease_seconds=5))
    yield found
    found.close()


@pytest.fixture
def team(postgres, s3, tmp_path):
    """The same over PostgreSQL and an object store, with a worker."""
    settings = Settings(
        data=tmp_path / "service",
        database=postgres.new_database(),
        objects=s3.new_bucket() + "/prefix",
        objects_options=s3.storage_options,
    )
    found = Site(settings)
    with Worker(settings):
        yield found
    found.close()


@pytest.fixture(autouse=True)
def healed(request):
    yield
    if "site" in request.fixturenames:
        request.getfixturevalue("site").wire.restore()


@pytest.fixture
def impatient():
    """Have whoever waits for a service that is away be told soon, until this is called."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (uploader, remote):
            patched.setattr(module, "PATIENCE", 0.5)
        patched.setattr(service, "RETRY_SECONDS", 0.5)
        for module in (uploader, service):
            patched.setattr(module, "FIRST_PAUSE", 0.05)
            patched.setattr(module, "LONGEST_PAUSE", 0.1)
        yield patched.undo


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(sending, "PART_CHUNKS", 1)


# What gets there


def test_what_is_recorded_streams_to_the_service_while_inference_goes_on(site, home):
    version = site.version()
    with tracer(home, version, auto_sync=True, **site.client) as made:
        for number in range(3):
            record(made, [number])
            until(lambda n=number: site.count(version) == 32 * (n + 1), "the records to arrive")
        made.wait_for_save(interval=0.05)
    assert site.same(home, version) == 96


def test_upload_returns_before_anything_has_arrived(site, home):
    version = site.version()
    with tracer(home, version, **site.client) as made:
        record(made, range(3))
        site.wire.delay(math.inf)
        made.upload()
        assert site.count(version) == 0
        site.wire.restore()
        made.wait_for_save(interval=0.05)
    assert site.same(home, version) == 96


def test_without_auto_sync_only_what_is_asked_for_is_sent(site, home):
    version = site.version()
    with tracer(home, version, **site.client) as made:
        record(made, [0, 1], epoch=0)
        record(made, [2], epoch=1)
        made.wait_for_save(1, 0.05)
        assert site.count(version) == 32
    assert site.count(version) == 32
    with tracer(home, version, **site.client) as made:
        made.wait_for_save(interval=0.05)
    with Store(home) as here:  # in another order than here
        assert chunks(site.store, ("net", version)) == chunks(here, ("net", version))


def test_closing_without_auto_sync_finishes_what_was_begun(site, home, small_parts):
    version = site.version()
    with tracer(home, version, **site.client) as made:
        record(made, range(20))
        made.upload()
    assert site.same(home, version) == 640


def test_force_sends_again_what_the_service_has_lost(site, home):
    version = site.version()
    with tracer(home, version, **site.client) as made:
        record(made, range(3), epoch=0)
        record(made, [3], epoch=1)
        made.wait_for_save(interval=0.05)
        site.store.open(ModelVersion("net", version)).recreate()
        made.wait_for_save(interval=0.05)
        assert site.count(version) == 0
        made.wait_for_save(1, 0.05, force=True)
        assert site.count(version) == 32
        made.upload(force=True)
        made.wait_for_save(interval=0.05)
        assert site.count(version) == 128


def test_force_is_not_forgotten_while_the_service_is_away(site, home, impatient):
    version = site.version()
    with tracer(home, version, **site.client) as made:
        record(made, range(3))
        made.wait_for_save(interval=0.05)
    site.store.open(ModelVersion("net", version)).recreate()
    site.wire.refuse()
    site.wire.cut()
    with tracer(home, version, **site.client) as made:  # does not know its project yet
        with pytest.raises(ConnectionError):
            made.wait_for_save(interval=0.05, force=True)
        site.wire.restore()
        impatient()
        made.wait_for_save(interval=0.05)
    assert site.same(home, version) == 96


def test_two_machines_upload_into_one_version(site, tmp_path):
    version = site.version()
    homes = [tmp_path / "one", tmp_path / "two"]
    tracers = [tracer(home, version, auto_sync=True, **site.client) for home in homes]
    threads = [
        threading.Thread(target=record, args=(made, range(10 * k, 10 * k + 10)))
        for k, made in enumerate(tracers)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for made in tracers:
        made.wait_for_save(interval=0.05)
        made.close()
    expected = Counter()
    for home in homes:
        with Store(home) as here:
            expected += chunks(here, ModelVersion("net", version))
    assert chunks(site.store, ModelVersion("net", version)) == expected
    assert inputs_in(expected) == 640


def test_two_ranks_of_one_home_upload_into_one_version(site, home, tmp_path):
    version = site.version()
    common = {"home": home, "endpoint": site.endpoint, "key": site.key, "version": version}
    common |= {"ranks": 2, "store": tmp_path / "rendezvous", "end": "again", "auto": False}
    common |= {"chunks": 1}  # in a part
    before = site.server.log.count('"method": "PUT"')
    ranks = [
        program("trace", rank=k, calls=list(range(5 * k, 5 * k + 5)), **common) for k in range(2)
    ]
    for one in ranks:
        said, _ = one.communicate(timeout=120)
        assert one.returncode == 0, said
    assert site.same(home, version) == 320
    (run,) = site.store.open(ModelVersion("net", version)).runs()
    assert run.world_size == 2
    # ten parts, which one of the ranks sent again; were it both, there would be thirty
    until(lambda: site.server.log.count('"method": "PUT"') >= before + 20, "the lines of 20 parts")
    assert site.server.log.count('"method": "PUT"') < before + 30


def test_ranks_wait_for_each_other_beyond_the_timeout_of_their_group(site, tmp_path):
    version, timeout = site.version(), 4.0
    common = {"key": site.key, "version": version, "auto": False, "end": "wait", "ranks": 2}
    common |= {"store": tmp_path / "rendezvous", "timeout": timeout}
    endpoints = [site.endpoint, site.server.endpoint]
    site.wire.delay(math.inf)  # for one of them
    ranks = [
        program("trace", rank=k, calls=[k], home=tmp_path / str(k), endpoint=to, **common)
        for k, to in enumerate(endpoints)
    ]
    until(lambda: site.count(version) == 32, "the records of the other", 120)
    time.sleep(1.5 * timeout)
    site.wire.restore()
    for one in ranks:
        said, _ = one.communicate(timeout=120)
        assert one.returncode == 0, said
    assert site.count(version) == 64


def test_a_tracer_sends_what_a_killed_one_left(site, home):
    version = site.version()
    site.wire.refuse()
    common = {"home": home, "endpoint": site.endpoint, "key": site.key, "version": version}
    with program("trace", calls=[0, 1, 2, *range(10**6, 10**6 + 10**3)], **common) as killed:
        for line in killed.stdout:
            if line.strip() == "2":
                break
        killed.kill()
    site.wire.restore()
    with tracer(home, version, auto_sync=True, **site.client):
        until(lambda: site.count(version) >= 96, "what was left")  # and nothing is recorded
    assert site.same(home, version) >= 96


def test_a_tracer_that_nobody_closes_is_flushed_and_sent_at_the_end(site, home):
    version = site.version()
    common = {"home": home, "endpoint": site.endpoint, "key": site.key, "version": version}
    with program("trace", calls=[0, 1, 2], end="leave", **common) as left:
        said, _ = left.communicate(timeout=120)
    assert left.returncode == 0, said
    assert "Warning" not in said
    assert site.same(home, version) == 96


def test_an_end_that_cannot_reach_the_service_says_so(home):
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))  # and does not listen
        endpoint = f"http://{HOST}:{nobody.getsockname()[1]}"
        common = {"home": home, "endpoint": endpoint, "key": "mldbg_a_b", "calls": [0]}
        with program("trace", end="leave", **common) as left:
            said, _ = left.communicate(timeout=120)
    assert left.returncode == 0, said
    assert "whether everything recorded of net/v1 has reached the service could not be" in said
    assert "cannot be reached" in said
    with Store(home) as here:
        assert inputs_in(chunks(here, V1)) == 32


# What is deleted here


def test_what_is_dropped_is_withdrawn_and_nothing_else(site, home):
    version, other = site.version(), site.version()
    with tracer(home, other, **site.client) as made:
        record(made, [0], epoch=1)
        made.wait_for_save(interval=0.05)
    with tracer(home, version, **site.client) as made:
        record(made, [0, 1], epoch=0)
        record(made, [2], epoch=1)
        made.wait_for_save(interval=0.05)
        record(made, [3], epoch=1)  # never sent
        assert made.drop_epoch_data(1)["extracted_feature"] == 64
        made.wait_for_save(interval=0.05)
        assert site.same(home, version) == 64
        made.drop_version_data()
        record(made, [4])
        made.wait_for_save(interval=0.05)
        assert site.same(home, version) == 32
    with tracer(home, version, force_table_recreate=True, **site.client) as made:
        made.wait_for_save(interval=0.05)
        assert site.count(version) == 0
    assert site.count(other) == 32


def test_auto_sync_withdraws_unasked(site, home):
    version = site.version()
    with tracer(home, version, auto_sync=True, **site.client) as made:
        record(made, [0], epoch=0)
        record(made, [1], epoch=1)
        until(lambda: site.count(version) == 64, "the records to arrive")
        made.drop_epoch_data(1)
        until(lambda: site.count(version) == 32, "the withdrawal")
    assert site.same(home, version) == 32


def test_starting_anew_does_not_send_what_is_to_be_dropped_first(site, home, small_parts):
    version = site.version()
    with tracer(home, version, **site.client) as made:
        record(made, range(20))
        site.wire.delay(0.2)
        made.upload()
        until(lambda: site.count(version), "the first part")
        made.drop_version_data()
        assert 0 < site.count(version) < 640
        site.wire.restore()
        record(made, [0])
        made.wait_for_save(interval=0.05)
    assert site.same(home, version) == 32


def test_a_refused_withdrawal_is_told(site, home):
    version = site.version()
    with tracer(home, version, **site.client) as made:
        record(made, [0])
        made.wait_for_save(interval=0.05)
        made.drop_epoch_data(0)
        with site.inside.database.writing() as session:
            session.execute(update(KeyRow).values(role="viewer"))
        try:
            with pytest.raises(RefusedError):
                made.wait_for_save(interval=0.05)
        finally:
            with site.inside.database.writing() as session:
                session.execute(update(KeyRow).values(role="member"))
        made.wait_for_save(interval=0.05)
    assert site.count(version) == 0


# What is told to whoever waits


def test_a_quota_is_a_license_error_and_ends_when_there_is_room(site, home):
    version = site.version()
    with site.inside.database.writing() as session:
        session.execute(update(OrganizationRow).values(max_records=1))
    try:
        with tracer(home, version, **site.client) as made:
            record(made, [0])
            with pytest.raises(LicenseError, match="may have 1 records"):
                made.wait_for_save(interval=0.05)
            with site.inside.database.writing() as session:
                session.execute(update(OrganizationRow).values(max_records=None))
            made.wait_for_save(interval=0.001)  # not told of what was in the way before
    finally:
        with site.inside.database.writing() as session:
            session.execute(update(OrganizationRow).values(max_records=None))
    assert site.same(home, version) == 32


def test_a_full_service_is_told_once_where_nobody_waits(site, home):
    version = site.version()
    with site.inside.database.writing() as session:
        session.execute(update(OrganizationRow).values(max_records=1))
    try:

        def trace():
            made = tracer(home, version, auto_sync=True, **site.client)
            for number in range(3):
                record(made, [number])
                until(lambda: made._recording._uploader._work._thread is None, "the refusal")
            return made

        with pytest.warns(UserWarning, match="recording goes on") as told:
            made = trace()
        assert len(told) == 1
        with pytest.warns(UserWarning, match="has reached the service"):
            made.close()
    finally:
        with site.inside.database.writing() as session:
            session.execute(update(OrganizationRow).values(max_records=None))
    with tracer(home, version, auto_sync=True, **site.client):
        pass
    assert site.same(home, version) == 96


def test_a_revoked_key_is_told_as_such(site, home):
    version = site.version()
    with site.inside.database.reading() as session:
        row = session.exec(select(KeyRow)).one()
        kept = row.model_dump()
    with tracer(home, version, **site.client) as made:
        record(made, [0])
        with site.inside.database.writing() as session:
            session.execute(delete(KeyRow))
        try:
            with pytest.raises(SyncError, match="key") as told:
                made.wait_for_save(interval=0.05)
            assert not isinstance(told.value, UnavailableError)
            assert site.key not in str(told.value)
        finally:
            with site.inside.database.writing() as session:
                session.add(KeyRow(**kept))
        made.wait_for_save(interval=0.05)
    assert site.same(home, version) == 32


@pytest.mark.parametrize("replaced", [False, True])
def test_a_version_that_a_restored_backup_lacks_is_made_anew(site, home, tmp_path, replaced):
    """Another may have its number by then, and gets none of its records."""
    version, other = site.version(), site.version()
    with tracer(home, version, auto_sync=True, **site.client) as made:
        record(made, [0])
        made.wait_for_save(interval=0.05)
        number = site.store.open(ModelVersion("net", version)).number
        with site.store._catalogue.writing() as session:
            session.execute(delete(ChunkRow).where(ChunkRow.version_id == number))
            session.execute(delete(RunRow).where(RunRow.version_id == number))
            session.execute(delete(VersionRow).where(VersionRow.id == number))
        if replaced:
            with tracer(tmp_path / "other", other, auto_sync=True, **site.client) as one:
                record(one, range(3))
            assert site.store.open(ModelVersion("net", other)).number == number
        record(made, [1])
        made.wait_for_save(interval=0.05)
    assert site.count(version) == 32
    if replaced:
        assert site.same(tmp_path / "other", other) == 96


def test_another_architecture_under_the_same_name_is_told_as_such(site, home, tmp_path):
    with tracer(tmp_path / "other", site.version(), **site.client) as made:
        made.wait_for_save(interval=0.05)
        record(made, [0])
        made.wait_for_save(interval=0.05)
    wider = torch.nn.Sequential(torch.nn.Linear(16, 33), torch.nn.ReLU(), torch.nn.Linear(33, 4))
    with ClassificationTracer(wider.eval(), "net", site.version(), home=home, **site.client) as one:
        record(one, [0])
        with pytest.raises(ArchitectureMismatchError):
            one.wait_for_save(interval=0.05)


@pytest.mark.parametrize("how", ["refused", "cut", "hanging"])
def test_who_waits_for_a_service_that_is_away_is_told(site, home, impatient, how, monkeypatch):
    monkeypatch.setattr(transport, "SILENT_SECONDS", 0.3)
    version = site.version()
    with tracer(home, version, **site.client) as made:
        record(made, [0])
        if how == "hanging":
            site.wire.delay(math.inf)
        elif how == "refused":
            site.wire.refuse()
        else:
            site.wire.target = 1  # where nobody is
        with pytest.raises(ConnectionError, match="cannot be reached"):
            made.wait_for_save(interval=0.05)
        site.wire.target = site.server.port
        site.wire.restore()
        impatient()
        monkeypatch.setattr(transport, "SILENT_SECONDS", 60.0)
        made.wait_for_save(interval=0.05)
    assert site.same(home, version) == 32


@pytest.mark.parametrize("interval", [0, -1, math.nan, "1", True])
def test_an_interval_must_be_positive(site, home, interval):
    with (
        tracer(home, site.version(), **site.client) as made,
        pytest.raises(InputError, match="interval"),
    ):
        made.wait_for_save(interval=interval)


def test_waiting_after_the_end_is_refused(site, home):
    version = site.version()
    with tracer(home, version, **site.client) as made:
        record(made, [0])
    for ask in (made.wait_for_save, made.upload):
        with pytest.raises(InputError, match="closed"):
            ask()


def test_uploading_needs_a_service(home):
    with tracer(home) as made:
        record(made, [0])
        with pytest.raises(EndpointError, match="MLD_API_ENDPOINT"):
            made.upload()
        made.wait_for_save(interval=0.05)


@pytest.mark.parametrize(
    ("endpoint", "key", "says"),
    [
        ("http://127.0.0.1:1", None, "needs an API key"),
        ("127.0.0.1:8787", "mldbg_a_b", "address"),
        ("ftp://127.0.0.1", "mldbg_a_b", "address"),
        ("http://", "mldbg_a_b", "address"),
        ("http://127.0.0.1:port", "mldbg_a_b", "address"),
        ("http://[::1", "mldbg_a_b", "address"),
        ("http://me:word@127.0.0.1:1", "mldbg_a_b", "plain address"),
        ("http://127.0.0.1:1?key=1", "mldbg_a_b", "plain address"),
        ("http://127.0.0.1:1", "mldbg_a\nb", "malformed"),
        ("http://127.0.0.1:1", "schlüssel", "malformed"),
    ],
)
def test_a_malformed_endpoint_or_key_is_refused_before_anything_is_made(home, endpoint, key, says):
    with pytest.raises(InputError, match=says) as told:
        tracer(home, api_endpoint=endpoint, api_key=key)
    assert "word" not in str(told.value)
    assert not home.exists()
    with pytest.raises(InputError, match=says):
        Evaluator("net", "v1", endpoint, key)


def test_a_way_that_others_can_read_along_is_warned_of():
    with pytest.warns(UserWarning, match="use https"):
        Evaluator("net", "v1", "http://ml-debugger.example.org", "mldbg_a_b")
    for endpoint in ("https://ml-debugger.example.org", "http://localhost:1", "http://[::1]:1"):
        Evaluator("net", "v1", endpoint, "mldbg_a_b")


# What a service must not do to whoever records


class Wrong(BaseHTTPRequestHandler):
    """Answers everything with the same."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, headers, body = self.server.said
        self.server.asked += 1
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = answer  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def wrong():
    server = ThreadingHTTPServer((HOST, 0), Wrong)
    server.asked = 0
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


HTML = b"<html><body>Sign in to the network</body></html>"
WRONG = {
    "fault": (500, {}, b'{"detail": "a fault", "kind": "Fault"}'),
    "bad gateway": (502, {"Content-Type": "text/html"}, b"<html>Bad gateway</html>"),
    "never": (503, {"Retry-After": "99999999999999"}, b""),
    "odd pause": (429, {"Retry-After": "\xb2"}, b""),
    "refusal": (422, {}, b'{"detail": "no", "kind": "InputError"}'),
    "unknown error": (422, {}, b'{"detail": "no", "kind": "KeyboardInterrupt"}'),
    "not json": (400, {}, b"\xff\xfe\x00"),
    "a list": (400, {}, b"[1]"),
    "html": (200, {"Content-Type": "text/html"}, HTML),
    "nothing": (200, {}, b""),
    "no content": (204, {}, b""),
    "a number": (200, {}, b"7"),
    "an empty list": (200, {}, b"[]"),
    "an empty object": (200, {}, b"{}"),
    "half of it": (200, {}, b'{"projects": [{"name": 1}]}'),
    "other types": (200, {}, b'{"projects": 1, "id": "x", "records": []}'),
    "elsewhere": (307, {"Location": "http://127.0.0.1:1/"}, b""),
    "not modified": (304, {}, b""),
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_service_is_told_and_changes_nothing(home, wrong, impatient, said):
    wrong.said = WRONG[said]
    wrong_client = {"api_endpoint": f"http://{HOST}:{wrong.server_port}", "api_key": "mldbg_a_b"}
    plain, traced = model(), model()
    traced.train()
    source = torch.randn(8, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not get there
        made = ClassificationTracer(traced, "net", "v1", home=home, auto_sync=True, **wrong_client)
        mine, theirs = source.clone().requires_grad_(), source.clone().requires_grad_()
        output = made(mine, torch.zeros(8, dtype=torch.int64), range(8), "val", 0)
        expected = plain.train()(theirs)
        assert torch.equal(output, expected)
        output.square().sum().backward()
        expected.square().sum().backward()
        assert torch.equal(mine.grad, theirs.grad)
        for ours, other in zip(traced.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours.grad, other.grad)
        assert traced.training
        error = InputError if said == "refusal" else ConnectionError
        with pytest.raises(error, match=str(wrong.server_port)):
            made.wait_for_save(interval=0.05)
        assert wrong.asked
        made.close()
    evaluator = Evaluator("net", "v1", home=home, **wrong_client)
    for ask in (
        evaluator.list_results,
        evaluator.request_evaluation,
        lambda: evaluator.get_result("a"),
    ):
        with pytest.raises(MLDebuggerError, match=str(wrong.server_port)):
            ask()
    with Store(home) as here:
        assert inputs_in(chunks(here, V1)) == 8


def test_a_call_does_not_wait_for_a_service_that_hangs(site, home):
    """Each call returns, and is durable here, while no answer ever comes."""
    version = site.version()
    site.wire.delay(math.inf)
    with tracer(home, version, auto_sync=True, **site.client) as made:
        record(made, range(5))  # flushes after each
        assert site.count(version) == 0
        site.wire.restore()
        made.wait_for_save(interval=0.05)
    assert site.same(home, version) == 160


def test_memory_stays_bounded_while_much_waits_to_be_sent(site, home):
    version = site.version()
    common = {"home": home, "endpoint": site.endpoint, "key": site.key, "version": version}
    calls = list(range(40))
    recorded, peaks = [], []
    with program("trace", inputs=20_000, calls=calls, **common) as one:
        for line in one.stdout:
            if line.strip() == "0":
                until(lambda: site.count(version), "the first part")
                site.wire.delay(math.inf)  # and the next one hangs
            if line.strip() in ("12", "39"):
                status = Path(f"/proc/{one.pid}/status").read_text()
                peaks.append(int(status.partition("VmHWM:")[2].split()[0]) << 10)
                with Store(home) as here:
                    versions = here.versions()
                recorded.append(versions[0].bytes)
            if line.strip() == "39":
                break
        arrived = site.count(version)
        site.wire.restore()
        one.communicate(timeout=300)
    waits, more = recorded[1] - recorded[0], peaks[1] - peaks[0]
    print(f"{waits / 1e6:.0f} MB more wait, {more / 1e6:.0f} MB more memory")  # noqa: T201
    assert arrived <= 200_000
    assert waits > 50e6
    assert more < waits / 4
    assert site.same(home, version) == 800_000


# Evaluation at the service


@pytest.fixture(scope="module")
def worker(site):
    with Worker(site.settings) as made:
        yield made


@pytest.fixture(scope="module")
def evaluated(site, worker, tmp_path_factory):
    """A home that is uploaded, its version, and a result of the service."""
    home, version = tmp_path_factory.mktemp("client"), site.version()
    with tracer(home, version, **site.client) as made:
        record(made, range(12), inputs=100, epoch=3)
    result = Evaluator("net", version, home=home, **site.client).request_evaluation(
        result_name=f"{version} of the service"
    )
    return home, version, result


def same_result(here, there):
    """Compare the files of two results; only names and times may differ."""
    assert {one.name for one in here.folder.iterdir()} == {
        one.name for one in there.folder.iterdir()
    }
    for one in here.folder.iterdir():
        if one.name != "result.json":
            assert one.read_bytes() == (there.folder / one.name).read_bytes(), one.name
    ours, theirs = (json.loads((one.folder / "result.json").read_text()) for one in (here, there))
    for one in (ours, theirs):
        for name in ("result_name", "created_at", "completed_at"):
            del one[name]
    assert ours == theirs


def test_the_service_evaluates_to_the_same_bits(evaluated):
    home, version, there = evaluated
    here = evaluated_here(home, ModelVersion("net", version), "of this machine")
    assert type(here) is type(there)
    assert here.n_epoch == there.n_epoch == 3
    same_result(here, there)


def test_results_are_listed_and_opened_alike(site, evaluated, tmp_path):
    home, version, there = evaluated
    local = Evaluator("net", version, home=home)
    local.request_evaluation(result_name="another of this machine")
    far = Evaluator("net", version, home=tmp_path / "another client", **site.client)
    ours, theirs = local.list_results(), far.list_results()
    assert list(ours.columns) == list(theirs.columns)
    assert list(ours.dtypes) == list(theirs.dtypes)
    assert list(theirs["result_name"]) == [there.result_name]
    assert list(far.list_results(n_epoch=4)["result_name"]) == []
    assert list(far.list_results(method_name="default")["result_name"]) == [there.result_name]
    found = far.get_result(there.result_name)
    assert found.summary() == there.summary()


def test_errors_are_the_same_here_and_there(site, evaluated, tmp_path):
    home, version, there = evaluated
    unlabelled = site.version()
    with tracer(home, unlabelled, **site.client) as made, torch.no_grad():
        made(torch.randn(8, 16), None, range(8), "val", 0)
    local, far = {}, site.client
    Evaluator("net", version, home=home).request_evaluation(result_name=there.result_name)
    for name, arguments, error in [
        (unlabelled, {}, NothingToEvaluateError),
        (version, {"n_epoch": 77}, NothingToEvaluateError),
        ("no such version", {}, NothingToEvaluateError),
        (version, {"result_name": there.result_name}, InputError),
        (version, {"method_name": "none"}, InputError),
        (version, {"options": {"no such": 1}}, InputError),
        (version, {"options": {"seed": "x"}}, InputError),
        (version, {"result_name": "\x00"}, InputError),
        (version, {"result_name": ""}, InputError),
        (version, {"result_name": "x" * 5000}, InputError),
        (version, {"n_epoch": "first"}, TypeError),
        (version, {"n_epoch": 1 << 70}, (InputError, NothingToEvaluateError)),
        (version, {"options": {"seed": math.nan}}, InputError),
    ]:
        for client in (local, far):
            with pytest.raises(error) as told:
                Evaluator("net", name, home=home, **client).request_evaluation(**arguments)
            assert site.key not in str(told.value)
    for client in (local, far):
        with pytest.raises(ResultNotFoundError):
            Evaluator("net", version, home=home, **client).get_result("no such result")
        with pytest.raises(ResultNotFoundError):
            Evaluator("net", unlabelled, home=home, **client).get_result(there.result_name)


def test_an_answer_that_is_lost_does_not_evaluate_twice(site, evaluated):
    home, version, _ = evaluated
    evaluator = Evaluator("net", version, home=home, **site.client)
    client = evaluator.service_client
    before = len(site.inside.queue.listed(client.project, 1000))
    cuts = site.wire.cuts
    original = client.evaluate

    def cut_once(*arguments):
        client.evaluate = original
        site.wire.cut(answers=True)
        return original(*arguments)

    client.evaluate = cut_once
    evaluator.request_evaluation(result_name=f"{version} cut")
    assert site.wire.cuts > cuts
    assert len(site.inside.queue.listed(client.project, 1000)) == before + 1


def test_a_filter_takes_a_result_of_the_service_and_its_copy_when_that_is_down(
    site, evaluated, tmp_path, impatient
):
    _, version, there = evaluated
    home = tmp_path / "filtering"
    config = {"target_zones": ["critical_hotspot", "hotspot"]}

    def flags(**more):
        with (
            ClassificationDataFilter(
                model(), "net", version, there.result_name, home=home, filter_config=config, **more
            ) as made,
            torch.no_grad(),
        ):
            source = torch.randn(64, 16, generator=torch.Generator().manual_seed(9))
            return made(source, range(64))[1]

    found = flags(**site.client)
    site.wire.refuse()
    site.wire.cut()
    with pytest.warns(UserWarning, match="copy of .* is used"):
        assert flags(**site.client) == found
    other = tmp_path / "without a copy"
    with pytest.raises(ConnectionError):
        ClassificationDataFilter(
            model(), "net", version, there.result_name, home=other, **site.client
        )


def test_clients_fetch_one_result_at_once(site, evaluated, tmp_path):
    _, version, there = evaluated
    failures = []

    def fetch():
        try:
            far = Evaluator("net", version, home=tmp_path / "shared", **site.client)
            far.get_result(there.result_name)
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not failures
    assert [one.name for one in (tmp_path / "shared" / "remote").rglob("*.tmp")] == []


def test_a_team_s_service_does_the_same(team, home):
    """PostgreSQL, an object store, a worker elsewhere."""
    with tracer(home, auto_sync=True, **team.client) as made:
        record(made, range(10), inputs=100)
        made.wait_for_save(interval=0.05)
    assert team.same(home, "v1") == 1000
    there = Evaluator("net", "v1", home=home, **team.client).request_evaluation()
    same_result(evaluated_here(home, V1, "of this machine"), there)


def test_another_architecture_takes_the_place_of_what_was_withdrawn(site, home):
    """`force_table_recreate` is what the refusal advises, and it helps."""
    version = site.version()
    name = f"net of {version}"
    first, wider = model(), torch.nn.Linear(16, 4)
    with ClassificationTracer(first, name, version, home=home, **site.client) as one:
        record(one, range(2))
        one.wait_for_save(interval=0.05)
    with ClassificationTracer(
        wider.eval(), name, version, home=home, force_table_recreate=True, **site.client
    ) as one:
        record(one, [5])
        one.wait_for_save(interval=0.05)
    there = project_store(site.inside).open(ModelVersion(name, version))
    assert there.records().inputs == 32


def test_what_others_declare_meanwhile_is_declared_there(site, home):
    version = site.version()
    with tracer(home, version, **site.client) as one:
        record(one, [0])
        one.wait_for_save(interval=0.05)
        fields = [{"name": "city", "type": "str"}]
        with tracer(home, version, additional_fields=fields) as other, torch.no_grad():
            values = torch.randn(8, 16)
            other(values, torch.zeros(8).long(), range(8), "val", 0, city=["here"] * 8)
        one.wait_for_save(interval=0.05)
    assert site.same(home, version) == 40


def test_a_withdrawal_that_could_not_be_sent_is_said(site, home):
    version = site.version()
    with tracer(home, version, auto_sync=True, **site.client) as one:
        record(one, range(2))
        one.wait_for_save(interval=0.05)
        site.wire.refuse()
        site.wire.cut()
        one.drop_epoch_data(0)
        with pytest.warns(UserWarning, match="not everything recorded"):
            one.close()
    site.wire.restore()
    with tracer(home, version, **site.client) as one:
        one.wait_for_save(interval=0.05)
    assert site.count(version) == 0


def test_who_waits_does_not_wait_for_what_others_record_later(site, home):
    version = site.version()
    with tracer(home, version, **site.client) as one, tracer(home, version) as other:
        record(one, range(3))
        stop = threading.Event()

        def go_on():
            for number in range(10, 10_000):
                if stop.is_set():
                    return
                record(other, [number])

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            one.wait_for_save(interval=0.05)
        finally:
            stop.set()
            thread.join()
        assert site.count(version) >= 96


def test_a_tracer_that_is_garbage_is_not_waited_for(site, home):
    version = site.version()
    one = tracer(home, version, auto_sync=True, **site.client)
    site.wire.delay(math.inf)
    record(one, range(3))
    before = threading.enumerate()
    del one
    gc.collect()
    sending = [one for one in before if one.name == "ml-debugger-uploader"]
    assert any(one.is_alive() for one in sending)  # its request hangs, and nobody has waited
    site.wire.restore()
    with tracer(home, version, **site.client) as one:
        one.wait_for_save(interval=0.05)
    assert site.same(home, version) == 96


def test_a_refusal_is_not_asked_for_over_and_over(site, home, monkeypatch):
    """Each flush would send the same part again, only to be refused again."""
    monkeypatch.setattr(uploader, "FIRST_PAUSE", math.inf)
    asked, send = [], transport.Session.send

    def counted(self, request, **how):
        asked.append(request.path_url)
        return send(self, request, **how)

    monkeypatch.setattr(transport.Session, "send", counted)
    version = site.version()
    key = {**site.client, "api_key": "mldbg_0123456789abcdef_" + "x" * 43}

    def rests():
        work = one._recording._uploader._work
        with work._changed:  # the tracer asks when it is made, and may ask once more for its record
            return work._rests_until and not work._asked and not work._busy

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        one = tracer(home, version, auto_sync=True, **key)
        record(one, [0])
        until(rests, "the rest after a refusal")
        before = len(asked)
        assert before
        record(one, range(1, 30))
        assert rests()
        assert len(asked) == before
        with pytest.raises(
            SyncError, match="wrong, revoked or expired; set another as MLD_API_KEY"
        ):
            one.wait_for_save(interval=0.05)  # who asks is not put off
        assert len(asked) > before
        one.close()
    said = [str(one.message) for one in told]
    assert "recording goes on" in said[0]
    assert "has reached the service could not be asked" in said[-1]  # whoever has a wrong key


# What cannot be sent


def damage(home, version, number):
    """Change a byte of a version's chunk on disk, from 0 on; again, change it back."""
    with Store(home) as here, here._catalogue.reading() as session:
        wanted = next(one.number for one in here.versions() if one.version.version_name == version)
        query = select(SegmentRow.name, ChunkRow.offset).join(SegmentRow)
        query = query.where(ChunkRow.version_id == wanted).order_by(ChunkRow.id)
        name, offset = session.exec(query).all()[number]
    path = home / "segments" / f"{name}.seg"
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("chunks_of_a_part", [1, 256])
def test_a_damaged_chunk_does_not_stop_the_others(site, home, monkeypatch, chunks_of_a_part):
    monkeypatch.setattr(sending, "PART_CHUNKS", chunks_of_a_part)
    version = site.version()
    with tracer(home, version) as made:
        record(made, range(4))
    damage(home, version, 1)
    with tracer(home, version, auto_sync=True, **site.client) as made:
        with (
            pytest.warns(UserWarning, match="left out: records of run .* changed on disk") as told,
            pytest.raises(SyncError, match="32 inputs of net/.* left out: .* changed on disk"),
        ):
            made.wait_for_save(interval=0.05)
        assert site.count(version) == 96
        record(made, [7])
        until(lambda: site.count(version) == 128, "what was recorded after")
        with pytest.raises(SyncError, match="changed on disk"):
            made.wait_for_save(0, 0.05)
        assert len(told) == 1
        damage(home, version, 1)  # is mended
        made.wait_for_save(interval=0.05)
    assert site.count(version) == 160


def test_what_is_damaged_is_told_at_the_end(site, home):
    version = site.version()
    with tracer(home, version) as made:
        record(made, range(2))
    damage(home, version, 0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with tracer(home, version, auto_sync=True, **site.client):
            pass
    assert "cannot be sent" in str(told[0].message)
    assert "has reached the service: 32 inputs" in str(told[-1].message)
    assert site.count(version) == 32


def spoil(home, version, count):
    """Record chunks that no service takes: they lack what the task asks for."""
    with Store(home) as here:
        repository = here.open(ModelVersion("net", version))
        run = repository.start_run("training")
        for number in range(count):
            units = Units({"score": torch.zeros(1)})
            repository.write(run, [Batch(["odd"], "val", number, 1, units)])


def test_a_refused_chunk_does_not_stop_the_others(site, home):
    version = site.version()
    with tracer(home, version) as made:
        record(made, range(3))
        spoil(home, version, 2)
        record(made, range(3, 9))
        spoil(home, version, 1)
    with tracer(home, version, **site.client) as made:
        refusal = "3 inputs of .* left out: records of epoch 0, val, were refused: .*needs a column"
        with pytest.warns(UserWarning, match=refusal), pytest.raises(SyncError, match=refusal):
            made.wait_for_save(interval=0.05)
        assert site.count(version) == 288
        made.drop_epoch_data(1)
        with pytest.raises(SyncError, match="2 inputs of"):
            made.wait_for_save(interval=0.05)
        made.drop_epoch_data(0)
        record(made, [9])
        made.wait_for_save(interval=0.05)  # nothing is left that could be refused
    assert site.count(version) == 32


def test_a_service_that_refuses_everything_is_not_asked_for_each_chunk(site, home, monkeypatch):
    monkeypatch.setattr(delivery, "MOST_REFUSED", 2)
    version = site.version()
    with tracer(home, version, **site.client) as made:
        spoil(home, version, 40)
        asked = site.server.log.count('"route"')
        with (
            pytest.warns(UserWarning, match="2 inputs of|needs a column") as told,
            pytest.raises(UnfitError, match="needs a column"),
        ):
            made.wait_for_save(interval=0.05)
        assert site.server.log.count('"route"') < asked + 20
    assert any("2 inputs of" in str(one.message) for one in told)


def test_who_asks_does_not_sit_out_a_pause(wrong, home):
    wrong.said = (503, {"Retry-After": "3600"}, b"")
    client = {"api_endpoint": f"http://{HOST}:{wrong.server_port}", "api_key": "mldbg_a_b"}
    unasked = pytest.warns(UserWarning, match="could not be asked")
    with unasked, tracer(home, **client) as made:
        record(made, [0])
        made.upload()
        until(lambda: made._recording._uploader._work._failure, "the first refusal")
        asked = wrong.asked
        made.upload()
        until(lambda: wrong.asked > asked, "the second attempt")


def test_the_end_does_not_wait_for_what_others_record_later(site, home, small_parts):
    version = site.version()
    one, other = tracer(home, version, auto_sync=True, **site.client), tracer(home, version)
    record(one, range(3))
    stop = threading.Event()

    def go_on():
        for number in range(10, 1000):
            if stop.is_set():
                return
            record(other, [number])

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        until(lambda: site.count(version) > 96, "records of the other")
        one.close()
        assert thread.is_alive()
    finally:
        stop.set()
        thread.join()
        other.close()
    assert site.count(version) >= 96


def test_copies_outlive_the_key_that_they_were_fetched_with(site, evaluated, tmp_path, impatient):
    _, version, there = evaluated
    home = tmp_path / "rotating"
    keys = [admin_key(site.inside, "default", "default", f"{version} {n}", "member", None)
            for n in range(2)]  # fmt: skip
    far = [Evaluator("net", version, site.endpoint, key, home=home) for key in keys]
    first, second = (one.get_result(there.result_name) for one in far)
    assert first.folder == second.folder
    site.wire.refuse()
    site.wire.cut()
    again = Evaluator("net", version, site.endpoint, keys[1], home=home)
    with pytest.warns(UserWarning, match="copy of .* is used"):
        assert again.get_result(there.result_name).folder == first.folder
    stranger = Evaluator("net", version, site.endpoint, "mldbg_another_key", home=home)
    with pytest.raises(UnavailableError):
        stranger.get_result(there.result_name)


def test_similar_names_of_the_service_are_listed(site, evaluated, tmp_path):
    _, version, there = evaluated
    far = Evaluator("net", version, home=tmp_path / "a", **site.client)
    with pytest.raises(ResultNotFoundError, match=f"nearest are: .*{there.result_name}"):
        far.get_result(there.result_name + "s")
    far = Evaluator("net", version + "0000", home=tmp_path / "a", **site.client)
    with pytest.raises(NothingToEvaluateError, match=f"nearest are: .*net/{version}"):
        far.list_results()


def test_an_address_with_something_behind_it_is_told_as_such(site, home):
    elsewhere = Evaluator("net", "v1", f"{site.endpoint}/other", site.key, home=home)
    with pytest.raises(RefusedError, match="no such interface; check the address"):
        elsewhere.list_results()


def test_whoever_interrupts_an_evaluation_is_told_of_its_job(site, evaluated, tmp_path):
    home, version, _ = evaluated
    evaluator = Evaluator("net", version, home=home, **site.client)
    client = evaluator.service_client

    def interrupted(number):
        raise KeyboardInterrupt

    client.job = interrupted
    with pytest.raises(KeyboardInterrupt) as told:
        evaluator.request_evaluation(result_name=f"{version} interrupted")
    del client.job
    job = client.jobs()[0]
    assert job["result_name"] == f"{version} interrupted"
    (note,) = told.value.__notes__
    assert note.count(job["id"]) == 3
    assert repr(job["result_name"]) in note
    client.cancel(job["id"])
    until(lambda: client.job(job["id"])["state"] in ("cancelled", "done"), "the end of the job")


def test_a_terminal_opens_results_of_the_service(site, evaluated, tmp_path, monkeypatch):
    _, _, there = evaluated
    monkeypatch.setenv("MLD_API_ENDPOINT", site.endpoint)
    monkeypatch.setenv("MLD_API_KEY", site.key)
    name, home = there.result_name, ["--home", str(tmp_path / "terminal")]
    for command in (
        ["report", name, "-o", str(tmp_path / "out.html")],
        ["compare", name, name],
        ["check", name, "--min-accuracy", "0"],
    ):
        done = CliRunner().invoke(cli.app, [*command, *home])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "out.html").exists()
    monkeypatch.setenv("COLUMNS", "200")
    listed = CliRunner().invoke(cli.app, ["results", *home]).output
    assert name in listed.split(f"Results at {site.endpoint}")[1]
    done = CliRunner().invoke(cli.app, ["check", name + "s", "--min-accuracy", "0", *home])
    assert isinstance(done.exception, ResultNotFoundError)


def test_a_warning_names_the_line_of_whoever_gave_the_address(home):
    given = {"api_endpoint": "http://ml-debugger.invalid", "api_key": "mldbg_a_b"}
    for make, arguments in ((Evaluator, ()), (ClassificationTracer, (model(),))):
        with pytest.warns(UserWarning, match="use https") as told:
            made = make(*arguments, "net", "v1", home=home, **given)
        assert [Path(one.filename).name for one in told] == ["test_sync.py"]
    made.close()
