"""How a query picks inputs: a sort, or a filter by zones and conditions."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, Self, get_args

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
_IN = re.compile(r"(not\s+in|in)(?:\s*\((.*)\)|\s*\[(.*)\]|\s+(.*))", re.I | re.DOTALL)
_ITEM = re.compile(r"""\s*(?:'([^']*)'\s*|"([^"]*)"\s*|([^,]*))(?:,|\Z)""")
_BETWEEN = re.compile(r"between\s+(.+?)\s+and\s+(.+)", re.I | re.DOTALL)
_OPERATORS = ", ".join([*_COMPARE, "in", "not in", "between", "is null", "not null"])
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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

        None is `is null`. Values with a comma in them are quoted: `"in 'a, b', c"`.

        Raises:
            StrategyError: No operator can be recognised, or a range is the wrong way round.
        """
        if given is None:
            return cls(column, "is null", ())
        if isinstance(given, list | tuple | set):
            if any(one is None for one in given):
                raise StrategyError(
                    f"condition on {column!r}: None is no value to be in; "
                    f"add a condition of its own, {{{column!r}: None}}"
                )
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
        if match := _IN.fullmatch(text):
            values = _items(next(part for part in match.groups()[1:] if part is not None))
            return cls(column, "in" if match[1].lower() == "in" else "not in", values)
        if match := _BETWEEN.fullmatch(text):
            low, high = _unquoted(match[1]), _unquoted(match[2])
            numbers = _number(low), _number(high)
            if numbers[0] is not None and numbers[1] is not None and numbers[0] > numbers[1]:
                raise cls(column, "between", (low, high))._reversed()  # noqa: SLF001  our own
            return cls(column, "between", (low, high))
        raise StrategyError(
            f"condition on {column!r}: {_short(given)} does not begin with an operator; "
            f"use one of {_OPERATORS}, as in '>=0.8'"
        )

    def mask(self, values: Any) -> NDArray[np.bool_]:
        """Return where the column fulfils the condition; null fulfils only `is null`.

        Raises:
            StrategyError: A value cannot be compared with this column.
        """
        if isinstance(values, pa.DictionaryArray):  # compare each of the few values once
            null = np.asarray(values.is_null())
            if self.op in ("is null", "not null"):
                return null if self.op == "is null" else ~null
            found = self.mask(values.dictionary)[values.indices.fill_null(0).to_numpy()]
            return np.asarray(found & ~null)
        plain, null, kind = self._parts(values)
        if self.op in ("is null", "not null"):
            return null if self.op == "is null" else ~null
        wanted = [self._read(value, kind) for value in self.values]
        if self.op in ("in", "not in"):
            found = _inside(plain, wanted, kind)
            found = found if self.op == "in" else ~found
        elif self.op == "between":
            if wanted[0] > wanted[1]:
                raise self._reversed()
            found = _compare(">=", plain, wanted[0], kind) & _compare("<=", plain, wanted[1], kind)
        else:
            found = _compare(self.op, plain, wanted[0], kind)
        return np.asarray(found & ~null)

    def _parts(self, values: Any) -> tuple[Any, NDArray[np.bool_], "_Kind"]:
        """Return values to compare (NumPy, or Arrow for text), where they are null, and what."""
        if isinstance(values, pa.Array | pa.ChunkedArray):
            null, type_ = np.asarray(values.is_null()), values.type
            if pa.types.is_string(type_) or pa.types.is_large_string(type_):
                return values, null, _TEXT
            if pa.types.is_timestamp(type_):
                return np.asarray(pc.fill_null(values.cast(pa.int64()), 0)), null, _TIME
            if pa.types.is_boolean(type_):
                return np.asarray(pc.fill_null(values, False)), null, _TRUTH
            if not (pa.types.is_integer(type_) or pa.types.is_floating(type_)):
                raise StrategyError(
                    f"condition on {self.column!r}: {_short(self.values)} cannot be compared with "
                    f"a {type_} column"
                )
            values = np.asarray(pc.fill_null(values, 0))
        else:
            null = np.zeros(len(values), bool)
        if values.dtype.kind == "f":
            return values, null | np.isnan(values), _REAL
        return values, null, _TRUTH if values.dtype.kind == "b" else _WHOLE

    def _read(self, value: Any, kind: "_Kind") -> Any:
        try:
            return kind.read(value)
        except (TypeError, ValueError, ArithmeticError, KeyError):
            raise StrategyError(
                f"condition on {self.column!r}: expected {kind.expected}, got {_short(value)}"
            ) from None

    def _reversed(self) -> StrategyError:
        low, high = self.values
        return StrategyError(
            f"condition on {self.column!r}: nothing lies between {low} and {high}; "
            f"write 'between {high} and {low}'"
        )


class _Kind(NamedTuple):
    """What a column holds, and how a condition's value is read to be compared with it."""

    expected: str
    read: Callable[[Any], Any]


def _text(value: Any) -> str:
    text = str(value)
    text.encode()  # half a surrogate is equal to nothing that can be stored
    return text


def _truth(value: Any) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]


def _real(value: Any) -> float:
    number = float(value)
    if np.isnan(number):
        raise ValueError("not a number")
    return number


def _whole(value: Any) -> Decimal:
    """Read a number to compare with whole ones, exactly: a float would round beyond 2**53."""
    if isinstance(value, int | np.integer):
        return Decimal(int(value))
    number = _real(value)
    return Decimal(value if isinstance(value, str) and np.isfinite(number) else number)


def _time(value: Any) -> Decimal:
    """Read a date, UTC if it does not say where, as microseconds since 1970."""
    if isinstance(value, np.datetime64):
        value = str(value)
    at = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    if at != at:
        raise ValueError("pandas' NaT")
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    return Decimal((at - _EPOCH) // timedelta(microseconds=1))


_TEXT = _Kind("valid Unicode text", _text)
_TRUTH = _Kind("true or false", _truth)
_REAL = _Kind("a number", _real)
_WHOLE = _Kind("a number", _whole)
_TIME = _Kind("an ISO 8601 date", _time)


def _compare(op: str, values: Any, wanted: Any, kind: _Kind) -> Any:
    if kind is _TEXT:
        names = {">=": "greater_equal", "<=": "less_equal", "==": "equal"}
        names |= {"!=": "not_equal", ">": "greater", "<": "less"}
        found = pc.call_function(names[op], [values, pa.scalar(wanted, values.type)])
        return np.asarray(pc.fill_null(found, False))
    if kind is _WHOLE or kind is _TIME:
        return _compare_whole(op, values, wanted)
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite to it
        return _COMPARE[op](values, wanted)


def _compare_whole(op: str, values: NDArray[Any], wanted: Decimal) -> NDArray[np.bool_]:
    if op in ("==", "!="):
        return _inside(values, [wanted], _WHOLE) ^ (op == "!=")
    # the whole number that sets the same border
    up = op in (">=", "<")
    border = wanted.to_integral_value(ROUND_CEILING if up else ROUND_FLOOR)
    limits = np.iinfo(values.dtype)
    if border > limits.max:
        return np.full(len(values), op in ("<", "<="))
    if border < limits.min:
        return np.full(len(values), op in (">", ">="))
    return np.asarray(_COMPARE[op](values, int(border)))


def _inside(values: Any, wanted: Sequence[Any], kind: _Kind) -> NDArray[np.bool_]:
    if kind is _TEXT:
        return np.asarray(pc.is_in(values, value_set=pa.array(wanted, values.type)))
    if kind is _WHOLE or kind is _TIME:
        limits = np.iinfo(values.dtype)
        inside = [one for one in wanted if limits.min <= one <= limits.max]
        wanted = [int(one) for one in inside if one == one.to_integral_value()]
    with np.errstate(over="ignore"):
        return np.isin(values, np.array(wanted, values.dtype))


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
                condition = Condition.read(column, given)
                if column == "zone":
                    _check_zones(condition.values)
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


def _check_zones(values: Sequence[Any]) -> None:
    zones = get_args(ZoneName)
    for value in values:
        if value not in zones:
            near = get_close_matches(str(value), zones, n=1)
            raise StrategyError(
                f"there is no zone {_short(value)}; the zones are {', '.join(zones)}"
                + (f"; the closest is {near[0]}" if near else "")
            )


def _items(text: str) -> tuple[str, ...]:
    """Split at commas, but for those in quotes."""
    items: list[str] = []
    at = 0
    while match := _ITEM.match(text, at):
        items.append(match[1] or match[2] or (match[3] or "").strip())
        at = match.end()
        if not match[0].endswith(","):
            break
    return tuple(items)


def _number(text: str) -> float | None:
    try:
        return _real(text)
    except ValueError:
        return None


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
