"""Which units of two results belong together, and what either result says of them."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.frames import numbers, texts
from ml_debugger.core.evaluation.options import EvaluationOptions
from ml_debugger.core.evaluation.zones import ZONES
from ml_debugger.core.records import Array, Column, Units
from ml_debugger.core.task import NOTHING, RIGHT, Task, task_named

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result

#: What makes units of two results the same: their input, and their position within it.
INPUT = ("dataset_type", "input_id")
KEY = (*INPUT, "position")
#: What a result says of a unit.
FOLLOWED = ("label", "prediction", "wrong", "outcome", "zone", "code", "error_proba")

WRONG = "wrong"
_RECORD = (*INPUT, "n_epoch", "run")


class Followed(NamedTuple):
    """The units that two results share.

    Attributes:
        units: A pandas frame with a row each: `KEY`, what a task adds, `FOLLOWED` for the older
            result, and the same with the prefix `other_` for the newer one.
        relabelled: How many of them have another label in the newer result.
        only_this: How many units are in the older result alone.
        only_other: How many units are in the newer result alone.
    """

    units: Any
    relabelled: int
    only_this: int
    only_other: int


def followed(first: "Result", second: "Result") -> Followed:
    """Put the units of two results side by side.

    Raises:
        InputError: They share no input, are of two tasks, or of one that cannot tell which of
            their units belong together.
    """
    names = first.manifest.task, second.manifest.task
    if names[0] != names[1]:
        raise InputError(
            f"{first.result_name} is of the task {names[0]} and {second.result_name} of "
            f"{names[1]}: compare results of one task"
        )
    if first.manifest.omissions is None:
        return _by_position(first, second)
    return _by_task(first, second, task_named(names[0]))


def _by_position(first: "Result", second: "Result") -> Followed:
    mine, theirs = _latest_units(first), _latest_units(second)
    renamed = theirs.rename(columns={name: f"other_{name}" for name in FOLLOWED})
    both = mine.merge(renamed, on=list(KEY), how="inner")
    if both.empty:
        raise _nothing_shared(first, second)
    relabelled = _differing(both["label"], both["other_label"])
    by_newer = (both["prediction"] != both["other_label"]).fillna(True).astype(bool)
    both["wrong"] = both["wrong"].mask(relabelled, by_newer)
    for prefix in ("", "other_"):
        both[f"{prefix}outcome"] = _categories(both[f"{prefix}wrong"].astype(int), (RIGHT, WRONG))
    return Followed(both, int(relabelled.sum()), len(mine) - len(both), len(theirs) - len(both))


def _latest_units(result: "Result") -> Any:
    import pandas as pd

    units = result.to_arrow()
    columns: dict[str, Any] = {name: texts(units, name) for name in (*INPUT, "code")}
    columns["label"] = pd.array(numbers(units, "label"), dtype="Int64")
    columns["zone"] = pd.Categorical(texts(units, "zone"), categories=[*map(str, ZONES)])
    columns["prediction"] = numbers(units, "prediction").astype(np.int64)
    columns["wrong"] = numbers(units, "wrong").astype(bool)
    columns["outcome"] = None
    columns["error_proba"] = numbers(units, "error_proba")
    columns["n_epoch"] = _epochs(units)
    frame = pd.DataFrame(columns)
    latest = frame.groupby(list(INPUT), sort=False)["n_epoch"].transform("max")
    frame = frame[frame["n_epoch"] == latest]
    frame = frame.assign(position=frame.groupby(list(INPUT), sort=False).cumcount())
    return frame[[*KEY, *FOLLOWED]]


def _by_task(first: "Result", second: "Result", task: type[Task]) -> Followed:
    import pandas as pd

    inputs = _latest_inputs(first).merge(
        _latest_inputs(second), on=list(INPUT), suffixes=("_this", "_other")
    )
    if inputs.empty:
        raise _nothing_shared(first, second)
    this = _Side(first, inputs["row_this"].to_numpy(), task)
    other = _Side(second, inputs["row_other"].to_numpy(), task)
    options = EvaluationOptions.read(second.options)
    things = task.follow(this.predicted, this.actual, other.predicted, other.actual, options)
    if things is None:
        raise InputError(
            f"{first.result_name} is of the task {task.schema.name}, which cannot tell which of "
            "the several units of an input are the same in two versions; compare figures with "
            "result.compare(other)"
        )
    missing = things.label < 0
    label = pd.arrays.IntegerArray(things.label, missing)
    missed = np.array([*task.missed_codes(np.unique(things.label[~missing])), NOTHING], object)
    place = np.searchsorted(np.unique(things.label[~missing]), things.label)
    unpredicted = missed[np.where(missing, len(missed) - 1, place)]
    start = np.searchsorted(things.owner, things.owner)
    columns: dict[str, Any] = {
        **{name: inputs[name].to_numpy()[things.owner] for name in INPUT},
        "position": np.arange(len(start)) - start,
        **things.columns,
    }
    for at, (prefix, side) in enumerate((("", this), ("other_", other))):
        rows, outcome = things.units[at], things.outcome[at]
        right = np.isin(np.asarray(things.outcomes, object), (RIGHT, NOTHING))
        said = side.of(rows, unpredicted)
        said |= {"label": label, "wrong": ~right[outcome]}
        said["outcome"] = _categories(outcome, things.outcomes)
        columns |= {f"{prefix}{name}": said[name] for name in FOLLOWED}
    return Followed(pd.DataFrame(columns), things.relabelled, this.alone, other.alone)


class _Side:
    """What one result says of the inputs that it shares with another, in their order.

    Attributes:
        predicted: The predicted units, with the schema's columns of inputs.
        actual: The actual ones.
        alone: How many predicted units are of other inputs.
    """

    def __init__(self, result: "Result", rows: NDArray[np.int64], task: type[Task]) -> None:
        schema = task.schema
        inputs = result.inputs(as_="arrow")
        known = {
            one.name: (
                texts(inputs, one.name)
                if one.type is str
                else np.asarray(numbers(inputs, one.name), np.float64)
            )[rows]
            for one in schema.inputs
            if one.name in inputs.column_names
        }
        units, counts = _of_inputs(result.to_arrow(), inputs, rows)
        self._units = units
        self.predicted = Units(_columns(units, schema.extracted_feature), counts, known)
        self.alone = len(result.to_arrow()) - len(units)
        truths, counts = _of_inputs(result.truths(as_="arrow"), inputs, rows)
        self.actual = Units(_columns(truths, schema.ground_truth), counts)

    def of(self, rows: NDArray[np.int64], unpredicted: Array) -> dict[str, Any]:
        """Return what is said of things; `unpredicted` is the code of those without a unit."""
        import pandas as pd

        there = rows >= 0
        prediction = np.full(len(rows), -1, np.int64)
        prediction[there] = numbers(self._units, "prediction")[rows[there]]
        error_proba = np.full(len(rows), np.nan)
        error_proba[there] = numbers(self._units, "error_proba")[rows[there]]
        code = unpredicted.copy()
        code[there] = texts(self._units, "code")[rows[there]]
        zones = [*map(str, ZONES), NOTHING]
        zone = np.full(len(rows), len(zones) - 1)
        zone[there] = pd.Categorical(texts(self._units, "zone"), categories=zones).codes[
            rows[there]
        ]
        return {
            "prediction": pd.arrays.IntegerArray(prediction, ~there),
            "error_proba": error_proba,
            "code": code,
            "zone": _categories(zone, tuple(zones)),
        }


def _latest_inputs(result: "Result") -> Any:
    """Return the inputs of a result, each at its latest epoch, and their `row` among all."""
    import pandas as pd

    table = result.inputs(as_="arrow")
    columns: dict[str, Any] = {name: texts(table, name) for name in INPUT}
    frame = pd.DataFrame({**columns, "n_epoch": _epochs(table), "row": np.arange(len(table))})
    latest = frame.sort_values("n_epoch", kind="stable").drop_duplicates(list(INPUT), keep="last")
    return latest.sort_values("row")[[*INPUT, "row"]]


def _of_inputs(
    units: pa.Table, inputs: pa.Table, rows: NDArray[np.int64]
) -> tuple[pa.Table, NDArray[np.int64]]:
    """Return the units of some inputs, in the order of these, and how many each has."""
    key = np.zeros(len(inputs) + len(units), np.int64)
    for name in _RECORD:
        chunks = [chunk for one in (inputs, units) for chunk in _plain(one.column(name)).chunks]
        codes = pa.chunked_array(chunks).combine_chunks().dictionary_encode("encode").indices
        value = codes.to_numpy(zero_copy_only=False).astype(np.int64)
        key = np.unique(key * (value.max(initial=0) + 1) + value, return_inverse=True)[1]
    place = np.full(key.max(initial=-1) + 1, -1, np.int64)
    place[key[: len(inputs)][rows]] = np.arange(len(rows))
    owner = place[key[len(inputs) :]]
    order = np.argsort(owner, kind="stable")
    order = order[owner[order] >= 0]
    return units.take(pa.array(order)), np.bincount(owner[order], minlength=len(rows))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _columns(table: pa.Table, columns: tuple[Column, ...]) -> dict[str, Array]:
    names = [one.name for one in columns if one.name in table.column_names]
    return {name: numbers(table, name) for name in names}


def _epochs(table: pa.Table) -> NDArray[np.float64]:
    """Return epochs as numbers; none at all is before every other."""
    known = numbers(table, "n_epoch").astype(np.float64)
    return np.nan_to_num(known, nan=-np.inf)


def _categories(codes: Any, names: tuple[str, ...]) -> Any:
    import pandas as pd

    return pd.Categorical.from_codes(np.asarray(codes, np.int64), pd.Index(names))


def _differing(ours: Any, theirs: Any) -> Any:
    """Say which labels differ; two missing ones do not."""
    return (ours != theirs).fillna(ours.isna() != theirs.isna()).astype(bool)


def _nothing_shared(first: "Result", second: "Result") -> InputError:
    return InputError(
        f"{first.result_name} and {second.result_name} share no input: compare results of the "
        "same data set, traced with the same ids"
    )
