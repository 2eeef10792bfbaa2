"""The processes of a service: the web server, and the workers beside it."""

import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import uvicorn

from ml_debugger.server.app import create_app
from ml_debugger.server.observe import log_as_json
from ml_debugger.server.service import Service
from ml_debugger.server.settings import Settings

GRACE = 30  # seconds that requests under way are given when the service stops
LOOK = 1.0
LONGEST_PAUSE = 60.0

log = logging.getLogger("ml_debugger.server")


def serve(settings: Settings, workers: int) -> None:
    """Serve until the process is told to stop, with some workers beside it."""
    log_as_json()
    with Service(settings):
        pass  # what is wrong with the settings is told before anything listens
    stop = threading.Event()
    keeper = threading.Thread(target=_keep_workers, args=(settings, workers, stop))
    keeper.start()
    try:
        _listen(settings)
    finally:
        stop.set()
        keeper.join()


def work(settings: Settings) -> None:
    """Do queued work until the process is told to stop."""
    from ml_debugger.server.worker import Worker  # brings what evaluations need

    log_as_json()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Service(settings) as service:
        Worker(service).run(stop)


def _listen(settings: Settings) -> None:
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the application does that, and keeps who is connected
        timeout_graceful_shutdown=GRACE,
    )
    server = _Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)
    threading.Thread(target=_tell, args=(server,), daemon=True).start()
    server.run()


class _Server(uvicorn.Server):
    """A server that ends when it is told to, and lets the process go on after that.

    Uvicorn's own kills the process with the signal that ended it, before workers are told.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _tell(server: uvicorn.Server) -> None:
    """Say on the terminal where the service is, once it is."""
    while not server.started:
        time.sleep(0.05)
    for one in server.servers:
        for place in one.sockets:
            host, port = place.getsockname()[:2]
            print(f"serving on http://{host}:{port}", flush=True)  # noqa: T201  # for people


def _keep_workers(settings: Settings, count: int, stop: threading.Event) -> None:
    """Keep as many workers alive as were asked for."""
    context = multiprocessing.get_context("spawn")
    running: list[tuple[Any, Connection]] = []
    pause = LOOK
    while not stop.wait(pause):
        alive = [one for one in running if one[0].is_alive()]
        # one that cannot start is not started over and over
        pause = min(2 * pause, LONGEST_PAUSE) if len(alive) < len(running) else LOOK
        running = alive
        while len(running) < count:
            mine, theirs = context.Pipe()
            process = context.Process(target=_worker, args=(settings, theirs))
            process.start()
            theirs.close()
            running.append((process, mine))
    for _, connection in running:
        connection.close()
    for process, _ in running:
        process.join(GRACE)
        process.kill()


def _worker(settings: Settings, connection: Connection) -> None:
    """Work until the service is gone, which closes its side of the pipe."""
    from ml_debugger.server.worker import Worker

    log_as_json()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())

    def watch() -> None:
        with suppress(OSError):
            connection.poll(None)
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    with Service(settings) as service:
        Worker(service).run(stop)
