"""Which rows count: of two records with the same id in an epoch and data set, the later one."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ml_debugger.core.store.chunks import Chunk, ChunkSource

CACHE_BYTES = 256 << 20

#: Positions of the inputs of a chunk that count; None for all of them.
Live = NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class Keys:
    """The ids of the chunks of one epoch and data set, and which of them count."""

    chunks: tuple[int, ...]
    ids: tuple[pa.Array, ...]
    live: tuple[Live, ...]
    nbytes: int


class LiveRows:
    """Finds the rows that count, and remembers; thread-safe.

    New chunks are compared with what is remembered, so following a run that grows costs one look
    at each old id, not a new table of all.
    """

    def __init__(self, source: ChunkSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._cache: OrderedDict[Any, Keys] = OrderedDict()

    def of(self, chunks: Sequence[Chunk]) -> tuple[list[pa.Array], list[Live]]:
        """Return the ids and the live positions of each chunk, in the order given."""
        groups: dict[tuple[int | None, str], list[int]] = {}
        for k, chunk in enumerate(chunks):
            groups.setdefault((chunk.n_epoch, chunk.dataset_type), []).append(k)
        ids: list[pa.Array] = [None] * len(chunks)
        live: list[Live] = [None] * len(chunks)
        for group in groups.values():
            keys = self._keys([chunks[k] for k in group])
            for k, some_ids, some_live in zip(group, keys.ids, keys.live, strict=True):
                ids[k], live[k] = some_ids, some_live
        return ids, live

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._cache.clear()

    def _keys(self, chunks: Sequence[Chunk]) -> Keys:
        runs = frozenset(chunk.run for chunk in chunks)
        labelled = all(chunk.actuals is not None for chunk in chunks)
        name = (chunks[0].n_epoch, chunks[0].dataset_type, runs, labelled)
        numbers = tuple(chunk.id for chunk in chunks)
        with self._lock:
            old = self._cache.pop(name, None)
            if old is not None and old.chunks == numbers:
                keys = old
            else:
                known = 0 if old is None else len(old.chunks)
                if old is None or old.chunks != numbers[:known]:
                    old, known = Keys((), (), (), 0), 0
                keys = _extended(old, numbers, [self._source.ids(c) for c in chunks[known:]])
            self._cache[name] = keys
            while (
                len(self._cache) > 1
                and sum(one.nbytes for one in self._cache.values()) > CACHE_BYTES
            ):
                self._cache.popitem(last=False)
        return keys


def _extended(old: Keys, chunks: tuple[int, ...], ids: Sequence[pa.Array]) -> Keys:
    added = pa.chunked_array(same_type(ids))
    live = list(old.live)
    for k, some in enumerate(old.ids):
        value_set = added.cast(some.type) if some.type != added.type else added
        gone = pc.is_in(some, value_set=value_set).to_numpy(zero_copy_only=False)
        if gone.any():
            before = live[k]
            kept = np.flatnonzero(~gone)
            live[k] = kept if before is None else before[~gone[before]]
    nbytes = old.nbytes + added.nbytes
    return Keys(chunks, (*old.ids, *ids), (*live, *_last_of_each(added)), nbytes)


def _last_of_each(ids: pa.ChunkedArray) -> list[Live]:
    encoded = ids.dictionary_encode()
    distinct = len(encoded.chunk(encoded.num_chunks - 1).dictionary)
    if distinct == len(ids):
        return [None] * ids.num_chunks
    codes = np.concatenate([one.indices.to_numpy() for one in encoded.chunks])
    order = np.arange(len(codes))
    last = np.empty(distinct, np.int64)
    last[codes] = order  # of repeated positions NumPy keeps the last assignment
    alive = last[codes] == order
    live: list[Live] = []
    start = 0
    for one in ids.chunks:
        part = alive[start : start + len(one)]
        live.append(None if part.all() else np.flatnonzero(part))
        start += len(one)
    return live


def same_type(arrays: Sequence[pa.Array]) -> list[pa.Array]:
    """Widen strings to 64-bit offsets where some of the arrays, or all together, need them."""
    types = {one.type for one in arrays}
    if types and (len(types) > 1 or _is_long(arrays)):
        return [one.cast(pa.large_string()) for one in arrays]
    return list(arrays)


def _is_long(arrays: Sequence[pa.Array]) -> bool:
    if not pa.types.is_string(arrays[0].type):
        return False
    return sum(int(one.nbytes) for one in arrays) > 0x7FFFFFFF
