"""Hand records over in one file: a ZIP of Parquet tables that other tools read as well."""

import hashlib
import json
import platform
import re
import uuid
import zipfile
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from os import PathLike
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ml_debugger.core.errors import ArchiveError, InputError, StoreError
from ml_debugger.core.layers import architecture_hash
from ml_debugger.core.records import ModelVersion
from ml_debugger.core.store import LocalRepository, Repository, Scope, Store
from ml_debugger.core.store.columns import RECORDED_AT
from ml_debugger.core.store.inspection import FORMAT, KIND, MANIFEST, Archive, inspected
from ml_debugger.core.store.interchange import Incoming, to_part
from ml_debugger.core.store.schema import SCHEMA

LIBRARIES = ("ml-debugger-core", "torch", "numpy", "pyarrow")
LONGEST_NAME = 150
PART_BYTES = 64 << 20  # what a piece takes in memory


class Imported(NamedTuple):
    """What an import did.

    Attributes:
        version: The model version that the records belong to.
        task: Its task.
        inputs: How many inputs were written.
        skipped: How many were left out, being there already, as old or newer.
        runs: The runs that they come from.
    """

    version: ModelVersion
    task: str
    inputs: int
    skipped: int
    runs: tuple[str, ...]


def export_archive(
    repository: Repository, scope: Scope, target: str | PathLike[str] | None = None
) -> Path:
    """Write records to a ZIP of Parquet tables, a piece at a time in memory.

    `extracted_feature/` and `ground_truth/` have one row a unit, with the ids and additional
    fields of its input and a list of fixed size for each vector; `input/` has one row an input.

    Args:
        repository: Whose records.
        scope: Which of them.
        target: A file that ends in `.zip`, or a folder, where the file is called after model and
            version; None for the current folder. What is there is replaced once all is written.

    Raises:
        InputError: The folder does not exist.
        StoreError: It cannot be written there, or the records are damaged.
    """
    path = _target(repository.version, target)
    hidden = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with zipfile.ZipFile(hidden, "x") as file:
            _write(file, repository, scope)
        hidden.replace(path)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    finally:
        with suppress(OSError):
            hidden.unlink()
    return path


def import_archive(store: Store, file: str | PathLike[str]) -> Imported:
    """Read an export into the store, under the model version that it was made of.

    All of it is checked before anything is written. Importing again, or where the records came
    from, changes nothing: of two records of an id in one run, epoch and data set the newer stays.

    Args:
        store: Where to.
        file: What `export_archive` wrote, on this machine or another.

    Raises:
        ArchiveError: It is not an export, or it is damaged.
        SchemaError: A newer version of ml-debugger wrote it.
        ArchitectureMismatchError: The model name stands for another architecture here.
        InputError: There is no such file, or the version is of another task here.
        StoreError: It cannot be read, or the store cannot be written.
    """
    with inspected(Path(file)) as archive:
        manifest = archive.manifest
        version = ModelVersion(manifest.model_name, manifest.version_name)
        if architecture_hash(manifest.architecture) != manifest.architecture_hash:
            raise ArchiveError(f"{file} is damaged: its architecture does not fit its hash")
        repository = store.register(
            version,
            task=manifest.task,
            architecture=manifest.architecture,
            layers=manifest.layers,
            fields=manifest.fields,
            label_fields=manifest.label_fields,
        )
        for run in manifest.runs:
            repository.start_run(
                run.purpose, run=run.run, world_size=run.world_size, settings=run.settings
            )
        written, skipped = _read(archive, repository)
        runs = tuple(run.run for run in manifest.runs)
        return Imported(version, manifest.task, written, skipped, runs)


def _target(version: ModelVersion, target: str | PathLike[str] | None) -> Path:
    path = Path.cwd() if target is None else Path(target).expanduser()
    if path.is_dir() or path.suffix.lower() != ".zip":
        safe = [re.sub(r"[^\w.-]+", "_", name)[: LONGEST_NAME // 2] for name in version]
        path = path / f"{safe[0]}_{safe[1]}_extracted.zip"
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}; make it, or export elsewhere")
    return path.absolute()


def _write(file: zipfile.ZipFile, repository: Repository, scope: Scope) -> None:
    records = repository.records(scope)
    members: dict[str, Any] = {}
    parts: list[dict[str, Any]] = []
    rows = {"input": 0, "extracted_feature": 0, "ground_truth": 0}
    for number, piece in enumerate(records.parts(PART_BYTES)):
        piece.check()
        part = to_part(piece)
        names = {}
        for name, table in part.tables.items():
            member = names[name] = f"{name}/part-{number:04d}.parquet"
            members[member] = _write_table(file, member, table)
            rows[name] += table.num_rows
        parts.append(
            {
                "members": names,
                "rows": {name: table.num_rows for name, table in part.tables.items()},
                "columns": part.columns,
                "ragged": part.ragged,
            }
        )
    manifest = {
        "kind": KIND,
        "format": FORMAT,
        "schema_number": SCHEMA,
        "model_name": repository.version.model_name,
        "version_name": repository.version.version_name,
        "task": repository.task,
        "architecture": repository.architecture,
        "architecture_hash": repository.architecture_hash,
        "layers": repository.layers,
        "fields": repository.fields,
        "label_fields": repository.label_fields,
        "epochs": records.n_epochs,
        "dataset_types": records.dataset_types,
        "runs": [
            {
                "run": one.run,
                "purpose": one.purpose,
                "host": one.host,
                "world_size": one.world_size,
                "started_at": one.started_at.isoformat(),
                "settings": dict(one.settings),
            }
            for one in repository.runs()
            if one.run in records.runs
        ],
        "rows": rows,
        "parts": parts,
        "members": members,
        "written_by": {
            "python": platform.python_version(),
            **{name: installed_version(name) for name in LIBRARIES},
        },
        "written_at": datetime.now(UTC).isoformat(),
    }
    file.writestr(MANIFEST, json.dumps(manifest, indent=1, default=str))


def _write_table(file: zipfile.ZipFile, member: str, table: pa.Table) -> dict[str, Any]:
    # A dictionary of float vectors costs time and saves nothing.
    plain = [field.name for field in table.schema if not pa.types.is_fixed_size_list(field.type)]
    with file.open(member, "w", force_zip64=True) as raw:
        out = _Hashing(raw)
        with pa.PythonFile(out, mode="w") as sink:
            pq.write_table(table, sink, compression="zstd", use_dictionary=plain)
    return {"sha256": out.digest.hexdigest(), "bytes": out.count}


class _Hashing:
    """A file that knows the hash of what went through it."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.count = 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.digest.update(view)
        self.count += view.nbytes
        return self._file.write(view)

    def tell(self) -> int:
        return self.count

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True


def _read(archive: Archive, repository: LocalRepository) -> tuple[int, int]:
    written = skipped = 0
    for part in archive.parts():
        incoming = Incoming(part)
        for (run, n_epoch, dataset_type), rows in incoming.groups():
            known = repository.records(Scope((dataset_type,), n_epoch, (run,)))
            found = known.find([incoming.ids[k] for k in rows])
            new = found < 0
            if not new.all():
                times = known.column(RECORDED_AT, found[~new])
                new[~new] = times < incoming.times[rows[~new]]
            repository.write(run, list(incoming.batches(rows[new])))
            written += int(new.sum())
            skipped += int((~new).sum())
    return written, skipped
