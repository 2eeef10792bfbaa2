"""The machines of the tests do what the tests of faults rely on."""

import http.client
import math
import os
import socket
import tempfile
import threading
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest
import s3fs
from sqlalchemy import create_engine, make_url, text

from .machines import HOST, S3, Cut, Postgres

#: A minute and a half of work, which looks at nothing: it outlives the server it is part of.
BUSY = b"""DO 'BEGIN
    FOR i IN 1..10 LOOP FOR j IN 1..2000000000 LOOP NULL; END LOOP; END LOOP;
END'"""


@pytest.fixture
def echo():
    """Answer each connection with what it says, 64 KiB at a time; its port."""
    with socket.create_server((HOST, 0)) as server:

        def answer(connection):
            with connection:
                try:
                    while piece := connection.recv(1 << 16):
                        connection.sendall(piece)
                except ConnectionError:
                    pass

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # the test is over
                    return
                threading.Thread(target=answer, args=[connection], daemon=True).start()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextmanager
def call(port):
    with socket.create_connection((HOST, port), timeout=60) as connection:
        yield connection


def says(connection, what):
    """Whether the other side repeats it all."""
    connection.sendall(what)
    heard = b""
    while len(heard) < len(what):
        piece = connection.recv(1 << 16)
        assert piece, "the connection was closed"
        heard += piece
    return heard == what


def refused(port):
    with socket.socket() as connection:
        return connection.connect_ex((HOST, port)) != 0


def family(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [pid, *map(int, children.split())]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ")[-1][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def shared_memory(pids):
    """What processes have taken of the system's shared memory, and not given back."""
    rows = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    return [row for row in rows if int(row[4]) in pids]


def test_a_database_is_new_and_asks_for_the_password(postgres):
    one, other = postgres.new_database(), postgres.new_database()
    for url in (one, other):
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE t (n int)"))  # twice in one is an error
            assert connection.execute(text("SHOW fsync")).scalar() == "off"
        engine.dispose()
    assert make_url(one).password
    for password in ("", "another"):
        login = {"host": HOST, "port": postgres.port, "user": postgres.user, "password": password}
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(**login, dbname="postgres")


def test_a_killed_database_has_what_was_committed():
    with Postgres(fsync=True) as postgres:
        url, pids = postgres.new_database(), family(postgres.pid)
        with closing(postgres.connect(url)) as connection, closing(postgres.connect()) as busy:
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
            busy.pgconn.send_query(BUSY)
            connection.execute("CREATE TABLE t (n int)")
            connection.execute("INSERT INTO t VALUES (1)")
            connection.execute("BEGIN")
            connection.execute("INSERT INTO t VALUES (2)")
            pids = family(postgres.pid)
            assert len(pids) > 2
            postgres.kill()
            assert not any(map(alive, pids))
            assert refused(postgres.port)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("COMMIT")
        postgres.start()
        with closing(postgres.connect(url)) as connection:
            assert connection.execute("SELECT n FROM t").fetchall() == [(1,)]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_stopped_database_refuses_until_it_is_started(postgres, mode):
    url = postgres.new_database()
    with closing(postgres.connect(url)) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS n")
        postgres.stop(mode)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        postgres.connect(url)
    with pytest.raises(RuntimeError, match="start"):
        postgres.pid  # noqa: B018
    postgres.start()
    postgres.restart(mode)
    with closing(postgres.connect(url)) as connection:
        assert connection.execute("SELECT n FROM t").fetchall() == [(1,)]


@pytest.mark.parametrize("end", ["close", "stop", "kill"])
def test_nothing_is_left_of_postgresql(end):
    with Postgres(fsync=False) as postgres:
        folder, port, pids = postgres._folder, postgres.port, family(postgres.pid)
        assert shared_memory(pids)  # so that it would be seen
        assert folder.stat().st_uid != 0
        if end != "close":
            getattr(postgres, end)()
        after = [*pids, *(family(postgres.pid) if postgres.up else ())]
    assert not any(map(alive, after))
    assert not shared_memory(after)
    assert not folder.exists()
    assert refused(port)


def test_nothing_is_left_of_postgresql_when_it_cannot_start(monkeypatch):
    with (
        tempfile.TemporaryDirectory() as folder,  # unlike pytest's, any user may be let in
        socket.create_server((HOST, 0)) as taken,
    ):
        Path(folder).chmod(0o755)
        monkeypatch.setattr("tempfile.tempdir", folder)
        port = taken.getsockname()[1]

        class Elsewhere(Postgres):
            def _command(self):
                return [*super()._command(), "-p", str(port)]

        with pytest.raises(RuntimeError, match="Address already in use"):
            Elsewhere()
        assert not list(Path(folder).iterdir())


def test_s3_is_written_and_read_through_the_wire(s3):
    bucket = s3.new_bucket()
    assert s3.new_bucket() != bucket
    with Cut(s3.port) as cut:
        options = s3.storage_options_at(cut.through(s3.endpoint))
        files = s3fs.S3FileSystem(**options, skip_instance_cache=True)
        content = os.urandom(6 << 20)
        with files.open(f"{bucket}/part", "wb", block_size=5 << 20) as file:
            file.write(content)
        cut.cut()  # the idle connection; s3fs makes another
        assert files.cat_file(f"{bucket}/part") == content
        assert cut.cuts == 1
        cut.cut(1 << 20, answers=True)  # and here it asks again
        assert files.cat_file(f"{bucket}/part") == content
        assert cut.cuts == 2
    direct = s3fs.S3FileSystem(**s3.storage_options, skip_instance_cache=True)
    assert direct.cat_file(f"{bucket}/part") == content


def test_s3_hangs_while_paused_and_is_empty_after_a_stop():
    with S3() as s3:
        pid, folder, bucket = s3.pid, s3._folder, s3.new_bucket()

        def status():
            with closing(http.client.HTTPConnection(HOST, s3.port, timeout=60)) as connection:
                connection.request("HEAD", f"/{bucket.removeprefix('s3://')}")
                return connection.getresponse().status

        assert status() == 200
        s3.pause()
        s3.pause()
        with call(s3.port) as connection:
            connection.settimeout(0.2)
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with pytest.raises(TimeoutError):
                connection.recv(1)
            s3.resume()
            connection.settimeout(60)
            assert connection.recv(1)
        assert status() == 200
        s3.stop()
        assert refused(s3.port)
        assert not alive(pid)
        s3.start()
        assert status() == 404
        pid = s3.pid
        s3.pause()  # and it ends all the same
    assert not alive(pid)
    assert not folder.exists()


def test_a_wire_carries_and_refuses(echo):
    with Cut(echo) as cut, call(cut.port) as early:
        long = os.urandom(1 << 20)
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # the wire must wait for it
            slow.settimeout(60)
            slow.connect((HOST, cut.port))

            def send():
                slow.sendall(long)
                slow.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            assert b"".join(iter(partial(slow.recv, 1 << 16), b"")) == long  # and closed, not reset
            sender.join()
        cut.refuse()
        cut.refuse()
        assert refused(cut.port)
        assert says(early, b"still here")
        cut.restore()
        with call(cut.port) as connection:
            assert says(connection, b"back")
            assert says(early, b"too")
        assert cut.cuts == 0


@pytest.mark.parametrize("bytes_", [0, 1, 1000, 70_000])
def test_a_cut_raises_at_the_client_once(echo, bytes_):
    with Cut(echo) as cut:
        for turn in (1, 2):
            with call(cut.port) as connection, call(cut.port) as other:
                assert says(connection, b"before")
                assert says(other, b"before")
                cut.cut(bytes_)
                with pytest.raises((ConnectionError, AssertionError)):
                    for _ in range(100):
                        assert says(connection, bytes(1000))
                with pytest.raises(ConnectionError):
                    other.recv(1)
                assert cut.cuts == turn
        with call(cut.port) as connection:
            assert says(connection, bytes(10_000))


def test_a_cut_loses_the_answer_and_not_the_request():
    with socket.create_server((HOST, 0)) as server, Cut(server.getsockname()[1]) as cut:
        cut.cut(answers=True)
        with call(cut.port) as client:
            connection, _ = server.accept()
            with connection:
                client.sendall(b"request")
                assert connection.recv(100) == b"request"
                assert cut.cuts == 0
                connection.sendall(b"answer")
                with pytest.raises(ConnectionError):
                    client.recv(1)
                assert cut.cuts == 1


def test_a_wire_delays_until_it_is_restored(echo):
    with Cut(echo) as cut, call(cut.port) as connection:
        cut.delay(math.inf)
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            says(connection, b"slow")
        cut.restore()
        connection.settimeout(60)
        assert connection.recv(4) == b"slow"
        cut.delay(0.01)
        assert says(connection, b"later")


def test_a_wire_without_a_server_resets():
    with socket.create_server((HOST, 0)) as server:
        target = server.getsockname()[1]
    with Cut(target) as cut, pytest.raises(ConnectionError), call(cut.port) as connection:
        connection.recv(1)  # if the reset did not come before
        connection.recv(1)


def test_a_service_meets_a_cut_wire_to_its_database(postgres):
    with Cut(postgres.port) as cut:
        engine = create_engine(cut.through(postgres.new_database()), pool_pre_ping=True)
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            cut.cut()
            with pytest.raises(Exception, match="(?i)closed|reset|eof") as raised:
                connection.execute(text("SELECT 1"))
            assert isinstance(raised.value.__cause__, psycopg.OperationalError)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
        engine.dispose()
    assert refused(cut.port)


class TestWhatATestLeavesDown:
    """In this order: a test that ends with machines down, and one that needs them."""

    @pytest.mark.parametrize("turn", ["pause", "stop", "nothing"])
    def test_is_up_for_the_next(self, postgres, s3, turn):
        assert postgres.up
        assert s3.new_bucket()
        postgres.kill()
        if turn != "nothing":
            getattr(s3, turn)()
