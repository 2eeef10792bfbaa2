"""Settings that users may write as dicts."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ml_debugger.core.errors import StrategyError


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
                said = f"{where}: {said}, got {shortened(problem['input'])}"
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


def shortened(value: Any) -> str:
    """Return a value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
