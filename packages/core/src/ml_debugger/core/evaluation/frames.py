"""Tables that a result is asked for, computed from its units, in the frame the caller likes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ml_debugger.core.errors import InputError

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.zones import ZoneRules

_RELIABILITY = ("error_proba", "error_rate", "low", "high", "n")

FrameKind = Literal["pandas", "polars", "arrow"]


def as_frame(table: pa.Table, as_: FrameKind) -> Any:
    """Return a table as the kind of frame that was asked for.

    Raises:
        InputError: Not one of "pandas", "polars", "arrow".
        ImportError: polars is asked for and not installed.
    """
    if as_ == "arrow":
        return table
    if as_ == "pandas":
        return table.to_pandas()
    if as_ == "polars":
        try:
            import polars as pl
        except ImportError as error:
            raise ImportError(
                "polars is not installed; install it with: pip install 'ml-debugger-core[polars]'"
            ) from error
        return pl.from_arrow(table)
    raise InputError(f"as_ must be one of {', '.join(get_args(FrameKind))}, got {as_!r}")


def numbers(table: pa.Table, name: str) -> NDArray[Any]:
    """Return a column as an array; nulls of a float column read as NaN."""
    return np.asarray(table.column(name).to_numpy(zero_copy_only=False))


def texts(table: pa.Table, name: str) -> NDArray[Any]:
    """Return a text column as an array of str, None for nulls."""
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(pa.string())
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=object)


def groups(units: pa.Table) -> NDArray[np.int64] | None:
    """Number the inputs that units belong to, shape (n,); None where each is one of its own.

    The same id in several epochs is one input, as in `LabelledUnits.groups`.
    """
    numbers = np.zeros(len(units), np.int64)
    for name in ("dataset_type", "input_id"):
        column = units.column(name).combine_chunks()
        column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        numbers = numbers * max(len(column.dictionary), 1) + np.asarray(column.indices)
    return numbers if len(np.unique(numbers)) < len(numbers) else None


def bin_edges(bins: int | Sequence[float], what: str) -> NDArray[np.float64]:
    """Return the edges of bins over [0, 1].

    Args:
        bins: How many equal bins, or the edges themselves: from 0 to 1, ascending.
        what: The parameter they came in, for messages.

    Raises:
        InputError: Neither a number from 1 to 1000 nor ascending edges from 0 to 1.
    """
    if isinstance(bins, bool | str | bytes):
        raise InputError(f"{what} must be a number of bins or their edges, got {bins!r}")
    if isinstance(bins, int | np.integer):
        if not 1 <= bins <= 1000:
            raise InputError(f"{what} must be from 1 to 1000, got {bins}")
        return np.linspace(0.0, 1.0, int(bins) + 1)
    edges = np.asarray(bins, dtype=np.float64)
    fits = edges.ndim == 1 and len(edges) >= 2 and edges[0] == 0 and edges[-1] == 1
    if not fits or not np.all(np.diff(edges) > 0):
        raise InputError(f"{what} must be edges that ascend from 0 to 1, got {bins!r}")
    return edges


def heatmap_table(
    units: pa.Table, rows: NDArray[np.float64], cols: NDArray[np.float64]
) -> pa.Table:
    """Count units and errors in each cell of error probability (rows) by score (columns).

    A cell holds its lower edge; the last one its upper edge too. A score that is not a number
    counts as 0. `error_rate` of an empty cell is null.
    """
    shape = (len(rows) - 1, len(cols) - 1)
    row = _bin(numbers(units, "error_proba"), rows)
    col = _bin(numbers(units, "score"), cols)
    cell = np.ravel_multi_index((row, col), shape)
    wrong = numbers(units, "wrong").astype(bool)
    n = np.bincount(cell, minlength=shape[0] * shape[1])
    errors = np.bincount(cell[wrong], minlength=shape[0] * shape[1])
    at_row, at_col = np.unravel_index(np.arange(n.size), shape)
    return pa.table(
        {
            "error_proba_low": rows[at_row],
            "error_proba_high": rows[at_row + 1],
            "score_low": cols[at_col],
            "score_high": cols[at_col + 1],
            "n": n.astype(np.int64),
            "errors": errors.astype(np.int64),
            "error_rate": pa.array(errors / np.maximum(n, 1), mask=n == 0),
        }
    )


def _bin(values: NDArray[Any], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    known = np.nan_to_num(values.astype(np.float64))
    at = np.searchsorted(edges, known, side="right") - 1
    return np.clip(at, 0, len(edges) - 2)


def zones_table(units: pa.Table, rules: "ZoneRules") -> pa.Table:
    """Count units and errors by zone, beside the rules that lead there."""
    from ml_debugger.core.evaluation.zones import ZONES, Zone, zone_table

    position = {zone.value: at for at, zone in enumerate(ZONES)}
    at = np.array([position[name] for name in texts(units, "zone")], dtype=np.int8)
    wrong = numbers(units, "wrong").astype(bool)
    rows = zone_table(at, wrong, numbers(units, "score"), groups(units))
    said: dict[str, list[str]] = {zone.value: [] for zone in ZONES}
    for text in rules.describe():
        zone, _, rule = text.partition(": ")
        said[zone].append(rule)
    said[Zone.OPERATIONAL_COVERAGE] = said[Zone.OPERATIONAL_COVERAGE] or ["everything else"]
    types = {"zone": pa.string(), "n": pa.int64(), "errors": pa.int64()}
    columns = ["zone", "n", "share", "errors", "error_rate", "low", "high", "mean_score"]
    table = {c: pa.array([row[c] for row in rows], types.get(c, pa.float64())) for c in columns}
    return pa.table({**table, "rule": ["; or ".join(said[row["zone"]]) for row in rows]})


Equal = Literal["size", "width"]


def reliability_table(units: pa.Table, bins: int, equal: Equal) -> pa.Table:
    """Put said beside observed error rates, in bins of equal size or width; none is empty."""
    from ml_debugger.core.evaluation.metrics import reliability_curve, share_interval

    if isinstance(bins, bool) or not isinstance(bins, int) or not 1 <= bins <= 1000:
        raise InputError(f"bins must be a number from 1 to 1000, got {bins!r}")
    proba, wrong = numbers(units, "error_proba"), numbers(units, "wrong").astype(bool)
    owner = groups(units)
    if equal == "size":
        curve = reliability_curve(proba, wrong, bins, owner)
        columns = (curve.predicted, curve.observed, curve.low, curve.high, curve.size)
        return pa.table(dict(zip(_RELIABILITY, columns, strict=True)))
    if equal != "width":
        raise InputError(f"equal must be one of {', '.join(get_args(Equal))}, got {equal!r}")
    at = _bin(proba, np.linspace(0.0, 1.0, bins + 1))
    rows = []
    for number in np.unique(at):
        inside = at == number
        n, errors = int(inside.sum()), int(wrong[inside].sum())
        low, high = share_interval(wrong[inside], None if owner is None else owner[inside])
        said = float(proba[inside].astype(np.float64).mean())
        rows.append(dict(zip(_RELIABILITY, (said, errors / n, low, high, n), strict=True)))
    return pa.Table.from_pylist(rows)


def codes_table(units: pa.Table) -> pa.Table:
    """Count the error codes: those with the most wrong units first."""
    wrong = pc.cast(units.column("wrong"), pa.int64())
    grouped = (
        units.select(["code", "label", "score", "error_proba"])
        .set_column(0, "code", units.column("code").cast(pa.string()))
        .append_column("wrong", wrong)
        .group_by("code", use_threads=False)
        .aggregate(
            [
                ("wrong", "count"),
                ("wrong", "sum"),
                ("label", "first"),
                ("score", "mean"),
                ("error_proba", "mean"),
            ]
        )
    )
    n = grouped.column("wrong_count")
    table = pa.table(
        {
            "code": grouped.column("code"),
            "label": grouped.column("label_first"),
            "n": n,
            "share": pc.divide(pc.cast(n, pa.float64()), float(max(len(units), 1))),
            "errors": grouped.column("wrong_sum"),
            "mean_score": grouped.column("score_mean"),
            "mean_error_proba": grouped.column("error_proba_mean"),
        }
    )
    return table.sort_by([("errors", "descending"), ("n", "descending"), ("code", "ascending")])


def with_missed(table: pa.Table, missed: pa.Table, names: Sequence[str]) -> pa.Table:
    """Add the codes of actual units that nothing was predicted for to a table of codes."""
    if not len(missed):
        return table
    counted = (
        pa.table({"code": pa.array(names, pa.string()), "label": missed.column("label")})
        .group_by("code", use_threads=False)
        .aggregate([("label", "first"), ("label", "count")])
    )
    n = counted.column("label_count")
    nothing = pa.nulls(len(counted), pa.float64())
    rows = pa.table(
        {
            "code": counted.column("code"),
            "label": counted.column("label_first"),
            "n": n,
            "share": nothing,
            "errors": n,
            "mean_score": nothing,
            "mean_error_proba": nothing,
        }
    )
    found = pa.concat_tables([table, rows.cast(table.schema)])
    return found.sort_by([("errors", "descending"), ("n", "descending"), ("code", "ascending")])


def confusion(units: pa.Table, n_class: int) -> NDArray[np.int64]:
    """Count units by true class (rows) and prediction (columns).

    The last row holds units whose true class is none of the model's.
    """
    label = np.nan_to_num(numbers(units, "label").astype(np.float64), nan=n_class).astype(np.int64)
    prediction = np.clip(numbers(units, "prediction").astype(np.int64), 0, n_class - 1)
    label = np.where((label < 0) | (label > n_class), n_class, label)
    cells = np.bincount(label * n_class + prediction, minlength=(n_class + 1) * n_class)
    return cells.reshape(n_class + 1, n_class)
