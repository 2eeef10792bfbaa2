"""Which families of detectors are known, recognised without importing their libraries."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from torch import nn

from ml_debugger.core.detection.adapter import Adapter

Known = TypeVar("Known", bound=Adapter[Any, Any])


class Families(Generic[Known]):
    """The families of detectors that a task knows: its own, and those of other packages.

    A package adds one by an entry point whose value is a class of adapters; those are asked first.

    Attributes:
        group: The group of the entry points.
    """

    def __init__(
        self, group: str, ours: Sequence[type[Known]], libraries: Mapping[str, str] | None = None
    ) -> None:
        """Take what comes with the task.

        Args:
            group: The group of the entry points.
            ours: The classes of adapters.
            libraries: How to install libraries that models are of, by import name.
        """
        self.group, self._ours, self._libraries = group, ours, libraries or {}

    @cached_property
    def known(self) -> tuple[Known, ...]:
        """An instance of every known adapter, in the order in which they are asked."""
        others = sorted(entry_points(group=self.group), key=lambda entry: entry.name)
        return tuple(make() for make in (*(entry.load() for entry in others), *self._ours))

    def of(self, model: nn.Module) -> Known | None:
        """Return the first adapter that knows a model, or None."""
        return next((one for one in self.known if one.detect(model)), None)

    def absent(self, model: nn.Module) -> str | None:
        """Say how to install the library that a model is of by name, or None where it is here."""
        named = {one.__module__.partition(".")[0] for one in type(model).__mro__}
        for library in named & self._libraries.keys():
            if find_spec(library) is None:
                return f"{library} is not installed: {self._libraries[library]}"
        return None


def is_a(model: object, *qualified_names: str) -> bool:
    """Test an object's ancestry by name, so that no family's library is imported to say no."""
    ancestors = {f"{a.__module__}.{a.__qualname__}" for a in type(model).__mro__}
    return not ancestors.isdisjoint(qualified_names)
