"""Attacks, and what became of them.

`python -m packages.server.tests.test_security` prints them as a table.
"""

import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ml_debugger.core.evaluation.method import evaluate
from ml_debugger.core.store.parts import Part
from ml_debugger.server.settings import Settings

from .seeded import VERSION, compressed, record, seeded
from .serving import Worker, until
from .tenants import (
    COOKIE,
    MANY,
    NOBODY,
    ROUTES,
    Town,
    Who,
    dump,
    nothing_there,
    town,
)
from .test_tenants import WRONG, strangers

V1 = "/api/v1"
PATIENCE = 60


class Row(NamedTuple):
    """What was tried, how often, and what happened."""

    attack: str
    times: int
    outcome: str


# -- a real process -----------------------------------------------------------------------------


class Server:
    """`ml-debugger serve` as a process, on a port of its own."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.data = home / "data"
        self.log = home / "log"
        self.out = home / "out"
        self.sent: set[str] = set()  # secrets, and what is nobody's business
        told = {f"MLD_SERVER_{name.upper()}": value for name, value in settings.items()}
        command = [Path(sys.executable).with_name("ml-debugger"), "serve", "--workers", "0"]
        with self.log.open("wb") as log, self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, "--port", "0", "--data", str(self.data)],
                stdout=out,
                stderr=log,
                env={**os.environ, **told},
            )
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(r"serving on http://[^:]+:(\d+)", self.out.read_text())):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        self.port = int(found[1])
        self.first = json.loads((self.data / "first_login.json").read_text())
        self.sent |= {self.first["password"], self.first["key"], self.first["email"]}
        self.sent.add((self.data / "secret").read_text())

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request as it is, its path above all."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body, given["Content-Type"] = json.dumps(body), "application/json"
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in given.items():
                connection.putheader(name, value)
            content = body.encode() if isinstance(body, str) else body or b""
            connection.putheader("Content-Length", str(len(content)))
            connection.endheaders(content)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, names, answer.read()
        finally:
            connection.close()

    def raw(self, content: bytes) -> bytes:
        """Send bytes, and return all that comes back until nothing does."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            found = b""
            while piece := connection.recv(1 << 16):
                found += piece
        return found

    def close(self) -> None:
        """Have it end, and wait until it has."""
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()


@contextmanager
def server(home: Path, **settings: str) -> Iterator[Server]:
    """Run a real service."""
    home.mkdir(parents=True, exist_ok=True)
    found = Server(home, **settings)
    try:
        yield found
    finally:
        found.close()


# -- attacks on a real process ------------------------------------------------------------------


def guess_keys(target: Server, times: int = 150) -> Row:
    """Guess secrets of a key whose id is known, each time as if from somewhere else."""
    key = target.first["key"]
    start, statuses = time.monotonic(), Counter[int]()
    for number in range(times):
        guess = f"{key.rpartition('_')[0]}_{number:043d}"
        target.sent.add(guess)
        status, names, _ = target.ask(
            "GET",
            f"{V1}/me",
            Authorization=f"Bearer {guess}",
            X_Forwarded_For=f"198.51.100.{number}",
        )
        assert status == 401 or (status == 429 and int(names["retry-after"]) > 0)
        statuses[status] += 1
    seconds = time.monotonic() - start
    assert statuses[401] == 60
    return Row(
        "guessing an API key from one address, X-Forwarded-For forged",
        times,
        f"{statuses[401]} answered 401, {statuses[429]} answered 429 in {seconds:.1f} s: at most "
        "60 guesses a minute at 2^256 secrets",
    )


def guess_passwords(target: Server, times: int = 30) -> Row:
    """Guess an account's password."""
    statuses = Counter[int]()
    for number in range(times):
        guess = f"guess number {number} of a password"
        target.sent.add(guess)
        body = {"email": target.first["email"], "password": guess}
        status, _, _ = target.ask("POST", f"{V1}/login", body, X_Forwarded_For=f"10.0.0.{number}")
        statuses[status] += 1
    assert statuses == {401: 10, 429: times - 10}
    return Row(
        "guessing a password from one address, X-Forwarded-For forged",
        times,
        f"{statuses[401]} checked, {statuses[429]} answered 429 (10 a minute, 50 an hour)",
    )


def time_answers(target: Server, keys: int = 200, logins: int = 15) -> list[Row]:
    """Compare how long refusals take; nothing is asserted of time."""
    known = target.first["key"].rpartition("_")[0]

    def key(number: int, text: str) -> float:
        shown = f"{text}_{number:043d}"
        start = time.perf_counter()
        assert target.ask("GET", f"{V1}/me", Authorization=f"Bearer {shown}")[0] == 401
        return time.perf_counter() - start

    def login(email: str) -> float:
        start = time.perf_counter()
        body = {"email": email, "password": "a wrong password"}
        assert target.ask("POST", f"{V1}/login", body)[0] == 401
        return time.perf_counter() - start

    pairs = [(key(n, known), key(n, "mldbg_" + "0" * 16)) for n in range(keys)]
    people = [(login(target.first["email"]), login("nobody@localhost")) for _ in range(logins)]
    return [
        Row(
            f"timing: {one} against {other}",
            2 * len(found),
            f"{_spread([a for a, _ in found])} against {_spread([b for _, b in found])}",
        )
        for one, other, found in (
            ("wrong secret of a known key", "unknown key", pairs),
            ("wrong password", "unknown account", people),
        )
    ]


def _spread(seconds: list[float]) -> str:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return f"median {1e3 * middle:.2f} ms, quartiles {1e3 * low:.2f} to {1e3 * high:.2f} ms"


PATHS = [
    "..",
    "../../../../etc/passwd",
    "..%2f..%2f..%2fsecret",
    "%2e%2e%2f%2e%2e%2fsecret",
    "..%5c..%5csecret",
    "%252e%252e%252fsecret",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "..%c0%af..%c0%afsecret",
    "result.json%00.txt",
    "%00",
    "....//....//secret",
    "file:///etc/passwd",
    "result.json%20",
    "~root",
    "%0d%0aSet-Cookie:%20x=1",
    "-1",
    "0",
    "1e3",
    "99999999999999999999",
    "a" * 20000,
]


def traverse(target: Server) -> Row:
    """Put paths in the place of each id and name."""
    who = {"Authorization": f"Bearer {target.first['key']}"}
    found = json.loads(target.ask("GET", f"{V1}/me", **who)[2])
    ids = {**nothing_there(), "project_id": found["projects"][0]["id"], "version_id": "1"}
    ids |= {"result_id": "1"}
    before = {one for one in target.data.rglob("*") if one.is_file()}
    statuses = Counter[int]()
    for route in ROUTES:
        for name in re.findall(r"{(\w+)}", route.path):
            if f"/{name}" in ("/project_id",) and route.method == "DELETE":
                continue
            for one in PATHS:
                path = route.path.format(**{**ids, name: one})
                status, names, body = target.ask(route.method, path, route.body, **who)
                assert status in (400, 401, 403, 404, 405, 413, 414, 422, 431), (status, path)
                assert b"root:" not in body
                assert (target.data / "secret").read_bytes() not in body
                assert str(target.data).encode() not in body
                assert "set-cookie" not in names
                assert "location" not in names
                statuses[status] += 1
    after = {one for one in target.data.rglob("*") if one.is_file()}
    new = {one.relative_to(target.data) for one in after - before}
    assert {one.parts[:2] for one in new} <= {("projects", ids["project_id"])}
    assert {one.name.partition(".")[0] for one in new} <= {"catalogue"}
    return Row(
        "path traversal through every id and name of a path", statuses.total(), _of(statuses)
    )


def smuggle(target: Server) -> Row:
    """Send requests whose end is not where it seems."""
    key = target.first["key"]
    end = f"Host: x\r\nAuthorization: Bearer {key}\r\n"
    hidden = f"GET {V1}/me HTTP/1.1\r\n{end}\r\n"
    login = f"POST {V1}/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    attacks = {
        "length and chunks": f"{login}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        f"0\r\n\r\n{hidden}",
        "two lengths": f"{login}Content-Length: 0\r\nContent-Length: {len(hidden)}\r\n\r\n{hidden}",
        "signed length": f"{login}Content-Length: +{len(hidden)}\r\n\r\n{hidden}",
        "length in hex": f"{login}Content-Length: 0x10\r\n\r\n{hidden}",
        "folded header": f"{login}X-A: 1\r\n Content-Length: 0\r\nContent-Length: 2\r\n\r\n{{}}",
        "space before the colon": f"{login}Content-Length : 0\r\n\r\n{hidden}",
        "unknown coding": f"{login}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}",
        "negative chunk": f"{login}Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n{hidden}",
        "huge header": f"GET {V1}/me HTTP/1.1\r\nHost: x\r\nX-A: {'a' * 200_000}\r\n\r\n",
        "NUL in a header": f"GET {V1}/me HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n",
        "long line": f"GET {V1}/{'a' * 200_000} HTTP/1.1\r\nHost: x\r\n\r\n",
        "no protocol": f"GET {V1}/me\r\n\r\n",
        "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    }
    statuses = Counter[int]()
    for name, text in attacks.items():
        try:
            found = target.raw(text.encode("latin-1"))
        except ConnectionError:
            found = b""
        answers = [int(one) for one in re.findall(rb"HTTP/1\.[01] (\d{3})", found)]
        assert b"csrf_token" not in found, name  # the hidden request was not answered
        assert all(400 <= one < 500 for one in answers), (name, found[:300])
        assert len(answers) <= 1, name
        statuses.update(answers or [0])
    return Row("request smuggling and malformed HTTP", len(attacks), _of(statuses))


def flood(target: Server) -> Row:
    """Announce, or send, bodies that are too long, to routes that take no parts."""
    statuses = Counter[int]()
    long = 300 << 20
    before = _peak_of(target.process.pid)
    for path in ("/organizations/parts/quotas", "/organizations/parts/members/x", "/me/password"):
        for line in (f"Content-Length: {long}", "Transfer-Encoding: chunked"):
            head = f"PUT {V1}{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{line}"
            with socket.create_connection(("127.0.0.1", target.port), PATIENCE) as connection:
                connection.sendall(f"{head}\r\n\r\n".encode())
                sent = 0
                block = b"10000\r\n" + b" " * (1 << 16) + b"\r\n"
                try:
                    while line.startswith("Transfer") and sent < 64 << 20:
                        connection.sendall(block)
                        sent += len(block)
                except ConnectionError:
                    pass  # it does not listen any longer
                try:
                    status = int(connection.recv(1 << 16).split()[1])
                except ConnectionError:
                    status = 413 if 0 < sent < 64 << 20 else 0
            assert status == 413, path
            statuses[status] += 1
    used = _peak_of(target.process.pid) - before
    assert used < 100
    return Row(
        f"bodies of {long >> 20} MiB, announced and chunked, without credentials",
        statuses.total(),
        f"{_of(statuses)}; the process grew by {used} MiB",
    )


def _peak_of(pid: int) -> int:
    """Return the most memory that a process has had, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) >> 10


def scrape_logs(target: Server) -> Row:
    """Use all kinds of secrets, rightly and wrongly, and look for them in the log."""
    login = {"email": target.first["email"], "password": target.first["password"]}
    status, names, body = target.ask("POST", f"{V1}/login", login)
    assert status == 200
    csrf = json.loads(body)["csrf_token"]
    cookie = names["set-cookie"].partition(";")[0].partition("=")[2]
    who = {"Cookie": f"{COOKIE}={cookie}", "X_CSRF_Token": csrf}
    target.sent |= {cookie, csrf, cookie.partition(".")[0].strip('"')}
    marks = [f"mark-{number}-of-somebody" for number in range(8)]
    target.sent |= set(marks)
    _, _, body = target.ask("POST", f"{V1}/organizations", {"name": marks[0]}, **who)
    organization = json.loads(body)["id"]
    path = f"{V1}/organizations/{organization}"
    member = {"email": f"{marks[1]}@x.test", "name": marks[2], "role": "admin"}
    _, _, body = target.ask("POST", f"{path}/members", member, **who)
    target.sent.add(json.loads(body)["password"])
    _, _, body = target.ask("POST", f"{path}/projects", {"name": marks[3]}, **who)
    project = f"{V1}/projects/{json.loads(body)['id']}"
    _, _, body = target.ask("POST", f"{project}/keys", {"name": marks[4]}, **who)
    key = json.loads(body)["key"]
    target.sent |= {key, key.rpartition("_")[2]}
    bearer = {"Authorization": f"Bearer {key}"}
    version = {
        "model_name": marks[5],
        "version_name": marks[6],
        "task": "classification",
        "architecture": ["Linear"],
        "layers": {"f": "0"},
    }
    for given in (bearer, {"Authorization": f"Bearer {key}x"}, {"Authorization": f"Basic {key}"}):
        target.ask("POST", f"{project}/versions", version, **given)
        target.ask("PUT", f"{project}/versions/1/parts/{'0' * 64}", key.encode(), **given)
        target.ask("POST", f"{project}/versions/1/evaluations", {"result_name": marks[7]}, **given)
    target.ask("GET", f"{V1}/me?api_key={key}&password={login['password']}", **bearer)
    target.ask("GET", f"{V1}/{key}", Authorization=key)
    target.ask("POST", f"{V1}/login", f'{{"email": "{marks[1]}", "password": "{key}"'.encode())
    target.ask("PUT", f"{V1}/me/password", {"old": login["password"], "new": key}, **who)
    target.raw(f"GET /{key} HTP\r\nAuthorization: {key}\r\n\r\n".encode())
    target.close()
    log = target.log.read_text() + target.out.read_text()
    lines = [json.loads(one) for one in target.log.read_text().splitlines()]
    assert sum(one["message"] == "request" for one in lines) > 15
    found = [one for one in target.sent if one in log]
    assert found == []
    return Row(
        "log scraping: passwords, keys, cookies, CSRF tokens, the service's secret, names, "
        "addresses, right and wrong guesses",
        len(target.sent),
        f"none is in {len(lines)} lines of the log",
    )


def _of(statuses: Counter[int]) -> str:
    return ", ".join(
        f"{count} closed" if status == 0 else f"{count} answered {status}"
        for status, count in sorted(statuses.items())
    )


# -- attacks on the application -----------------------------------------------------------------

TEXTS = [
    "' OR '1'='1",
    "'; DROP TABLE project; --",
    '"; DROP SCHEMA public CASCADE; --',
    "x' UNION SELECT digest FROM api_key --",
    "%' ESCAPE '",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}${7*7}<%= 7*7 %>",
    "%s%n%(name)s{0}",
    "../../x",
    "/etc/passwd",
    "..\\..\\x",
    "a\r\nSet-Cookie: x=1",
    "a\x00b",
    "\ud800",
    "\u202egpj.x",
    "\u0130\ufb01\u212a",
    '=HYPERLINK("http://evil.test")',
    "x" * 70_000,
    "",
    " ",
]

#: Bodies with every field that may hold text; a test compares them with the interface.
FULL: dict[str, list[Any]] = {
    "POST /login": [{"email": "a@b.test", "password": "x"}],
    "PUT /me/password": [{"old": "x", "new": "y"}],
    "POST /organizations": [{"name": "x"}],
    "POST /organizations/{organization_id}/members": [
        {"email": "a@b.test", "name": "x", "role": "viewer"}
    ],
    "PUT /organizations/{organization_id}/members/{user_id}": [{"role": "member"}],
    "PUT /organizations/{organization_id}/quotas": [
        {"max_models": None, "max_records": None, "max_bytes": None}
    ],
    "POST /organizations/{organization_id}/projects": [{"name": "x"}],
    "PUT /projects/{project_id}": [{"name": "x", "retention_days": None}],
    "POST /projects/{project_id}/keys": [{"name": "x", "role": "viewer", "days": 1}],
    "POST /projects/{project_id}/versions": [
        {
            "model_name": "m",
            "version_name": "v",
            "task": "classification",
            "architecture": ["Linear"],
            "layers": {"f": "0"},
            "fields": [{"name": "f", "type": "str", "nullable": True, "default": "d"}],
            "label_fields": [
                {"name": "l", "type": "json", "nullable": True, "default": {"a": "d"}}
            ],
        }
    ],
    "POST /projects/{project_id}/versions/{version_id}/withdrawals": [
        {"origins": [f"{'0' * 32}:1:{'0' * 16}"]}
    ],
    "POST /projects/{project_id}/versions/{version_id}/evaluations": [
        {"method_name": "x"},
        {
            "method_name": "default",
            "result_name": "x",
            "n_epoch": "latest",
            "options": {"dataset_type": "val", "run": "r", "class_names": ["a"]},
        },
        {"options": {"x": "y"}},
        {"options": {"zones": {"x": "y"}}},
    ],
    "POST /projects/{project_id}/results/{result_id}/query": [
        {
            "n_data": 1,
            "strategy": "high_error_proba",
            "dataset_type": "val",
            "n_epoch": "latest",
            "run": "r",
        },
        {
            "n_data": 1,
            "strategy": {"target_zones": ["hotspot"]},
            "sampling": {"x": "y"},
            "dataset_type": "val",
        },
    ],
}
OPERATORS = ("/organizations", "/organizations/{organization_id}/quotas")
SLOW = ("/login", "/me/password", "/organizations/{organization_id}/members")  # Argon2 is
PARTS = "/projects/{project_id}/versions/{version_id}/parts/{digest}"
QUERIES = {
    PARTS: ("model_name", "version_name"),
    "/projects/{project_id}/versions": ("model_name", "version_name", "after", "limit"),
    "/projects/{project_id}/results": (
        "result_name",
        "model_name",
        "version_name",
        "after",
        "limit",
    ),
    "/projects/{project_id}/jobs": ("limit", "offset"),
}


def leaves(value: Any) -> Iterator[tuple[Any, ...]]:
    """Yield where a JSON value holds text, or a name."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from ((name, *rest) for rest in leaves(one))
            yield (name, None)  # the name itself
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from ((number, *rest) for rest in leaves(one))
    elif isinstance(value, str):
        yield ()


def put(value: Any, place: tuple[Any, ...], text: Any) -> Any:
    """Return a JSON value with something else at a place."""
    if not place:
        return text
    first, *rest = place
    if rest == [None]:
        return {text if name == first else name: one for name, one in value.items()}
    if isinstance(value, dict):
        return {**value, first: put(value[first], tuple(rest), text)}
    return [put(one, tuple(rest), text) if n == first else one for n, one in enumerate(value)]


def ids_of(place: Town) -> dict[str, str]:
    """Return ids of the tenant that attacks, as the one who may do most there."""
    red = place.tenants[0]
    return {**red.ids, "version_id": "1", "result_id": "1"}


def send(place: Town, who: Who, method: str, path: str, body: Any) -> Any:
    """Send JSON that may hold what UTF-8 cannot."""
    place.client.cookies.clear()
    headers = {**who.headers, "Content-Type": "application/json"}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = place.client.request(method, V1 + path, content=content, headers=headers)
    check(answer, f"{method} {path} {content[:200]!r}")
    return answer


def check(answer: Any, what: str) -> None:
    """See that an answer is data, and no fault."""
    assert answer.status_code < 500, f"{what}: {answer.status_code} {answer.text[:300]}"
    if answer.content and "openapi" not in what:
        assert answer.headers["content-type"] in ("application/json", "application/octet-stream")
        assert len(answer.content) < 500_000, what
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "x=1" not in answer.headers.get("set-cookie", "")


def inject(place: Town, few: int = 1) -> Row:
    """Put texts, or one of a few, into each field of each body, and into each parameter."""
    red, _, blue, _ = place.tenants
    ids = ids_of(place)
    tables = set(dump(place.service))
    others = {k: v for k, v in dump(place.service).items() if blue.ids["project_id"] in k}
    statuses = Counter[int]()
    for name, bodies in FULL.items():
        method, path = name.split()
        for body in bodies:
            for turn, at in enumerate(leaves(body)):
                for text in TEXTS[turn % few :: 3 * few if path in SLOW else few]:
                    who = place.operator if path in OPERATORS else red.people["admin"]
                    given = put(body, at, text)
                    if at != ("email",) and path.endswith("/members"):
                        given["email"] = f"{statuses.total()}@b.test"
                    answer = send(place, who, method, path.format(**ids), given)
                    statuses[answer.status_code] += 1
                    if answer.status_code in (200, 201) and len(at) == 1:
                        back = answer.json().get(at[0])
                        assert back in (text, None, text.lower()) or at[0] == "email", (name, text)
    admin = red.people["admin"]
    for path, names in QUERIES.items():
        for name in names:
            for text in (one for one in TEXTS if len(one) < 1000):
                shown = text.encode(errors="surrogatepass")
                answer = place.ask(
                    admin,
                    "PUT" if path == PARTS else "GET",
                    V1 + path.format(**ids),
                    b"no part" if path == PARTS else None,
                    params=[(name, shown), (name, shown)],
                )
                check(answer, f"{path} {name} {text[:40]!r}")
                if answer.status_code == 200 and name not in ("limit", "offset"):
                    found = [one for one in answer.json() if one[name] != text]
                    assert found == [], (name, text)
                statuses[answer.status_code] += 1
    after = dump(place.service)
    assert tables <= set(after)
    assert {k: v for k, v in after.items() if k in others} == others
    return Row(
        "SQL, HTML, template, header and path injection through every text field and parameter",
        statuses.total(),
        f"{_of(statuses)}; stored and returned as data, all tables there, the other tenant's same",
    )


ODD = [
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"{",
    b"NaN",
    b"[" * 900 + b"]" * 900,
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"name": "a", "name": "b", "__proto__": {"operator": true}}',
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b"1" * 10_000,
    b'{"name": ' + b"9" * 5000 + b"}",
    b'{"\\ud800": 1}',
    b'{"' + b"k" * 300_000 + b'": 1}',
]
VALUES = [
    float("nan"),
    float("inf"),
    -1,
    0,
    1 << 63,
    1 << 200,
    1e308,
    True,
    None,
    [],
    {},
    [[]] * 1000,
    "\ud800",
    {"\ud800": "\udfff"},
    {"a": float("nan")},
]


def nest(depth: int) -> Any:
    """Return a list in a list, so deep."""
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


def oddities(place: Town, few: int = 1) -> Row:
    """Send JSON that is malformed, endless, deep, or of other types; or one of a few of it."""
    red = place.tenants[0]
    ids = ids_of(place)
    statuses = Counter[int]()
    for name, bodies in FULL.items():
        method, path = name.split()
        who = place.operator if path in OPERATORS else red.people["admin"]
        for content in ODD:
            answer = send(place, who, method, path.format(**ids), content)
            statuses[answer.status_code] += 1
        for body in bodies:
            places = {one[:-1] if one[-1:] == (None,) else one: None for one in leaves(body)}
            for turn, at in enumerate(places):
                for value in [*VALUES, nest(50), nest(300), nest(800)][turn % few :: few]:
                    answer = send(place, who, method, path.format(**ids), put(body, at, value))
                    statuses[answer.status_code] += 1
    for path in ("jobs", "results", "versions", "keys"):  # and what was stored can be shown
        project = f"{V1}/projects/{ids['project_id']}"
        check(place.ask(red.people["admin"], "GET", f"{project}/{path}"), path)
    return Row("malformed, deep, endless and mistyped JSON", statuses.total(), _of(statuses))


def cross(place: Town) -> Row:
    """Ask each route for another tenant's things, as everyone who is none of theirs."""
    before = dump(place.service)
    statuses = Counter[int]()
    for tenant in place.tenants[::2]:
        for who in strangers(place, tenant):
            for route in WRONG:
                if who is place.operator and (route.operators or route.scope == "organization"):
                    continue
                answer = place.at(who, route, tenant.ids)
                assert answer.status_code in (403, 404)
                statuses[answer.status_code] += 1
    assert dump(place.service) == before
    return Row(
        "tenant crossing: every route, everyone of another organisation, keys of other projects, "
        "operators",
        statuses.total(),
        f"{_of(statuses)}; all tables and files as before (403: keys at organisations)",
    )


def forge(place: Town) -> Row:
    """Send what another site's page can: the cookie, without its header or with a wrong one."""
    red = place.tenants[0]
    before = dump(place.service)
    statuses = Counter[int]()
    other = red.people["viewer"].headers["X-CSRF-Token"]
    for route in ROUTES:
        if not route.unsafe or route.role == "open":
            continue
        for shown in (None, "", other, "\u00e9"):
            text = None if shown is None else shown.encode("latin-1")
            answer = place.at(red.people["admin"].but(X_CSRF_Token=text), route, red.ids)
            assert answer.status_code == 403
            statuses[answer.status_code] += 1
    assert dump(place.service) == before
    return Row("CSRF: every unsafe route by cookie alone", statuses.total(), _of(statuses))


def fixate(place: Town, times: int = 3) -> Row:
    """Plant a cookie before a login, and use it after."""
    made = place.service.credentials
    statuses = Counter[int]()
    for number in range(times):
        planted = made.cookie(f"chosen {number}") if number else "chosen"
        body = {"email": "admin@localhost", "password": place.password}
        headers = {"Cookie": f"{COOKIE}={planted}"}
        answer = place.ask(NOBODY, "POST", f"{V1}/login", body, headers=headers)
        assert answer.status_code == 200
        assert answer.cookies[COOKIE] != planted
        statuses[place.ask(Who("", headers), "GET", f"{V1}/me").status_code] += 1
    assert statuses == {401: times}
    return Row("session fixation: a planted cookie, after the login", times, _of(statuses))


def name_results(place: Town) -> Row:
    """Make results whose names are paths."""
    store = place.service.projects.store(place.tenants[1].ids["project_id"])
    data = place.service.settings.data
    names = ["../../x", "/etc/x", "..", "a/../../b", "x" * 150, "CON", "a\\..\\b", "<b>"]
    inside = {one for one in data.rglob("*") if one.is_dir()}
    outside = set(data.parent.iterdir())
    made = 0
    for name in names:
        try:
            evaluate(store, VERSION, result_name=name)
        except ValueError:
            continue
        made += 1
        assert store.result_folder(name).resolve().is_relative_to(store.home.resolve() / "results")
    new = {one for one in data.rglob("*") if one.is_dir()} - inside
    assert {one.parent for one in new} <= {store.home / "results"}
    assert set(data.parent.iterdir()) == outside
    return Row(
        "results named as paths", len(names), f"{made} made, each in a folder of its project"
    )


IN_PROCESS = (cross, forge, fixate, name_results, inject, oddities)
ON_ONE = (traverse, smuggle, flood, scrape_logs)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    home = tmp_path_factory.mktemp("place")
    with town(home) as found:
        found.settle(record(home / "sdk"))
        yield found


@pytest.mark.parametrize("attack", IN_PROCESS, ids=lambda one: one.__name__)
def test_application(place, attack):
    assert (attack(place, few=4) if attack in (inject, oddities) else attack(place)).times


def test_every_field_is_attacked(place):
    described = place.done(place.operator, "GET", "/openapi.json")
    taken, attacked = set(), {name for bodies in FULL.values() for b in bodies for name in names(b)}
    for path, methods in described["paths"].items():
        for method, about in methods.items():
            content = about.get("requestBody", {}).get("content", {})
            if "application/json" in content:
                short = f"{method.upper()} {path.removeprefix(V1)}"
                assert short in FULL, short
                taken |= set(fields(described, content["application/json"]["schema"]))
            for one in about.get("parameters", ()):
                if one["in"] == "query":
                    assert one["name"] in QUERIES[path.removeprefix(V1)]
    numbers = {"diverse", "include_empty", "explain"}
    assert taken - attacked == numbers


def names(value):
    """Yield the names in a JSON value."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield name
            yield from names(one)
    elif isinstance(value, list):
        for one in value:
            yield from names(one)


def fields(described, schema):
    """Yield the names of a schema's properties."""
    if "$ref" in schema:
        schema = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for name, one in schema.get("properties", {}).items():
        yield name
        yield from fields(described, one)
    for one in (schema.get("items"), *schema.get("anyOf", ())):
        if one:
            yield from fields(described, one)


def test_process(tmp_path):
    with server(tmp_path / "one", key_rate=MANY, login_rate=MANY) as target:
        for attack in ON_ONE:
            assert attack(target).times


def test_rates(tmp_path):
    with server(tmp_path / "two") as target:
        assert guess_keys(target, 70).times
        assert guess_passwords(target, 12).times
        scrape = target.log.read_text()
        assert [one for one in target.sent if one in scrape] == []


def test_what_an_evaluation_warns_of_is_not_logged(tmp_path):
    """It names runs, as users have called them."""
    settings, recorded = Settings(data=tmp_path / "data"), record(tmp_path / "sdk")
    marks = [f"run-{number}-of-somebody" for number in range(2)]
    with seeded(settings, recorded) as there:
        for number, mark in enumerate(marks):
            header = recorded.part.header
            runs = [one.model_copy(update={"run": mark}) for one in header.runs]
            chunks = [
                one.model_copy(
                    update={"origin": f"{number:032x}:{k}:{'0' * 16}", "dataset_type": f"d{number}"}
                )
                for k, one in enumerate(header.chunks)
            ]
            header = header.model_copy(update={"runs": runs, "chunks": chunks})
            digest, content = Part(header, recorded.part.bodies).pack()
            assert there.put(compressed(content), digest).status_code == 200
        path = f"{there.project}/versions/{there.ids['version_id']}/evaluations"
        job = there.client.post(path, json={}, headers=there.key).json()
        queue, project = there.service.queue, there.ids["project_id"]
        with Worker(settings) as worker:
            until(lambda: queue.find(project, job["id"]).state == "done", "the evaluation")
            worker.stop()
            log = worker.log
        store = there.service.projects.store(project)
        told = (store.result_folder(job["result_name"]) / "result.json").read_text()
    assert "mixes records of" in told
    assert all(mark in told for mark in marks)
    lines = [json.loads(one) for one in log.splitlines()]
    (warned,) = (one for one in lines if one["logger"] == "py.warnings")
    assert (warned["message"], warned["kind"]) == ("warning", "UserWarning")
    assert re.fullmatch(r".*/server/worker\.py:\d+", warned["place"])
    assert [one for one in marks if one in log] == []


def main() -> None:
    """Try everything, and print what happened."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with server(home / "limited") as target:
            rows += [guess_keys(target), guess_passwords(target)]
        with server(home / "free", key_rate=MANY, login_rate=MANY) as target:
            rows += time_answers(target)
            rows += [attack(target) for attack in ON_ONE]
        with town(home / "town") as place:
            place.settle(record(home / "sdk"))
            rows += [attack(place) for attack in IN_PROCESS]
    print("| What was tried | Times | What happened |\n|---|---|---|")  # noqa: T201
    for row in rows:
        print(f"| {row.attack} | {row.times} | {row.outcome} |")  # noqa: T201


if __name__ == "__main__":
    main()
