"""The public names of installed tasks, resolved when asked for."""

import sys
from collections.abc import Callable
from typing import Any

from ml_debugger.core.task import KNOWN, installed, load


def facade(
    package: str, *, suffix: str, slot: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a package's `__getattr__` and `__dir__`.

    Args:
        package: The facade's import name.
        suffix: What follows a task's prefix in its public names, such as `Tracer`.
        slot: The attribute of `Task` that holds the class.
    """

    def resolve(name: str) -> Any:
        prefix = name.removesuffix(suffix)
        if prefix == name or not (prefix in KNOWN or prefix in installed()):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(load(prefix), slot)
        setattr(sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *(prefix + suffix for prefix in installed())})

    return resolve, names
