"""Chunks on their way from one store to another: packed, unpacked, and believed only when checked.

A part is `MAGIC`, the length of its header (8 bytes, little-endian), the header (JSON), and the
bytes of its chunks, each from a multiple of 64 on; it is called by the SHA-256 of all that.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from ml_debugger.core.errors import InputError, SchemaError
from ml_debugger.core.store.columns import (
    ARROW,
    ARROW_TYPES,
    COUNTS,
    FIELD_TYPES,
    INPUT_ID,
    RECORDED_AT,
    Column,
    Layout,
    decode,
    width,
)
from ml_debugger.core.store.contract import Purpose
from ml_debugger.core.store.segments import ALIGNMENT, Bytes, checksum

MAGIC = b"MLDPART\x01"
HEADER_BYTES = 2 << 20
NAME = re.compile(r"(input|label|predicted|actual)/[^/\x00]{1,200}")
#: What a chunk is called everywhere: its store, its number there, and the checksum of its bytes.
ORIGIN = r"^[0-9a-f]{32}:[0-9]{1,18}:[0-9a-f]{16}$"
NUMBERS = re.compile(r"[<|](?:[iu][1248]|f[248]|b1)")
VALUE_BYTES = 1 << 31  # of one value: more than any layer gives, and no size overflows
MOMENTS = [
    pa.scalar(one.replace(tzinfo=UTC), FIELD_TYPES["datetime"]).value
    for one in (datetime.min, datetime.max)
]

_Count = Annotated[int, Field(ge=0, lt=1 << 40)]
_Shape = Annotated[list[_Count], Field(max_length=8, fail_fast=True)]
_Int64 = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
# The first item that is wrong ends a list: a report of a million of them would take gigabytes.
_Items = Field(min_length=1, max_length=1000, fail_fast=True)
_Text = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")]  # as PostgreSQL takes it


def _few(settings: Any) -> Any:
    if isinstance(settings, dict) and len(settings) > 1000:  # before each of them is looked at
        raise ValueError("more than 1000 settings")
    return settings


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class RunHeader(_Strict):
    """A process that recorded; see `RunRow`."""

    run: Annotated[_Text, Field(min_length=1, max_length=100)]
    rank: Annotated[int, Field(ge=0, lt=1 << 31)]
    world_size: Annotated[int, Field(ge=1, lt=1 << 31)]
    purpose: Purpose
    host: _Text
    pid: Annotated[int, Field(ge=0, lt=1 << 31)]
    started_at: _Int64
    settings: Annotated[dict[str, FiniteFloat | int | None], BeforeValidator(_few)]


class ChunkHeader(_Strict):
    """A chunk; see `ChunkRow`. `run` is the position of its run in the part's header."""

    origin: Annotated[str, Field(pattern=ORIGIN)]
    run: _Count
    n_epoch: _Int64 | None
    dataset_type: Annotated[_Text, Field(max_length=200)]  # as any name; it is in an index
    inputs: Annotated[int, Field(ge=1, lt=1 << 31)]
    units: _Count
    actuals: _Count | None
    columns: Annotated[list[tuple[str, str, _Shape]], Field(fail_fast=True)]
    spans: Annotated[list[tuple[_Count, _Count]], Field(fail_fast=True)]
    nbytes: _Count
    crc: Annotated[int, Field(ge=0, lt=1 << 32)]

    @property
    def layout(self) -> str:
        """The columns as the catalogue keeps them."""
        return json.dumps(self.columns, separators=(",", ":"))

    @property
    def buffers(self) -> bytes:
        """The spans as the catalogue keeps them."""
        return np.array(self.spans, np.int64).tobytes()


class PartHeader(_Strict):
    """What a part holds."""

    format: Literal[1] = 1
    runs: Annotated[list[RunHeader], _Items]
    chunks: Annotated[list[ChunkHeader], _Items]

    @model_validator(mode="after")
    def _knows_its_runs(self) -> Self:
        if any(one.run >= len(self.runs) for one in self.chunks):
            raise ValueError("a chunk is of a run that the part does not describe")
        if len({one.origin for one in self.chunks}) < len(self.chunks):
            raise ValueError("a chunk is there twice")
        return self


def brief(error: ValidationError) -> str:
    """Return the first thing that is wrong, and not what was given, which may be long."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc']))[:80]}: {first['msg']}"


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some chunks of a model version, and their bytes.

    Attributes:
        header: What they are.
        bodies: The bytes of each.
    """

    header: PartHeader
    bodies: Sequence[Bytes]

    @property
    def inputs(self) -> int:
        """How many inputs the chunks have together."""
        return sum(one.inputs for one in self.header.chunks)

    def pack(self) -> tuple[str, bytes]:
        """Return what the part is called, and its bytes."""
        text = self.header.model_dump_json().encode()
        start = MAGIC + len(text).to_bytes(8, "little") + text
        content = b"".join([start, bytes(-len(start) % ALIGNMENT), *self.bodies])
        return hashlib.sha256(content).hexdigest(), content

    @classmethod
    def unpack(cls, content: bytes | Bytes) -> Self:
        """Read what `pack` wrote, without a copy of it. What is in it is still to be checked.

        Raises:
            InputError: It is not a part, or it is damaged.
            SchemaError: A later version wrote it.
        """
        content = memoryview(content)
        if len(content) < 16 or bytes(content[:7]) != MAGIC[:7]:
            raise InputError("this is not a part of ml-debugger records")
        if content[7] != MAGIC[7]:
            raise SchemaError("the part was written by a later version of ml-debugger; upgrade")
        size = int.from_bytes(content[8:16], "little")
        if size > min(HEADER_BYTES, len(content) - 16):
            raise InputError("the part ends within its header")
        try:
            header = PartHeader.model_validate_json(bytes(content[16 : 16 + size]))
        except ValidationError as error:
            raise InputError(f"the header of the part is malformed: {brief(error)}") from None
        start = 16 + size
        start += -start % ALIGNMENT
        if start + sum(one.nbytes for one in header.chunks) != len(content):
            raise InputError("the part is not as long as its header says")
        bodies = []
        for one in header.chunks:
            bodies.append(content[start : start + one.nbytes])
            start += one.nbytes
        return cls(header, bodies)

    def check(self, fields: Mapping[str, str], label_fields: Mapping[str, str]) -> None:
        """Look at everything that a reader of the chunks will rely on.

        Args:
            fields: The types of the additional fields of inputs that are declared, by name.
            label_fields: The same for ground truth.

        Raises:
            InputError: Something is not as it must be; it is named.
        """
        declared = {f"input/{name}": kind for name, kind in fields.items()}
        declared |= {f"label/{name}": kind for name, kind in label_fields.items()}
        for number, (one, body) in enumerate(zip(self.header.chunks, self.bodies, strict=True)):
            try:
                _check(one, body, declared)
            except InputError as error:
                raise InputError(f"chunk {number} of the part: {error}") from error


def _check(chunk: ChunkHeader, body: Bytes, declared: Mapping[str, str]) -> None:
    layout = _layout(chunk, declared)
    spans = _spans(chunk, layout)
    if checksum([body]) != chunk.crc:
        raise InputError("its bytes do not have the checksum that it names")
    for side, units in (("predicted", chunk.units), ("actual", chunk.actuals)):
        counts = layout.get(f"{side}/{COUNTS}")
        if counts is None:
            if units not in (None, chunk.inputs):
                raise InputError(f"it has {units} {side} units for {chunk.inputs} inputs")
            continue
        if counts.type != "<i4" or counts.shape:
            raise InputError(f"{counts.name} has type {counts.type}, expected <i4")
        values = np.frombuffer(body, np.int32, chunk.inputs, int(spans[counts.first, 0]))
        if (values < 0).any() or int(values.sum(dtype=np.int64)) != units:
            raise InputError(f"{counts.name} does not add up to {units} units")
    for column in layout.values():
        if column.arrow is not None:
            _check_arrow(column, chunk.inputs, spans, body)


def _layout(chunk: ChunkHeader, declared: Mapping[str, str]) -> Layout:
    for name, kind, shape in chunk.columns:
        if not NAME.fullmatch(name):
            raise InputError(f"a column cannot be called {name[:80]!r}")
        if kind.startswith(ARROW):
            known = kind.removeprefix(ARROW)
            wanted = "str" if name == INPUT_ID else declared.get(name)
            if wanted is None:
                raise InputError(f"{name} was not declared")
            if known not in ARROW_TYPES or (
                known != wanted
                and not (known == "text" and pa.types.is_string(FIELD_TYPES[wanted]))
            ):
                raise InputError(f"{name} has type {known[:20]!r}, expected {wanted!r}")
            if shape:
                raise InputError(f"{name} is a text or a field, and has a shape")
            continue
        if not NUMBERS.fullmatch(kind) or np.dtype(kind).str != kind:
            raise InputError(f"{name} has type {kind[:20]!r}, expected numbers")
        # NumPy multiplies the sizes of axes as if none were 0.
        if np.dtype(kind).itemsize * math.prod(size or 1 for size in shape) > VALUE_BYTES:
            raise InputError(f"a value of {name} has shape {tuple(shape)}, which is too large")
        if name.startswith(("input/", "label/")) and name != RECORDED_AT:
            raise InputError(f"{name} was not declared")
    layout = Layout.parse(chunk.layout)
    if len(layout) != len(chunk.columns):
        raise InputError("a column is there twice")
    if chunk.actuals is None and any(name.startswith(("actual/", "label/")) for name in layout):
        raise InputError("it has columns of ground truth, and says that it has no ground truth")
    times = layout.get(RECORDED_AT)
    if INPUT_ID not in layout or times is None or times.type != "<i8" or times.shape:
        raise InputError(f"it needs the columns {INPUT_ID} and {RECORDED_AT}")
    return layout


def _spans(chunk: ChunkHeader, layout: Layout) -> NDArray[np.int64]:
    """Return where buffers lie, after a look whether they are where they can be."""
    if chunk.nbytes % ALIGNMENT:
        raise InputError(f"its {chunk.nbytes} bytes are no multiple of {ALIGNMENT}")
    # Columns without width take no bytes, so that their length alone could fill a reader's memory.
    if (units := max(chunk.units, chunk.actuals or 0)) > chunk.nbytes:
        raise InputError(f"it has {units} units in {chunk.nbytes} bytes")
    end = 0
    for start, size in chunk.spans:
        if start % ALIGNMENT or start < end or start + size > chunk.nbytes:
            raise InputError("its buffers overlap, or reach beyond its bytes")
        end = start + size
    sizes = [1 if one.arrow is None else one.arrow.num_buffers for one in layout.values()]
    if sum(sizes) != len(chunk.spans):
        raise InputError(f"it has {len(chunk.spans)} buffers, expected {sum(sizes)}")
    for column in layout.values():
        if column.arrow is not None:
            continue
        side = column.name.partition("/")[0]
        length = chunk.units if side == "predicted" else chunk.actuals or 0
        if side in ("input", "label") or column.name.endswith(f"/{COUNTS}"):
            length = chunk.inputs
        expected = length * width(column)
        if chunk.spans[column.first][1] != expected:
            raise InputError(
                f"{column.name} has {chunk.spans[column.first][1]} bytes, expected {expected}"
            )
    return np.array(chunk.spans, np.int64).reshape(-1, 2)


def _check_arrow(column: Column, length: int, spans: NDArray[np.int64], body: Bytes) -> None:
    assert column.arrow is not None  # the caller has looked
    mine = spans[column.first : column.first + column.arrow.num_buffers]
    data = body[int(mine[0, 0]) : int(mine[-1].sum())]
    try:
        values = decode(column, length, mine, data)
        values.validate(full=True)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{column.name} is damaged: {str(error)[:200]}") from None
    if pa.types.is_timestamp(values.type):
        found = [one.value for one in pc.min_max(values).values() if one.is_valid]
        if any(not MOMENTS[0] <= one <= MOMENTS[1] for one in found):
            raise InputError(f"{column.name} has moments that are not in the years 1 to 9999")
    if column.name == INPUT_ID and values.null_count:
        raise InputError(f"{INPUT_ID} is missing for {values.null_count} inputs")
