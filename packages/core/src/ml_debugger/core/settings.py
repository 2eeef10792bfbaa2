"""What a user may set once: where records live, and which service to talk to.

An argument wins over the environment, and each setting is resolved by itself, so the two can be
mixed.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_HOME = Path("~/.ml_debugger")


def resolve_home(home: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of the local store: the argument, `MLD_HOME`, or `~/.ml_debugger`."""
    chosen = home if home is not None else os.environ.get("MLD_HOME") or DEFAULT_HOME
    return Path(chosen).expanduser().resolve()


@dataclass(frozen=True, slots=True)
class Service:
    """The service that records are sent to; both None means that everything stays here."""

    endpoint: str | None
    api_key: str | None = field(repr=False)  # a key never reaches a log through a repr

    @classmethod
    def resolve(cls, api_endpoint: str | None = None, api_key: str | None = None) -> "Service":
        """Read `MLD_API_ENDPOINT` and `MLD_API_KEY` for what is not given."""
        return cls(
            api_endpoint or os.environ.get("MLD_API_ENDPOINT") or None,
            api_key or os.environ.get("MLD_API_KEY") or None,
        )


def outside() -> int:
    """Return the `stacklevel` with which a warning of the caller's points at the user's line."""
    level, frame = 1, sys._getframe(1)  # noqa: SLF001  # as the documentation of warnings does
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        level, frame = level + 1, frame.f_back
    return level


_OURS = "ml_debugger."
