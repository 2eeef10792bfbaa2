"""'latest', 'all', a number or none, made definite."""

from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from ml_debugger.core.errors import EpochError
from ml_debugger.core.inputs import as_epoch

#: What a user may write for an epoch. None is an epoch of its own: records without a number.
EpochSpec: TypeAlias = int | Literal["latest", "all"] | None

#: One epoch, or all of them.
EpochChoice: TypeAlias = int | Literal["all"] | None


class EpochHistory(Protocol):
    """What knows which epoch was written last."""

    def latest_epoch(self) -> int | None:
        """Return the epoch written last: by time, since training may count from 0 again."""


class LastEpoch(NamedTuple):
    """A history of which only the end is known."""

    n_epoch: int | None

    def latest_epoch(self) -> int | None:
        """Return the epoch written last."""
        return self.n_epoch


def resolve_epoch(spec: Any, history: EpochHistory) -> EpochChoice:
    """Return a definite epoch, or 'all'.

    Raises:
        EpochError: Not an int, None, 'latest' or 'all'.
    """
    if isinstance(spec, str):
        if spec == "latest":
            return history.latest_epoch()
        if spec == "all":
            return "all"
        raise EpochError(f"n_epoch must be an int, None, 'latest' or 'all', got {spec!r}")
    return as_epoch(spec)
