"""Reading an export that may come from anywhere: nothing in it is believed unchecked."""

import hashlib
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ml_debugger.core.errors import ArchiveError, InputError, SchemaError, StoreError
from ml_debugger.core.store.contract import Purpose
from ml_debugger.core.store.interchange import (
    INPUT,
    KEYS,
    NAMES,
    TABLES,
    Numbers,
    Part,
    input_types,
    text_bytes,
)

KIND = "ml-debugger records"
MANIFEST = "manifest.json"
FORMAT = 1

MANIFEST_BYTES = 64 << 20
PART_BYTES = 4 << 30  # decoded; ours have about 64 MiB
MOST_EXPANSION = 100  # Parquet is compressed already, so a ZIP of it hardly shrinks
BLOCK = 1 << 20
_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError)
MEMBER = re.compile(r"(input|extracted_feature|ground_truth)/part-\d{4,}\.parquet")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class MemberEntry(_Strict):
    """A file in the archive."""

    sha256: str
    bytes: int = Field(ge=0)


class PartEntry(_Strict):
    """Some records with the same columns: the file and the number of rows of each table."""

    members: dict[str, str]
    rows: dict[str, int]
    columns: list[tuple[str, str, list[int]]]
    ragged: list[Literal["predicted", "actual"]]

    def numbers(self) -> tuple[Numbers, ...]:
        """Return the columns of units."""
        return tuple(Numbers(name, kind, tuple(shape)) for name, kind, shape in self.columns)


class RunEntry(_Strict):
    """A run that records come from."""

    run: str = Field(min_length=1)
    purpose: Purpose
    host: str
    world_size: int = Field(ge=1)
    started_at: str
    settings: dict[str, FiniteFloat | int | None] = Field(default_factory=dict)


class Manifest(_Strict):
    """What an archive says about itself."""

    kind: str
    format: int
    schema_number: int
    model_name: str = Field(min_length=1)
    version_name: str = Field(min_length=1)
    task: str
    architecture: list[str]
    architecture_hash: str
    layers: dict[str, str]
    fields: list[dict[str, Any]]
    label_fields: list[dict[str, Any]]
    epochs: list[int | None]
    dataset_types: list[str]
    runs: list[RunEntry]
    rows: dict[str, int]
    parts: list[PartEntry]
    members: dict[str, MemberEntry]
    written_by: dict[str, str]
    written_at: str


class Archive:
    """An export whose every byte has been checked against its manifest."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self._path = path
        self._file = file
        self.manifest = self._manifest()
        try:
            self._types = input_types(
                *(
                    {one["name"]: one["type"] for one in declared}
                    for declared in (self.manifest.fields, self.manifest.label_fields)
                )
            )
        except (KeyError, TypeError) as error:
            raise self._damaged(f"a declared field is malformed ({error})") from error
        self._check_members()
        for _ in self.parts():
            pass  # whatever could fail later fails now, before anything is written

    def parts(self) -> Iterator[Part]:
        """Yield the parts, one at a time in memory."""
        for number, entry in enumerate(self.manifest.parts):
            try:
                yield self._part(entry)
            except _UNREADABLE as error:
                if isinstance(error, InputError | StoreError):
                    raise
                raise self._damaged(f"part {number} cannot be read ({error})") from error

    def _damaged(self, what: str) -> ArchiveError:
        return ArchiveError(
            f"{self._path} is damaged or not from ml-debugger: {what}. Nothing was imported; "
            "export it again"
        )

    def _manifest(self) -> Manifest:
        names = self._file.namelist()
        if MANIFEST not in names:
            raise ArchiveError(
                f"{self._path} is a ZIP without {MANIFEST}, not an export of ml-debugger"
            )
        if len(set(names)) != len(names):
            raise self._damaged("two files in it have the same name")
        info = self._file.getinfo(MANIFEST)
        if info.file_size > MANIFEST_BYTES:
            raise self._damaged(f"{MANIFEST} would take {info.file_size:,} bytes")
        try:
            raw = json.loads(b"".join(self._blocks(MANIFEST, info.file_size)))
        except ValueError as error:
            raise self._damaged(f"{MANIFEST} is not JSON") from error
        if not isinstance(raw, dict) or raw.get("kind") != KIND:
            raise ArchiveError(f"{self._path} is not an export of ml-debugger")
        if isinstance(raw.get("format"), int) and raw["format"] > FORMAT:
            raise SchemaError(
                f"{self._path} has format {raw['format']}, this ml-debugger reads up to {FORMAT}; "
                "upgrade ml-debugger"
            )
        try:
            return Manifest.model_validate(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise self._damaged(f"{MANIFEST}, {where}: {first['msg']}") from error

    def _check_members(self) -> None:
        named = {name for part in self.manifest.parts for name in part.members.values()}
        listed = self.manifest.members
        if named != set(listed):
            raise self._damaged("its list of files does not fit its parts")
        present = set(self._file.namelist()) - {MANIFEST}
        if missing := sorted(set(listed) - present):
            raise self._damaged(f"{missing[0]} is missing")
        if foreign := sorted(one for one in present - set(listed) if not one.endswith("/")):
            raise self._damaged(f"{foreign[0]!r} does not belong in it")
        if wrong := sorted(name for name in listed if not MEMBER.fullmatch(name)):
            raise self._damaged(f"{wrong[0]!r} is not the name of a table")
        total = sum(entry.bytes for entry in listed.values())
        if total > MOST_EXPANSION * self._path.stat().st_size:
            raise self._damaged(f"it claims to hold {total:,} bytes")
        if total > (free := shutil.disk_usage(tempfile.gettempdir()).free):
            raise StoreError(f"{self._path} takes {total:,} bytes to unpack, {free:,} are free")
        for name, entry in listed.items():
            size = self._file.getinfo(name).file_size
            if size != entry.bytes:
                raise self._damaged(f"{name} has {size:,} bytes instead of {entry.bytes:,}")
            digest = hashlib.sha256()
            for block in self._blocks(name, size):
                digest.update(block)
            if digest.hexdigest() != entry.sha256:
                raise self._damaged(f"{name} has changed since it was written")

    def _blocks(self, name: str, size: int) -> Iterator[bytes]:
        """Yield a member's bytes, which must be exactly as many as declared."""
        count = 0
        try:
            with self._file.open(name) as member:
                while block := member.read(BLOCK):
                    count += len(block)
                    if count > size:
                        break
                    yield block
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
            raise self._damaged(f"{name}: {error}") from error
        if count != size:
            raise self._damaged(f"{name} does not have {size:,} bytes")

    def _part(self, entry: PartEntry) -> Part:
        columns = entry.numbers()
        if not {INPUT, "extracted_feature"} <= entry.members.keys() <= {INPUT, *TABLES}:
            raise self._damaged("the tables of a part are not ours")
        for column in columns:
            if np.dtype(column.type).kind not in "biuf" or min(column.shape, default=0) < 0:
                raise self._damaged(f"column {column.name} has type {column.type}")
            if not column.name.startswith(("predicted/", "actual/")) or "#" in column.name:
                raise self._damaged(f"{column.name!r} is not a column")
        tables = {}
        for table, member in entry.members.items():
            types = self._types if table == INPUT else _unit_types(table, columns)
            own = [c for c in columns if table != INPUT and c.name.startswith(TABLES[table])]
            width = 8 * len(types) + sum(column.nbytes for column in own)
            tables[table] = self._table(member, entry.rows.get(table, -1), types, width)
        for table, side in TABLES.items():
            counts = tables[INPUT][f"{side}/#counts"].to_numpy()
            rows = tables[table].num_rows if table in tables else 0
            if (counts < 0).any() or int(counts.sum(dtype=np.int64)) != rows:
                raise self._damaged(f"{table} has {rows} rows, the inputs say {counts.sum()}")
            if side not in entry.ragged and table in tables and (counts != 1).any():
                raise self._damaged(f"{table} does not have one row an input")
        runs = {one.run for one in self.manifest.runs}
        if unknown := set(tables[INPUT]["input/run"].unique().to_pylist()) - runs:
            raise self._damaged(f"run {unknown.pop()!r} is not in its manifest")
        return Part(columns, tuple(entry.ragged), tables)

    def _table(self, member: str, rows: int, types: dict[str, pa.DataType], width: int) -> pa.Table:
        with tempfile.TemporaryFile() as copy:  # Parquet is read from its end
            for block in self._blocks(member, self._file.getinfo(member).file_size):
                copy.write(block)
            return self._parquet(copy, member, rows, types, width)

    def _parquet(
        self, file: IO[bytes], member: str, rows: int, types: dict[str, pa.DataType], width: int
    ) -> pa.Table:
        # Text stays a dictionary until its size is known: a short file can spell out to terabytes.
        texts = [name for name, kind in types.items() if kind == pa.string()]
        parquet = pq.ParquetFile(file, read_dictionary=texts)
        metadata = parquet.metadata
        if metadata.num_rows != rows:
            raise self._damaged(f"{member} has {metadata.num_rows} rows instead of {rows}")
        groups = [metadata.row_group(k).total_byte_size for k in range(metadata.num_row_groups)]
        if rows * width > PART_BYTES or sum(groups) > PART_BYTES:
            raise self._damaged(f"{member} would take {max(rows * width, sum(groups)):,} bytes")
        schema = parquet.schema_arrow
        for name, expected in types.items():
            at = schema.get_field_index(name)
            found = None if at < 0 else schema.field(at).type
            if found is not None and pa.types.is_dictionary(found):
                found = found.value_type
            if found is None or not _fits(found, expected):
                raise self._damaged(f"{member}: column {name} is {found}, expected {expected}")
        table = parquet.read(columns=list(types))
        if text_bytes(table) > PART_BYTES:
            raise self._damaged(f"{member} would take {text_bytes(table):,} bytes")
        return pa.table(
            {
                name: table[name].cast(expected) if name in texts else table[name]
                for name, expected in types.items()
            }
        )


def _fits(found: pa.DataType, expected: pa.DataType) -> bool:
    if pa.types.is_fixed_size_list(found) and pa.types.is_fixed_size_list(expected):
        same_size = found.list_size == expected.list_size
        return bool(same_size and found.value_type == expected.value_type)
    if expected == pa.string():
        return bool(found in (pa.string(), pa.large_string()))
    return bool(found == expected)


def _unit_types(table: str, columns: tuple[Numbers, ...]) -> dict[str, pa.DataType]:
    start = f"{TABLES[table]}/"
    own = [column for column in columns if column.name.startswith(start) and column.stored]
    keys = {NAMES[name]: type_ for name, type_ in KEYS.items() if name.endswith("/id")}
    return {**keys, **{column.name.removeprefix(start): column.arrow for column in own}}


@contextmanager
def inspected(path: Path) -> Iterator[Archive]:
    """Open an export and check all of it.

    Raises:
        ArchiveError: It is not an export, or it is damaged.
        SchemaError: A newer version of ml-debugger wrote it.
        StoreError: It cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as file:
            yield Archive(path, file)
    except zipfile.BadZipFile as error:
        raise ArchiveError(f"{path} is not a ZIP file, or it is cut short ({error})") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"there is no file {path}") from error
    except PermissionError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
