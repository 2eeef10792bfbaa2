"""Columns that a result derives for predicted units, kept beside the chunks they belong to."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, insert
from sqlmodel import Session, col, select

from ml_debugger.core.errors import InputError, ResultNotFoundError
from ml_debugger.core.store.catalogue import Catalogue
from ml_debugger.core.store.gather import Place
from ml_debugger.core.store.tables import ChunkRow, EstimateRow

AT_ONCE = 500  # SQLite takes a limited number of values in one statement


class Known(NamedTuple):
    """For which units of a chunk a value is stored; None for all."""

    bits: bytes | None

    def covers(self, place: Place) -> bool:
        """Tell whether all rows of a place have a value."""
        if self.bits is None:
            return True
        if place.positions is None:
            return False  # bits are stored only where some are missing
        packed = np.frombuffer(self.bits, np.uint8)
        mask = np.unpackbits(packed, count=place.chunk.units).astype(bool)
        return bool(mask[place.positions].all())


def missing(catalogue: Catalogue, result: str, where: Sequence[Place]) -> list[int]:
    """Return which of the places lack a value for some of their rows."""
    with catalogue.reading() as session:
        known = {
            row.chunk_id: Known(row.known)
            for row in session.execute(
                select(EstimateRow.chunk_id, EstimateRow.known)
                .where(EstimateRow.result == result)
                .distinct()
            )
        }
    return [
        k
        for k, place in enumerate(where)
        if place.length and not (place.chunk.id in known and known[place.chunk.id].covers(place))
    ]


def write(
    session: Session, result: str, where: Sequence[Place], columns: Mapping[str, NDArray[Any]]
) -> None:
    """Store columns with one value a row of the places, replacing what these chunks had.

    Chunks deleted in the meantime are left out.
    """
    total = where[-1].start + where[-1].length if where else 0
    arrays = {name: np.ascontiguousarray(values) for name, values in columns.items()}
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != total:
            raise InputError(f"estimate {name!r} has shape {array.shape}, expected {total} values")
        if array.dtype.kind not in "biufU":
            raise InputError(f"estimate {name!r} has dtype {array.dtype}, which cannot be stored")
    if not arrays:
        raise InputError("there is no column to write")
    here = alive(session, [place.chunk.id for place in where])
    for start in range(0, len(where), AT_ONCE):
        part = [p for p in where[start : start + AT_ONCE] if p.chunk.id in here and p.length]
        if not part:
            continue
        session.execute(
            delete(EstimateRow).where(
                col(EstimateRow.result) == result,
                col(EstimateRow.chunk_id).in_([place.chunk.id for place in part]),
            )
        )
        for name, array in arrays.items():
            session.execute(
                insert(EstimateRow), [_row(result, name, array, place) for place in part]
            )


def read(catalogue: Catalogue, result: str, name: str, where: Sequence[Place]) -> NDArray[Any]:
    """Return a stored column for all rows of the places.

    Raises:
        ResultNotFoundError: Some of the rows have no value.
    """
    parts: list[NDArray[Any]] = []
    absent = 0
    with catalogue.reading() as session:
        for start in range(0, len(where), AT_ONCE):
            places = [place for place in where[start : start + AT_ONCE] if place.length]
            rows = {
                row.chunk_id: row
                for row in session.exec(
                    select(EstimateRow).where(
                        EstimateRow.result == result,
                        EstimateRow.name == name,
                        col(EstimateRow.chunk_id).in_([place.chunk.id for place in places]),
                    )
                )
            }
            for place in places:
                row = rows.get(place.chunk.id)
                if row is None or not Known(row.known).covers(place):
                    absent += place.length
                    continue
                values = np.frombuffer(row.data, row.dtype)
                values = values.reshape(place.chunk.units, *json.loads(row.shape))
                parts.append(values if place.positions is None else values[place.positions])
            session.expunge_all()
    if absent:
        total = where[-1].start + where[-1].length
        raise ResultNotFoundError(
            f"result {result!r} has no {name!r} for {absent} of {total} units; compute them for "
            "Records.missing_estimates and store them with write_estimates"
        )
    return np.concatenate(parts) if parts else np.empty(0)


def alive(session: Session, numbers: Sequence[int]) -> set[int | None]:
    """Return those of some chunks that are still there, by their numbers."""
    found: set[int | None] = set()
    for start in range(0, len(numbers), AT_ONCE):
        part = numbers[start : start + AT_ONCE]
        found.update(session.exec(select(col(ChunkRow.id)).where(col(ChunkRow.id).in_(part))))
    return found


def _row(result: str, name: str, array: NDArray[Any], place: Place) -> dict[str, Any]:
    values = array[place.start : place.start + place.length]
    known = None
    if place.positions is not None:
        # Rows that do not count here may count in another scope, so what is stored says for
        # which rows it holds.
        units = place.chunk.units
        full = np.zeros((units, *array.shape[1:]), array.dtype)
        full[place.positions] = values
        mask = np.zeros(units, bool)
        mask[place.positions] = True
        values, known = full, np.packbits(mask).tobytes()
    return {
        "result": result,
        "chunk_id": place.chunk.id,
        "name": name,
        "dtype": array.dtype.str,
        "shape": json.dumps(array.shape[1:]),
        "known": known,
        "data": values.tobytes(),
    }
