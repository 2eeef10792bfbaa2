"""What all tests share."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each of those that share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# or each of the many processes that tests start compiles torch anew, for seconds
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# doctests are looked for by importing: MMEngine, which not everyone has, warns then, and only
# Alembic can import its own entry
collect_ignore = [
    "packages/core/src/ml_debugger/training/mmengine.py",
    "packages/server/src/ml_debugger/server/migrations/env.py",
]

settings.register_profile("no deadline", deadline=None)  # tests never assert on time
settings.load_profile("no deadline")

EXAMPLES = Path(__file__).parent / "examples"


@pytest.fixture(scope="session")
def run_example(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, Path]]:
    """Return what runs an example once, on one thread, in a folder and a process of its own.

    Given a file name, it returns what the example printed, and the folder. The folder is for all
    who ask: nothing may be changed there.
    """

    @cache
    def run(name: str) -> tuple[str, Path]:
        folder = tmp_path_factory.mktemp(Path(name).stem)
        variables = {
            "MLD_HOME": str(folder / "home"),
            "OMP_NUM_THREADS": "1",
            "YOLO_OFFLINE": "true",
            "YOLO_CONFIG_DIR": str(folder / "settings"),
        }
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name)],
            cwd=folder,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.fail(f"{name}\n{done.stdout}", pytrace=False)
        return done.stdout, folder

    return run
