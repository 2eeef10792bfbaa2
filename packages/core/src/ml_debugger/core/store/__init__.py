"""Step 3: keep records on this machine, durable and fast to read."""

from typing import TYPE_CHECKING, Any

from ml_debugger.core.store.contract import (
    EpochInfo,
    Purpose,
    Repository,
    ResultInfo,
    RunInfo,
    Scope,
    VersionInfo,
)

if TYPE_CHECKING:
    from ml_debugger.core.store.local import Store
    from ml_debugger.core.store.records import Records
    from ml_debugger.core.store.repository import LocalRepository

__all__ = [
    "EpochInfo",
    "LocalRepository",
    "Purpose",
    "Records",
    "Repository",
    "ResultInfo",
    "RunInfo",
    "Scope",
    "Store",
    "VersionInfo",
]


def __getattr__(name: str) -> Any:
    # What touches the disk brings SQLAlchemy and Arrow: importing a tracer need not wait for them.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ml_debugger.core.store import local, records, repository

    found = {
        "LocalRepository": repository.LocalRepository,
        "Records": records.Records,
        "Store": local.Store,
    }
    globals().update(found)
    return found[name]
