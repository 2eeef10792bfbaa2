"""Records that are asked about again and again, with what was read of them."""

import threading
from collections import OrderedDict
from datetime import datetime
from pathlib import Path
from typing import Any

from typing_extensions import override

from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.pool import StoredPool
from ml_debugger.core.records import Array, TaskSchema
from ml_debugger.core.store import Records, ResultInfo

MOST_INPUTS = (
    5_000_000  # of all pools of a process together; an input takes some 50 bytes, and its text
)

#: A store, a result, which may have taken the place of another of its name, and some chunks.
Key = tuple[Path, str, datetime, tuple[int, ...]]


class ReadPool(StoredPool):
    """A pool that reads each column once; safe for several threads."""

    def __init__(self, records: Records, result: Result, schema: TaskSchema) -> None:
        """Look at some records; `result` must have judged them."""
        super().__init__(records, result, schema)
        self._columns: dict[str, Any] = {}
        self._ranks: Array | None = None

    @override
    def column(self, name: str) -> Any:
        if name not in self._columns:
            self._columns[name] = super().column(name)
        return self._columns[name]

    @override
    def rank_values(self) -> Array:
        if self._ranks is None:
            self._ranks = super().rank_values()
        return self._ranks


class Pools:
    """The pools that were asked about last, of all projects; safe for several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Key, ReadPool] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, home: Path, info: ResultInfo, records: Records) -> ReadPool | None:
        """Return the pool of just these records, judged by this result, if it is here."""
        key = _key(home, info, records)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def keep(self, home: Path, info: ResultInfo, pool: ReadPool) -> ReadPool:
        """Keep a pool, and let go of those that were asked about longest ago."""
        with self._lock:
            self._kept[_key(home, info, pool.records)] = pool
            while (
                len(self._kept) > 1
                and sum(one.records.inputs for one in self._kept.values()) > MOST_INPUTS
            ):
                self._kept.popitem(last=False)
        return pool

    def forget(self, home: Path) -> None:
        """Let go of the pools of a store."""
        with self._lock:
            for key in [one for one in self._kept if one[0] == home]:
                del self._kept[key]


def _key(home: Path, info: ResultInfo, records: Records) -> Key:
    return home, info.name, info.completed_at, records.chunks
