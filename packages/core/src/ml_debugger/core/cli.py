"""The command line: what Python can do, from a terminal."""

import sys
from enum import StrEnum
from functools import cache
from importlib.metadata import entry_points, version
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

# what commands need, they import themselves: it takes seconds, and most need little of it
from ml_debugger.core.errors import (
    InputError,
    MLDebuggerError,
    TaskIncompatibleError,
    TaskNotInstalledError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ml_debugger.core.evaluation.comparison import Flow
    from ml_debugger.core.evaluation.result import Result
    from ml_debugger.core.store import LocalRepository, ResultInfo, Store, VersionInfo

#: The entry points of packages that add commands: each a Typer application.
COMMANDS = "ml_debugger.commands"

_SERVICE = ("serve", "worker", "service")  # of a package that may not be installed


class _Commands(TyperGroup):
    """Our commands, and those of other packages, which are loaded when ours do not do."""

    def list_commands(self, ctx: Any) -> list[str]:
        found, broken = _others()
        for package, why in broken.items():
            _say_error(f"the commands of {package} are left out: it cannot be loaded ({why})")
        return [*super().list_commands(ctx), *found]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        found, broken = _others()
        if cmd_name not in found and broken:
            package, why = next(iter(broken.items()))
            raise TaskIncompatibleError(
                f"no command {cmd_name!r} here; if it is one of {package}: that cannot be loaded "
                f"({why}); install it again"
            )
        if cmd_name not in found and cmd_name in _SERVICE:
            raise TaskNotInstalledError(
                "the service needs ml-debugger-server: pip install ml-debugger-server"
            )
        return found.get(cmd_name)


@cache
def _others() -> tuple[dict[str, Any], dict[str, str]]:
    """Return the commands of other packages, and why a package cannot be loaded."""
    found: dict[str, Any] = {}
    broken = {}
    for entry in entry_points(group=COMMANDS):
        try:
            found |= typer.main.get_group(entry.load()).commands
        except Exception as error:  # noqa: BLE001  # ours work, whatever is wrong there
            package = entry.dist.name if entry.dist else entry.value
            broken[package] = f"{type(error).__name__}: {error}"
    return found, broken


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(markup=False)  # ids and names may hold anything, brackets too

Home = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the local store.", envvar="MLD_HOME", show_default="~/.ml_debugger"
    ),
]

Limit = Annotated[float | None, typer.Option(help="A limit; none if left out.")]

_COUNTS = ("n", "errors", "truths", "missed")  # figures that are whole numbers


class Sort(StrEnum):
    """The sorts of a query."""

    HIGH = "high_error_proba"
    LOW = "low_error_proba"


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(version("ml-debugger-core"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version, and end."
        ),
    ] = False,
) -> None:
    """Find where a PyTorch model fails, why, and which data would help."""


@app.command()
def quickstart(
    home: Home = None,
    report: Annotated[Path, typer.Option(help="Where to write the report.")] = Path(
        "quickstart.html"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="How often to repeat, for the figures.")] = 5,
    task: Annotated[str, typer.Option(help="Prefix of an installed task.")] = "Classification",
) -> None:
    """Run the whole loop on real data that ships with scikit-learn, and write a report."""
    from ml_debugger.core.task import KNOWN, installed, load

    if task not in {*KNOWN, *installed()}:
        raise InputError(f"no task {task!r}; installed: {', '.join(installed()) or 'none'}")
    demonstration = load(task).quickstart
    if demonstration is None:
        raise InputError(f"the task {task} has no quickstart")
    demonstration(home=home, report=report, seeds=seeds)


@app.command()
def results(
    model: Annotated[str | None, typer.Argument(help="Model name; all if left out.")] = None,
    version: Annotated[str | None, typer.Argument(help="Version name; all if left out.")] = None,
    home: Home = None,
) -> None:
    """List the versions recorded here with their results, and those of the service, if one is set.

    The service is that of MLD_API_ENDPOINT.
    """
    from ml_debugger.core.service.endpoint import client_of
    from ml_debugger.core.settings import Service

    store = _store(home)
    found = [
        one
        for one in store.versions()
        if model in (None, one.version.model_name) and version in (None, one.version.version_name)
    ]
    if found:
        _print_versions(found)
        _print_results("Results", [one for it in found for one in store.results(it.version)])
    else:
        console.print(f"nothing is recorded{_of(model, version)} in {store.home}")
    client = client_of(Service.resolve())
    if client is not None:
        from ml_debugger.core.remote import listed

        _print_results(f"Results at {client.endpoint}", listed(client, model, version))


@app.command()
def report(
    result_name: Annotated[str, typer.Argument(help="Name of a result.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The HTML file.")] = None,
    home: Home = None,
) -> None:
    """Show a result's summary and write its report: one HTML file that needs no network."""
    (result,) = _results(home, result_name)
    console.print(result.summary())
    path = result.report(output or Path(f"{_file_name(result_name)}.html"))
    console.print(f"report: {path}", soft_wrap=True)


@app.command()
def compare(
    old: Annotated[str, typer.Argument(help="Name of the older result.")],
    new: Annotated[str, typer.Argument(help="Name of the newer result.")],
    n: Annotated[int, typer.Option("-n", min=0, help="How many rows to show at most.")] = 10,
    max_regressions: Annotated[
        int | None, typer.Option(min=0, help="Exit with 1 if there are more regressions.")
    ] = None,
    home: Home = None,
) -> None:
    """Show what changed from one result to another, regressions first."""
    first, second = _results(home, old, new)
    flow = first.flow(second)
    console.print(_figures(first, second))
    _print_moves("Zone flow, largest first", flow.counts, n)
    if len(flow.outcomes) > 2:
        _print_moves("What became of units, largest first", flow.outcomes, n)
    names = dict(enumerate(second.class_names))
    _print_confusion(flow, names, n)
    _print_regressions(flow, names, n)
    broke = len(flow.regressions)
    for name, row in flow.tests.iterrows():
        units = {"all": "units", "true": "true units"}.get(str(name), name)
        inputs = f" ({row.worse:,.0f} inputs are worse, {row.better:,.0f} better)"
        console.print(
            f"{row.broke:,.0f} regressed, {row.fixed:,.0f} fixed, of {row.n:,.0f} shared {units}"
            f"{inputs if flow.test != 'McNemar' else ''}; chance alone would differ as much with "
            f"p = {row.p_value:.2g} ({flow.test})",
            soft_wrap=True,
        )
    if max_regressions is not None and broke > max_regressions:
        console.print(f"FAIL  {broke:,} regressions, wanted at most {max_regressions:,}")
        raise typer.Exit(1)


@app.command()
def check(
    result_name: Annotated[str, typer.Argument(help="Name of a result.")],
    min_accuracy: Limit = None,
    min_auroc: Limit = None,
    max_aurc: Limit = None,
    max_augrc: Limit = None,
    max_brier: Limit = None,
    max_ece: Limit = None,
    max_critical_share: Limit = None,
    min_stable_share: Limit = None,
    max_stable_error_rate: Limit = None,
    beats_max_softmax: Annotated[
        bool, typer.Option("--beats-max-softmax", help="AUROC above that of the max softmax.")
    ] = False,
    home: Home = None,
) -> None:
    """Hold a result against limits; exit with 1 unless all are kept."""
    (result,) = _results(home, result_name)
    try:
        outcome = result.check(
            min_accuracy=min_accuracy,
            min_auroc=min_auroc,
            max_aurc=max_aurc,
            max_augrc=max_augrc,
            max_brier=max_brier,
            max_ece=max_ece,
            max_critical_share=max_critical_share,
            min_stable_share=min_stable_share,
            max_stable_error_rate=max_stable_error_rate,
            beats_max_softmax=beats_max_softmax,
        )
    except InputError as error:
        raise typer.BadParameter(str(error)) from error
    console.print(str(outcome), soft_wrap=True, highlight=False)
    if not outcome:
        raise typer.Exit(1)


@app.command()
def query(
    result_name: Annotated[str, typer.Argument(help="Name of a result.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many at most.")] = 50,
    sort: Annotated[
        Sort, typer.Option(help="How to sort, without --zone and --where.")
    ] = Sort.HIGH,
    zone: Annotated[
        list[str] | None, typer.Option(help="A zone; give more for any of them.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="A condition such as 'error_proba>=0.8'; more must all hold."),
    ] = None,
    dataset: Annotated[str, typer.Option(help="The dataset_type.")] = "pool",
    run: Annotated[str | None, typer.Option(help="Only what this run recorded.")] = None,
    diverse: Annotated[bool, typer.Option(help="Spread the choice over the features.")] = False,
    explain: Annotated[bool, typer.Option(help="Say why each was picked.")] = False,
    home: Home = None,
) -> None:
    """Print the ids of inputs worth labelling, one a line, of those that are recorded here.

    The result may be the service's. From what everyone has sent to it,
    `Evaluator(...).service_client.query` picks.
    """
    from ml_debugger.core.pool import open_pool
    from ml_debugger.core.selection import select
    from ml_debugger.core.store import Scope
    from ml_debugger.core.task import task_named

    (result,) = _results(home, result_name)
    repository = _repository(_store(home), result.model_name, result.version_name)
    epoch = repository.latest_epoch() if result.n_epoch == "all" else result.n_epoch
    scope = Scope(dataset_types=(dataset,), n_epoch=epoch, runs=None if run is None else (run,))
    pool = open_pool(repository, scope, result, task_named(repository.task).schema)
    strategy: Any = sort.value
    if zone or where:
        strategy = {"target_zones": zone or None}
        strategy["conditions"] = [dict(map(_condition, where))] if where else None
    found = select(pool, n, strategy, diverse=diverse, explain=explain)
    if not explain:
        sys.stdout.writelines(f"{one}\n" for one in found)
        return
    table = _table(f"{len(found)} of {pool.records.inputs:,} inputs", *found.columns)
    for input_id, rank_value, *rest in found.itertuples(index=False):
        table.add_row(input_id, f"{rank_value:.3f}", *rest)
    console.print(table)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Model name.")],
    version: Annotated[str, typer.Argument(help="Version name.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A ZIP or a folder.")
    ] = None,
    epoch: Annotated[int | None, typer.Option(help="One epoch; all if left out.")] = None,
    home: Home = None,
) -> None:
    """Write a version's records to a ZIP of Parquet files."""
    from ml_debugger.core.archive import export_archive
    from ml_debugger.core.store import Scope

    repository = _repository(_store(home), model, version)
    scope = Scope(n_epoch="all" if epoch is None else epoch)
    console.print(str(export_archive(repository, scope, output)), soft_wrap=True)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A ZIP that export wrote, here or elsewhere.")],
    home: Home = None,
) -> None:
    """Read the records of an export into the local store."""
    from ml_debugger.core.archive import import_archive

    console.print(f"imported {import_archive(_store(home), file).version}")


@app.command()
def doctor(home: Home = None) -> None:
    """Look at the installation and the store, and say what is wrong."""
    import platform
    import shutil

    import torch

    from ml_debugger.core.task import KNOWN, installed

    store = _store(home)
    table = _table("ml-debugger", "what", "found")
    table.add_row("core", version("ml-debugger-core"))
    table.add_row("Python, torch", f"{platform.python_version()}, {torch.__version__}")
    table.add_row("CUDA", str(torch.cuda.is_available()))
    for prefix, entry in installed().items():
        table.add_row(
            f"task {prefix}", f"{entry.dist.name} {entry.dist.version}" if entry.dist else ""
        )
    for prefix, package in KNOWN.items():
        if prefix not in installed():
            table.add_row(f"task {prefix}", f"not installed: pip install {package}")
    table.add_row("store", str(store.home))
    table.add_row("free disk", f"{shutil.disk_usage(store.home).free / 1e9:,.1f} GB")
    table.add_row("records", f"{sum(one.records for one in store.versions()):,}")
    console.print(table)
    problems = store.verify()
    for problem in problems:
        console.print(f"problem: {problem}", style="red", soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    console.print("the store is sound")


@app.command()
def upload(
    model: Annotated[str, typer.Argument(help="Model name.")],
    version: Annotated[str, typer.Argument(help="Version name.")],
    epoch: Annotated[int | None, typer.Option(help="One epoch; all if left out.")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also what the service has saved already.")
    ] = False,
    endpoint: Annotated[
        str | None, typer.Option(help="The service.", envvar="MLD_API_ENDPOINT")
    ] = None,
    home: Home = None,
) -> None:
    """Send a version's records to the service; the key is in MLD_API_KEY."""
    from ml_debugger.core.service.endpoint import client_of, needed
    from ml_debugger.core.service.uploader import Uploader
    from ml_debugger.core.settings import Service

    client = needed(client_of(Service.resolve(endpoint)))
    with _store(home) as store:
        repository = _repository(store, model, version)
        uploader = Uploader(repository, client, store.home, auto=False)
        try:
            uploader.wait("all" if epoch is None else epoch, 1.0, again=again)
        finally:
            uploader.close()
    console.print(f"all of {model}/{version} is at {client.endpoint}", soft_wrap=True)


@app.command()
def drop(
    model: Annotated[str, typer.Argument(help="Model name.")],
    version: Annotated[str, typer.Argument(help="Version name.")],
    epoch: Annotated[
        int | None, typer.Option(help="One epoch; the whole version if left out.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: Home = None,
) -> None:
    """Delete a version's records, or one epoch of them, and give their space back."""
    store = _store(home)
    repository = _repository(store, model, version)
    what = f"{model}/{version}" + ("" if epoch is None else f", epoch {epoch}")
    if not yes:
        typer.confirm(f"Delete all records of {what}?", abort=True)
    if epoch is None:
        repository.recreate()
    else:
        counts = repository.delete_epoch(epoch)
        console.print(", ".join(f"{table}: {n:,} rows" for table, n in counts.items()))
    console.print(f"deleted {what}; {store.compact() / 1e6:,.1f} MB given back")


def main() -> None:
    """Run the command line; what ml-debugger raises on purpose is told without a traceback.

    Such a mistake exits with 2, as a usage error does: 1 stands for a limit that was not kept, or
    a store that is not sound.
    """
    try:
        app()
    except MLDebuggerError as error:
        _say_error(f"error: {error}")
        sys.exit(2)


def _say_error(text: str) -> None:
    Console(stderr=True, markup=False, highlight=False).print(text, style="red", soft_wrap=True)


def _store(home: Path | None) -> "Store":
    from ml_debugger.core.store import Store

    return Store(home)


def _repository(store: "Store", model: str, version: str) -> "LocalRepository":
    from ml_debugger.core.records import ModelVersion

    return store.open(ModelVersion(model, version))


def _results(home: Path | None, *names: str) -> "list[Result]":
    """Open results as Python does: of the service, if one is set, or of the store."""
    from ml_debugger.core.remote import open_result
    from ml_debugger.core.service.endpoint import client_of
    from ml_debugger.core.settings import Service, resolve_home

    client = client_of(Service.resolve())
    return [open_result(client, resolve_home(home), name) for name in names]


def _print_versions(found: "Sequence[VersionInfo]") -> None:
    table = _table("Versions", "model", "version", "task", "records", "epochs", "size", "last")
    for one in found:
        table.add_row(
            one.version.model_name,
            one.version.version_name,
            one.task,
            f"{one.records:,}",
            str(one.epochs),
            f"{one.bytes / 1e6:,.1f} MB",
            "" if one.last_written is None else f"{one.last_written:%Y-%m-%d %H:%M}",
        )
    console.print(table)


def _print_results(title: str, found: "Sequence[ResultInfo]") -> None:
    table = _table(title, "result", "method", "epoch", "made")
    for one in found:
        epoch = "none" if one.n_epoch is None else str(one.n_epoch)
        table.add_row(one.name, one.method, epoch, f"{one.completed_at:%Y-%m-%d %H:%M}")
    console.print(table if table.row_count else f"{title}: none yet")


def _figures(first: "Result", second: "Result") -> Table:
    table = _table("Figures", "figure", "old", "new", "difference")
    table.caption = f"old: {first.result_name}; new: {second.result_name}"
    for row in first.compare(second, as_="arrow").to_pylist():
        style = {True: "green", False: "red", None: None}[row["better"]]
        digits = 0 if row["figure"] in _COUNTS else 4
        cells = (row[name] for name in ("this", "other", "difference"))
        table.add_row(row["figure"], *(_short(one, digits) for one in cells), style=style)
    return table


def _print_moves(title: str, counts: Any, n: int) -> None:
    cells = counts.stack()
    moves = [(*names, count) for names, count in cells.items() if count and names[0] != names[1]]
    moves.sort(key=lambda move: -move[2])
    table = _table(title, "from", "to", "units")
    for old, new, count in moves[:n]:
        table.add_row(old, new, f"{count:,}")
    _print_some(table, len(moves), n)


def _print_confusion(flow: "Flow", names: dict[int, str], n: int) -> None:
    changed = flow.confusion[flow.confusion["difference"] != 0]
    table = _table("Confusion, worst first", "label", "prediction", "old", "new", "difference")
    for row in changed.head(n).itertuples(index=False):
        pair = (_class(row.label, names), _class(row.prediction, names))
        table.add_row(*pair, f"{row.this:,}", f"{row.other:,}", f"{row.difference:+,}")
    _print_some(table, len(changed), n)


def _print_regressions(flow: "Flow", names: dict[int, str], n: int) -> None:
    table = _table("Regressions", "input_id", "label", "was", "is", "error_proba", "zone", "code")
    for row in flow.regressions.head(n).itertuples(index=False):
        classes = (row.other_label, row.prediction, row.other_prediction)
        chance = "" if isnan(row.other_error_proba) else f"{row.other_error_proba:.3f}"
        table.add_row(
            row.input_id,
            *(_class(one, names) for one in classes),
            chance,
            row.other_zone,
            row.other_code,
        )
    _print_some(table, len(flow.regressions), n)


def _print_some(table: Table, of: int, n: int) -> None:
    if table.row_count:
        table.caption = f"the first {n:,} of {of:,}" if of > n else None
        console.print(table)


def _short(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _class(number: Any, names: dict[int, str]) -> str:
    import pandas as pd

    return "none" if pd.isna(number) else names.get(int(number), str(number))


def _condition(text: str) -> tuple[str, str]:
    at = next((at for at, char in enumerate(text) if not (char.isalnum() or char == "_")), 0)
    if not at:
        raise InputError(f"--where {text!r} must be a column and a comparison: 'score<0.5'")
    return text[:at], text[at:].strip()


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")  # a name cut short could not be used
    return table


def _of(*names: str | None) -> str:
    given = [name for name in names if name]
    return f" of {'/'.join(given)}" if given else ""


def _file_name(name: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in name)
