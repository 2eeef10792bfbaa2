"""The examples run; the 3D one beside what else is tested of the detector that it trains."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

Run = Callable[[str], tuple[str, Path]]


def test_no_example_is_left_out() -> None:
    assert {one.name for one in EXAMPLES.glob("*.py")} == {
        "detection3d_pillars.py",
        "detection_torchvision.py",
        "detection_ultralytics.py",
    }


@pytest.mark.slow
def test_torchvision(run_example: Run) -> None:
    printed, folder = run_example("detection_torchvision.py")
    assert "shapes / v1, epoch 5" in printed
    assert "of its 3 worst boxes, place 10" in printed
    assert "<image" in (folder / "detection.html").read_text()


@pytest.mark.slow
def test_ultralytics(run_example: Run) -> None:
    if importlib.util.find_spec("ultralytics") is None:
        pytest.skip("Ultralytics is not installed")
    printed, folder = run_example("detection_ultralytics.py")
    assert "yolo / v1, epoch 14" in printed
    assert "of its 3 worst boxes, place 10" in printed
    assert "<image" in (folder / "yolo.html").read_text()
