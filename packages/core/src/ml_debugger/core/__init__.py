"""The contracts of ml-debugger, and what task packages build on."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

# Capture
from ml_debugger.core.capture import Activations, Capture
from ml_debugger.core.checkup import Checkup

# Errors
from ml_debugger.core.errors import MLDebuggerError

# Query
from ml_debugger.core.query import FilterConfig

# Records
from ml_debugger.core.records import Array, Batch, Column, ModelVersion, TaskSchema, Units, owners

# Storage
from ml_debugger.core.store import Repository, Scope

# Tasks
from ml_debugger.core.task import CONTRACT, Task
from ml_debugger.core.tracer import Tracer

if TYPE_CHECKING:
    from ml_debugger.core.store import Store

__version__ = version("ml-debugger-core")

__all__ = [
    "CONTRACT",
    "Activations",
    "Array",
    "Batch",
    "Capture",
    "Checkup",
    "Column",
    "FilterConfig",
    "MLDebuggerError",
    "ModelVersion",
    "Repository",
    "Scope",
    "Store",
    "Task",
    "TaskSchema",
    "Tracer",
    "Units",
    "__version__",
    "owners",
]


def __getattr__(name: str) -> Any:
    # Only this one brings SQLAlchemy, for which importing a tracer need not wait.
    if name == "Store":
        from ml_debugger.core.store import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
