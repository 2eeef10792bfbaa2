"""What a query looks at: a split's records, beside what a result says of them."""

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ml_debugger.core.errors import StrategyError
from ml_debugger.core.inputs import AdditionalField
from ml_debugger.core.records import Array, Batch, TaskSchema, owners
from ml_debugger.core.store import Repository, Scope
from ml_debugger.core.store.columns import to_arrow

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result
    from ml_debugger.core.store import Records


class Pool(Protocol):
    """Units with named columns, and the inputs they belong to."""

    def column(self, name: str) -> Any:
        """Return a column by the name that queries use, one value a unit."""

    def any_unit(self, matches: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return, for each input, whether any of its units matches."""


class _Owned:
    """Folds units to inputs; free where every input has exactly one."""

    def __init__(self, counts: Array | None) -> None:
        single = counts is None or bool((counts == 1).all())
        self.counts = None if single else counts
        self.owner = None if self.counts is None else owners(self.counts, len(self.counts))

    def expand(self, values: Any) -> Any:
        if self.owner is None:
            return values
        arrow = isinstance(values, pa.Array | pa.ChunkedArray)
        return values.take(pa.array(self.owner)) if arrow else values[self.owner]

    def any_unit(self, matches: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if self.owner is None or self.counts is None:
            return matches
        return np.bincount(self.owner, weights=matches, minlength=len(self.counts)) > 0


class StoredPool(_Owned):
    """A split as it lies in the store."""

    def __init__(self, records: "Records", result: "Result | None", schema: TaskSchema) -> None:
        """Look at some records of a task; `result` must have judged them."""
        super().__init__(records.counts("predicted"))
        self.records = records
        self.result = result
        self.estimated = schema.estimated
        self._sources = _queryable(records.names())

    @property
    def names(self) -> list[str]:
        """The columns that a query may name."""
        return sorted({*self._sources, *(self.estimated if self.result is not None else ())})

    def column(self, name: str) -> Any:
        """Return a column by the name that queries use, one value a unit."""
        if name in self.estimated and self.result is not None:
            values = self.records.estimates(self.result.result_name, name)
            return zone_names(values) if name == "zone" else values
        source = self._sources[name]
        values = self.records.column(source)
        return values if source.startswith("predicted/") else self.expand(values)

    def rank_values(self) -> Array:
        """Return one value an input to rank by: the mean error probability of its units.

        NaN for an input without units, and for all without a result.
        """
        if self.result is None:
            return np.full(self.records.inputs, np.nan)
        values = self.records.estimates(self.result.result_name, "error_proba")
        if self.owner is None or self.counts is None:
            return values
        totals = np.bincount(self.owner, weights=values, minlength=len(self.counts))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(totals / self.counts)

    def expected_missed(self) -> Array:
        """Return how many things the model probably missed in each input.

        Raises:
            StrategyError: There is no result, or in its task nothing can be missed.
        """
        omissions = None if self.result is None else self.result.omissions
        if omissions is None or self.result is None:
            raise StrategyError(
                "what the model missed is estimated only with the result of a task in which "
                "something can be missed"
            )
        from ml_debugger.core.evaluation.omissions import predictors_of

        known = {
            name: np.asarray(pc.fill_null(self.records.column(f"input/{name}"), 0))
            for name in omissions.names
        }
        counts = np.ones(self.records.inputs, np.int64) if self.counts is None else self.counts
        proba = self.records.estimates(self.result.result_name, "error_proba")
        score = self.records.column("predicted/score")
        return omissions(predictors_of(known, counts, proba, score))

    def of_inputs(self, name: str, inputs: NDArray[np.int64]) -> Any:
        """Return a recorded unit column's values for the first unit of some inputs.

        Each of these inputs must have a unit.
        """
        rows = inputs if self.counts is None else (np.cumsum(self.counts) - self.counts)[inputs]
        return self.records.column(f"predicted/{name}", rows)

    def zones(self, inputs: NDArray[np.int64]) -> Array:
        """Return the zone names of some inputs: of each, that of its most probably wrong unit.

        Each of these inputs must have a unit, and there must be a result.
        """
        assert self.result is not None
        name = self.result.result_name
        zone = self.records.estimates(name, "zone")
        rows = inputs
        if self.owner is not None and self.counts is not None:
            proba = self.records.estimates(name, "error_proba")
            worst_first = np.lexsort((-proba, self.owner))
            rows = worst_first[(np.cumsum(self.counts) - self.counts)[inputs]]
        return np.asarray(zone_names(zone[rows]).to_pylist(), object)


def open_pool(
    repository: Repository,
    scope: Scope,
    result: "Result | None",
    schema: TaskSchema,
    *,
    may_mix: bool = False,
) -> StoredPool:
    """Return what is recorded in a scope, judged by a result if one is given.

    Records that the result has not judged yet are judged now, and that is kept with them. Records
    of several runs may come from different weights, so a warning names the runs.

    Args:
        repository: Where to look.
        scope: What to look at.
        result: The evaluation to judge by, or None.
        schema: The task's.
        may_mix: Whether several runs are nothing to warn of, unless they recorded the same ids.
    """
    records = repository.records(scope)
    if result is not None:
        from ml_debugger.core.evaluation.scoring import score_missing

        score_missing(records, result)
    if len(records.runs) > 1 and (records.replaced or not may_mix):
        said = (
            f"{records.replaced} were replaced by a later record of the same id"
            if records.replaced
            else "no id was replaced, so all of them count"
        )
        warnings.warn(
            f"the records come from {len(records.runs)} runs ({', '.join(records.runs)}), perhaps "
            f"of different weights; {said}. A query can keep to one run with run=",
            stacklevel=4,
        )
    return StoredPool(records, result, schema)


class BatchPool(_Owned):
    """One batch, as it was just captured."""

    def __init__(
        self,
        batch: Batch,
        run: str,
        result: "Result | None",
        fields: Mapping[str, AdditionalField],
    ) -> None:
        """Look at a batch; waits until its tensors hold their values.

        Args:
            batch: As it was handed to the writer.
            run: The run it belongs to.
            result: The evaluation to judge it by, or None.
            fields: The declared fields, by name: their types are those of the store.
        """
        if batch.ready is not None:
            batch.ready()
        counts = batch.predicted.counts
        super().__init__(None if counts is None else counts.numpy())
        self._inputs: dict[str, Any] = {
            "input_id": pa.array(batch.input_ids, pa.string()),
            "dataset_type": _constant(batch.dataset_type, batch),
            "run": _constant(run, batch),
            "n_epoch": pa.array([batch.n_epoch] * len(batch.input_ids), pa.int64()),
            "recorded_at": np.full(len(batch.input_ids), batch.recorded_at),
        }
        for name, field in fields.items():
            values = batch.fields.get(name, [None] * len(batch.input_ids))
            self._inputs[name] = to_arrow(list(values), field.type, f"field {name!r}")
        self._units = {name: t.numpy() for name, t in batch.predicted.columns.items()}
        if result is not None:
            from ml_debugger.core.evaluation.scoring import of_batch

            judged = of_batch(self._units, result)
            self._units |= {**judged, "zone": zone_names(judged["zone"])}

    def column(self, name: str) -> Any:
        """Return a column by the name that queries use, one value a unit."""
        return self._units[name] if name in self._units else self.expand(self._inputs[name])


def empty_columns(schema: TaskSchema, fields: Mapping[str, AdditionalField]) -> dict[str, Any]:
    """Return the columns that a query may name, of their types and without a row."""
    text = pa.array([], pa.string())
    return {
        **dict.fromkeys(("input_id", "dataset_type", "run"), text),
        "n_epoch": pa.array([], pa.int64()),
        "recorded_at": np.array([], np.int64),
        **{column.name: np.array([], column.type) for column in schema.extracted_feature},
        **{name: to_arrow([], field.type, name) for name, field in fields.items()},
        **dict.fromkeys(schema.estimated, np.array([], np.float32)),
        "unstable": np.array([], np.bool_),
        "zone": zone_names(np.array([], np.int8)),
    }


def _constant(value: str, batch: Batch) -> Any:
    return pa.array([value] * len(batch.input_ids), pa.string())


def _queryable(names: Iterable[str]) -> dict[str, str]:
    """Return the stored name of each column that a query may name: no vectors, no truth."""
    sources = {}
    for full in names:
        side, _, name = full.partition("/")
        vector = name in ("logits", "statistics") or name.startswith(("feature.", "#"))
        if side in ("input", "predicted") and not vector:
            sources["input_id" if full == "input/id" else name] = full
    return sources


def zone_names(zones: Array) -> Any:
    """Return zone names, as an Arrow dictionary, for their positions in ZONES; null for none."""
    from ml_debugger.core.evaluation.zones import ZONES

    return pa.DictionaryArray.from_arrays(
        pa.array(np.maximum(zones, 0), pa.int8(), mask=zones < 0), [str(zone) for zone in ZONES]
    )
