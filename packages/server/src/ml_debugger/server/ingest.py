"""From a compressed body of unknown origin to records of a version, or to a refusal."""

import hashlib
import mmap
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import IO

import pyarrow as pa

from ml_debugger.core.errors import InputError, SchemaError
from ml_debugger.core.store import LocalRepository
from ml_debugger.core.store.parts import ChunkHeader, Part
from ml_debugger.core.task import task_named
from ml_debugger.server.problems import Problem
from ml_debugger.server.quotas import Quotas, counting, quotas_of
from ml_debugger.server.service import Service

BLOCK = 1 << 20


def take_in(
    service: Service,
    organization_id: str,
    repository: LocalRepository,
    digest: str,
    file: IO[bytes],
    is_first: Callable[[], bool],
) -> int:
    """Add a part to a version; return how many of its inputs are new.

    Everything is checked before anything is written, and what is unpacked lies in a file without
    a name, so that a refused part leaves nothing behind and takes little memory.

    Args:
        service: Whose quotas and limits hold.
        organization_id: Who records.
        repository: The version.
        digest: The SHA-256 that the part is called by.
        file: The part, compressed with Zstandard.
        is_first: Tells whether the model has no records yet.

    Raises:
        Problem: 413; it is larger than allowed.
        InputError: It is damaged, of a later version, not what it is called, or does not fit.
        LicenseError: A quota is exhausted.
        StoreError: It cannot be written.
    """
    limit = service.settings.max_part_bytes
    with tempfile.TemporaryFile(dir=service.settings.data / "incoming") as unpacked:
        size = _unpack(file, unpacked, digest, limit)
        if not size:
            raise InputError("the part is empty")
        # never closed, but gone with the last view of it: the frames of an error still hold some
        content = mmap.mmap(unpacked.fileno(), size, access=mmap.ACCESS_READ)
        return _add(service, organization_id, repository, memoryview(content), is_first)


def _unpack(file: IO[bytes], target: IO[bytes], digest: str, limit: int) -> int:
    found = hashlib.sha256()
    size = 0
    file.seek(0)
    try:
        with pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd") as source:
            while block := source.read(BLOCK):
                size += len(block)
                if size > limit:
                    raise Problem(413, f"a part may have {limit:,} bytes, unpacked")
                found.update(block)
                target.write(block)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError("the part is not a whole Zstandard frame; send it again") from error
    target.flush()
    if found.hexdigest() != digest:
        raise InputError("the part does not have the SHA-256 that it is called by; send it again")
    return size


def _add(
    service: Service,
    organization_id: str,
    repository: LocalRepository,
    content: memoryview,
    is_first: Callable[[], bool],
) -> int:
    try:
        part = Part.unpack(content)
    except SchemaError as error:  # whoever sent it is to be told, and of our own files nobody
        raise InputError(str(error)) from None
    _check_task(repository, part)

    def check(quotas: Quotas, new: Sequence[ChunkHeader]) -> None:
        # what is sent again takes nothing of a quota
        quotas.check(
            models=int(bool(new) and is_first()),
            records=sum(one.inputs for one in new),
            nbytes=sum(one.nbytes for one in new),
        )

    @contextmanager
    def admission() -> Iterator[Callable[[Sequence[ChunkHeader]], None]]:
        with counting(service, organization_id) as quotas:
            yield partial(check, quotas)

    # what does not fit is not written first; what does is written before anybody has to wait
    check(quotas_of(service, organization_id), repository.missing(part))
    return repository.adopt(part, admission())


def _check_task(repository: LocalRepository, part: Part) -> None:
    """Refuse chunks without the columns that the task's evaluation will ask for."""
    schema = task_named(repository.task).schema
    sides = {"predicted": schema.extracted_feature, "actual": schema.ground_truth}
    for number, chunk in enumerate(part.header.chunks):
        there = {name: (kind, shape) for name, kind, shape in chunk.columns}
        for side, columns in sides.items():
            if side == "actual" and chunk.actuals is None:
                continue
            for column in columns:
                kind, shape = there.get(f"{side}/{column.name}", ("", []))
                if kind[1:2] not in _KINDS[column.type] or shape:
                    raise InputError(
                        f"chunk {number} of the part: the task {repository.task} needs a column "
                        f"{side}/{column.name} of {column.type.__name__}"
                    )


_KINDS = {int: ("i", "u"), float: ("f",), bool: ("b",)}
