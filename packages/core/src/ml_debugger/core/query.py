"""How a query picks inputs: a sort, or a filter by zones and conditions."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

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

_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*(.*?)\s*", re.DOTALL)
_OPERATORS = ", ".join([*_COMPARE, "in", "not in", "between", "is null", "not null"])


class Validation(NamedTuple):
    """What `validate_dict` found.

    Attributes:
        valid: Whether the dict can be used.
        message: What to change, or that nothing need be.
    """

    valid: bool
    message: str


class Config(BaseModel):
    """A setting that users may write as a dict."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, data: Any) -> Self:
        """Return an instance as it is, or make one from a dict.

        Raises:
            StrategyError: (a ValueError) The dict does not fit; the message says what would.
        """
        if isinstance(data, cls):
            return data
        try:
            return cls.model_validate(dict(data) if isinstance(data, Mapping) else data)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            said = problem["msg"].removeprefix("Value error, ")
            if problem["loc"]:
                where = ".".join(str(part) for part in problem["loc"])
                said = f"{where}: {said}, got {_short(problem['input'])}"
            raise StrategyError(
                f"{said} ({cls.__name__} takes {', '.join(cls.model_fields)})"
            ) from None

    @classmethod
    def validate_dict(cls, data: Any) -> Validation:
        """Tell whether a dict can be used, and what to change if not."""
        try:
            cls.read(data)
        except StrategyError as error:
            return Validation(False, str(error))
        return Validation(True, f"valid {cls.__name__}")


class Condition(NamedTuple):
    """One comparison of a column.

    Attributes:
        column: The column's name.
        op: The operator.
        values: What to compare with, as text or as given.
    """

    column: str
    op: str
    values: tuple[Any, ...]

    @classmethod
    def read(cls, column: str, given: Any) -> Self:
        """Read `">=0.8"`, `"in a, b"`, `"between 0.2 and 0.4"`, `"is null"`, a list or a value.

        Raises:
            StrategyError: No operator can be recognised.
        """
        if isinstance(given, list | tuple | set):
            return cls(column, "in", tuple(given))
        if not isinstance(given, str):
            return cls(column, "==", (given,))
        text = given.strip()
        if match := _CONDITION.fullmatch(text):
            if not match[2]:
                raise StrategyError(
                    f"condition on {column!r}: {given!r} has nothing to compare with"
                )
            return cls(column, match[1], (_unquoted(match[2]),))
        lower = text.lower()
        if lower in ("is null", "not null", "is not null"):
            return cls(column, "is null" if lower == "is null" else "not null", ())
        if match := re.fullmatch(r"(not\s+in|in)\s+[\[(]?(.*?)[\])]?", text, re.I | re.DOTALL):
            values = tuple(_unquoted(part) for part in match[2].split(","))
            return cls(column, "in" if match[1].lower() == "in" else "not in", values)
        if match := re.fullmatch(r"between\s+(.+?)\s+and\s+(.+)", text, re.I):
            return cls(column, "between", (match[1], match[2]))
        raise StrategyError(
            f"condition on {column!r}: {_short(given)} does not begin with an operator; "
            f"use one of {_OPERATORS}, as in '>=0.8'"
        )

    def mask(self, values: Any) -> NDArray[np.bool_]:
        """Return where the column fulfils the condition; null fulfils only `is null`.

        Raises:
            StrategyError: A value cannot be compared with this column.
        """
        if isinstance(values, pa.Array | pa.ChunkedArray):
            return self._arrow_mask(values)
        null = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)
        if self.op in ("is null", "not null"):
            return np.asarray(null if self.op == "is null" else ~null)
        wanted = [self._cast(value, values.dtype.kind) for value in self.values]
        if self.op in ("in", "not in"):
            inside = np.isin(values, np.array(wanted).astype(values.dtype)) & ~null
            return np.asarray(inside if self.op == "in" else ~inside & ~null)
        if self.op == "between":
            return np.asarray((values >= wanted[0]) & (values <= wanted[1]))
        return np.asarray(_COMPARE[self.op](values, wanted[0]) & ~null)

    def _arrow_mask(self, values: Any) -> NDArray[np.bool_]:
        if isinstance(values, pa.DictionaryArray):  # compare each of the few values once
            found = self._arrow_mask(values.dictionary)[values.indices.fill_null(0).to_numpy()]
            null = np.asarray(values.is_null())
            return np.asarray(null if self.op == "is null" else found & ~null)
        if self.op in ("is null", "not null"):
            found = pc.is_null(values) if self.op == "is null" else pc.is_valid(values)
            return np.asarray(found)
        try:
            wanted = pa.array(
                [str(v) if pa.types.is_string(values.type) else v for v in self.values]
            )
            wanted = wanted.cast(values.type)
            if self.op in ("in", "not in"):
                inside = pc.is_in(values, value_set=wanted)
                found = inside if self.op == "in" else pc.invert(inside)
            elif self.op == "between":
                found = pc.and_(
                    pc.greater_equal(values, wanted[0]), pc.less_equal(values, wanted[1])
                )
            else:
                names = {">=": "greater_equal", "<=": "less_equal", "==": "equal"}
                names |= {"!=": "not_equal", ">": "greater", "<": "less"}
                found = pc.call_function(names[self.op], [values, wanted[0]])
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            raise StrategyError(
                f"condition on {self.column!r}: {_short(self.values)} cannot be compared with a "
                f"{values.type} column"
            ) from None
        found = pc.and_(pc.fill_null(found, False), pc.is_valid(values))
        return np.asarray(found)

    def _cast(self, value: Any, kind: str) -> Any:
        try:
            if kind == "b":
                if isinstance(value, bool | np.bool_):
                    return bool(value)
                return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]
            number = float(value)
        except (TypeError, ValueError, KeyError):
            number = np.nan
        if np.isnan(number):
            what = "true or false" if kind == "b" else "a number"
            raise StrategyError(
                f"condition on {self.column!r}: expected {what}, got {_short(value)}"
            )
        return int(number) if kind in "iu" and number.is_integer() else number


class FilterConfig(Config):
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
                Condition.read(column, given)
        return self

    @property
    def columns(self) -> set[str]:
        """The columns that it looks at."""
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
        for one in self.conditions or ():
            masks = [Condition.read(name, given).mask(columns(name)) for name, given in one.items()]
            found.append(np.logical_and.reduce(masks))
        return np.asarray(np.logical_or.reduce(found))

    def describe(self, columns: Columns, row: int) -> str:
        """Say why a row was picked."""
        reasons = []
        if self.target_zones:
            zone = str(columns("zone")[row])
            if zone in self.target_zones:
                reasons.append(f"zone {zone}")
        for one in self.conditions or ():
            picked = {name: Condition.read(name, given) for name, given in one.items()}
            row_of = {name: columns(name)[row : row + 1] for name in picked}
            if all(bool(c.mask(row_of[name])[0]) for name, c in picked.items()):
                reasons.append(" and ".join(f"{name} {given}" for name, given in one.items()))
        return " or ".join(reasons)


def read_strategy(strategy: Any, *, known: Sequence[str] | None) -> str | FilterConfig:
    """Return a sort's name or a filter.

    Args:
        strategy: 'high_error_proba', 'low_error_proba', a FilterConfig or a dict for one.
        known: The columns that conditions may name; None lets any pass.

    Raises:
        StrategyError: (a ValueError) None of these, or a condition on an unknown column.
    """
    if isinstance(strategy, str):
        if strategy not in SORTS:
            raise StrategyError(
                f"strategy {strategy!r} is none of {', '.join(SORTS)}; for a filter pass a dict "
                "with target_zones or conditions"
            )
        return strategy
    if not isinstance(strategy, Mapping | FilterConfig):
        raise StrategyError(
            f"strategy must be one of {', '.join(SORTS)}, a FilterConfig or a dict, "
            f"got {_short(strategy)}"
        )
    config = FilterConfig.read(strategy)
    unknown = sorted(config.columns - set(known)) if known is not None else []
    if known is not None and unknown:
        raise StrategyError(
            f"there is no column {unknown[0]!r}; conditions may name {', '.join(sorted(known))}"
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


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
