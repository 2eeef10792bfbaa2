"""Step 3: keep records on this machine, durable and fast to read."""

from ml_debugger.core.store.contract import (
    EpochInfo,
    Purpose,
    Repository,
    ResultInfo,
    RunInfo,
    Scope,
    VersionInfo,
)
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
