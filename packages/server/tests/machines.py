"""The machines that the service stands on, for real: PostgreSQL, an S3 server, and the wires."""

import asyncio
import http.client
import itertools
import os
import pwd
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal, Self

import psycopg

HOST = "127.0.0.1"
PATIENCE = 60  # seconds to wait for a machine before it is called broken


def find_postgres() -> Path | None:
    """Return the folder of PostgreSQL's programs; None when there is none."""
    asked = shutil.which("pg_config")
    folders = []
    if asked:
        said = subprocess.run([asked, "--bindir"], capture_output=True, text=True, check=True)
        folders.append(Path(said.stdout.strip()))
    folders += map(Path, os.get_exec_path())
    installed = [one for one in Path("/usr/lib/postgresql").glob("*") if one.name.isdecimal()]
    folders += [one / "bin" for one in sorted(installed, key=lambda one: -int(one.name))]
    has = (one for one in folders if (one / "initdb").exists() and (one / "postgres").exists())
    return next(has, None)


class Machine:
    """A server process on a loopback port of its own, with a folder of its own.

    A context manager: it is up when made, and leaves nothing behind. What starts or ends it
    returns when that is so, and does nothing when it is so already. The port stays the same.
    """

    def __init__(self, name: str) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._wire = _bound()  # holds the port, which nobody else is given while this is down
        self.port: int = self._wire.getsockname()[1]
        # not pytest's folder, which only its own user may enter
        self._folder = Path(tempfile.mkdtemp(prefix=f"ml-debugger-{name}-"))
        self._how: dict[str, Any] = {"start_new_session": True}  # Ctrl-C is not for it
        try:
            self._prepare()
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def up(self) -> bool:
        """Whether the server runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process of the server that is up."""
        if not self.up:
            raise RuntimeError(f"the {type(self).__name__} is down: start() it")
        return self._process.pid

    def start(self) -> None:
        """Start."""
        if self.up:
            return
        log = self._folder / "log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                **self._how,
            )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if not self.up or time.monotonic() > deadline:
                self._end(signal.SIGINT)
                raise RuntimeError(f"{self._command()} does not answer\n{log.read_text()}")
            time.sleep(0.02)

    def close(self) -> None:
        """End the server and delete what it wrote."""
        try:
            if self.up:
                self._end(signal.SIGQUIT)
        finally:
            if self.up:
                self._end(signal.SIGKILL)
            shutil.rmtree(self._folder)
            self._wire.close()

    def _prepare(self) -> None:
        """Make what it needs to start."""

    def _command(self) -> list[Any]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _end(self, how: signal.Signals) -> None:
        self._process.send_signal(how)
        self._process.wait(PATIENCE)

    def _freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


class Postgres(Machine):
    """PostgreSQL, with a password and nothing in it.

    `kill` and `stop("immediate")` lose no committed row without `fsync` either: the system has
    what the server wrote. `fsync` is against the loss of power.
    """

    user = "ml_debugger"

    def __init__(self, *, fsync: bool = True) -> None:
        self._programs = find_postgres()
        if self._programs is None:
            raise FileNotFoundError("no PostgreSQL: install its initdb and postgres, 15 or newer")
        self._settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "fsync": "on" if fsync else "off",
            "dynamic_shared_memory_type": "mmap",  # files in the folder, which go with it
        }
        self._password = secrets.token_hex(16)
        self._killed = False
        super().__init__("postgres")

    @property
    def url(self) -> str:
        """SQLAlchemy's URL of the database that every server has."""
        return self._url("postgres")

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"test_{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self._url(name)

    def connect(self, url: str | None = None) -> "psycopg.Connection[Any]":
        """Connect by psycopg alone, each statement its own transaction."""
        address = (url or self.url).replace("+psycopg", "")
        return psycopg.connect(address, connect_timeout=PATIENCE, autocommit=True)

    def start(self) -> None:
        """Start, and recover from a crash."""
        if not self.up:
            # its processes are gone, and the number in it may be that of another process by now
            (self._data / "postmaster.pid").unlink(missing_ok=True)
            super().start()
            self._killed = False

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop: "fast" ends the connections and saves, "immediate" leaves a crash to recover."""
        how = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode]
        if self.up:
            self._end(how)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop and start."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """End the server and its children as `kill -9` does, whatever they are at."""
        if not self.up:
            return
        self._freeze()  # so that it starts no more children
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        children = [os.pidfd_open(int(one)) for one in listed.split()]
        for child in children:
            signal.pidfd_send_signal(child, signal.SIGKILL)
        self._killed = True
        self._end(signal.SIGKILL)
        for child in children:
            gone, _, _ = select.select([child], [], [], PATIENCE)
            os.close(child)
            assert gone, "a process of PostgreSQL does not end"

    def close(self) -> None:
        """End the server and delete what it wrote."""
        try:
            if self._killed:
                self.start()  # only PostgreSQL itself gives the shared memory of a crash back
        finally:
            super().close()

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _url(self, database: str) -> str:
        login = f"{self.user}:{self._password}"
        return f"postgresql+psycopg://{login}@{HOST}:{self.port}/{database}"

    def _prepare(self) -> None:
        word = self._folder / "password"
        word.write_text(self._password)
        self._how |= {"cwd": self._folder, "env": {"PATH": os.defpath, "LC_ALL": "C"}}
        if os.geteuid() == 0:  # which PostgreSQL refuses to be
            known = {one.pw_name: one for one in pwd.getpwall()}
            account = known.get("postgres") or known["nobody"]
            self._how |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            for path in (self._folder, word):
                os.chown(path, account.pw_uid, account.pw_gid)
        made = subprocess.run(
            [
                self._programs / "initdb",
                *("-D", self._data, "-U", self.user, "--pwfile", word, "--auth=scram-sha-256"),
                *("--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            **self._how,
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed\n{made.stdout}")

    def _command(self) -> list[Any]:
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        return [self._programs / "postgres", "-D", self._data, "-p", str(self.port), *settings]

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:  # not there yet, or it recovers
            return False
        return True


class S3(Machine):
    """moto's S3 server.

    **It keeps everything in memory: `stop` loses it, and `start` comes up empty.** For a store
    that is away for a while take `pause`, where requests hang, or a `Cut`, which refuses them.
    """

    def __init__(self) -> None:
        super().__init__("s3")

    @property
    def endpoint(self) -> str:
        """The URL of the server."""
        return f"http://{HOST}:{self.port}"

    @property
    def storage_options(self) -> dict[str, Any]:
        """What fsspec takes for `s3://`."""
        return self.storage_options_at(self.endpoint)

    def storage_options_at(self, endpoint: str) -> dict[str, Any]:
        """What fsspec takes for `s3://` at another endpoint: that of a `Cut` before the server."""
        client = {"endpoint_url": endpoint, "region_name": "us-east-1"}
        return {"key": "test", "secret": "test", "client_kwargs": client}

    def new_bucket(self) -> str:
        """Make an empty bucket and return its URL."""
        name = f"bucket-{next(self._numbers)}"
        with closing(http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE)) as connection:
            connection.request("PUT", f"/{name}")
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
        return f"s3://{name}"

    def start(self) -> None:
        """Start it empty; when it is up, end a pause."""
        self.resume()
        super().start()

    def stop(self) -> None:
        """End it; what it kept is lost."""
        if self.up:
            self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it hang: connections open, nothing answers."""
        self._freeze()

    def resume(self) -> None:
        """Go on after a pause."""
        if self.up:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the server and delete what it wrote."""
        self.stop()
        super().close()

    def _command(self) -> list[Any]:
        return [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(self.port)]

    def _answers(self) -> bool:
        try:
            socket.create_connection((HOST, self.port), PATIENCE).close()
        except ConnectionRefusedError:
            return False
        return True


class Cut:
    """A wire that can be cut: a TCP proxy on a loopback port before a server's loopback port.

    A context manager. A connection that ends badly is reset on both sides. When nobody listens
    at the target, clients are reset too: they are refused only after `refuse`.

    Attributes:
        port: Where it listens, as long as it lives.
        cuts: How often it has cut, so that a test knows that its fault took place.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.cuts = 0
        self._left: int | None = None  # bytes until the cut
        self._only_answers = False
        self._seconds = 0.0
        self._healed = asyncio.Event()
        self._carried: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._wire = _bound()
        self.port: int = self._wire.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.restore()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def through(self, url: str) -> str:
        """Return the URL of the target with this wire's port in place of the target's."""
        there, here = f"{HOST}:{self.target}", f"{HOST}:{self.port}"
        assert there in url, f"{url} is not at {there}"
        return url.replace(there, here)

    def refuse(self) -> None:
        """Refuse new connections; those that are open go on."""

        async def work() -> None:
            self._stop_listening()

        self._do(work())

    def cut(self, after_bytes: int = 0, *, answers: bool = False) -> None:
        """Reset, once, all connections that are open after so many more bytes of any of them.

        Later connections pass. 0 cuts at once. With `answers` only what the target sends is
        counted, and 0 cuts when it begins to answer: the request arrives, its answer is lost.
        The system may drop the last bytes before the cut.
        """

        async def work() -> None:
            if after_bytes or answers:
                self._left, self._only_answers = after_bytes, answers
            else:
                await self._reset()

        self._do(work())

    def delay(self, seconds: float) -> None:
        """Hold back each piece (64 KiB at most) of each direction; `math.inf`: until `restore`."""

        async def work() -> None:
            self._heal()
            self._seconds = seconds

        self._do(work())

    def restore(self) -> None:
        """Take back what was asked for; what was delayed goes on."""

        async def work() -> None:
            self._left = None
            self._heal()
            if self._listener is None:
                self._listener = _bound(self.port)
                self._listener.listen(128)
                self._loop.add_reader(self._listener, self._accept)

        self._do(work())

    def close(self) -> None:
        """Reset the connections that are open, and end."""
        self.refuse()
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._wire.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def _heal(self) -> None:
        self._seconds = 0.0
        self._healed.set()
        self._healed = asyncio.Event()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._accept()  # a client that has connected is not refused
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        while self._listener is not None:
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            task = self._loop.create_task(self._carry(_resetting(client)))
            self._carried.add(task)
            task.add_done_callback(self._carried.discard)
            task.add_done_callback(lambda _, client=client: client.close())

    async def _reset(self) -> None:
        self._accept()  # a client that has connected is cut too
        if carried := self._cancel():
            await asyncio.wait(carried)

    def _cancel(self) -> set["asyncio.Task[None]"]:
        self.cuts += 1
        for one in self._carried:
            one.cancel()
        return set(self._carried)

    async def _carry(self, client: socket.socket) -> None:
        with _resetting(socket.socket()) as server:
            try:
                await self._loop.sock_connect(server, (HOST, self.target))
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(client, server, answers=False))
                    both.create_task(self._pump(server, client, answers=True))
            except* OSError:
                pass  # reset by one side, so by both
            else:
                for one in (client, server):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))

    async def _pump(self, source: socket.socket, sink: socket.socket, *, answers: bool) -> None:
        while piece := await self._loop.sock_recv(source, 1 << 16):
            if self._seconds:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._healed.wait(), self._seconds)
            last = False
            if self._left is not None and (answers or not self._only_answers):
                last = len(piece) >= self._left
                piece = piece[: self._left]
                self._left = None if last else self._left - len(piece)
            await self._loop.sock_sendall(sink, piece)
            if last:
                self._cancel()
        sink.shutdown(socket.SHUT_WR)


def _bound(port: int = 0) -> socket.socket:
    """Bind a port that another socket of this kind may listen at, and no other."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    bound.setblocking(False)
    return bound


def _resetting(connection: socket.socket) -> socket.socket:
    """Make a connection reset, not finished, when it is closed."""
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return connection
