"""The contracts of ml-debugger, and what task packages build on.

Names are resolved when they are asked for: importing a tracer need not wait for the store's
libraries, and where only NumPy is, `ml_debugger.core.evaluation.edge` still works.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Capture
    from ml_debugger.core.capture import Activations, Capture
    from ml_debugger.core.checkup import Checkup

    # Errors
    from ml_debugger.core.errors import MLDebuggerError

    # Query
    from ml_debugger.core.query import FilterConfig

    # Records
    from ml_debugger.core.records import (
        Array,
        Batch,
        Column,
        ModelVersion,
        TaskSchema,
        Units,
        owners,
    )

    # Storage
    from ml_debugger.core.store import Repository, Scope, Store

    # Tasks
    from ml_debugger.core.task import CONTRACT, Task, Verdict
    from ml_debugger.core.tracer import Tracer

__version__ = version("ml-debugger-core")

_HOMES = {
    "capture": ("Activations", "Capture"),
    "checkup": ("Checkup",),
    "errors": ("MLDebuggerError",),
    "query": ("FilterConfig",),
    "records": ("Array", "Batch", "Column", "ModelVersion", "TaskSchema", "Units", "owners"),
    "store": ("Repository", "Scope", "Store"),
    "task": ("CONTRACT", "Task", "Verdict"),
    "tracer": ("Tracer",),
}

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
    "Verdict",
    "__version__",
    "owners",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            found = getattr(import_module(f"{__name__}.{home}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
