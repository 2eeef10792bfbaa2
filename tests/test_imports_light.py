"""Importing what every program imports stays cheap: heavy libraries wait until they are used."""

import json
import subprocess
import sys

import pytest

HEAVY = {
    "IPython",
    "duckdb",
    "jinja2",
    "matplotlib",
    "pandas",
    "plotly",
    "polars",
    "pytest",
    "requests",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "sqlalchemy",
    "sqlmodel",
    "timm",
    "torchvision",
    "transformers",
    "typer",
}

# What `import torch` loads by itself differs from version to version, and is not our doing.
SCRIPT = """
import json, sys, torch
before = set(sys.modules)
for name in {modules!r}:
    __import__(name)
new = set(sys.modules) - before
print(json.dumps(sorted({{one.partition(".")[0] for one in new}})))
"""


def loaded(*modules: str) -> set[str]:
    """Return the libraries that importing modules loads, beyond those that torch loads."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(modules=modules)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "modules",
    [
        ("ml_debugger.core",),
        ("ml_debugger.training", "ml_debugger.monitoring", "ml_debugger.data_filter"),
        ("ml_debugger.classification.task",),
        ("ml_debugger.evaluator",),
    ],
    ids=lambda modules: modules[0],
)
def test_heavy_libraries_wait(modules):
    assert not loaded(*modules) & HEAVY


def test_facades_import_no_task_for_dir():
    script = (
        "import sys, ml_debugger.training as t; dir(t); "
        "print([m for m in sys.modules if m.startswith('ml_debugger.classification')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
