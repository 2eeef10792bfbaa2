"""The database of a store: transactions, and the SQLite file that it is by default."""

import os
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlmodel import Session

from ml_debugger.core.errors import SchemaError, StoreError
from ml_debugger.core.locks import locked
from ml_debugger.core.store import schema

BUSY_SECONDS = 30
CONNECTIONS = 4  # that are kept
PAGE_BYTES = 16384
WRITE = {"begin": "BEGIN IMMEDIATE"}

_open: "weakref.WeakSet[SqliteCatalogue]" = weakref.WeakSet()


class Catalogue(Protocol):
    """The metadata of a store, in transactions; safe for several threads and processes."""

    def reading(self) -> AbstractContextManager[Session]:
        """A transaction that sees one state of the catalogue throughout."""

    def writing(self) -> AbstractContextManager[Session]:
        """A transaction that is committed, durably, when the block ends without an error.

        There is one at a time, so that ids grow in the order in which they become visible.
        """

    def check(self) -> list[str]:
        """Return what is wrong with the database, in words; empty when sound."""

    def close(self) -> None:
        """Close the connections; idempotent, and a later transaction opens a new one."""


class SqliteCatalogue:
    """A catalogue in a file.

    Safe to use from several threads and processes at once: writers queue (up to 30 seconds),
    readers never wait. A forked child may go on reading; connections are closed before a fork,
    since SQLite's locks do not survive one.
    """

    def __init__(self, path: Path) -> None:
        """Open the catalogue, creating or migrating it where needed.

        Raises:
            StoreError: It cannot be read or written, or is damaged.
            SchemaError: A newer version of ml-debugger wrote it.
        """
        self.path = path
        self._gate = _Gate()
        self._writers = threading.RLock()
        self._engine = sqlite_engine(path)
        self._finalize = weakref.finalize(self, self._engine.dispose)
        try:
            with _explained(path), locked(path.with_suffix(".lock")):
                self._prepare()
        except BaseException:
            self._finalize()
            raise
        _open.add(self)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that sees one state of the catalogue throughout."""
        with self._gate, _explained(self.path), Session(self._engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that is committed, durably, when the block ends without an error."""
        with self._gate, self._writers, _explained(self.path):
            engine = self._engine.execution_options(**WRITE)
            with Session(engine, autoflush=False) as session, session.begin():
                yield session

    def check(self) -> list[str]:
        """Let SQLite check the file."""
        with self.reading() as session:
            found = session.connection().exec_driver_sql("PRAGMA quick_check").scalars().all()
        return [f"{self.path}: {line}" for line in found if line != "ok"]

    def close(self) -> None:
        """Close the connections; idempotent, and a later transaction opens a new one."""
        self._engine.dispose()  # a connection in use is closed when it is given back

    def pause(self) -> None:
        """Close the connections, once nobody uses one, and let nobody open one until `resume`."""
        self._gate.shut()
        self._engine.dispose()

    def resume(self) -> None:
        """Let other threads in again."""
        self._gate.open()

    def _prepare(self) -> None:
        use_wal(self._engine)
        with self._engine.connect() as connection:  # first: to write may be to wait
            if _is_ready(connection):
                return
        with self._engine.execution_options(**WRITE).begin() as connection:
            try:
                schema.prepare(connection)
            except (StoreError, SchemaError) as error:
                raise type(error)(f"{self.path}: {error}") from None


def _is_ready(connection: Connection) -> bool:
    with suppress(StoreError):  # said by whoever prepares it
        return schema.number_of(connection) == schema.SCHEMA
    return False


class _Gate:
    """Lets any number of threads in, and none while one of them has shut it.

    Whoever is inside may enter again, and shut it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: Counter[int] = Counter()  # how often each thread is
        self._shutting = False

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            while self._shutting and me not in self._inside:
                self._changed.wait()
            self._inside[me] += 1

    def __exit__(self, *_: object) -> None:
        me = threading.get_ident()
        with self._changed:
            self._inside[me] -= 1
            if not self._inside[me]:
                del self._inside[me]
                self._changed.notify_all()

    def shut(self) -> None:
        """Wait until all others are out, and let nobody in."""
        self._changed.acquire()
        self._shutting = True
        while self._inside.keys() - {threading.get_ident()}:
            self._changed.wait()

    def open(self) -> None:
        """Let others in again."""
        self._shutting = False
        self._changed.notify_all()
        self._changed.release()


class _Pool(QueuePool):
    """Closes also what is given back after it was disposed of, and leaves it to no collector."""

    _disposed = False

    def dispose(self) -> None:
        self._disposed = True
        super().dispose()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        super()._do_return_conn(record)
        if self._disposed:  # asked after the return: whichever thread is last finds it
            super().dispose()


def sqlite_engine(path: Path) -> Engine:
    """Return an engine for a SQLite file whose committed transactions survive a power cut.

    Transactions begin as `BEGIN`, or as the execution option "begin" says.
    """
    arguments = {"timeout": BUSY_SECONDS, "check_same_thread": False}
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=_Pool,
        connect_args=arguments,
        pool_size=CONNECTIONS,
        max_overflow=-1,  # as many as there are threads
        pool_use_lifo=True,
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def connect(raw: Any, _record: object) -> None:
        raw.isolation_level = None  # transactions begin where we say, not where sqlite3 guesses
        raw.execute("PRAGMA synchronous = FULL")  # a committed chunk also survives a power cut
        raw.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine


def use_wal(engine: Engine) -> None:
    """Switch a SQLite file to write-ahead logging: readers never wait for a writer then."""
    with engine.connect() as connection:
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
        connection.rollback()
        if mode != "wal":
            raw: Any = connection.connection.dbapi_connection
            raw.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # only before the first table
            raw.execute("PRAGMA journal_mode = WAL")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what SQLite says into what it means for a store."""
    try:
        yield
    except DBAPIError as error:
        cause = str(error.orig)
        advice = "what was recorded before is intact; try again"
        if "not a database" in cause or "malformed" in cause:
            advice = (
                "the catalogue is damaged; restore it from a backup, or choose another folder "
                "with MLD_HOME or home="
            )
        elif "full" in cause:
            advice = "what was recorded before is intact; free some space and try again"
        elif "readonly" in cause or "unable to open" in cause:
            advice = "the folder must be writable; choose another with MLD_HOME or home="
        elif "locked" in cause:
            advice = f"another process kept it locked for {BUSY_SECONDS} s; try again"
        raise StoreError(f"{path}: {cause}; {advice}") from error


_held: list[SqliteCatalogue] = []


def _before_fork() -> None:
    for catalogue in list(_open):
        catalogue.pause()
        _held.append(catalogue)


def _after_fork() -> None:
    while _held:
        _held.pop().resume()


# The forking thread holds the gates, and it is the one that goes on in the child, so releasing
# them is right on both sides.
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
