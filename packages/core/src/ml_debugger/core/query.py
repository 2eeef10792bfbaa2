"""How a query picks inputs: a sort, or a filter by zones and conditions."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import override

from ml_debugger.core.conditions import Condition
from ml_debugger.core.config import Config, shortened
from ml_debugger.core.errors import StrategyError

ZoneName = Literal[
    "stable_coverage",
    "operational_coverage",
    "hotspot",
    "recessive_hotspot",
    "critical_hotspot",
    "aleatoric_hotspot",
]

SORTS: Mapping[str, bool] = {"high_error_proba": True, "low_error_proba": False}

#: Gives the values of a column: a NumPy array, or an Arrow one for text.
Columns = Callable[[str], Any]


class Strategy(Config):
    """How to pick inputs, as users write it in a dict."""

    @property
    @abstractmethod
    def columns(self) -> set[str]:
        """The columns that it looks at."""


class FilterConfig(Strategy):
    """Inputs in any of some zones, or fulfilling any of some conditions.

    Attributes:
        target_zones: Names of zones; any of them matches.
        conditions: Dicts of column and comparison, as in `{"error_proba": ">=0.8"}`. Comparisons
            in one dict must all hold; of several dicts, and of zones and conditions, any one is
            enough.
    """

    target_zones: tuple[ZoneName, ...] | None = None
    conditions: tuple[dict[str, Any], ...] | None = Field(default=None)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.target_zones and not self.conditions:
            raise ValueError("give target_zones, conditions, or both")
        for one in self.conditions or ():
            if not one:
                raise ValueError("an empty condition would match everything; leave it out")
            for column, given in one.items():
                condition = Condition.read(column, given)
                if column == "zone":
                    _check_zones(condition.values)
        return self

    @property
    @override
    def columns(self) -> set[str]:
        named = {column for one in self.conditions or () for column in one}
        return named | ({"zone"} if self.target_zones else set())

    def matches(self, columns: Columns) -> NDArray[np.bool_]:
        """Return which rows match.

        Args:
            columns: Gives a column's values; the column `zone` holds zone names.

        Raises:
            StrategyError: A value cannot be compared with its column.
        """
        found: list[NDArray[np.bool_]] = []
        if self.target_zones:
            found.append(Condition("zone", "in", tuple(self.target_zones)).mask(columns("zone")))
        found += [self._holds(one, columns) for one in self.conditions or ()]
        return np.asarray(np.logical_or.reduce(found))

    def describe(self, columns: Columns) -> list[str]:
        """Say why each row was picked; empty where it was not.

        Args:
            columns: As for `matches`.
        """
        found: list[tuple[list[str], NDArray[np.bool_]]] = []
        if self.target_zones:
            zones = columns("zone")
            mask = Condition("zone", "in", tuple(self.target_zones)).mask(zones)
            found.append(([f"zone {zone}" for zone in zones.to_pylist()], mask))
        for one in self.conditions or ():
            said = " and ".join(
                f"{name} {'is null' if given is None else given}" for name, given in one.items()
            )
            mask = self._holds(one, columns)
            found.append(([said] * len(mask), mask))
        return [
            " or ".join(texts[row] for texts, mask in found if mask[row])
            for row in range(len(found[0][1]))
        ]

    @staticmethod
    def _holds(one: Mapping[str, Any], columns: Columns) -> NDArray[np.bool_]:
        masks = [Condition.read(name, given).mask(columns(name)) for name, given in one.items()]
        return np.asarray(np.logical_and.reduce(masks))


def read_kind(data: Any, kinds: Sequence[type[Strategy]]) -> Strategy:
    """Return an instance of one of some kinds of strategy; see `read_strategy`.

    Raises:
        StrategyError: The dict does not fit; the message says what would.
    """
    if isinstance(data, tuple(kinds)):
        return cast(Strategy, data)
    keys = set(data) if isinstance(data, Mapping) else set()
    kind = next((kind for kind in kinds if keys & kind.model_fields.keys()), kinds[0])
    return kind.read(data)


def read_strategy(
    strategy: Any, kinds: Sequence[type[Strategy]], *, known: Sequence[str] | None
) -> str | Strategy:
    """Return a sort's name, or an instance of one of some kinds of strategy.

    Args:
        strategy: 'high_error_proba', 'low_error_proba', an instance of one of the kinds, or a
            dict for one.
        kinds: The kinds to choose from; a dict is of the first that has one of its keys.
        known: The columns that it may name; None lets any pass.

    Raises:
        StrategyError: (a ValueError) None of these, or it names an unknown column.
    """
    names = " or ".join(kind.__name__ for kind in kinds)
    if isinstance(strategy, str):
        if strategy not in SORTS:
            raise StrategyError(
                f"strategy {strategy!r} is none of {', '.join(SORTS)}; for anything else pass a "
                f"{names} or a dict for one"
            )
        return strategy
    if not isinstance(strategy, (Mapping, *kinds)):
        raise StrategyError(
            f"strategy must be one of {', '.join(SORTS)}, a {names} or a dict, "
            f"got {shortened(strategy)}"
        )
    config = read_kind(strategy, kinds)
    unknown = sorted(config.columns - set(known)) if known is not None else []
    if known is not None and unknown:
        raise StrategyError(
            f"there is no column {unknown[0]!r}; there are {', '.join(sorted(known))}"
        )
    return config


def rank(
    values: NDArray[Any],
    ids: Callable[[NDArray[np.int64]], Any],
    n: int,
    *,
    descending: bool,
    among: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Return the rows with the n highest (or lowest) values, ties by id.

    Args:
        values: Shape (rows,); NaN comes last either way.
        ids: Gives the ids of some rows; asked only for rows that may be chosen.
        n: How many at most.
        descending: Highest first.
        among: The rows to choose from; None for all.
    """
    rows = np.arange(len(values)) if among is None else among
    keys = np.asarray(values[rows], np.float64)
    keys = np.where(np.isnan(keys), np.inf, -keys if descending else keys)
    n = min(n, len(rows))
    if n == 0:
        return rows[:0]
    if n < len(rows):
        bound = np.partition(keys, n - 1)[n - 1]
        below, tied = np.flatnonzero(keys < bound), np.flatnonzero(keys == bound)
        room = n - len(below)
        if len(tied) > room:
            names = np.asarray(ids(rows[tied]), object)
            tied = tied[np.argsort(names, kind="stable")[:room]]
        chosen = np.concatenate([below, tied])
    else:
        chosen = np.arange(len(rows))
    names = np.asarray(ids(rows[chosen]), object)
    by_id = np.argsort(names, kind="stable")
    order = by_id[np.argsort(keys[chosen][by_id], kind="stable")]
    return np.asarray(rows[chosen[order]])


def _check_zones(values: Sequence[Any]) -> None:
    zones = get_args(ZoneName)
    for value in values:
        if value not in zones:
            near = get_close_matches(str(value), zones, n=1)
            raise StrategyError(
                f"there is no zone {shortened(value)}; the zones are {', '.join(zones)}"
                + (f"; the closest is {near[0]}" if near else "")
            )
