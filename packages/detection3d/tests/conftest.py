"""What the tests of this package share."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Record in a folder of the test's own, and know of no service."""
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLD_API_ENDPOINT", raising=False)
    monkeypatch.delenv("MLD_API_KEY", raising=False)
    return tmp_path / "home"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the small detector's adapter, as far as the task can tell."""
    from ml_debugger.object_detection_3d.adapters import FAMILIES

    from .small import PillarAdapter

    monkeypatch.setattr(FAMILIES, "known", (PillarAdapter(), *FAMILIES.known))
