"""The connection to a service, against whatever may answer there instead."""

import errno
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from ml_debugger.core.errors import InputError, StoreError, SyncError
from ml_debugger.core.recording import Recording
from ml_debugger.core.records import Batch, ModelVersion, Units
from ml_debugger.core.service import transport
from ml_debugger.core.service.client import RefusedError, ServiceClient, UnavailableError

HOST = "127.0.0.1"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ME = b'{"projects": [{"id": "p"}]}'
KEY = "mldbg_a_b"


class Peer:
    """Listens, and does to each who connects what it is told to do."""

    def __init__(self) -> None:
        self.act: Callable[[socket.socket], object] = lambda _: None
        self._socket = socket.create_server((HOST, 0))
        self.port = self._socket.getsockname()[1]
        self.done = threading.Event()
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()

    @property
    def client(self) -> ServiceClient:
        return ServiceClient(f"http://{HOST}:{self.port}", KEY)

    def _listen(self) -> None:
        while True:
            wire, _ = self._socket.accept()
            if self.done.is_set():
                wire.close()
                return
            self._threads.append(threading.Thread(target=self._serve, args=(wire,)))
            self._threads[-1].start()

    def _serve(self, wire: socket.socket) -> None:
        with wire, suppress(OSError):  # the client has had enough
            self.act(wire)

    def drip(self, wire: socket.socket, first: bytes, drop: bytes, pause: float = 0.02) -> None:
        wire.sendall(first)
        while not self.done.wait(pause):
            wire.sendall(drop)

    def close(self) -> None:
        self.done.set()
        socket.create_connection((HOST, self.port)).close()
        for one in list(self._threads):
            one.join()
        self._socket.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    found = Peer()
    yield found
    found.close()


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)


# How long, and how much


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (b"", b""),
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (OK + b"Content-Length: 1000000\r\n\r\n", b" "),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 1000000\r\n\r\n", b" "),
    ],
)
def test_an_answer_that_drips_ends(
    peer: Peer, first: bytes, drop: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "ANSWER_SECONDS", 0.2)
    peer.act = lambda wire: peer.drip(wire, first, drop)
    with pytest.raises(UnavailableError, match="no answer in time"):
        peer.client.me()


def test_an_answer_may_take_longer_than_a_look_at_the_clock(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "LOOK", 0.01)

    def act(wire: socket.socket) -> None:
        whole = OK + b"Content-Length: %d\r\n\r\n%s" % (len(ME), ME)
        for at in range(0, len(whole), 20):
            peer.done.wait(0.03)
            wire.sendall(whole[at : at + 20])

    peer.act = act
    assert peer.client.project == "p"


@pytest.mark.parametrize("status", [b"200 OK", b"307 Elsewhere\r\nLocation: /x", b"422 No"])
def test_an_answer_without_end_is_refused(peer: Peer, status: bytes) -> None:
    first = b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n\r\n" % (1 << 60)
    peer.act = lambda wire: peer.drip(wire, first, b" " * (1 << 20), 0)
    with pytest.raises(RefusedError, match=str(peer.port)):
        peer.client.me()


def test_an_answer_that_would_have_to_be_unpacked_is_refused(peer: Peer) -> None:
    peer.act = lambda wire: wire.sendall(
        OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nxxxx"
    )
    with pytest.raises(RefusedError, match="does not answer as"):
        peer.client.me()


def test_a_file_that_is_larger_than_was_said_is_refused(peer: Peer, tmp_path: Path) -> None:
    def act(wire: socket.socket) -> None:
        for body in (
            ME,
            b'[{"name": "units.parquet", "bytes": 5, "sha256": "0"}]',
            b"x" * 6,
        ):
            while not wire.recv(1 << 16).endswith(b"\r\n\r\n"):
                pass
            wire.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    peer.act = act
    with pytest.raises(RefusedError):
        peer.client.download(1, tmp_path)


def test_a_part_may_take_longer_than_connecting(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 MB through a slow line: the time for connecting was the time for all of it."""
    monkeypatch.setattr(transport, "CONNECT_SECONDS", 0.2)

    def act(wire: socket.socket) -> None:
        wire.recv(1 << 16)
        wire.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(ME) + ME)
        peer.done.wait(0.5)
        while not wire.recv(1 << 20).endswith(b"\xff"):
            pass
        wire.sendall(OK + b'Content-Length: 14\r\n\r\n{"records": 7}')

    peer.act = act
    assert (
        peer.client.put_part(1, ModelVersion("net", "v1"), "0" * 64, bytes(8 << 20) + b"\xff") == 7
    )


def test_a_part_that_nobody_takes_ends(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "SILENT_SECONDS", 0.2)

    def act(wire: socket.socket) -> None:
        wire.recv(1 << 16)
        wire.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(ME) + ME)
        peer.done.wait()

    peer.act = act
    with pytest.raises(UnavailableError, match="no answer in time"):
        peer.client.put_part(1, ModelVersion("net", "v1"), "0" * 64, bytes(32 << 20))


END = """
import atexit, sys
from ml_debugger.core.service import transport
transport.ANSWER_SECONDS = transport.SILENT_SECONDS = 3600.0
transport.HURRY, transport.LOOK = 36_000, 0.01
def ask():
    try:
        transport.Session().get(sys.argv[1], timeout=(10, 3600), stream=True)
    except OSError as error:
        print(transport.explain(error))
atexit.register(ask)
"""


def test_nothing_is_waited_for_long_while_the_interpreter_ends(peer: Peer) -> None:
    peer.act = lambda wire: peer.drip(wire, b"", b"H")
    done = subprocess.run(
        [sys.executable, "-c", END, f"http://{HOST}:{peer.port}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "no answer in time" in done.stdout


# Why not


def told(endpoint: str) -> SyncError:
    with pytest.raises(SyncError) as found:
        ServiceClient(endpoint, KEY).me()
    assert endpoint in str(found.value)
    assert "hunter" not in str(found.value)
    return found.value


@pytest.fixture
def nobody() -> Iterator[int]:
    with socket.socket() as held:
        held.bind((HOST, 0))  # and does not listen
        yield held.getsockname()[1]


def test_what_may_pass_is_told_with_its_cause(peer: Peer, nobody: int) -> None:
    for endpoint, says in [
        (f"http://{HOST}:{nobody}", "connection refused"),
        (f"https://{HOST}:{nobody}", "connection refused"),
        (f"http://{HOST}:{peer.port}", "connection was cut"),
        (f"https://{HOST}:{peer.port}", "connection was cut"),
        ("https://ml-debugger.invalid", "DNS does not know"),
    ]:
        error = told(endpoint)
        assert isinstance(error, UnavailableError), error
        assert says in str(error)
        assert "cannot be reached" in str(error)


def test_tls_that_cannot_be_is_refused_at_once(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = f"https://{HOST}:{peer.port}"
    peer.act = lambda wire: (wire.recv(1000), wire.sendall(b"HTTP/1.1 400 No\r\n\r\n"))
    error = told(endpoint)
    assert isinstance(error, RefusedError)
    assert "https:// right" in str(error)

    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=other"]
    files = [tmp_path / "key", tmp_path / "certificate"]
    made = [*make, "-keyout", files[0], "-out", files[1]]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    peer.act = lambda wire: context.wrap_socket(wire, server_side=True).close()
    error = told(endpoint)
    assert isinstance(error, RefusedError)
    assert "certificate is not trusted (self" in str(error)
    assert "REQUESTS_CA_BUNDLE" in str(error)

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(files[1]))  # trusted, but of another host
    assert "IP address mismatch" in str(told(endpoint))

    for bundle in (tmp_path / "nowhere", files[0]):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
        error = told(endpoint)
        assert isinstance(error, RefusedError)
        assert "REQUESTS_CA_BUNDLE" in str(error)


def test_trouble_with_a_proxy_is_told_as_such(
    peer: Peer, nobody: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = "https://ml-debugger.invalid"
    for proxy, says, passing in [
        (f"http://me:hunter@{HOST}:{nobody}", "proxy .*connection refused", True),
        (f"http://me:hunter@{HOST}:{peer.port}", "proxy wants a login", False),
        (f"socks5://me:hunter@{HOST}:{nobody}", "proxy", False),
        ("http://me:hunter@:x", "proxy", False),
    ]:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        peer.act = lambda wire: (wire.recv(1000), wire.sendall(b"HTTP/1.1 407 No\r\n\r\n"))
        error = told(endpoint)
        assert isinstance(error, UnavailableError) == passing, error
        assert "proxy" in str(error)
        assert all(one in str(error) for one in says.split(" .*"))
    monkeypatch.setenv("HTTP_PROXY", f"http://{HOST}:{peer.port}")
    peer.act = lambda wire: (
        wire.recv(1000),
        wire.sendall(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n"),
    )
    assert "proxy wants a login" in str(told("http://ml-debugger.invalid"))


def test_closing_stops_sending_though_the_disk_is_full(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording(
        ModelVersion("net", "v1"),
        "training",
        {},
        tmp_path,
        recreate=False,
        client=peer.client,
        auto_sync=True,
        task="classification",
        architecture=["Linear"],
        layers={"a": "0"},
        fields=[],
        label_fields=[],
    )

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    units = Units({"score": torch.ones(1, 1)})
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        recording.put(Batch(["0"], "train", 0, 1, units))
        with pytest.raises(StoreError, match="No space left"):
            recording.close()
    assert recording._uploader is not None
    with pytest.raises(InputError, match="closed"):
        recording._uploader.start()
    recording._writer.discard()  # or it tries again, at the end
