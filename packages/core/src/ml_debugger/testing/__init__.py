"""Conformance suites: subclass one in your tests, and pytest runs what it inherits.

`TaskContract` is for packages that add a task, `RepositoryContract` for other places to keep
records in. Each inherited test says in its docstring what to change when it fails.
"""

from importlib.util import find_spec

if find_spec("pytest") is None:  # core does not depend on it: only who tests a package does
    raise ImportError(
        "ml_debugger.testing needs pytest, which is not installed: pip install pytest"
    )

from ml_debugger.testing.repository_contract import RepositoryContract
from ml_debugger.testing.task_contract import TaskContract

__all__ = ["RepositoryContract", "TaskContract"]
