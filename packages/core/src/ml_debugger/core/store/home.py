"""The folder of a store: making it, and knowing where it must not be."""

import hashlib
import re
import shutil
import time
import warnings
from contextlib import suppress
from pathlib import Path

from ml_debugger.core.errors import StoreError

NETWORK = ("nfs", "cifs", "smb", "lustre", "9p", "afs", "gpfs", "beegfs", "ceph", "fuse.sshfs")
MOUNTS = Path("/proc/self/mounts")
DRAFT_SECONDS = 24 * 3600.0  # nothing takes as long to write

_warned: set[Path] = set()


def prepare(home: Path) -> None:
    """Make the folder of a store, for its owner's eyes only, where it does not exist.

    Raises:
        StoreError: It cannot be made, or something else is there.
    """
    for folder in (home, home / "segments", home / "results"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError as error:
            raise StoreError(
                f"{folder} is not a folder; the store needs one. Choose another with MLD_HOME or "
                "home="
            ) from error
        except OSError as error:
            raise StoreError(
                f"cannot make the folder {folder}: {error.strerror}; the store needs a writable "
                "one. Choose another with MLD_HOME or home="
            ) from error
    kind = network_file_system(home)
    if kind and home not in _warned:
        _warned.add(home)
        warnings.warn(
            f"the store {home} is on a network file system ({kind}), where SQLite cannot lock "
            "safely; set MLD_HOME to a folder on a local disk, and bring records together with "
            "export and import",
            stacklevel=3,
        )


def network_file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """Return the type of the network file system that a path is on; None where it is local."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None  # not Linux: nothing is known
    path = path.resolve()
    best, found = -1, ""
    for line in lines:
        _, folder, kind, *_ = line.split(" ")
        folder = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), folder)
        if len(folder) >= best and path.is_relative_to(folder):
            best, found = len(folder), kind
    return found if found.startswith(NETWORK) else None


def sweep(folder: Path) -> None:
    """Delete what killed processes have left half done: what is hidden, and a day old."""
    for draft in folder.glob(".*"):
        with suppress(FileNotFoundError):
            if time.time() - draft.lstat().st_mtime > DRAFT_SECONDS:
                if draft.is_dir():
                    shutil.rmtree(draft, ignore_errors=True)
                else:
                    draft.unlink()


def folder_name(name: str) -> str:
    """Return a file name for any text: never a path, and different for different texts."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:80]
    if name and plain == name and not re.search(r"-[0-9a-f]{12}$", name):
        return name
    return f"{plain or 'result'}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:12]}"
