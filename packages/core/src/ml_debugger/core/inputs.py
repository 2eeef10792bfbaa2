"""What a call passes beside the model's input: ids, split, epoch and additional fields.

All of it is checked here, before the model runs and before anything is written.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from os import PathLike, fspath
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ml_debugger.core.errors import EpochError, InputError
from ml_debugger.core.records import Column

LONGEST_ID = 4096
LONGEST_NAME = 200


def as_input_ids(input_ids: Any, inputs: int | None) -> list[str]:
    """Return ids as text.

    Args:
        input_ids: A sequence of str, int or path, a NumPy array, or a tensor of integers.
        inputs: How many inputs the batch holds; None when only the model can tell.

    Raises:
        InputError: Not a sequence of ids, or not one id an input.
    """
    if isinstance(input_ids, torch.Tensor | np.ndarray):
        values = np.atleast_1d(
            input_ids.detach().cpu().numpy() if isinstance(input_ids, torch.Tensor) else input_ids
        )
        if values.ndim != 1:
            raise InputError(f"input_ids must be one-dimensional, got shape {values.shape}")
        given = values.tolist()
    elif isinstance(input_ids, str | bytes | Mapping | set | frozenset) or not hasattr(
        input_ids, "__iter__"
    ):
        raise InputError(
            f"input_ids must be a sequence with one id an input, got {_short(input_ids)}"
        )
    else:
        given = list(input_ids)
    kinds = set(map(type, given))
    if kinds == {int}:
        ids = list(map(str, given))
    elif kinds == {str} and _all_fit(given):
        ids = given
    else:
        ids = [_as_id(value, at) for at, value in enumerate(given)]
    if inputs is not None and len(ids) != inputs:
        raise InputError(f"{len(ids)} input_ids for a batch of {inputs} inputs; give one an input")
    return ids


def _all_fit(ids: list[str]) -> bool:
    # one look at all of them; `_as_id` says which one does not
    lengths = list(map(len, ids))
    try:
        "".join(ids).encode()
    except UnicodeEncodeError:
        return False
    return min(lengths) > 0 and max(lengths) <= LONGEST_ID


def _as_id(value: Any, at: int) -> str:
    if type(value) is str:
        text = value
    elif type(value) is int:
        return str(value)
    elif isinstance(value, PathLike):
        text = str(fspath(value))
    elif isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0:
        return _as_id(value.item(), at)
    elif isinstance(value, np.integer | str):
        text = str(value)
    else:
        raise InputError(f"input_ids[{at}] must be str, int or path, got {_short(value)}")
    if not text or len(text) > LONGEST_ID:
        raise InputError(f"input_ids[{at}] must have 1 to {LONGEST_ID} characters, got {len(text)}")
    _check_text(text, f"input_ids[{at}]")
    return text


def batch_size(model_input: Any) -> int | None:
    """Return how many inputs a batch holds: the length of its first tensor; None if it has none."""
    tensor = next(tensors_in(model_input), None)
    return None if tensor is None or tensor.ndim == 0 else len(tensor)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a value, in order, through mappings and sequences."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors_in(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors_in(one)


def as_epoch(n_epoch: Any) -> int | None:
    """Return a definite epoch.

    Raises:
        EpochError: Neither an integer nor None; a bool is not an integer here.
    """
    if n_epoch is None:
        return None
    if isinstance(n_epoch, bool) or not isinstance(n_epoch, int | np.integer):
        raise EpochError(f"n_epoch must be an int or None, got {_short(n_epoch)}")
    if not -(2**63) <= n_epoch < 2**63:
        raise InputError(f"n_epoch must fit 64 bits, got {n_epoch}")
    return int(n_epoch)


def as_name(value: Any, what: str) -> str:
    """Return a model, version, result or data set name.

    Raises:
        InputError: Not a text of 1 to 200 printable characters.
    """
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_NAME:
        raise InputError(
            f"{what} must be a text of 1 to {LONGEST_NAME} characters, got {_short(value)}"
        )
    if not value.isprintable():
        raise InputError(f"{what} must be printable text, got {value!r}")
    return value


FieldType = Literal["str", "int", "float", "bool", "datetime", "json"]
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


class AdditionalField(BaseModel):
    """A column that a user adds to the inputs or to the ground truth.

    Attributes:
        name: What calls and queries call it.
        type: What its values are. A `datetime` is a datetime, a pandas Timestamp, a NumPy
            datetime64 or an ISO 8601 text, kept to the microsecond; without a zone it is UTC.
        nullable: Whether None is a value.
        default: What a call that leaves it out gives each input.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=f"^{_IDENTIFIER.pattern}$")
    type: FieldType
    nullable: bool = False
    default: Any = None


def own_fields(columns: Iterable[Column]) -> dict[str, AdditionalField]:
    """Return a task's own columns of inputs as fields, by name."""
    kinds: dict[type, FieldType] = {int: "int", float: "float", bool: "bool", str: "str"}
    return {
        one.name: AdditionalField(name=one.name, type=kinds[one.type], nullable=True)
        for one in columns
    }


class FieldSet:
    """The additional fields of one table, and the check of what a call passes for them."""

    def __init__(
        self, fields: Sequence[Mapping[str, Any]] | None, *, what: str, reserved: frozenset[str]
    ) -> None:
        """Read the declarations.

        Args:
            fields: `[{"name": "camera", "type": "str", "nullable": True, "default": None}]`.
            what: The parameter they came in, for messages.
            reserved: Names that mean something else already.

        Raises:
            InputError: A declaration is malformed, reserved or given twice.
        """
        self.fields: dict[str, AdditionalField] = {}
        if fields is not None and (
            isinstance(fields, str | Mapping) or not isinstance(fields, Sequence)
        ):
            raise InputError(f"{what} must be a list of dicts, got {_short(fields)}")
        for at, one in enumerate(fields or ()):
            try:
                field = AdditionalField.model_validate(one)
            except ValidationError as error:
                problem = error.errors(include_url=False)[0]
                where = ".".join(str(part) for part in problem["loc"]) or "entry"
                raise InputError(f"{what}[{at}]: {where}: {problem['msg']}") from None
            if field.name in reserved:
                raise InputError(f"{what}[{at}]: the name {field.name!r} is taken; choose another")
            if field.name in self.fields:
                raise InputError(f"{what}[{at}]: the name {field.name!r} is given twice")
            if field.default is not None:
                _as_value(field.default, field, f"{what}[{at}].default")
            self.fields[field.name] = field

    def declarations(self) -> list[dict[str, Any]]:
        """Return the fields as they are stored."""
        return [field.model_dump(mode="json") for field in self.fields.values()]

    def take(self, given: dict[str, Any], inputs: int) -> dict[str, list[Any]]:
        """Take these fields' values out of a call's keyword arguments.

        Args:
            given: The keyword arguments; what is taken is removed.
            inputs: How many inputs the batch holds.

        Returns:
            One value an input for each field.

        Raises:
            InputError: A field is missing, has the wrong length or a value of the wrong type.
        """
        return {
            name: _column(given.pop(name, _MISSING), field, inputs)
            for name, field in self.fields.items()
        }


_MISSING = object()

_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "datetime": datetime}


def _column(given: Any, field: AdditionalField, inputs: int) -> list[Any]:
    if given is _MISSING:
        if field.default is None and not field.nullable:
            raise InputError(
                f"field {field.name!r} is missing: pass {field.name}= with one value an input "
                "or one for all, or declare it nullable or with a default"
            )
        given = field.default
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu().tolist()
    elif isinstance(given, np.ndarray):
        given = _plain(given)
    one_for_all = not isinstance(given, list | tuple)
    values = [given] * inputs if one_for_all else list(given)
    if len(values) != inputs:
        raise InputError(
            f"field {field.name!r} has {len(values)} values for {inputs} inputs; "
            "give one an input or one for all"
        )
    if one_for_all:
        return [_as_value(given, field, f"field {field.name!r}")] * inputs
    return [_as_value(one, field, f"field {field.name!r}[{at}]") for at, one in enumerate(values)]


def _as_value(value: Any, field: AdditionalField, where: str) -> Any:
    if isinstance(value, np.generic):
        value = _plain(value)
    if field.type == "datetime":
        value = _as_time(value, where)
    if value is None:
        if field.nullable:
            return None
        raise InputError(f"{where} is None; declare the field nullable to allow that")
    if field.type == "json":
        try:
            text = json.dumps(value, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"{where} is not JSON: {error}") from None
        if "\\ud" in text:  # perhaps half a surrogate, which other readers of JSON refuse
            _check_text(json.dumps(value, ensure_ascii=False), where)
        return text
    if field.type == "float" and type(value) is int:
        return float(value)
    if type(value) is not _TYPES[field.type]:
        raise InputError(f"{where} must be {field.type}, got {_short(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(f"{where} must fit 64 bits, got {value}")
    if isinstance(value, float) and math.isinf(value):
        raise InputError(f"{where} must be finite or NaN, got {value}")
    if isinstance(value, str):
        _check_text(value, where)
    return value


def _plain(value: np.ndarray[Any, Any] | np.generic) -> Any:
    # of nanoseconds NumPy would make ints
    return (value.astype("datetime64[us]") if value.dtype.kind == "M" else value).tolist()


def _as_time(value: Any, where: str) -> Any:
    """Return a datetime with a zone; what is no time at all comes back as it is."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise InputError(f"{where} is not an ISO 8601 date: {_short(value)}") from None
    if not isinstance(value, datetime):
        return value
    if value != value:  # pandas' NaT
        return None
    if type(value) is not datetime:  # a pandas Timestamp, which may hold nanoseconds
        value = datetime.combine(value.date(), value.timetz())
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where} is not valid Unicode text: {error.reason}") from None


def _short(value: Any) -> str:
    text = repr(value)
    kind = type(value).__name__
    return f"{kind} {text if len(text) <= 60 else text[:57] + '...'}"
