"""A result as one HTML page that needs nothing else: no server, no network, no other file."""

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pyarrow.compute as pc
from markupsafe import Markup

from ml_debugger.core.errors import StoreError, TaskNotInstalledError
from ml_debugger.core.evaluation import frames
from ml_debugger.core.evaluation.report_page import maps, plots
from ml_debugger.core.evaluation.report_page.marks import MARKS, class_name, score_name
from ml_debugger.core.evaluation.report_page.samples import missed_units, sample_groups
from ml_debugger.core.evaluation.report_page.section import Cell, Section
from ml_debugger.core.evaluation.report_page.thumbnail import Thumbnails
from ml_debugger.core.evaluation.report_page.verdict import UNKNOWN, percent, verdict
from ml_debugger.core.evaluation.summary import Summary

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ml_debugger.core.evaluation.result import Result

TEMPLATE = "report.html.jinja"

#: Up to so many classes the confusion matrix is drawn whole; beyond, its largest cells are listed.
MATRIX_CLASSES = 20
LISTED = 20
JUDGED = ("auroc", "aurc", "augrc", "brier", "ece")


def write_report(
    result: "Result",
    path: str | os.PathLike[str],
    images: Any = None,
    title: str | None = None,
) -> Path:
    """Write a result's report and return the file; see `Result.report`."""
    target = Path(path).expanduser()
    if target.is_dir() or not target.suffix:
        target = target / f"{result.folder.name}.html"
    page = render_report(result, images=images, title=title)
    draft = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_text(page, encoding="utf-8")
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write the report {target}: {error}") from error
    return target


def render_report(result: "Result", images: Any = None, title: str | None = None) -> str:
    """Return the page of a result's report.

    Names, ids and fields come from users and are escaped; the page forbids itself any request.
    """
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "report_page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["count"] = lambda n: f"{n:,}"
    environment.filters["figure"] = figure
    environment.filters["cell"] = cell
    summary = result.summary()
    thumbnails = Thumbnails(images)
    groups = sample_groups(result, thumbnails)
    sections = task_sections(result, thumbnails)
    drawn = figures(result) | section_figures(sections)
    missed = missed_units(result)
    return environment.get_template(TEMPLATE).render(
        title=title or f"{result.model_name} / {result.version_name}",
        result=result,
        manifest=result.manifest,
        summary=summary,
        cards=cards(summary, missed),
        verdict=verdict(result, summary),
        marks=MARKS,
        zones=result.zones(as_="arrow").to_pylist(),
        figures={name: _script(one) for name, one in drawn.items()},
        sections=sections,
        confusions=confusions(result),
        codes=result.error_codes(as_="arrow").slice(0, 200).to_pylist(),
        reliability=reliability_bins(result),
        baselines=baseline_rows(result),
        groups=groups,
        kinds="kind" in result.to_arrow().column_names,
        pictures=bool(thumbnails),
        picture_problem=thumbnails.problem,
        pictures_failed=thumbnails.failed,
        fields=result.fields[:4],
        names=result.class_names,
        plotly=Markup(get_plotlyjs()),  # plotly's own script, not a user's text
    )


def figure(value: float | None) -> str:
    """Return a figure with three digits, and small ones with two that say something."""
    if value is None or value != value:  # NaN is the only value unlike itself
        return UNKNOWN
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"


def cell(value: Cell) -> str:
    """Return a cell of a section's table in words."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else figure(value)


def task_sections(result: "Result", thumbnails: Thumbnails) -> Sequence[Section]:
    """Return what the task adds to the page; nothing where its package is not installed."""
    from ml_debugger.core.task import task_named

    try:
        task = task_named(result.manifest.task)
    except TaskNotInstalledError:
        return ()
    return task.sections(result, thumbnails)


def section_figures(sections: Sequence[Section]) -> "dict[str, go.Figure]":
    """Return the figures of sections and their parts by their names on the page."""
    numbered = [
        (f"section_{at}_{below}", one.figure)
        for at, section in enumerate(sections)
        for below, one in enumerate((section, *section.parts))
    ]
    return {name: drawn for name, drawn in numbered if drawn is not None}


def cards(summary: Summary, missed: int | None = None) -> list[tuple[str, str, str]]:
    """Return the headline figures: what, how much, and how sure.

    Args:
        summary: The figures.
        missed: How many true units were missed, in a task in which that can be.
    """
    stable = summary.zones.get("stable_coverage", 0)
    critical = summary.zones.get("critical_hotspot", 0)
    n = max(summary.n, 1)
    ranking = "it takes both right and wrong units"
    if summary.used != "error_proba":
        ranking = f"by {score_name(summary.used)}, used in place of ours"
    elif summary.auroc is not None and summary.best_baseline is not None:
        ranking = f"best other: {score_name(summary.best_baseline)} "
        ranking += f"{summary.best_baseline_auroc:.3f}"
    ends = ""
    if summary.auroc_low is not None and summary.auroc_high is not None:
        ends = f"{summary.auroc_low:.3f} to {summary.auroc_high:.3f}; "
    found = [] if missed is None else [("Missed", f"{missed:,}", "true units without a prediction")]
    return [
        (
            # where there is no limit to what can be predicted, that is what a share of it is called
            "Accuracy" if missed is None else "Precision",
            percent(summary.accuracy),
            f"{percent(summary.accuracy_low)} to {percent(summary.accuracy_high)}",
        ),
        ("Wrong", f"{summary.errors:,}", f"of {summary.n:,} units"),
        *found,
        (
            "Errors found (AUROC)",
            UNKNOWN if summary.auroc is None else f"{summary.auroc:.3f}",
            ends + ranking,
        ),
        (
            "Calibration error",
            UNKNOWN if summary.ece is None else percent(summary.ece),
            "how far the error probability is off, on average",
        ),
        ("Highly stable", percent(stable / n), f"{stable:,} units"),
        ("Over-confident", f"{critical:,}", "critical units: look here first"),
    ]


def figures(result: "Result") -> dict[str, "go.Figure"]:
    """Return the figures of a report by name."""
    cells = result.heatmap(maps.PROBA_EDGES, maps.SCORE_EDGES, as_="arrow").to_pylist()
    drawn = {
        "zones": plots.zones_figure(result.zones(as_="arrow").to_pylist()),
        "counts": maps.heatmap_figure(cells, result.rules, rates=False),
        "rates": maps.heatmap_figure(cells, result.rules, rates=True),
        "reliability": plots.reliability_figure(reliability_bins(result)),
        "risk_coverage": plots.risk_coverage_figure(result.manifest.curves),
    }
    if result.manifest.n_class <= MATRIX_CLASSES:
        counts = frames.confusion(result.to_arrow(), result.manifest.n_class)
        nothing = "none of them" if missed_units(result) is None else "nothing"
        drawn["confusion"] = maps.confusion_figure(counts, result.class_names, nothing)
    return drawn


def reliability_bins(result: "Result") -> list[dict[str, Any]]:
    """Return ten bins of equal width, so that the few risky units of a good model are seen too."""
    rows: list[dict[str, Any]] = result.reliability(10, "width", as_="arrow").to_pylist()
    return rows


def _script(drawn: "go.Figure") -> Markup:
    # "<" is the only character that could end the script element that holds the JSON.
    text = str(drawn.to_json()).replace("<", "\\u003c")
    return Markup(text)  # escaped in the line above


def confusions(result: "Result") -> list[dict[str, Any]]:
    """Return the most frequent confusions of two classes, the largest first."""
    units = result.to_arrow()
    # where a unit can be wrong in another way, its class may still be the true one
    same = pc.fill_null(pc.equal(units.column("label"), units.column("prediction")), False)
    wrong = pc.and_not(units.column("wrong"), same)
    wrong = units.filter(wrong).select(["label", "prediction"])
    if not len(wrong):
        return []
    pairs = wrong.group_by(["label", "prediction"], use_threads=False)
    grouped = pairs.aggregate([([], "count_all")])
    order = [("count_all", "descending"), ("label", "ascending"), ("prediction", "ascending")]
    totals = {
        one["values"]: one["counts"]
        for one in pc.value_counts(units.column("label").combine_chunks()).to_pylist()
    }
    names, missed = result.class_names, missed_units(result)
    return [
        {
            "label": class_name(one["label"], names, missed),
            "prediction": class_name(one["prediction"], names),
            "n": one["count_all"],
            "share": one["count_all"] / totals[one["label"]],
        }
        for one in grouped.sort_by(order).slice(0, LISTED).to_pylist()
    ]


def baseline_rows(result: "Result") -> list[dict[str, Any]]:
    """Return the table of scores: intervals, what is best in each column, and which is used."""
    rows = result.baselines(as_="arrow").to_pylist()
    best: dict[str, float] = {}
    for name in JUDGED:
        values = [row[name] for row in rows if row[name] is not None]
        if values:
            best[name] = max(values) if name == "auroc" else min(values)
    return [
        {
            "name": score_name(row["name"]),
            "used": row["used"],
            "replaces": row["used"] and row["name"] != "error_proba",
            "cells": [
                {
                    "value": row[name],
                    "interval": interval(row, name),
                    "best": row[name] is not None and row[name] == best.get(name),
                }
                for name in JUDGED
            ],
            "gain": row["auroc_gain"],
            "gain_interval": interval(row, "auroc_gain"),
        }
        for row in rows
    ]


def interval(row: Mapping[str, Any], name: str) -> str:
    """Return the interval of a figure in words; nothing where there is none."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if low is None or high is None else f"{figure(low)} to {figure(high)}"
