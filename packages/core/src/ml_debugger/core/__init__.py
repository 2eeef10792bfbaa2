"""The contracts of ml-debugger, and what task packages build on."""

from importlib.metadata import version

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
from ml_debugger.core.store import Repository, Scope, Store

# Tasks
from ml_debugger.core.task import CONTRACT, Task
from ml_debugger.core.tracer import Tracer

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
