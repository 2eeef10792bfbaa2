"""Every Python snippet of the documentation runs, page by page, in order."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from ml_debugger.evaluator import Evaluator
from ml_debugger.object_detection.adapters import FAMILIES
from ml_debugger.training import ObjectDetectionTracer

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "packages").glob("*/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_SNIPPETS = [page for page in PAGES if SNIPPET.search(page.read_text())]
SLOW = ("detection.md", "detection3d.md")  # they train a detector


def test_pages_have_snippets() -> None:
    assert len(WITH_SNIPPETS) >= 7


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.name in SLOW else ())
        for page in WITH_SNIPPETS
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with service(tmp_path, monkeypatch) if page.name == "service.md" else nullcontext():
        names = run(page)
    if page.name == "model_family.md":
        evaluate_with(names, monkeypatch)


@contextmanager
def service(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the service that a page speaks of, and tell the SDK of it as the page does."""
    command = [Path(sys.executable).with_name("ml-debugger"), "serve", "--port", "0"]
    variables = {**os.environ, "MLD_SERVER_DATA": str(folder / "service")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=variables, stdout=subprocess.PIPE, stderr=log, text=True
        )
    with process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("serving on "):
                    break
            else:
                pytest.fail((folder / "log").read_text())
            monkeypatch.setenv("MLD_API_ENDPOINT", line.removeprefix("serving on ").strip())
            told = json.loads((folder / "service" / "first_login.json").read_text())
            monkeypatch.setenv("MLD_API_KEY", told["key"])
            yield
        finally:
            process.terminate()


def run(page: Path) -> dict[str, Any]:
    """Run a page's snippets one after another, and return what they leave."""
    text = page.read_text()
    names: dict[str, Any] = {"__name__": "snippets"}
    for found in SNIPPET.finditer(text):
        line = text[: found.start()].count("\n") + 1
        code = compile("\n" * line + found[1], str(page), "exec")
        exec(code, names)
    return names


def evaluate_with(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace and evaluate by the page's adapter, as if a package had registered it."""

    known = (names["PointsAdapter"](), *FAMILIES.known)
    monkeypatch.setattr(FAMILIES, "known", known)
    model, images = names["Points"](), torch.rand(20, 3, 64, 80)
    with torch.no_grad():
        seen = [one["xyxy"][::2] for one in model(images)]
        truths = [{"boxes": one, "labels": torch.zeros(len(one))} for one in seen]
        with ObjectDetectionTracer(model, "points", "v1", score_thresh=0.6) as tracer:
            output = tracer(images, truths, range(20), "val")
    assert model.score_thresh == 0.55
    result = Evaluator("points", "v1").request_evaluation()
    assert len(result) == sum(len(one["xyxy"]) for one in output) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_every_public_class_has_a_page() -> None:
    reference = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    for path in (
        "classification_torchtracer.ClassificationTrainingTorchTracer",
        "classification_torch_data_filter.ClassificationTorchDataFilter",
        "classification_torchlogger.ClassificationTorchLogger",
        "object_detection_torchtracer.ObjectDetectionTrainingTorchTracer",
        "object_detection_torch_data_filter.ObjectDetectionTorchDataFilter",
        "object_detection_torchlogger.ObjectDetectionTorchLogger",
        "object_detection_3d_torchtracer.ObjectDetection3DTrainingTorchTracer",
        "object_detection_3d_torch_data_filter.ObjectDetection3DTorchDataFilter",
        "object_detection_3d_torchlogger.ObjectDetection3DTorchLogger",
        "object_detection_3d.adapters.base.DetectionAdapter",
        "object_detection_3d.output",
        "mmengine.MLDebuggerHook",
        "object_detection.adapters.base.DetectionAdapter",
        "object_detection.output",
        "analysis.error_types",
        "average_precision.mean_average_precision",
        "evaluator.evaluator.Evaluator",
        "result.Result",
        "FilterConfig",
        "BBoxStrategy",
        "SamplingConfig",
    ):
        assert path in reference
