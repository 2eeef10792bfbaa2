"""Requests that end, whatever the other side does, and why one failed.

The timeouts of requests are of each piece that arrives: a service that sends a byte a minute is
waited for without end. And what is sent has only the time that connecting may take.
"""

import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPResponse
from typing import Any

import requests
from requests.adapters import HTTPAdapter

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 120.0  # for a whole answer
SILENT_SECONDS = 60.0  # without a byte, either way
SLOWEST = 32 << 10  # bytes a second, in which what is long must get through
HURRY = 10  # how much shorter all this is while the interpreter ends
LOOK = 0.5  # seconds between looks whether it does


class _Clock:
    """Tells when it has taken too long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun = self._last = time.monotonic()

    def act(self, sock: Any, call: Callable[[], int]) -> int:
        """Send or receive once.

        Raises:
            TimeoutError: Nothing has come or gone for too long, or all of it takes too long.
        """
        while True:
            now = time.monotonic()
            hurry = 1 if threading.main_thread().is_alive() else HURRY
            if max((now - self._last) / SILENT_SECONDS, (now - self._begun) / self._seconds) > (
                1 / hurry
            ):
                raise TimeoutError("it takes too long")
            sock.settimeout(LOOK)
            try:
                done = call()
            except TimeoutError:
                continue
            self._last = time.monotonic()
            return done


class _Reader(io.RawIOBase):
    """What arrives, by the clock; the socket's timeout, as found, is the time for all of it."""

    def __init__(self, sock: Any, raw: io.RawIOBase) -> None:
        self._sock, self._raw = sock, raw
        self._clock = _Clock(sock.gettimeout() or ANSWER_SECONDS)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._clock.act(self._sock, partial(self._sock.recv_into, buffer))

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self.fp: Any = io.BufferedReader(_Reader(sock, self.fp.detach()))


class _Connection:
    """What is changed of urllib3's connections."""

    response_class = _Response
    sock: Any
    connect: Callable[[], None]

    def send(self, data: bytes) -> None:
        if self.sock is None:
            self.connect()
        clock, left = _Clock(SILENT_SECONDS + len(data) / SLOWEST), memoryview(data)
        while left:
            left = left[clock.act(self.sock, partial(self.sock.send, left)) :]


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **more: Any) -> None:
        super().init_poolmanager(*args, **more)
        _change(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **more: Any) -> Any:
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **more)
        if not known:
            _change(manager)
        return manager


def _change(manager: Any) -> None:
    changed = {}
    for scheme, pool in manager.pool_classes_by_scheme.items():
        connection = type("Connection", (_Connection, pool.ConnectionCls), {})
        changed[scheme] = type(pool.__name__, (pool,), {"ConnectionCls": connection})
    manager.pool_classes_by_scheme = changed


class Session(requests.Session):
    """Connections; a `timeout` of a request is the time for connecting, and for all of an answer.

    It follows no redirection: what it sends along is not for whoever it is sent to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.headers["Accept-Encoding"] = "identity"  # or what is small here may be large unpacked
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter())

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Find nothing; otherwise all of the answer would be read to see where it leads."""


def allowed_seconds(nbytes: int) -> float:
    """Return how long a file of this size may take to arrive."""
    return ANSWER_SECONDS + nbytes / SLOWEST


def explain(error: Exception) -> tuple[str, bool]:
    """Return why a request failed and what to do, and whether it may work a moment later.

    Texts of libraries are not passed on: they may hold addresses of proxies with passwords.
    """
    found = tuple(_causes(error))

    def find(*kinds: type[BaseException]) -> Any:
        return next((one for one in found if isinstance(one, kinds)), None)

    if isinstance(error, requests.exceptions.ProxyError):
        if any("407" in str(one) for one in found):
            return "the proxy wants a login; put it into HTTPS_PROXY, as user:password@host", False
        return (
            f"the proxy that HTTPS_PROXY or HTTP_PROXY names does not let us through "
            f"({_network(find)}); correct it, or name the service's host in NO_PROXY"
        ), True
    untrusted = find(ssl.SSLCertVerificationError)
    if untrusted is not None:
        return (
            f"its certificate is not trusted ({untrusted.verify_message}); if your organisation "
            "signs its own, set REQUESTS_CA_BUNDLE to the file with its authority's certificate"
        ), False
    tls = find(ssl.SSLError)
    if tls is not None and not isinstance(tls, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        if tls.library in ("X509", "PEM"):
            return "the file that REQUESTS_CA_BUNDLE names holds no certificates", False
        said = (tls.reason or "unknown").lower().replace("_", " ")
        return f"it speaks no TLS that fits ({said}); is https:// right in its address?", False
    if isinstance(error, requests.exceptions.InvalidSchema):
        return "the proxy that HTTPS_PROXY names needs more: pip install requests[socks]", False
    if isinstance(error, ValueError):
        return "its address, or that of a proxy in HTTPS_PROXY or HTTP_PROXY, is malformed", False
    if not isinstance(error, requests.RequestException):  # of what is here, not there
        return "REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names no file that can be read", False
    return f"{_network(find)}; check MLD_API_ENDPOINT, the network, and whether it runs", True


def _network(find: Callable[..., Any]) -> str:
    if find(socket.gaierror):
        return "DNS does not know the name of the host"
    if find(ConnectionRefusedError):
        return "connection refused, so nobody listens there"
    if find(requests.exceptions.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS:.0f} s"
    if find(TimeoutError, requests.exceptions.Timeout):
        return "no answer in time"
    if find(ConnectionError, ssl.SSLError, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    system = find(OSError)
    return (getattr(system, "strerror", None) or type(system).__name__).lower()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it stems from; libraries keep that in several places."""
    seen, left = set(), [error]
    while left:
        one = left.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        left += [getattr(one, "reason", None), *one.args, one.__cause__, one.__context__]
