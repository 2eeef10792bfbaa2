"""What sends, against a service on loopback that takes everything, or fails as it is told to."""

import fcntl
import gc
import json
import os
import threading
import time
import warnings
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from ml_debugger.core import remote
from ml_debugger.core.errors import SyncError
from ml_debugger.core.records import Batch, ModelVersion, Units
from ml_debugger.core.service import uploader as module
from ml_debugger.core.service.client import ServiceClient
from ml_debugger.core.service.uploader import LeftOutError, Uploader
from ml_debugger.core.store import Store, sending

VERSION = ModelVersion("net", "v1")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        self.server.count["connections"] += 1
        super().setup()

    def answer(self):
        server = self.server
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        what = "parts" if "/parts/" in self.path else self.path.rpartition("/")[2]
        server.count[what] += 1
        if what == "parts":
            time.sleep(server.slow)
            server.open.wait(60)
        status = server.status.get(what, 200)
        said = {"projects": [{"id": "p"}], "id": 1, "records": 1}
        body = json.dumps(said if status == 200 else {"detail": "no", "kind": "X"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = answer  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def service():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.count, server.status, server.open = Counter(), {}, threading.Event()
        server.open.set()
        server.slow = 0.0
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.open.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.05)


@pytest.fixture
def repo(tmp_path):
    with Store(tmp_path) as store:
        given = {"task": "classification", "architecture": ["Linear"], "layers": {"a": "0"}}
        yield store.register(VERSION, **given)


@pytest.fixture
def make(repo, service, tmp_path):
    """Return uploaders that are closed at the end."""
    made = []

    def uploader(*, auto=False, key="mldbg_a_b"):
        client = ServiceClient(f"http://127.0.0.1:{service.server_port}", key)
        made.append(Uploader(repo, client, tmp_path, auto=auto))
        return made[-1]

    yield uploader
    for one in made:
        one.stop()


@pytest.fixture
def lock(make):
    """Have another process hold the lock, for all that this one can tell."""
    path = make()._work._lock_path
    path.parent.mkdir(exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield
    os.close(fd)


def record(repo, epochs):
    run = repo.start_run("training")
    for epoch in epochs:
        units = Units({"score": torch.zeros(1)})
        repo.write(run, [Batch(["a"], "val", epoch, 1, units)])


def until(holds):
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_an_epoch_is_sent_again_though_all_that_is_new_is_asked_for_before(repo, make, service):
    record(repo, range(3))
    one = make()
    one.wait("all", 0.02)
    service.open.clear()
    record(repo, [3])
    one.start("all")
    until(lambda: service.count["parts"] == 2)  # it is on its way, and what follows waits
    one.start("all")
    one.start(0, again=True)
    service.open.set()
    one.wait(0, 0.02)
    assert service.count["parts"] == 3


def test_who_sends_again_does_not_wait_for_what_others_record(repo, make, service):
    """The other always has something to send, and would never let go of the lock."""
    record(repo, range(3))
    one, other = make(), make(auto=True)
    one.wait("all", 0.02)
    service.slow = 0.02
    done = threading.Event()

    def go_on():
        while not done.is_set():
            record(repo, [7])
            other.recorded()

    recorder = threading.Thread(target=go_on)
    recorder.start()
    waiter = threading.Thread(target=one.wait, args=("all", 0.02), kwargs={"again": True})
    try:
        until(lambda: other._work._busy)
        waiter.start()
        until(lambda: not waiter.is_alive())
    finally:
        done.set()
        recorder.join()
        waiter.join()


def test_what_was_asked_for_is_sent_before_the_end(repo, make, service, monkeypatch):
    monkeypatch.setattr(sending, "PART_CHUNKS", 1)
    record(repo, [0, 0, 0, 1])
    one = make()
    one.start(0)
    one.close()
    assert service.count["parts"] == 3


def test_what_was_asked_for_and_cannot_be_sent_is_told_at_the_end(repo, make, service):
    service.status["parts"] = 503
    record(repo, [0])
    one = make()
    one.start(0)
    with pytest.warns(UserWarning, match="not everything recorded of net/v1 has reached"):
        one.close()


def test_an_end_that_cannot_ask_says_so_and_no_more(repo, make, service):
    record(repo, [0])
    make().wait("all", 0.02)
    service.status["me"] = 503
    one = make(auto=True)
    with pytest.warns(UserWarning, match="whether everything .* could not be asked: http"):
        one.close()


def test_who_waits_behind_another_process_is_told_what_is_saved(repo, make, service, tmp_path):
    record(repo, [0])
    make().wait("all", 0.02)
    one = make()  # has not asked the service anything
    path = one._work._lock_path
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    one.wait("all", 0.02)
    os.close(fd)


@pytest.mark.parametrize("end", ["wait", "close"])
def test_who_waits_for_a_process_that_sends_nothing_is_told(repo, make, lock, monkeypatch, end):
    monkeypatch.setattr(module, "PATIENCE" if end == "wait" else "CLOSING_PATIENCE", 0.3)
    record(repo, [0])
    one = make()
    if end == "wait":
        with pytest.raises(SyncError, match="another process is sending .* nothing through"):
            one.wait("all", 0.02)
    else:
        one.start("all")
        with pytest.warns(UserWarning, match="another process is sending .* nothing through"):
            one.close()


def test_what_is_refused_keeps_no_evaluation_from_the_rest(repo, make, service, tmp_path):
    service.status["parts"] = 422
    record(repo, [0])
    client = make()._work._client
    with pytest.warns(UserWarning, match="left out"):
        remote.send_rest(client, tmp_path, VERSION)
    with pytest.warns(UserWarning, match="left out"), pytest.raises(LeftOutError):
        make().wait("all", 0.02)


def test_one_connection_and_one_registration_do_for_many_flushes(repo, make, service):
    one = make(auto=True)
    for number in range(1, 4):
        record(repo, [number])
        one.recorded()
        until(lambda: not one._work._busy and not one._work._asked)
    one.close()  # at once, though the thread would go on for seconds
    assert service.count["parts"] == 3
    assert (service.count["connections"], service.count["versions"]) == (1, 1)


def test_a_version_that_has_another_number_by_now_is_registered_again(repo, make, service):
    one = make()
    record(repo, [0])
    one.wait("all", 0.02)
    service.status["parts"] = 404
    record(repo, [1])
    with warnings.catch_warnings(action="ignore"), pytest.raises(SyncError):
        one.wait("all", 0.02)
    assert service.count["versions"] == 2
    service.status.clear()
    one.wait("all", 0.02)


def test_no_thread_left_is_told_and_tried_again(repo, make, service, monkeypatch):
    def full(_):
        raise RuntimeError("can't start new thread")

    record(repo, [0])
    one = make()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", full)
        with (
            pytest.warns(UserWarning, match="ulimit"),
            pytest.raises(SyncError, match="can't start new thread.*ulimit"),
        ):
            one.wait("all", 0.02)
    one.wait("all", 0.02)
    assert service.count["parts"] == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_asks_over_a_connection_of_its_own_and_ends(make, service):
    one = make(auto=True)
    client = one._work._client
    client.me()
    until(lambda: one._work._thread is None or not one._work._busy)
    parent = client._session
    with one._work._changed:  # as a thread may hold it
        pid = os.fork()
        if pid == 0:
            fresh = client._session is not parent and client._session is client._session
            one._work._changed = None  # which nobody would ever free
            one.recorded()
            del one
            gc.collect()
            os._exit(0 if fresh else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert client._session is parent


@pytest.mark.parametrize("secret", ["s", "s_t", "_", "s__t_"])
def test_no_file_is_named_after_a_secret(secret):
    def place(key):
        return ServiceClient("http://127.0.0.1:1", key).key_place

    assert place(f"mldbg_0123_{secret}") == place("mldbg_0123_other")
    assert place(f"mldbg_0124_{secret}") != place("mldbg_0123_other")
    assert place(f"x{secret.replace('_', '')}") == place("other")
