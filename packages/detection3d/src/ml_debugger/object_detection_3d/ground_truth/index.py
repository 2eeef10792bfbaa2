"""Frames by the names that they go by: ids, and files by their path, name or stem."""

from collections.abc import Iterator
from typing import Generic, TypeVar

from ml_debugger.core.errors import InputError

T = TypeVar("T")

_EXTENSIONS = {"bin", "pcd", "npy", "ply", "las", "laz", "png", "jpg", "jpeg", "txt", "json"}


class Index(Generic[T]):
    """What is known by ids, and by the ends of a file's path, and its stem."""

    def __init__(self) -> None:
        self._found: dict[str, T] = {}
        self._files: dict[str, T] = {}
        self._twice: set[str] = set()

    def __len__(self) -> int:
        return len(self._found)

    def add(self, one: T, *ids: str, file: str | None = None) -> None:
        """Know one by its ids and by its file."""
        names = set(ends(file)) if file else set()
        for name in {*ids, *names}:
            if name in self._found:
                self._twice.add(name)
            self._found[name] = one
        self._files |= dict.fromkeys(names, one)

    def get(self, input_id: str) -> T | None:
        """Return what an id means, or else the longest end of it that is one of a file's path.

        Raises:
            InputError: It means several.
        """
        known = (one for one in ends(input_id) if one in self._files)
        name = input_id if input_id in self._found else next(known, None)
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

    Only those of files with clouds, images and labels are: `scene.1` is no file `scene`. nuScenes'
    clouds have two: `x.pcd.bin`.
    """
    parts = path.replace("\\", "/").split("/")
    for at in range(len(parts)):
        yield "/".join(parts[at:])
    stem, dot, extension = parts[-1].rpartition(".")
    if stem and dot and extension.lower() in _EXTENSIONS:
        yield stem
        if stem.endswith(".pcd"):
            yield stem.removesuffix(".pcd")
