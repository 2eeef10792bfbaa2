"""What tests of the distributions share: wheels, and environments to install them in."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
THIRD_PARTY = ROOT / "tests" / "third_party" / "acme-ml-debugger-segmentation"

#: The environment of a user: their own settings would find our source tree, or their records.
OURS = ("VIRTUAL_ENV", "PYTHONPATH", "UV_PROJECT_ENVIRONMENT", "UV_COMPILE_BYTECODE", "MLD_HOME")


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """Run a command and return what it printed; fail with that when the command fails."""
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    done = subprocess.run(
        [str(one) for one in command],
        cwd=cwd,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout}", pytrace=False)
    return done.stdout


@dataclass(frozen=True)
class Environment:
    """A virtual environment that knows nothing of the source tree."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def install(self, *arguments: str | Path) -> None:
        # from the root, whose date and constraints say which versions there are
        run("uv", "pip", "install", "--python", self.python, *arguments)

    def uninstall(self, name: str) -> None:
        run("uv", "pip", "uninstall", "--python", self.python, name)

    def run(self, *arguments: str | Path, **variables: str) -> str:
        """Run Python in an empty folder."""
        empty = self.folder / "work"
        empty.mkdir(exist_ok=True)
        return run(self.python, "-I", *arguments, cwd=empty, **variables)

    def has(self) -> dict[str, str]:
        """Return the installed distributions and their versions."""
        code = "from importlib.metadata import distributions as d\n"
        code += "for one in d(): print(one.name, one.version)"
        return dict(line.split() for line in self.run("-c", code).splitlines())


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of our distributions and of the third-party one, by distribution."""
    folder = tmp_path_factory.mktemp("wheels")
    run("uv", "build", "--wheel", "--all-packages", "--out-dir", folder)
    run("uv", "build", "--wheel", "--out-dir", folder, THIRD_PARTY)
    return {one.name.split("-")[0].replace("_", "-"): one for one in folder.glob("*.whl")}


@pytest.fixture(scope="session")
def make_environment(
    tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path]
) -> Iterator[Callable[..., Environment]]:
    """Make an environment with some distributions from their wheels, and what they depend on."""
    pins = tmp_path_factory.mktemp("pins") / "constraints.txt"
    folders: list[Path] = []
    pins.write_text("".join(f"{name} @ {file.as_uri()}\n" for name, file in wheels.items()))

    def make(*names: str, also: tuple[str, ...] = ()) -> Environment:
        folder = tmp_path_factory.mktemp("environment")
        folders.append(folder)
        run("uv", "venv", "--quiet", "--clear", "--python", sys.executable, folder)
        environment = Environment(folder)
        # the constraints make a dependency on one of ours mean its wheel
        environment.install("--constraints", pins, *(wheels[name] for name in names), *also)
        return environment

    yield make
    for folder in folders:  # several GB each, where they are not links into uv's cache
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def classification_environment(make_environment: Callable[..., Environment]) -> Environment:
    """What `pip install ml-debugger-classification` gives."""
    return make_environment("ml-debugger-classification")


@pytest.fixture(scope="session")
def whole_environment(make_environment: Callable[..., Environment]) -> Environment:
    """What `pip install ml-debugger` gives."""
    return make_environment("ml-debugger")
