"""Everything ml-debugger raises on purpose.

Each error says what was wrong, what was expected and what to do next, and also derives from
the built-in error that a caller would already expect, so documented `except` clauses hold and
`except MLDebuggerError` catches all.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class MLDebuggerError(Exception):
    """Base of every error raised on purpose."""


# What the caller passed


class InputError(MLDebuggerError, ValueError):
    """An argument of a call does not fit; nothing has run and nothing was written."""


class StrategyError(InputError):
    """A query strategy, condition, zone name or sampling setting cannot be used."""


class EpochError(MLDebuggerError, TypeError):
    """Something other than an epoch was given where an epoch is needed."""


# The model


class LayerNotFoundError(InputError):
    """A layer path leads nowhere in the model."""

    def __init__(self, alias: str, path: str, known: Iterable[str]) -> None:
        names = list(known)
        near = get_close_matches(path, names, n=3, cutoff=0.5) or names[-3:]
        super().__init__(
            f"layer {alias!r}: no module {path!r} in the model; "
            f"the nearest are: {', '.join(near)}. List all with model.named_modules()"
        )
        self.alias = alias
        self.path = path


class LayerNotCapturedError(MLDebuggerError, KeyError):
    """An activation was asked for that no forward pass has produced."""

    def __init__(self, alias: str, captured: Iterable[str]) -> None:
        super().__init__(alias)
        self.alias = alias
        self.captured = sorted(captured)

    def __str__(self) -> str:
        known = ", ".join(self.captured) or "none yet"
        return f"no activation captured for layer {self.alias!r} (captured: {known})"


class LayerNotFiredError(MLDebuggerError, RuntimeError):
    """A forward pass went by without running a layer that is to be recorded."""


class UnsupportedModelError(MLDebuggerError, TypeError):
    """A model, or what it returned, cannot be traced."""


class ArchitectureMismatchError(MLDebuggerError, ValueError):
    """A model name, or a result, belongs to another architecture."""


# Storage


class StoreError(MLDebuggerError, OSError):
    """The store cannot be read or written; what was recorded before is intact."""


class SchemaError(MLDebuggerError, RuntimeError):
    """A store, an archive or a result was written by a version this one cannot read."""


class ArchiveError(InputError):
    """A file is not an ml-debugger export, or it is damaged."""


class ResultNotFoundError(MLDebuggerError, LookupError):
    """No evaluation result has this name."""


class NothingToEvaluateError(MLDebuggerError, LookupError):
    """No labelled records fit the request."""


# Task packages


class TaskNotInstalledError(MLDebuggerError, ImportError):
    """A public name belongs to a task package that is not installed."""


class TaskIncompatibleError(MLDebuggerError, ImportError):
    """An installed task package was written for another contract of core."""


# The service


class EndpointError(MLDebuggerError, RuntimeError):
    """A service is needed and none is configured."""


class SyncError(MLDebuggerError, ConnectionError):
    """The configured service cannot be reached, or refused."""


class LicenseError(MLDebuggerError, PermissionError):
    """The configured service refused because a quota or a licence is exhausted."""
