import copy
import json
import struct
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_debugger.core.errors import InputError, SchemaError
from ml_debugger.core.records import Batch, ModelVersion, Units
from ml_debugger.core.store import Store
from ml_debugger.core.store.parts import HEADER_BYTES, MAGIC, Part
from ml_debugger.core.store.segments import checksum

VERSION = ModelVersion("net", "v1")
FIELDS = {
    name: {"name": name, "type": name, "nullable": True}
    for name in ("str", "int", "float", "bool", "datetime", "json")
}
TYPES = {name: name for name in FIELDS}
LABEL_TYPES = {"by": "str"}
ORIGIN = f"{'0' * 32}:1:{'0' * 16}"


def register(store, **options):
    given = {"task": "classification", "architecture": ["Linear"], "layers": {"a": "0"}}
    fields = {"fields": list(FIELDS.values()), "label_fields": [{"name": "by", "type": "str"}]}
    return store.register(VERSION, **given, **fields, **options)


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    """The store of a service, which is asked to believe things."""
    with Store(tmp_path_factory.mktemp("there")) as store:
        register(store)
        yield store


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A part with fields of every type, ragged units and ground truth, and one without."""
    with Store(tmp_path_factory.mktemp("here")) as store:
        repo = register(store)
        run = repo.start_run("training", settings={"score_thresh": 0.5, "k": 1, "none": None})
        fields = {
            "str": ["é", None, ""],
            "int": [1, None, -1],
            "float": [0.5, None, float("nan")],
            "bool": [True, None, False],
            "datetime": [datetime(2026, 1, 2, tzinfo=UTC), None, None],
            "json": ["{}", None, "[1]"],
        }
        boxes = Units({"box": torch.rand(4, 2), "class": torch.arange(4)}, torch.tensor([3, 0, 1]))
        truth = Units({"label": torch.arange(2)}, torch.tensor([1, 1, 0]))
        ids = ["a", "日本", "c"]
        repo.write(run, [Batch(ids, "train", 0, 1, boxes, truth, fields, {"by": ["x", None, ""]})])
        one = Units({"score": torch.rand(2), "flag": torch.rand(2) > 0.5})
        repo.write(run, [Batch(["d", "e"], "train", None, 2, one)])
        found = repo.outbox("there").next_part()
        assert found is not None
        yield found[0].pack()[1]


def packed(header, bodies):
    """Pack what nobody has looked at."""
    text = json.dumps(header).encode()
    start = MAGIC + len(text).to_bytes(8, "little") + text
    return b"".join([start, bytes(-len(start) % 64), *bodies])


def taken_apart(content):
    """Return the header of a part as plain JSON, and its bodies."""
    part = Part.unpack(content)
    return part.header.model_dump(mode="json"), [bytes(one) for one in part.bodies]


def read_all(repo):
    """Read every column, whole and in part, down to its Python values."""
    for part in repo.records().parts():
        rows = np.arange(min(part.inputs, 2))
        part.find(part.ids().to_pylist())
        part.counts("predicted"), part.counts("actual")
        for name in part.names():
            values = part.column(name)
            if isinstance(values, pa.Array):
                values.validate(full=True)
                values.to_pylist()
                assert len(part.column(name, rows)) == len(rows)
            elif name.startswith("actual/"):
                assert len(values) == part.counts("actual").sum()
            else:
                assert len(values) == (part.units if name[0] == "p" else part.inputs)
    repo.runs(), repo.epochs(), repo.latest_epoch()


def believed(content, store):
    """Whether a store takes a part: what it takes, it can read; what it refuses leaves nothing.

    Anything else that is raised is an error of ours.
    """
    repo = store.open(VERSION)
    try:
        part = Part.unpack(content)
        added = repo.adopt(part)
    except (InputError, SchemaError) as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert len(refused) < 700
        assert repo.records().inputs == repo.records().replaced == 0
        return False
    try:
        assert added == part.inputs
        read_all(repo)
        assert store.verify() == []
        repo.delete_epoch(part.header.chunks[0].n_epoch)
    finally:
        repo.recreate()
    return True


# What is packed comes back


def test_a_good_part_is_believed(good, far):
    assert believed(good, far)
    assert believed(memoryview(good), far)
    assert believed(bytearray(good), far)


ids = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=8)
chunks = st.lists(
    st.tuples(ids, st.none() | st.integers(-3, 3), st.integers(0, 3), st.booleans()),
    min_size=1,
    max_size=6,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(chunks=chunks, dtype=st.sampled_from(["f2", "f4", "f8", "i1", "u1", "i8", "bool"]))
def test_what_is_packed_is_unpacked(chunks, dtype, tmp_path_factory):
    with Store(tmp_path_factory.mktemp("here")) as here, Store(here.home / "there") as there:
        repo, target = register(here), register(there)
        run, number = repo.start_run("training"), 0
        for names, epoch, each, labelled in chunks:
            n = len(names)
            values = np.arange(number, number + n * each).astype(dtype)
            units = Units({"x": torch.from_numpy(values)}, torch.full((n,), each).int())
            texts = {"str": [None if k % 3 else one for k, one in enumerate(names)]}
            actual = units if labelled else None
            repo.write(run, [Batch(names, "train", epoch, number, units, actual, texts)])
            number += n * each
        pair = repo.outbox("there").next_part()
        if pair is None:
            assert not any(names for names, *_ in chunks)
            return
        name, content = pair[0].pack()
        assert pair[0].pack() == (name, content)
        again = Part.unpack(content)
        assert (again.header, again.pack()) == (pair[0].header, (name, content))
        assert target.adopt(again) == pair[0].inputs
        ours, theirs = repo.records(), target.records()
        assert theirs.ids().to_pylist() == ours.ids().to_pylist()
        for column in ("predicted/x", "input/recorded_at"):
            assert theirs.column(column).tobytes() == ours.column(column).tobytes()
        assert theirs.column("input/str").equals(ours.column("input/str"))


# What strangers send


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_that_were_changed_are_refused(data, good, far):
    content = bytearray(good)
    size = int.from_bytes(content[8:16], "little")
    sums = bytes(content[16 : 16 + size])
    how = data.draw(st.sampled_from(["change", "cut", "extend", "insert", "remove"]))
    if how == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif how == "extend":
        content += data.draw(st.binary(min_size=1, max_size=200))
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        if how == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=70))
        elif how == "remove":
            del content[at : at + data.draw(st.integers(1, 70))]
        else:
            content[at] ^= data.draw(st.integers(1, 255))
    # what changed can be a name in the header, or the bytes between header and bodies
    if believed(bytes(content), far):
        start = 16 + size + -(16 + size) % 64
        assert content[start:] == good[start:]
        assert how == "change" or content[16 : 16 + size] != sums


NASTY = st.one_of(
    st.sampled_from([None, True, -1, 0, 1, 2, 63, 64, 2**31 - 1, 2**31, 2**39, 2**63, 10**400]),
    st.sampled_from(["", "\0", "x", "training", "<f8", "|b1", "<f1", "arrow:str", "arrow:text"]),
    st.sampled_from(["predicted/#counts", "actual/x", "input/id", "label/by", "é" * 2000]),
    st.sampled_from([0.5, [], {}, [0, 0], [2**39] * 8, [0, 2**31], [[0, 64]]]),
    st.integers(-300, 300),
)


def places(value, path=()):
    """Yield where every value of a JSON document lies."""
    yield path
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, one in value.items() if isinstance(value, dict) else ():
        yield from places(one, (*path, key))


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_headers_that_were_changed_are_refused_or_harmless(data, good, far):
    header, bodies = taken_apart(good)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([one for one in places(header) if one]))
        *above, last = path
        owner = header
        for key in above:
            owner = owner[key]
        how = data.draw(st.sampled_from(["set", "set", "move", "drop", "double", "swap"]))
        if how == "move" and type(owner[last]) is int:
            owner[last] += data.draw(st.sampled_from([-64, -8, -1, 1, 8, 64]))
        elif how == "drop":
            del owner[last]
        elif how == "double" and isinstance(owner, list):
            owner.insert(last, copy.deepcopy(owner[last]))
        elif how == "swap" and isinstance(owner, list):
            other = data.draw(st.integers(0, len(owner) - 1))
            owner[last], owner[other] = owner[other], owner[last]
        else:
            owner[last] = copy.deepcopy(data.draw(NASTY))
    believed(packed(header, bodies), far)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_values_that_were_changed_are_refused_or_harmless(data, good, far):
    """With the right checksum: every buffer is looked at."""
    header, bodies = taken_apart(good)
    number = data.draw(st.integers(0, len(bodies) - 1))
    body = bytearray(bodies[number])
    spans = [span for span in header["chunks"][number]["spans"] if span[1]]
    for _ in range(data.draw(st.integers(1, 3))):
        start, size = data.draw(st.sampled_from(spans))
        at = start + data.draw(st.integers(0, size - 1))
        value = data.draw(st.binary(min_size=1, max_size=8))
        body[at : at + len(value)] = value[: len(body) - at]
    bodies[number] = bytes(body)
    header["chunks"][number]["crc"] = checksum([memoryview(body)])
    believed(packed(header, bodies), far)


def made(columns, *, inputs=1, units=None, actuals=None, **changes):
    """Pack one chunk of columns, each (name, type, shape, buffers), with true sizes and sums."""
    ends, pieces, spans, end = list(range(inputs + 1)), [], [], 0
    base = [
        (
            "input/id",
            "arrow:str",
            [],
            [b"", np.array(ends, "<i4").tobytes(), b"abcdefghi"[:inputs]],
        ),
        ("input/recorded_at", "<i8", [], [bytes(8 * inputs)]),
    ]
    named = {name for name, *_ in columns}
    columns = [*(one for one in base if one[0] not in named), *columns]
    for *_, buffers in columns:
        for buffer in buffers:
            spans.append([end, len(buffer)])
            pieces.append(buffer + bytes(-len(buffer) % 64))
            end += len(pieces[-1])
    body = b"".join(pieces)
    chunk = {
        "origin": ORIGIN,
        "run": 0,
        "n_epoch": 0,
        "dataset_type": "t",
        "inputs": inputs,
        "units": inputs if units is None else units,
        "actuals": actuals,
        "columns": [one[:3] for one in columns],
        "spans": spans,
        "nbytes": len(body),
        "crc": checksum([memoryview(body)]),
    }
    run = {
        "run": "r",
        "rank": 0,
        "world_size": 1,
        "purpose": "training",
        "host": "h",
        "pid": 1,
        "started_at": 0,
        "settings": {},
    }
    run |= {key: changes.pop(key) for key in run.keys() & changes.keys() - chunk.keys()}
    return packed({"format": 1, "runs": [run], "chunks": [chunk | changes]}, [body])


def i4(*values):
    return struct.pack(f"<{len(values)}i", *values)


def i8(*values):
    return struct.pack(f"<{len(values)}q", *values)


def field(kind, *buffers, inputs=1):
    return made([(f"input/{kind}", f"arrow:{kind}", [], list(buffers))], inputs=inputs)


def text(*buffers, inputs=2, kind="str"):
    return made([("input/str", f"arrow:{kind}", [], list(buffers))], inputs=inputs)


def number(kind, shape, data, **options):
    return made([("predicted/x", kind, shape, [data])], **options)


HARMLESS = {
    "nothing but ids": made([]),
    "offsets that begin later": text(b"", i4(1, 1, 2), b"ab"),
    "more offsets than values": text(b"", i4(0, 1, 2, -7, 9), b"ab"),
    "no text at all": text(b"", i4(0, 0, 0), b""),
    "wide offsets": text(b"", i8(0, 1, 2), b"ab", kind="text"),
    "text of a null": text(b"\x01", i4(0, 1, 2), b"a\xff"),
    "a bitmap that goes on": text(b"\x03\xff\xff", i4(0, 1, 2), b"ab"),
    "values without width": number("<f4", [0], b""),
    "moments": field("datetime", b"", i8(-62135596800000000)),
    "no name for the data set": made([], dataset_type=""),
    "what a later version adds": made([], later={"a": 1}),
}

HOSTILE = {
    "offsets that go backwards": (text(b"", i4(0, 2, 1), b"ab"), "input/str is damaged"),
    "offsets beyond the end": (text(b"", i4(0, 1, 3), b"ab"), "input/str is damaged"),
    "far beyond": (text(b"", i4(0, 1, 2**31 - 1), b"ab"), "input/str is damaged"),
    "negative offsets": (text(b"", i4(-2, -1, 2), b"ab"), "input/str is damaged"),
    "only negative": (text(b"", i4(-3, -2, -1), b"ab"), "input/str is damaged"),
    "wide and far": (text(b"", i8(0, 1, 2**62), b"ab", kind="text"), "input/str is damaged"),
    "wide and negative": (text(b"", i8(-9, 1, 2), b"ab", kind="text"), "input/str is damaged"),
    "narrow as wide": (text(b"", i4(0, 1, 2), b"ab", kind="text"), "input/str is damaged"),
    "too few offsets": (text(b"", i4(0, 1), b"ab"), "input/str is damaged"),
    "no offsets": (text(b"", b"", b"ab"), "input/str is damaged"),
    "half an offset": (text(b"", i4(0, 1, 2)[:-1], b"ab"), "input/str is damaged"),
    "not UTF-8": (text(b"", i4(0, 1, 2), b"a\xff"), "input/str is damaged"),
    "half a character": (text(b"", i4(0, 1, 2), "é".encode()), "input/str is damaged"),
    "a short bitmap": (text(b"\x01", i4(*range(10)), b"x" * 9, inputs=9), "str is damaged"),
    "too few bools": (field("bool", b"", b"\xff", inputs=9), "input/bool is damaged"),
    "too few ints": (field("int", b"", i8(1), inputs=2), "input/int is damaged"),
    "too few floats": (field("float", b"", b"1234567"), "input/float is damaged"),
    "a moment too late": (field("datetime", b"", i8(2**62)), "input/datetime has moments"),
    "a moment too early": (field("datetime", b"", i8(-(2**62))), "input/datetime has moments"),
    "ids that are null": (
        made([("input/id", "arrow:str", [], [b"\0", i4(0, 1), b"a"])]),
        "input/id is missing for 1 inputs",
    ),
    "ids that are numbers": (made([("input/id", "<i8", [], [i8(1)])]), "input/id was not declared"),
    "times that are halves": (
        made([("input/recorded_at", "<f8", [], [bytes(8)])]),
        "needs the columns input/id and input/recorded_at",
    ),
    "a field nobody knows": (
        made([("input/other", "arrow:str", [], [b"", i4(0, 0), b""])]),
        "input/other was not declared",
    ),
    "a number for a field": (made([("input/int", "<i8", [], [i8(1)])]), "int was not declared"),
    "another type": (
        made([("input/int", "arrow:float", [], [b"", bytes(8)])]),
        "input/int has type 'float', expected 'int'",
    ),
    "an unknown type": (
        made([("input/str", "arrow:list", [], [b"", i4(0, 0), b""])]),
        "input/str has type 'list'",
    ),
    "text the model said": (
        made([("predicted/x", "arrow:str", [], [b"", i4(0, 0), b""])]),
        "predicted/x was not declared",
    ),
    "a field with a shape": (
        made([("input/int", "arrow:int", [2], [b"", bytes(16)])]),
        "input/int is a text or a field, and has a shape",
    ),
    "labels without truth": (
        made([("label/by", "arrow:str", [], [b"", i4(0, 0), b""])]),
        "says that it has no ground truth",
    ),
    "truth without truth": (made([("actual/x", "<i8", [], [i8(1)])]), "no ground truth"),
    "a column outside": (made([("../x", "<i8", [], [i8(1)])]), r"cannot be called '\.\./x'"),
    "a column twice": (made([("predicted/x", "|u1", [], [b"1"])] * 2), "there twice"),
    "eight-bit floats": (number("<f1", [], b"1"), "has type '<f1', expected numbers"),
    "the other way round": (number(">f8", [], bytes(8)), "has type '>f8', expected numbers"),
    "objects": (number("|O", [], bytes(8)), "has type '|O', expected numbers"),
    "records": (number("<i8,<i8", [], bytes(16)), "expected numbers"),
    "many axes": (number("|u1", [1] * 9, b"1"), "at most 8 items"),
    "axes of any length": (
        made(
            [("predicted/#counts", "<i4", [], [i4(0)]), ("predicted/x", "<f8", [2**39] * 8, [b""])],
            units=0,
        ),
        "too large",
    ),
    "nothing times much": (number("<f8", [0, 2**39, 2**39], b""), "too large"),
    "units out of nothing": (
        made(
            [("predicted/#counts", "<i4", [], [i4(2**31 - 1)]), ("predicted/x", "<f8", [0], [b""])],
            units=2**31 - 1,
        ),
        "2147483647 units in 256 bytes",
    ),
    "truth out of nothing": (
        made(
            [("actual/#counts", "<i4", [], [i4(2**31 - 1)]), ("actual/x", "<f8", [0], [b""])],
            actuals=2**31 - 1,
        ),
        "2147483647 units in 256 bytes",
    ),
    "other counts": (
        made([("predicted/#counts", "<i4", [], [i4(1, 2)])], inputs=2, units=4),
        "does not add up to 4 units",
    ),
    "counts below nothing": (
        made([("predicted/#counts", "<i4", [], [i4(4, -1)])], inputs=2, units=3),
        "does not add up to 3 units",
    ),
    "wide counts": (
        made([("predicted/#counts", "<i8", [], [i8(1)])]),
        "predicted/#counts has type <i8, expected <i4",
    ),
    "units without counts": (number("|u1", [], b"12", units=2), "2 predicted units for 1 inputs"),
    "truth without counts": (made([], actuals=2), "2 actual units for 1 inputs"),
    "too few values": (number("<f4", [2], bytes(4)), "predicted/x has 4 bytes, expected 8"),
    "too many values": (number("<f4", [2], bytes(12)), "predicted/x has 12 bytes, expected 8"),
    "more inputs than there are": (made([], inputs=1, units=2**31 - 1), "units in 192 bytes"),
    "a span too few": (made([], spans=[[0, 0], [0, 8], [64, 1]]), "3 buffers, expected 4"),
    "spans that overlap": (
        made([], spans=[[0, 0], [0, 65], [64, 1], [128, 8]]),
        "overlap, or reach beyond",
    ),
    "spans from anywhere": (
        made([], spans=[[0, 0], [8, 8], [64, 1], [128, 8]]),
        "overlap, or reach beyond",
    ),
    "spans to anywhere": (
        made([], spans=[[0, 0], [0, 8], [64, 1], [128, 2**39]]),
        "overlap, or reach beyond",
    ),
    "a sum that is not": (made([], crc=1), "do not have the checksum"),
    "more bytes than there are": (made([], nbytes=2**39), "not as long as its header says"),
    "fewer bytes": (made([], nbytes=64), "not as long as its header says"),
    "a run that is not there": (made([], run=1), "a run that the part does not describe"),
    "a run before the first": (made([], run=-1), "chunks.0.run: .*greater than or equal to 0"),
    "no inputs": (made([], inputs=0, units=0), "chunks.0.inputs"),
    "an epoch too long": (made([], n_epoch=2**63), "chunks.0.n_epoch"),
    "an origin of somebody": (made([], origin="mine"), "chunks.0.origin"),
    "an origin that goes on": (made([], origin=ORIGIN + "\n"), "chunks.0.origin"),
    "a data set PostgreSQL refuses": (made([], dataset_type="a\0b"), "chunks.0.dataset_type"),
    "a host PostgreSQL refuses": (made([], host="a\0b"), "runs.0.host"),
    "a purpose of its own": (made([], purpose="other"), "runs.0.purpose"),
    "a setting that is text": (made([], settings={"a" * 999: "x"}), r"runs.0.settings.aaa"),
    "more settings than are": (
        made([], settings={str(k): [] for k in range(1001)}),
        "more than 1000 settings",
    ),
    "twice the same": (
        packed(
            {
                "format": 1,
                "runs": Part.unpack(made([])).header.model_dump(mode="json")["runs"],
                "chunks": Part.unpack(made([])).header.model_dump(mode="json")["chunks"] * 2,
            },
            [bytes(256)] * 2,
        ),
        "a chunk is there twice",
    ),
    "no chunks": (packed({"format": 1, "runs": [], "chunks": []}, []), "runs: "),
    "no header": (packed([], []), "header of the part is malformed"),
    "a deep header": (MAGIC + (10**6).to_bytes(8, "little") + b"[" * 10**6, "recursion limit"),
    "a long header": (MAGIC + (2**63).to_bytes(8, "little") + b"{}", "ends within its header"),
    "a longer header than is read": (
        MAGIC + (HEADER_BYTES + 1).to_bytes(8, "little") + bytes(HEADER_BYTES + 99),
        "ends within its header",
    ),
    "something else": (b"PK\x03\x04" + bytes(100), "not a part"),
    "nothing": (b"", "not a part"),
}


@pytest.mark.parametrize("content", HARMLESS.values(), ids=HARMLESS)
def test_odd_parts_are_believed(content, far):
    assert believed(content, far)


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_parts_are_refused(content, message, far):
    assert not believed(content, far)
    with pytest.raises(InputError, match=message):
        Part.unpack(content).check(TYPES, LABEL_TYPES)


def test_a_later_version_is_told(far):
    with pytest.raises(SchemaError, match="later version"):
        Part.unpack(MAGIC[:7] + b"\x02" + bytes(100))


def test_texts_from_two_parts_are_read_together(far):
    """A wide and a narrow column, and nulls whose text is not text, become one."""
    repo = far.open(VERSION)
    parts = [HARMLESS[name] for name in ("wide offsets", "text of a null", "nothing but ids")]
    for k, content in enumerate(parts):
        header, bodies = taken_apart(content)
        header["chunks"][0] |= {"origin": ORIGIN.replace(":1:", f":{k}:"), "n_epoch": k}
        repo.adopt(Part.unpack(packed(header, bodies)))
    assert repo.records().column("input/str").to_pylist() == ["a", "b", "a", None, None]
    repo.recreate()


# Memory

LARGE = """
import sys
from pathlib import Path
from ml_debugger.core.errors import InputError
from ml_debugger.core.store.parts import Part

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(one.split()[1]) for one in lines if one.startswith("VmHWM")) * 1024

for path in sys.argv[1:]:
    content = Path(path).read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
    before = peak()
    try:
        Part.unpack(content).check({}, {})
    except InputError:
        print(Path(path).name, peak() - before)
"""


def _long(chunk=None, run=None):
    header, bodies = taken_apart(made([]))
    header["chunks"][0] |= chunk or {}
    header["runs"][0] |= run or {}
    content = packed(header, bodies)
    assert HEADER_BYTES // 2 < int.from_bytes(content[8:16], "little") < HEADER_BYTES
    return content


def test_refusing_takes_little_memory(tmp_path):
    """A report of all that is wrong would take a thousand times what a header takes."""
    huge = number("<i4", [], b"", units=2**31 - 1)
    hostile = {
        "spans": _long({"spans": [[-1]] * 300_000}),
        "columns": _long({"columns": [[]] * 400_000}),
        "names": _long({"columns": [["", "", []]] * 120_000}),
        "settings": _long(run={"settings": {f"{k:x}": [] for k in range(120_000)}}),
        "more": _long({f"{k:x}": 0 for k in range(120_000)} | {"crc": 1}),
        "lengths": made([], spans=[[0, 0], [0, 2**39], [2**39, 2**39], [2**39, 0]]),
        "values": huge,
    }
    for name, content in hostile.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", LARGE, *(tmp_path / name for name in hostile)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken = dict(line.split() for line in done.stdout.splitlines())
    assert taken.keys() == hostile.keys()
    assert {name for name, size in taken.items() if int(size) > 64 * HEADER_BYTES} == set()
