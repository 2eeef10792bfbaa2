import gzip
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import MetaData

from ml_debugger.core.store import Scope
from ml_debugger.core.store.parts import HEADER_BYTES, MAGIC
from ml_debugger.core.store.segments import checksum
from ml_debugger.server.settings import Settings

from .seeded import INPUTS, PART_TYPE, VERSION, compressed, record, seeded

LIMIT = 4 << 20
HOST = "127.0.0.1"
PATIENCE = 60  # seconds until a process is called broken


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("sdk"))


@pytest.fixture(scope="module", params=["files", "servers"])
def found(request, recorded, tmp_path_factory):
    """A service that has the recorded part already: on files, and on PostgreSQL and S3."""
    given = {"data": tmp_path_factory.mktemp("data"), "max_part_bytes": LIMIT}
    if request.param == "servers":
        s3 = request.getfixturevalue("s3")
        given["database"] = request.getfixturevalue("postgres").new_database()
        given["objects"] = s3.new_bucket() + "/all"
        given["objects_options"] = s3.storage_options
    with seeded(Settings(**given), recorded) as one:
        yield one


def trace(found):
    """Return everything that the service keeps: rows, files and objects."""
    engines = {"service": found.service.database.engine}
    store = found.service.projects.store(found.ids["project_id"])
    kept = {}
    if found.service.database.postgres:
        with engines["service"].connect() as connection:
            schemas = connection.exec_driver_sql(
                "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' ORDER BY 1"
            )
            schemas = [one for (one,) in schemas if one != "information_schema"]
    else:
        schemas = [None]
        engines["project"] = store._catalogue._engine
    for name, engine in engines.items():
        for schema in schemas:
            with engine.connect() as connection:
                for table in tables_of(engine, schema):
                    columns = [one for one in table.c if one.name != "last_used_at"]
                    rows = connection.execute(table.select().with_only_columns(*columns))
                    kept[name, schema, table.name] = sorted(map(repr, rows))
    for path in found.service.settings.data.rglob("*"):
        if path.is_file() and ".db" not in path.name and path.suffix != ".lock":
            kept[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    objects = found.service.projects.objects
    if objects is not None:
        kept |= dict.fromkeys(objects._fs.find(objects.root))
    return kept


@cache
def tables_of(engine, schema):
    tables = MetaData()
    tables.reflect(engine, schema=schema)
    return tables.sorted_tables


@contextmanager
def no_trace(found):
    before = trace(found)
    yield
    after = trace(found)
    assert {k for k in before | after if before.get(k) != after.get(k)} == set()
    assert list((found.service.settings.data / "incoming").iterdir()) == []


def sha(content):
    return hashlib.sha256(content).hexdigest()


def packed(header, bodies):
    """Pack what nobody has looked at."""
    text = json.dumps(header).encode()
    start = MAGIC + len(text).to_bytes(8, "little") + text
    return b"".join([start, bytes(-len(start) % 64), *bodies])


def changed(part, change, body=None):
    """Return a part that nobody has sent yet, with something about its first chunk changed."""
    header = json.loads(part.header.model_dump_json())
    for one in header["chunks"]:
        one["origin"] = f"{'1' * 32}:{one['origin'].split(':')[1]}:{'0' * 16}"
    bodies = [bytes(one) for one in part.bodies]
    if body is not None:
        bodies[0] = body(header["chunks"][0], bytearray(bodies[0]))
        header["chunks"][0]["crc"] = checksum([bodies[0]])
    change(header, header["chunks"][0])
    return packed(header, bodies)


def put(found, content, **more):
    """Send a part that has the hash it is called by."""
    return found.put(compressed(content), sha(content), **more)


def refused(found, answer, status, words=""):
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert words in told["detail"], told
    assert len(answer.content) < 3000
    return told


# What is not what it is called, or not whole


def broken(good):
    content, digest = good.pack()[1], good.pack()[0]
    frame = compressed(content)
    whole = "not a whole Zstandard frame"
    hashed = "does not have the SHA-256"
    return {
        "cut near its end": (frame[:-5], digest, whole),
        "cut near its start": (frame[:10], digest, whole),
        "one byte": (frame[:1], digest, whole),
        "nothing, rightly called": (b"", sha(b""), "the part is empty"),
        "nothing": (b"", digest, hashed),
        "a frame of nothing": (compressed(b""), sha(b""), "the part is empty"),
        "not compressed": (content, digest, whole),
        "gzip": (gzip.compress(content), digest, whole),
        "another hash": (frame, sha(b"another"), hashed),
        "text after the frame": (frame + b"and more", digest, whole),
        "zeros after the frame": (frame + bytes(100), digest, whole),
        "the frame twice": (frame + frame, digest, hashed),
        "half a frame after the frame": (frame + frame[: len(frame) // 2], digest, whole),
        "a window of 2 GiB": (bomb(1 << 10, window=31), sha(bytes(1 << 10)), whole),
    }


def bomb(size, window=20):
    """Return a Zstandard frame of zeros, 4 bytes for each 128 KiB."""
    block = 128 << 10
    sizes = [block] * (size // block) + [size % block]
    blocks = [
        (n << 3 | 1 << 1 | (k + 1 == len(sizes))).to_bytes(3, "little") + b"\0"
        for k, n in enumerate(sizes)
    ]
    return bytes.fromhex("28b52ffd00") + bytes([(window - 10) << 3]) + b"".join(blocks)


def test_what_is_not_whole_is_refused(found, recorded):
    for name, (body, digest, words) in broken(recorded.part).items():
        with no_trace(found):
            told = refused(found, found.put(body, digest), 422, words)
        assert told["kind"] == "InputError", name


def test_bombs_are_made_well():
    assert pa.CompressedInputStream(pa.BufferReader(bomb(300_000)), "zstd").read() == bytes(300_000)


@settings(
    max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(data=st.data())
def test_frames_that_were_changed_are_refused(data, found, recorded):
    digest, content = recorded.part.pack()
    frame = bytearray(compressed(content))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    before = trace(found)
    answer = found.put(bytes(frame), digest)
    if answer.status_code == 200:  # what changed says nothing of the content
        assert answer.json() == {"records": 0}
    else:
        assert answer.status_code in (413, 422)
    assert trace(found) == before


# Headers that promise what cannot be


def set_to(**values):
    return lambda header, chunk: chunk.update(values)


def without(column):
    def change(header, chunk):
        at = [one[0] for one in chunk["columns"]].index(column)
        del chunk["columns"][at]

    return change


def typed(column, kind, shape=()):
    def change(header, chunk):
        at = [one[0] for one in chunk["columns"]].index(column)
        chunk["columns"][at] = [column, kind, list(shape)]

    return change


def more_chunks(header, chunk):
    header["chunks"] += [{**chunk, "origin": f"{'2' * 32}:{k}:{'0' * 16}"} for k in range(1000)]


def nested(header, chunk):
    chunk["columns"] = json.loads("[" * 500 + "]" * 500)


def renamed(before, after):
    def change(header, chunk):
        chunk["columns"] = [
            [after if one[0] == before else one[0], *one[1:]] for one in chunk["columns"]
        ]

    return change


HEADERS = {
    "no chunk": lambda header, chunk: header.update(chunks=[]),
    "no run": lambda header, chunk: header.update(runs=[]),
    "more than a thousand chunks": more_chunks,
    "nested lists": nested,
    "no inputs": set_to(inputs=0),
    "negative inputs": set_to(inputs=-1),
    "inputs beyond 32 bits": set_to(inputs=1 << 31),
    "inputs beyond 64 bits": set_to(inputs=1 << 70),
    "other inputs": set_to(inputs=39),
    "bytes beyond 64 bits": set_to(nbytes=1 << 64),
    "negative bytes": set_to(nbytes=-64),
    "bytes that are not there": set_to(nbytes=1 << 39),
    "units as text": set_to(units="40"),
    "units as a float": set_to(units=40.0),
    "endless units": set_to(units=float("inf")),
    "an epoch beyond 64 bits": set_to(n_epoch=1 << 63),
    "a long data set": set_to(dataset_type="é" * 201),
    "a zero in the data set": set_to(dataset_type="a\0b"),
    "half a character": set_to(dataset_type="\ud800"),
    "a run that is not there": set_to(run=1),
    "no origin": set_to(origin=""),
    "a path as origin": set_to(origin="../../etc/passwd"),
    "another checksum": set_to(crc=1),
    "spans outside": set_to(spans=[[0, 1 << 39]]),
    "spans of negative length": set_to(spans=[[0, -1]]),
    "no prediction": without("predicted/prediction"),
    "no label": without("actual/label"),
    "no ids": without("input/id"),
    "a prediction that is a float": typed("predicted/prediction", "<f8"),
    "a prediction that is a text": typed("predicted/prediction", "arrow:str"),
    "a prediction with a shape": typed("predicted/prediction", "<i4", [2]),
    "an object": typed("predicted/prediction", "|O"),
    "a field of another type": typed("input/at", "arrow:int"),
    "a field that nobody declared": renamed("input/camera", "input/lens"),
    "a label field that nobody declared": renamed("input/camera", "label/camera"),
    "columns of another task": renamed("predicted/prediction", "predicted/box"),
    "a column on no side": renamed("predicted/prediction", "prediction"),
    "a column that climbs": renamed("predicted/prediction", "predicted/../x"),
    "a run of another purpose": lambda header, chunk: header["runs"][0].update(
        purpose="monitoring"
    ),
    "a run of no purpose": lambda header, chunk: header["runs"][0].update(purpose="x"),
    "a negative rank": lambda header, chunk: header["runs"][0].update(rank=-1),
    "a start beyond 64 bits": lambda header, chunk: header["runs"][0].update(started_at=1 << 63),
    "settings that are none": lambda header, chunk: header["runs"][0].update(settings={"a": "b"}),
}


def test_headers_that_cannot_be_are_refused(found, recorded):
    assert "label" in [one.name for one in recorded_schema(found)]
    for name, change in HEADERS.items():
        with no_trace(found):
            answer = put(found, changed(recorded.part, change))
            assert answer.status_code == 422, (name, answer.text)
            assert len(answer.content) < 1500, name


def recorded_schema(found):
    from ml_debugger.core.task import task_named

    return task_named("classification").schema.ground_truth


def test_texts_that_are_no_header_are_refused(found):
    for size, text in {
        "beyond the end": (1 << 62, b"{}"),
        "beyond 64 bits": ((1 << 64) - 1, b"{}"),
        "larger than a header": (HEADER_BYTES + 1, bytes(HEADER_BYTES + 1)),
        "no JSON": (4, b"\xff\xfe{}"),
        "deep": (200_000, b"[" * 200_000),
        "a long number": (100_010, b'{"a":' + b"9" * 100_004 + b"}"),
        "null": (4, b"null"),
    }.values():
        content = MAGIC + size.to_bytes(8, "little") + text
        with no_trace(found):
            refused(found, put(found, content), 422)
    with no_trace(found):
        refused(found, put(found, b"PAR1" + bytes(200)), 422, "not a part")
        refused(found, put(found, MAGIC[:7] + b"\x02" + bytes(200)), 422, "later version")


def test_hostile_arrow_buffers_are_refused(found, recorded):
    def ids(write):
        def body(chunk, content):
            columns = [one[0] for one in chunk["columns"]]
            assert columns[0] == "input/id"  # its buffers are the first: bits, offsets, bytes
            start, size = chunk["spans"][1]
            values = np.frombuffer(content, "<i4", size // 4, start).copy()
            content[start : start + size] = write(values).tobytes()
            return bytes(content)

        return body

    def with_one(at, value):
        def write(values):
            values[at] = value
            return values

        return write

    for write in (with_one(-1, 2**31 - 1), with_one(1, -5), with_one(0, 7), lambda one: one[::-1]):
        with no_trace(found):
            content = changed(recorded.part, lambda *_: None, ids(write))
            refused(found, put(found, content), 422, "input/id is damaged")


# Where it does not belong


def test_versions_that_are_not_there_are_refused(found, recorded):
    digest, content = recorded.part.pack()
    frame = compressed(content)
    other = {"name": "another project"}
    path = f"/api/v1/organizations/{found.ids['organization_id']}/projects"
    made = found.client.post(path, json=other, headers=found.operator)
    assert made.status_code == 201
    other_versions = f"/api/v1/projects/{made.json()['id']}/versions"
    assert found.client.get(other_versions, headers=found.operator).json() == []
    with no_trace(found):
        refused(found, found.put(frame, digest, version=99), 404, "no version")
        for number in (1 << 31, -1, 10**30):
            refused(found, found.put(frame, digest, version=number), 422)
        elsewhere = f"{other_versions}/1/parts/{digest}"
        refused(
            found, found.client.put(elsewhere, content=frame, headers=found.key), 404, "project"
        )
        # a person may be in both, and still there is no such version in the other
        refused(
            found,
            found.client.put(elsewhere, content=frame, headers=found.operator),
            404,
            "version",
        )
        for wrong in ("x", digest.upper(), digest[:-1], digest + "0", "..%2f..%2fx"):
            answer = found.put(frame, wrong)
            assert answer.status_code in (404, 422), answer.text


def test_chunks_of_another_version_are_refused(found, recorded):
    second = {**recorded.version, "version_name": "v2"}
    made = found.client.post(f"{found.project}/versions", json=second, headers=found.key).json()
    digest, content = recorded.part.pack()
    with no_trace(found):
        answer = found.put(compressed(content), digest, version=made["id"])
        refused(found, answer, 422, "one of another version")


def test_only_parts_are_taken_for_parts(found, recorded):
    digest, content = recorded.part.pack()
    frame = compressed(content)
    with no_trace(found):
        for kind in ("application/json", "text/plain", "application/octet-stream", ""):
            refused(found, found.put(frame, digest, **{"Content-Type": kind}), 415, PART_TYPE)
    again = found.put(frame, digest, **{"Content-Type": PART_TYPE.upper() + "; x=y"})
    assert again.json() == {"records": 0}


def test_a_quota_refuses_what_is_new_and_nothing_else(found, recorded):
    digest, content = recorded.part.pack()
    path = f"/api/v1/organizations/{found.ids['organization_id']}/quotas"
    nbytes = sum(one.nbytes for one in recorded.part.header.chunks)
    for quota in ({"max_records": INPUTS}, {"max_bytes": nbytes}):
        full = found.client.put(path, json=quota, headers=found.operator)
        assert full.status_code == 200
        with no_trace(found):
            # the answer may have been lost, and a client asks again
            assert found.put(compressed(content), digest).json() == {"records": 0}
            told = refused(found, put(found, changed(recorded.part, lambda *_: None)), 402)
            assert told["kind"] == "LicenseError"
    answer = found.client.put(path, json={}, headers=found.operator)
    assert [answer.json()[name] for name in ("max_models", "max_records", "max_bytes")] == [
        None
    ] * 3


# What is too much


def test_what_is_too_large_is_refused(found, recorded):
    digest = recorded.part.pack()[0]
    too_much = f"{LIMIT:,} bytes"

    def pieces():
        for _ in range(LIMIT // (1 << 16) + 10):
            yield bytes(1 << 16)

    with no_trace(found):
        refused(found, found.put(bytes(LIMIT + 1), digest), 413, too_much)
        refused(found, found.put(pieces(), digest), 413, too_much)
        refused(found, found.put(bomb(LIMIT + 1), sha(bytes(LIMIT + 1))), 413, "unpacked")
        refused(found, found.put(bomb(64 << 30), digest), 413, "unpacked")
        refused(found, found.put(bomb(LIMIT) * 100, digest), 413, "unpacked")


def test_what_was_taken_can_be_read(found, recorded):
    """After all of the above."""
    store = found.service.projects.store(found.ids["project_id"])
    records = store.open(VERSION).records(Scope(n_epoch=1))
    assert records.inputs == INPUTS
    assert records.replaced == 0
    assert sorted(map(int, records.ids().to_pylist())) == list(range(INPUTS))
    for name in records.names():
        assert len(records.column(name)) == INPUTS
    assert store.verify() == []
    good = changed(recorded.part, set_to(n_epoch=2))
    assert put(found, good).json() == {"records": INPUTS}
    assert store.open(VERSION).records(Scope(n_epoch=2)).inputs > 0
    assert store.verify() == []


# In a process of its own, where memory, disk and wires can be looked at


class Served:
    """`ml-debugger serve`, without workers."""

    def __init__(self, folder, recorded):
        self.data = folder
        given = {"MLD_SERVER_MAX_PART_BYTES": str(64 << 20)}
        command = [Path(sys.executable).with_name("ml-debugger"), "serve", "--data", folder]
        self.log = folder.parent / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--port", "0", "--workers", "0"],
                env={**os.environ, **given, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        for line in self.process.stdout:
            if line.startswith("serving on "):
                self.port = int(line.rpartition(":")[2])
                break
        login = json.loads((folder / "first_login.json").read_text())
        self.key = {"Authorization": f"Bearer {login['key']}"}
        self.session = requests.Session()
        self.url = f"http://{HOST}:{self.port}/api/v1"
        project = self.session.get(f"{self.url}/me", headers=self.key).json()["projects"][0]["id"]
        versions = f"{self.url}/projects/{project}/versions"
        made = self.session.post(versions, json=recorded.version, headers=self.key)
        assert made.json()["id"] == 1
        self.parts = f"{versions}/1/parts/"

    def put(self, body, digest):
        headers = {**self.key, "Content-Type": PART_TYPE}
        return self.session.put(self.parts + digest, data=body, headers=headers)

    def status(self, name):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) << 10
        raise LookupError(name)

    def written(self):
        """Return how many bytes the process has written so far, to files and to sockets."""
        said = Path(f"/proc/{self.process.pid}/io").read_text()
        return int(said.split("wchar: ")[1].split()[0])

    def nameless(self):
        """Return how many deleted files the process has open, or mapped, and how many bytes."""
        folder = Path(f"/proc/{self.process.pid}/fd")
        sizes = []
        for one in folder.iterdir():
            try:
                if "(deleted)" in str(one.readlink()):
                    sizes.append(one.stat().st_size)
            except FileNotFoundError:
                continue
        maps = Path(f"/proc/{self.process.pid}/maps").read_text()
        return sizes, maps.count("incoming/")

    def raw(self):
        return socket.create_connection((HOST, self.port), PATIENCE)

    def start_of(self, *headers):
        path = self.parts.removeprefix(f"http://{HOST}:{self.port}")
        lines = [f"PUT {path}{'0' * 64} HTTP/1.1", "Host: x", f"Content-Type: {PART_TYPE}"]
        lines += [f"{name}: {value}" for name, value in self.key.items()]
        return "\r\n".join([*lines, *headers, "", ""]).encode()

    def clean(self):
        """Wait until no file of a request is left."""
        deadline = time.monotonic() + PATIENCE
        while self.nameless() != ([], 0):
            assert time.monotonic() < deadline, self.nameless()
            time.sleep(0.05)
        return list((self.data / "incoming").iterdir()) == []


@pytest.fixture(scope="module")
def served(recorded, tmp_path_factory):
    one = Served(tmp_path_factory.mktemp("served") / "data", recorded)
    try:
        digest, content = recorded.part.pack()
        assert one.put(compressed(content), digest).json() == {"records": INPUTS}
        yield one
    finally:
        one.session.close()
        one.process.send_signal(signal.SIGTERM)
        one.process.stdout.close()
        assert one.process.wait(PATIENCE) in (0, -signal.SIGTERM)


def test_bombs_take_little_memory_and_disk(served, recorded):
    digest = recorded.part.pack()[0]
    limit = 64 << 20
    Path(f"/proc/{served.process.pid}/clear_refs").write_text("5")  # the peak begins anew
    memory, written = served.status("VmRSS"), served.written()
    bombs = [bomb(32 << 30), bomb(8 << 30, window=27), bomb(limit) * 64]
    for one in bombs:
        answer = served.put(one, digest)
        assert answer.status_code == 413, answer.text
        assert served.clean()
    peak = served.status("VmHWM") - memory
    print(  # noqa: T201  # shown with `pytest -s`
        f"\n{len(bombs)} bombs: {peak / 2**20:.0f} MiB more memory at the peak, "
        f"{(served.written() - written) / 2**20:.0f} MiB written"
    )
    assert peak < 3 * limit  # the window that a frame may ask for is 128 MiB
    assert served.written() - written < len(bombs) * (limit + (4 << 20)) + sum(map(len, bombs))


def answered(wire):
    wire.settimeout(PATIENCE)
    said = b""
    while True:
        try:
            piece = wire.recv(1 << 16)
        except ConnectionResetError:  # it has closed, and we were still sending
            return said
        if not piece:
            return said
        said += piece
        if b"\r\n\r\n" in said and b"request_id" in said:
            return said


def test_a_chunked_body_is_not_read_beyond_the_limit(served):
    piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    with served.raw() as wire:
        wire.sendall(served.start_of("Transfer-Encoding: chunked"))
        sent = 0
        try:
            for _ in range(1024):
                wire.sendall(piece)
                sent += 1
        except OSError:  # it is answered, and closed
            pass
        assert b" 413 " in answered(wire).partition(b"\r\n")[0] or sent < 1024
    assert sent < 256
    assert served.clean()


def test_a_length_that_is_too_large_is_refused_before_the_body(served):
    for length in (1 << 30, 10**18):
        with served.raw() as wire:
            wire.sendall(served.start_of(f"Content-Length: {length}"))
            assert answered(wire).startswith(b"HTTP/1.1 413 ")
    for length in ("-1", "1e3", "0x10", "9" * 5000, "1, 2"):
        with served.raw() as wire:
            wire.sendall(served.start_of(f"Content-Length: {length}"))
            assert answered(wire).startswith(b"HTTP/1.1 4"), length
    assert served.clean()


def test_bodies_that_stop_leave_nothing(served, recorded):
    digest, content = recorded.part.pack()
    frame = compressed(content)
    wires = []
    for _ in range(20):
        wire = served.raw()
        wire.sendall(served.start_of(f"Content-Length: {len(frame)}") + frame[: len(frame) // 2])
        wires.append(wire)
    # they are held, and others are served meanwhile
    assert served.put(frame, digest).json() == {"records": 0}
    deadline = time.monotonic() + PATIENCE
    while len(served.nameless()[0]) < len(wires):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for wire in wires:
        wire.close()
    assert served.clean()
    assert "Traceback" not in served.log.read_text()


def test_a_slow_body_arrives(served, recorded):
    content = changed(recorded.part, lambda *_: None)
    frame = compressed(content)
    start = served.start_of(f"Content-Length: {len(frame)}")
    start = start.replace(b"0" * 64, sha(content).encode())
    with served.raw() as wire:
        wire.sendall(start)
        for at in range(0, len(frame), len(frame) // 20):
            wire.sendall(frame[at : at + len(frame) // 20])
            time.sleep(0.02)
        wire.settimeout(PATIENCE)
        assert wire.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    assert served.clean()
