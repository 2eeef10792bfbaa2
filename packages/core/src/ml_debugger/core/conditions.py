"""Comparisons of a stored column, as users write them."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ml_debugger.core.config import shortened
from ml_debugger.core.errors import StrategyError

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
            f"condition on {column!r}: {shortened(given)} does not begin with an operator; "
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
                    f"condition on {self.column!r}: {shortened(self.values)} cannot be compared "
                    f"with a {type_} column"
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
                f"condition on {self.column!r}: expected {kind.expected}, got {shortened(value)}"
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
