"""The examples run, each in a folder and a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, folder: Path) -> str:
    """Run an example on one thread, and return what it printed."""
    settings = {
        "MLD_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
        "YOLO_OFFLINE": "true",
        "YOLO_CONFIG_DIR": str(folder / "settings"),
    }
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=folder,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{name}\n{done.stdout}", pytrace=False)
    return done.stdout


def test_no_example_is_left_out() -> None:
    assert {one.name for one in EXAMPLES.glob("*.py")} == {
        "detection3d_pillars.py",
        "detection_torchvision.py",
        "detection_ultralytics.py",
    }


def test_torchvision(tmp_path: Path) -> None:
    printed = run("detection_torchvision.py", tmp_path)
    assert "shapes / v1, epoch 5" in printed
    assert "of its 3 worst boxes, place 10" in printed
    assert "<image" in (tmp_path / "detection.html").read_text()


def test_ultralytics(tmp_path: Path) -> None:
    if importlib.util.find_spec("ultralytics") is None:
        pytest.skip("Ultralytics is not installed")
    printed = run("detection_ultralytics.py", tmp_path)
    assert "yolo / v1, epoch 14" in printed
    assert "of its 3 worst boxes, place 10" in printed
    assert "<image" in (tmp_path / "yolo.html").read_text()


def test_pillars(tmp_path: Path) -> None:
    printed = run("detection3d_pillars.py", tmp_path)
    assert "pillars / v1, epoch 5" in printed
    assert "of its 3 worst boxes, place 10" in printed
    assert "<circle" in (tmp_path / "detection3d.html").read_text()
