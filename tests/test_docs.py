"""Every Python snippet of the documentation runs, page by page, in order."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_SNIPPETS = [page for page in PAGES if SNIPPET.search(page.read_text())]


def test_pages_have_snippets() -> None:
    assert len(WITH_SNIPPETS) >= 7


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    names: dict[str, object] = {"__name__": "snippets"}
    for found in SNIPPET.finditer(text):
        line = text[: found.start()].count("\n") + 1
        code = compile("\n" * line + found[1], str(page), "exec")
        exec(code, names)


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
        "evaluator.evaluator.Evaluator",
        "result.Result",
        "FilterConfig",
        "SamplingConfig",
    ):
        assert path in reference
