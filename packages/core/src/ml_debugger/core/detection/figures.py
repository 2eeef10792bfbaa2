"""How types of error look in a report, and the figures of them."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ml_debugger.core.detection.analysis import MISSED, TYPES
from ml_debugger.core.evaluation.report_page.section import Style

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Okabe and Ito's colours, which stay apart for every common kind of colour blindness.
RIGHT = Style("right", "#009E73")
STYLES = {
    "class": Style("wrong class", "#D55E00"),
    "place": Style("wrong place", "#E69F00"),
    "duplicate": Style("duplicate", "#56B4E9"),
    "background": Style("background", "#B5679A"),
    MISSED: Style("missed", "#0072B2", dashed=True),
}
TRUE = Style("true, and found", "#1f2933", dashed=True)
IGNORED = Style("ignored region", "#8a94a0", dashed=True)


def title_of(kind: str) -> str:
    """Return the name of a type of error as it begins a line."""
    return STYLES[kind].name.capitalize()


def types_figure(rows: Sequence[Mapping[str, Any]], ap: str) -> "go.Figure":
    """Draw how many errors of each type there are beside what each costs.

    Args:
        rows: The rows of `Analysis.error_types`.
        ap: What AP is called in their columns.
    """
    from plotly.subplots import make_subplots

    from ml_debugger.core.evaluation.report_page.plots import styled

    called = ap.upper()
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.06)
    names = [title_of(row["type"]) for row in rows]
    colours = [STYLES[row["type"]].colour for row in rows]
    columns = (
        ("n", "how many", "{:,}", "%{y}: %{text}<extra></extra>"),
        (
            f"{ap}_cost",
            f"cost in {called}",
            "{:.3f}",
            f"%{{y}}: mended, {called} gains %{{text}}<extra></extra>",
        ),
    )
    for col, (column, title, form, hover) in enumerate(columns, 1):
        values = [row[column] or 0 for row in rows]
        figure.add_bar(
            x=values,
            y=names,
            orientation="h",
            marker={"color": colours},
            text=[form.format(value) for value in values],
            textposition="outside",
            cliponaxis=False,
            hovertemplate=hover,
            row=1,
            col=col,
        )
        widest = max(values, default=0) or 1
        figure.update_xaxes(title=title, nticks=5, range=[0, 1.2 * widest], col=col)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return styled(figure, height=290)


def groups_figure(groups: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str) -> "go.Figure":
    """Draw the share of wrong boxes in each group by type, beside that of missed true ones.

    Args:
        groups: The rows of `Analysis.error_types` by group and type.
        title: What the groups are.
    """
    from plotly.subplots import make_subplots

    from ml_debugger.core.evaluation.report_page.plots import styled

    missed = any(MISSED in types for types in groups.values())
    figure = make_subplots(cols=1 + missed, shared_yaxes=True, horizontal_spacing=0.06)
    names = [escape(name) for name in groups]
    for kind in [*TYPES, MISSED][: len(TYPES) + missed]:
        col = 2 if kind == MISSED else 1
        figure.add_bar(
            x=[types[kind]["share"] or 0 for types in groups.values()],
            y=names,
            orientation="h",
            name=title_of(kind),
            marker={"color": STYLES[kind].colour},
            customdata=[
                f"{types[kind]['n']:,} of {types[kind]['of']:,}" for types in groups.values()
            ],
            hovertemplate="%{y}<br>%{customdata} (%{x:.1%})<extra>" + title_of(kind) + "</extra>",
            row=1,
            col=col,
        )
    figure.update_layout(barmode="stack", bargap=0.3, legend_traceorder="normal")
    figure.update_xaxes(tickformat=".0%", nticks=5, rangemode="tozero")
    figure.update_xaxes(title="share wrong", range=[0, 1], col=1)
    if missed:
        figure.update_xaxes(title="share of true ones missed", col=2)
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_yaxes(title=title, col=1)
    return styled(figure, height=max(290, 150 + 26 * len(names)), top=40, legend=True)
