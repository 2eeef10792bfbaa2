"""The command line, as a user types it."""

import inspect
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from ml_debugger.core import cli
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.store import Store
from ml_debugger.data_filter import ClassificationDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.training import ClassificationTracer


def typed(*args: object, home: Path, fails: bool = False) -> str:
    """Return what a command prints, in a process of its own; what it says of its failure if so."""
    done = subprocess.run(
        [sys.executable, "-m", "ml_debugger.core", *map(str, args), "--home", str(home)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # 1 would be a limit that was not kept
    assert done.returncode == (2 if fails else 0), done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr if fails else done.stdout


def quickly(*args: object, home: Path) -> tuple[int, str]:
    """Return the exit code of a command, and what it printed, without another process."""
    done = CliRunner().invoke(cli.app, [*map(str, args), "--home", str(home)])
    return done.exit_code, done.output


def run(*args: object, home: Path) -> str:
    """Return what a command prints, without another process."""
    code, said = quickly(*args, home=home)
    assert code == 0, said
    return said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    x = torch.randn(400, 4)
    with torch.no_grad():
        with ClassificationTracer(model, "net", "v1", home=folder) as tracer:
            tracer(x[:300], x[:300, :3].argmax(1), range(300), "val", n_epoch=0)
        Evaluator("net", "v1", home=folder).request_evaluation(result_name="r[1]")
        torch.nn.init.normal_(model[2].weight)
        with ClassificationTracer(model, "net", "v2", home=folder) as tracer:
            tracer(x[:300], x[:300, :3].argmax(1), range(300), "val", n_epoch=0)
        Evaluator("net", "v2", home=folder).request_evaluation(result_name="r[2]")
        with ClassificationDataFilter(model, "net", "v1", "r[1]", home=folder) as data_filter:
            data_filter(x[300:], range(300, 400))
    return folder


def test_results(home: Path) -> None:
    listed = typed("results", home=home)
    assert "net" in listed
    assert "400" in listed
    assert "r[1]" in listed  # brackets are no markup
    assert "nothing is recorded of other" in typed("results", "other", home=home)


def test_report(home: Path, tmp_path: Path) -> None:
    said = run("report", "r[1]", "-o", tmp_path / "out.html", home=home)
    assert "accuracy" in said
    assert (tmp_path / "out.html").read_text().startswith("<!doctype html>")


def test_compare(home: Path) -> None:
    store = Store(home)
    old, new = (Result.load(store.result_folder(name)) for name in ("r[1]", "r[2]"))
    flow = old.flow(new)
    broke = len(flow.regressions)
    assert broke > 0
    said = run("compare", "r[1]", "r[2]", "--max-regressions", broke, home=home)
    assert f"{broke:,} regressed, {len(flow.fixed):,} fixed, of 300 shared units" in said
    for text in ("accuracy", "Zone flow", "Confusion, worst first", "Regressions"):
        assert text in said
    assert flow.regressions["input_id"].iloc[0] in said
    code, said = quickly("compare", "r[1]", "r[2]", "--max-regressions", broke - 1, home=home)
    assert code == 1
    assert f"wanted at most {broke - 1}" in said
    code, said = quickly("compare", "r[1]", "r[1]", "--max-regressions", 0, home=home)
    assert code == 0
    assert "0 regressed" in said
    assert "no result" in typed("compare", "r[1]", "r[3]", home=home, fails=True)


def test_compare_shows_counts_whole_and_shares_with_decimals(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"n": 1, "errors": 0, "accuracy": 0, "share of hotspot": 1, "auroc": None}
    rows = [
        {"figure": name, "this": value, "other": value, "difference": value, "better": None}
        for name, value in figures.items()
    ]
    monkeypatch.setattr(Result, "compare", lambda *_, **__: pa.Table.from_pylist(rows))
    _, said = quickly("compare", "r[1]", "r[1]", home=home)
    for name, cell in zip(figures, ("1", "0", "0.0000", "1.0000", ""), strict=True):
        (row,) = (line for line in said.splitlines() if line.startswith(f"│ {name} "))
        assert [one.strip() for one in row.split("│")[2:-1]] == [cell] * 3


def test_check(home: Path) -> None:
    kept = run("check", "r[1]", "--min-accuracy", 0, "--max-ece", 1, home=home)
    assert kept.count("PASS") == 2
    code, said = quickly("check", "r[1]", "--min-accuracy", 2, "--max-ece", 1, home=home)
    assert code == 1
    assert "FAIL  accuracy" in said
    assert "PASS  ece" in said
    for bad in ([], ["--min-auroc", "nan"], ["--min-mood", 1]):
        assert quickly("check", "r[1]", *bad, home=home)[0] == 2
    assert "no result" in typed("check", "r[3]", "--min-accuracy", 0, home=home, fails=True)


def test_check_has_an_option_for_every_limit() -> None:
    ours, theirs = (set(inspect.signature(one).parameters) for one in (cli.check, Result.check))
    assert ours - {"result_name", "home"} == theirs - {"self", "raise_on_failure"}


def test_query(home: Path) -> None:
    ids = run("query", "r[1]", "-n", 5, home=home).split()
    assert len(ids) == 5
    assert all(300 <= int(one) < 400 for one in ids)
    some = run("query", "r[1]", "--where", "error_proba>=0.5", "--where", "score<0.9", home=home)
    assert set(some.split()) <= set(run("query", "r[1]", "-n", 100, home=home).split())
    assert "zone" in run("query", "r[1]", "--zone", "hotspot", "--explain", home=home)
    assert "hotspot" in typed("query", "r[1]", "--zone", "hot", home=home, fails=True)


def test_query_explains_under_its_own_headings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.console, "width", 200)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    with ClassificationDataFilter(model, "net", "v1", "r[1]", home=home) as data_filter:
        frame = data_filter.query(3, "high_error_proba", explain=True)
    _, said = quickly("query", "r[1]", "-n", 3, "--explain", home=home)
    head = next(line for line in said.splitlines() if "input_id" in line)
    assert [one.strip() for one in head.split("┃")[1:-1]] == list(frame.columns)
    rows = [line.split("│")[1:-1] for line in said.splitlines() if line.startswith("│")]
    frame["rank_value"] = frame["rank_value"].map("{:.3f}".format)
    assert [[one.strip() for one in row] for row in rows] == frame.to_numpy().tolist()


def test_export_import_drop(home: Path, tmp_path: Path) -> None:
    run("export", "net", "v1", "-o", tmp_path / "out.zip", home=home)
    elsewhere = tmp_path / "elsewhere"
    assert "net/v1" in run("import", tmp_path / "out.zip", home=elsewhere)
    assert "400" in run("results", home=elsewhere)
    assert "500 rows" not in run("drop", "net", "v1", "--epoch", 0, "--yes", home=elsewhere)
    run("drop", "net", "v1", "--yes", home=elsewhere)
    assert "error: " in typed("export", "net", "v9", home=elsewhere, fails=True)


def test_doctor(home: Path) -> None:
    said = run("doctor", home=home)
    assert "the store is sound" in said
    for task in ("classification", "detection2d", "detection3d"):
        assert f"ml-debugger-{task}" in said
    assert "not installed" not in said
    segment = max((home / "segments").glob("*.seg"), key=lambda path: path.stat().st_size)
    data = bytearray(segment.read_bytes())
    data[64] ^= 0xFF
    segment.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", "ml_debugger.core", "doctor", "--home", str(home)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert segment.name in done.stdout


def test_the_commands_of_others_are_loaded_only_for_them() -> None:
    script = (
        "import sys; from ml_debugger.core import cli\n"
        "try: cli.app(sys.argv[1:])\n"
        "except SystemExit: print(*sys.modules)"
    )

    def loaded(*args: str) -> set[str]:
        done = subprocess.run(
            [sys.executable, "-c", script, *args], capture_output=True, text=True, check=True
        )
        return set(done.stdout.splitlines()[-1].split())

    heavy = {"torch", "pandas", "sqlalchemy", "requests"}
    assert not loaded("results", "--help") & {*heavy, "ml_debugger.server"}
    assert not loaded("--version") & {*heavy, "ml_debugger.server"}
    listed = loaded("--help")
    assert not listed & heavy
    assert "ml_debugger.server.cli" in listed


def test_a_broken_package_breaks_only_its_own_commands(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "broken_one-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-one\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ml_debugger.commands]\none = broken_one:app\n")
    (tmp_path / "broken_one.py").write_text("import no_such_library")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "net" in typed("results", home=home)
    said = typed("one", home=home, fails=True)
    assert said.count("\n") == 1
    assert "broken-one" in said
    assert "no_such_library" in said
    done = subprocess.run(
        [sys.executable, "-m", "ml_debugger.core", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "serve" in done.stdout  # of a package that is whole
    assert "broken-one are left out" in done.stderr
