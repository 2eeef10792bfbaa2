"""Frames by the names that they go by: ids, and files by their path, name or stem."""

from collections.abc import Iterator
from typing import Generic, TypeVar

from ml_debugger.core.errors import InputError

T = TypeVar("T")


class Index(Generic[T]):
    """What is known by names, of which a file's are the ends of its path, and its stem."""

    def __init__(self) -> None:
        self._found: dict[str, T] = {}
        self._twice: set[str] = set()

    def __len__(self) -> int:
        return len(self._found)

    def add(self, one: T, *ids: str, file: str | None = None) -> None:
        """Know one by its ids and by its file."""
        for name in {*ids, *(ends(file) if file else ())}:
            if name in self._found:
                self._twice.add(name)
            self._found[name] = one

    def get(self, input_id: str) -> T | None:
        """Return what an id means, or the longest end of it that means something.

        Raises:
            InputError: It means several.
        """
        name = next((one for one in ends(input_id) if one in self._found), None)
        if name is None:
            return None
        if name in self._twice:
            raise InputError(
                f"the id {input_id!r} fits several frames, by {name!r}; give more of the file's "
                "path, or a token"
            )
        return self._found[name]


def ends(path: str) -> Iterator[str]:
    """Yield the ends of a path from the longest to the name, and this without its extensions.

    nuScenes' clouds have two: `x.pcd.bin`.
    """
    parts = path.replace("\\", "/").split("/")
    for at in range(len(parts)):
        yield "/".join(parts[at:])
    stem, dot, _ = parts[-1].rpartition(".")
    if stem and dot:
        yield stem
        if stem.endswith(".pcd"):
            yield stem.removesuffix(".pcd")
