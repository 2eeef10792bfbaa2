"""The columns of a chunk: how batches become byte arrays, and byte arrays columns again."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ml_debugger.core.errors import InputError
from ml_debugger.core.records import Array, Batch, Units
from ml_debugger.core.store.segments import ALIGNMENT, Bytes, as_bytes

INPUT_ID = "input/id"
RECORDED_AT = "input/recorded_at"
COUNTS = "#counts"
ARROW = "arrow:"

#: What an additional field may be, and how Arrow holds it.
FIELD_TYPES: Mapping[str, pa.DataType] = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "datetime": pa.timestamp("us", tz="UTC"),
    "json": pa.string(),
}
ARROW_TYPES: Mapping[str, pa.DataType] = {**FIELD_TYPES, "text": pa.large_string()}

SMALL_BYTES = 16384  # below this, one copy is cheaper than one more entry of a pwritev
_PAD = memoryview(bytes(ALIGNMENT))


class Column(NamedTuple):
    """One column of a chunk.

    Attributes:
        name: `input/...`, `predicted/...`, `actual/...` or `label/...`.
        type: A NumPy dtype, or `arrow:` and a name of `ARROW_TYPES`.
        shape: The shape of one value.
        first: Position of its first buffer in the chunk.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    first: int

    @property
    def arrow(self) -> pa.DataType | None:
        """The Arrow type, or None for a column of plain numbers."""
        if not self.type.startswith(ARROW):
            return None
        return ARROW_TYPES[self.type.removeprefix(ARROW)]


class Layout(dict[str, Column]):
    """The columns of a chunk by name, in the order in which they lie there."""

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Read what `Encoded.layout` wrote."""
        layout, first = cls(), 0
        for name, type_, shape in json.loads(text):
            column = layout[name] = Column(name, type_, tuple(shape), first)
            first += 1 if column.arrow is None else column.arrow.num_buffers
        return layout


@dataclass(frozen=True, slots=True)
class Encoded:
    """A chunk that is ready to be written.

    Attributes:
        n_epoch: The epoch of its batches.
        dataset_type: The data set of its batches.
        layout: Its columns, as JSON.
        inputs: How many inputs it has.
        units: How many predicted units.
        actuals: How many actual units; None without ground truth.
        buffers: Start (within the chunk) and length of each buffer, as int64 pairs.
        pieces: The bytes, in order, padding included; they still belong to the batches.
        nbytes: Their total, a multiple of 64.
        origin: What it is called elsewhere: nothing, since it is made here.
    """

    n_epoch: int | None
    dataset_type: str
    layout: str
    inputs: int
    units: int
    actuals: int | None
    buffers: bytes
    pieces: list[Bytes]
    nbytes: int
    origin: None = None


@dataclass(slots=True)
class _Group:
    """Batches that become one chunk."""

    signature: tuple[Any, ...]
    plains: list["_Plain"] = field(default_factory=list)
    nbytes: int = 0


class _Plain(NamedTuple):
    """A batch whose tensors have become arrays, with what decides about its chunk."""

    batch: Batch
    predicted: dict[str, Array]
    actual: dict[str, Array] | None
    signature: tuple[Any, ...]
    nbytes: int


def encode(
    batches: Sequence[Batch],
    fields: Mapping[str, Mapping[str, Any]],
    label_fields: Mapping[str, Mapping[str, Any]],
    max_bytes: int,
) -> Iterator[Encoded]:
    """Group batches into chunks of one epoch, data set and set of columns.

    Args:
        batches: In the order in which they were recorded; the order of two records of the same
            epoch and data set is kept.
        fields: Declarations of the additional columns of inputs, by name.
        label_fields: The same for ground truth.
        max_bytes: Where a chunk ends and the next begins; a single larger batch stays whole.

    Raises:
        InputError: Columns of a batch have different lengths or cannot be stored.
    """
    groups: list[_Group] = []
    current: dict[tuple[str, int | None], _Group] = {}
    for batch in batches:
        if not len(batch.input_ids):
            continue
        plain = _plain(batch)
        key = (batch.dataset_type, batch.n_epoch)
        group = current.get(key)
        if (
            group is None
            or group.signature != plain.signature
            or group.nbytes + plain.nbytes > max_bytes
        ):
            group = current[key] = _Group(plain.signature)
            groups.append(group)
        group.plains.append(plain)
        group.nbytes += plain.nbytes
    for group in groups:
        yield _encode(group.plains, fields, label_fields)


def decode(column: Column, length: int, spans: NDArray[np.int64], data: Bytes) -> pa.Array:
    """Make an Arrow column of its bytes, without copying them.

    Args:
        column: What it is.
        length: How many values it has.
        spans: Start and length of its buffers, in a chunk.
        data: The bytes of the chunk from the first start on.
    """
    whole = pa.py_buffer(data)
    origin = spans[0, 0]
    buffers = [whole.slice(int(start - origin), int(size)) for start, size in spans]
    validity = buffers[0] if buffers[0].size else None
    return pa.Array.from_buffers(column.arrow, length, [validity, *buffers[1:]])


def to_arrow(values: Sequence[Any], kind: str, name: str) -> pa.Array:
    """Make an Arrow column of a field's values.

    Raises:
        InputError: A value is not of the field's type.
    """
    type_ = ARROW_TYPES[kind]
    try:
        array = pa.array(values, type=type_, from_pandas=False)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} cannot be stored as {kind}: {error}") from error
    if isinstance(array, pa.ChunkedArray):  # more than 2 GiB of text
        array = pa.array(values, type=pa.large_string())
    return array


def _plain(batch: Batch) -> _Plain:
    inputs = len(batch.input_ids)
    predicted = _arrays("predicted", batch.predicted, inputs)
    actual = None if batch.actual is None else _arrays("actual", batch.actual, inputs)
    both = [predicted] if actual is None else [predicted, actual]
    signature = tuple(
        tuple((name, values.dtype.str, values.shape[1:]) for name, values in one.items())
        for one in both
    )
    nbytes = sum(values.nbytes for one in both for values in one.values())
    return _Plain(batch, predicted, actual, signature, nbytes)


def _arrays(side: str, units: Units[Any], inputs: int) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    length = inputs
    if units.counts is not None:
        counts = np.asarray(_array(units.counts, f"{side} counts"), np.int32)
        if counts.shape != (inputs,) or (counts < 0).any():
            raise InputError(
                f"{side} counts have shape {counts.shape}, expected one count >= 0 for each of "
                f"{inputs} inputs"
            )
        arrays[f"{side}/{COUNTS}"] = counts
        length = int(counts.sum())
    for name, values in units.columns.items():
        array = arrays[f"{side}/{name}"] = _array(values, f"{side} column {name!r}")
        if array.ndim == 0 or len(array) != length:
            raise InputError(
                f"{side} column {name!r} has shape {array.shape}, expected {length} values"
            )
    return arrays


def _array(values: Any, name: str) -> Array:
    """Return the host memory of a tensor as an array; copied only where it must be."""
    try:
        array: Array = values.numpy(force=True)
    except TypeError:
        if not values.is_floating_point():
            raise InputError(f"{name} has dtype {values.dtype}, which cannot be stored") from None
        array = values.float().numpy(force=True)  # bfloat16 and the 8-bit floats, exactly
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} has dtype {array.dtype}, which cannot be stored")
    return np.ascontiguousarray(array)


def _encode(
    group: Sequence[_Plain],
    fields: Mapping[str, Mapping[str, Any]],
    label_fields: Mapping[str, Mapping[str, Any]],
) -> Encoded:
    batches = [one.batch for one in group]
    chunk = _Chunk()
    ids = [one for batch in batches for one in batch.input_ids]
    chunk.add_arrow(INPUT_ID, "str", to_arrow(ids, "str", INPUT_ID))
    sizes = [len(batch.input_ids) for batch in batches]
    times = np.repeat(np.array([batch.recorded_at for batch in batches], np.int64), sizes)
    chunk.add(RECORDED_AT, [times])
    _add_fields(chunk, "input", fields, batches, lambda batch: batch.fields)
    for name in group[0].predicted:
        chunk.add(name, [one.predicted[name] for one in group])
    units = _length("predicted", [one.predicted for one in group], len(ids))
    actuals = None
    if group[0].actual is not None:
        sides = [one.actual for one in group if one.actual is not None]
        _add_fields(chunk, "label", label_fields, batches, lambda batch: batch.label_fields)
        for name in sides[0]:
            chunk.add(name, [one[name] for one in sides])
        actuals = _length("actual", sides, len(ids))
    return Encoded(
        n_epoch=batches[0].n_epoch,
        dataset_type=batches[0].dataset_type,
        layout=json.dumps(chunk.columns, separators=(",", ":")),
        inputs=len(ids),
        units=units,
        actuals=actuals,
        buffers=np.array(chunk.spans, np.int64).tobytes(),
        pieces=chunk.pieces,
        nbytes=chunk.end,
    )


def _length(side: str, arrays: Sequence[dict[str, Array]], inputs: int) -> int:
    name = f"{side}/{COUNTS}"
    return sum(int(one[name].sum()) for one in arrays) if name in arrays[0] else inputs


def _add_fields(
    chunk: "_Chunk",
    side: str,
    fields: Mapping[str, Mapping[str, Any]],
    batches: Sequence[Batch],
    get: Callable[[Batch], Mapping[str, Sequence[Any]]],
) -> None:
    for batch in batches:
        if unknown := sorted(set(get(batch)) - set(fields)):
            raise InputError(
                f"{side} field {unknown[0]!r} was not declared; declared: "
                f"{', '.join(sorted(fields)) or 'none'}"
            )
    for name, declared in fields.items():
        values: list[Any] = []
        for batch in batches:
            size = len(batch.input_ids)
            given = get(batch).get(name)
            if given is None:
                given = [None] * size
            if len(given) != size:
                raise InputError(f"{side} field {name!r} has {len(given)} values for {size} inputs")
            values.extend(given)
        kind = declared["type"]
        column = f"{side}/{name}"
        chunk.add_arrow(column, kind, to_arrow(values, kind, column))


class _Chunk:
    """A chunk as it grows: columns, where their buffers lie, and the bytes."""

    def __init__(self) -> None:
        self.columns: list[tuple[str, str, tuple[int, ...]]] = []
        self.spans: list[tuple[int, int]] = []
        self.pieces: list[Bytes] = []
        self.end = 0

    def add(self, name: str, arrays: Sequence[Array]) -> None:
        first = arrays[0]
        self.columns.append((name, first.dtype.str, first.shape[1:]))
        nbytes = sum(array.nbytes for array in arrays)
        if len(arrays) > 1 and nbytes < SMALL_BYTES * len(arrays):
            arrays = [np.concatenate(arrays)]
        self._append([as_bytes(array) for array in arrays if array.nbytes], nbytes)

    def add_arrow(self, name: str, kind: str, array: pa.Array) -> None:
        kind = "text" if array.type == pa.large_string() else kind
        self.columns.append((name, ARROW + kind, ()))
        for buffer in array.buffers():
            size = 0 if buffer is None else buffer.size
            self._append([memoryview(buffer).cast("B")] if size else [], size)

    def _append(self, pieces: Sequence[Bytes], nbytes: int) -> None:
        self.spans.append((self.end, nbytes))
        self.pieces.extend(pieces)
        self.end += nbytes
        if pad := -self.end % ALIGNMENT:
            self.pieces.append(_PAD[:pad])
            self.end += pad


def width(column: Column) -> int:
    """Return the bytes of one value of a column of plain numbers."""
    return np.dtype(column.type).itemsize * math.prod(column.shape)
