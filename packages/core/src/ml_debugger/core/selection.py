"""Pick inputs from a pool: match, rank, draw, spread."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from ml_debugger.core.aggregation import BBoxStrategy
from ml_debugger.core.errors import InputError, StrategyError
from ml_debugger.core.evaluation.omissions import chance_of_any
from ml_debugger.core.pool import StoredPool
from ml_debugger.core.query import SORTS, FilterConfig, Strategy, rank, read_strategy
from ml_debugger.core.sampling import CANDIDATES, SamplingConfig, spread

NEEDS_RESULT = (
    "needs an evaluation: pass result_name=, which is "
    "Evaluator(model_name, version_name).request_evaluation().result_name"
)


def select(
    pool: StoredPool,
    n_data: int,
    strategy: Any,
    type_cast: type | None = None,
    *,
    kinds: Sequence[type[Strategy]] = (FilterConfig,),
    sampling: SamplingConfig | dict[str, Any] | None = None,
    diverse: bool = False,
    explain: bool = False,
    include_empty: bool = False,
) -> Any:
    """Return ids, best first, or a frame that explains them; see `CommonDataFilter.query`.

    Raises:
        StrategyError: (a ValueError) The strategy or the sampling does not fit.
        InputError: `n_data` is not a positive int, or an id cannot be cast.
    """
    if isinstance(n_data, bool) or not isinstance(n_data, int | np.integer) or n_data < 1:
        raise InputError(f"n_data must be an int of at least 1, got {n_data!r}")
    draw = None if sampling is None else SamplingConfig.read(sampling)
    empty = not pool.records.inputs  # then there are no columns to compare names with
    chosen = read_strategy(strategy, kinds, known=None if empty else pool.names)
    if pool.result is None and (isinstance(chosen, str) or chosen.columns & pool.estimated):
        raise StrategyError(f"strategy {strategy!r} {NEEDS_RESULT}")
    if draw is not None and draw.per_zone is not None and pool.result is None:
        raise StrategyError(f"sampling method 'zone_quotas' {NEEDS_RESULT}")
    if diverse and draw is not None and draw.method != "random":
        raise StrategyError(
            f"diverse=True keeps to no quota: leave it or sampling method {draw.method!r} out, or "
            "query each class or zone by itself with diverse=True"
        )
    if include_empty and (diverse or draw is not None):
        raise StrategyError(
            "an image without a box has neither features nor a class: include_empty=True goes "
            "neither with diverse=True nor with sampling"
        )
    if empty:
        return _frame([], [], [], [], []) if explain else []
    order, values = _choose(
        pool, chosen, int(n_data), draw, diverse=diverse, include_empty=include_empty
    )
    ids = _cast(pool.records.ids(order).to_pylist(), type_cast)
    return _explained(pool, chosen, ids, order, values) if explain else ids


def _choose(
    pool: StoredPool,
    strategy: str | Strategy,
    n: int,
    draw: SamplingConfig | None,
    *,
    diverse: bool,
    include_empty: bool,
) -> tuple[Any, Any]:
    """Return the chosen inputs' positions, best first, and their rank values."""
    among, descending = None, True
    if isinstance(strategy, BBoxStrategy):
        values = strategy.aggregate(pool.column, pool.counts, pool.records.inputs)
        among, descending = np.flatnonzero(np.isfinite(values)), strategy.descending
    else:
        values = pool.rank_values()
        if isinstance(strategy, FilterConfig):
            among = np.flatnonzero(pool.any_unit(strategy.matches(pool.column)))
        elif pool.counts is not None:
            among = np.flatnonzero(pool.counts)  # an input without units has no error probability
        if isinstance(strategy, str):
            descending = SORTS[strategy]
    if include_empty and pool.counts is not None:
        empty = np.flatnonzero(pool.counts == 0)
        values = np.where(pool.counts == 0, chance_of_any(pool.expected_missed()), values)
        among = empty if among is None else np.union1d(among, empty)
    room = CANDIDATES * n if diverse else n
    order = rank(
        values,
        pool.records.ids,
        len(values) if draw is not None else room,
        descending=descending,
        among=among,
    )
    if draw is not None:
        by_zone = draw.per_zone is not None
        groups = pool.zones(order) if by_zone else pool.of_inputs("prediction", order)
        order = order[draw.draw(values[order], groups, room)]
    if diverse and len(order):
        wanted = values[order] if descending else 1 - values[order]
        wanted = np.nan_to_num(wanted, nan=1.0)  # without a result all are wanted alike
        order = order[spread(pool.of_inputs(_deepest_layer(pool), order), wanted, n)]
    return order, values[order]


def _deepest_layer(pool: StoredPool) -> str:
    layers = [one for one in pool.records.names() if one.startswith("predicted/feature.")]
    if not layers:
        raise StrategyError("diverse=True needs a recorded layer; this version has none")
    return layers[-1].removeprefix("predicted/")


def _explained(
    pool: StoredPool, strategy: str | Strategy, ids: list[Any], order: Any, values: Any
) -> Any:
    @cache  # read once, not for every row
    def column(name: str) -> Any:
        found = pool.column(name)
        arrow = isinstance(found, pa.Array | pa.ChunkedArray)
        return found.take(pa.array(order)) if arrow else found[order]

    one_unit = pool.counts is None
    zones: list[str | None] = [None] * len(order)
    codes: Sequence[str | None] = zones
    if one_unit and pool.result is not None:
        from ml_debugger.core.evaluation.scoring import estimated_codes

        zones = column("zone").to_pylist()
        recorded = set(pool.records.names())
        codes = estimated_codes(
            lambda name: pool.of_inputs(name, order) if f"predicted/{name}" in recorded else None,
            pool.result,
        )
    if isinstance(strategy, str):
        way = "highest" if SORTS[strategy] else "lowest"
        reasons = [f"{way} error_proba, place {at}" for at in range(1, len(order) + 1)]
    elif isinstance(strategy, BBoxStrategy):
        sizes = strategy.sizes(pool.column, pool.counts, pool.records.inputs)[order].tolist()
        reasons = [f"{strategy.describe(n)}, place {at}" for at, n in enumerate(sizes, start=1)]
    elif one_unit and isinstance(strategy, FilterConfig):
        reasons = strategy.describe(column)
    else:
        reasons = ["one of its units matches"] * len(order)
    if pool.counts is not None:
        alone = pool.counts[order] == 0
        reasons = [
            "nothing found; the probability that something was missed" if empty else reason
            for empty, reason in zip(alone, reasons, strict=True)
        ]
    return _frame(ids, values, zones, codes, reasons)


def _frame(ids: Any, values: Any, zones: Any, codes: Any, reasons: Any) -> Any:
    import pandas as pd

    columns = {"input_id": ids, "rank_value": values, "zone": zones, "estimated_code": codes}
    return pd.DataFrame({**columns, "reason": reasons})


def _cast(ids: list[str], type_cast: type | None) -> list[Any]:
    if type_cast is None:
        return ids
    cast_ids = []
    for one in ids:
        try:
            cast_ids.append(type_cast(one))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"input_id {one!r} cannot be cast by {type_cast!r}: {error}; leave type_cast out"
            ) from None
    return cast_ids
