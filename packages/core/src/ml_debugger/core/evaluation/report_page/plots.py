"""The figures of a report that have axes of numbers, and the look of all of them.

Every number drawn is in a frame of the result.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go  # noqa: TID253  # this module is only imported to draw

from ml_debugger.core.evaluation.report_page.marks import MARKS, score_name

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.folder import Curve

INK = "#1f2933"
MUTED = "#5f6c7b"
GRID = "#e6eaef"
OURS = "#0B5FA5"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

#: Other scores that a curve is drawn for beside ours; more of them only hide each other.
DRAWN = {
    "max_softmax": ("#D55E00", "dash"),
    "temperature_scaled": ("#56B4E9", "dash"),
    "entropy": ("#8C6D31", "dot"),
    "margin": ("#E69F00", "dot"),
    "energy": ("#B5679A", "dashdot"),
    "knn_distance": ("#009E73", "longdash"),
    "mahalanobis": ("#6E6E78", "longdashdot"),
}


def zones_figure(zones: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw each zone's size beside its error rate with a 95 % interval.

    Args:
        zones: The rows of `Result.zones`.
    """
    from plotly.subplots import make_subplots

    names = [f"{MARKS[row['zone']].symbol} {MARKS[row['zone']].title}" for row in zones]
    colours = [MARKS[row["zone"]].colour for row in zones]
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.06)
    figure.add_bar(
        x=[row["share"] for row in zones],
        y=names,
        orientation="h",
        marker={"color": colours},
        text=[f"{row['n']:,}" for row in zones],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}<br>%{text} units, %{x:.1%}<extra></extra>",
        row=1,
        col=1,
    )
    rate = [row["error_rate"] if row["n"] else None for row in zones]
    figure.add_scatter(
        x=rate,
        y=names,
        mode="markers",
        marker={"color": colours, "size": 11, "line": {"color": INK, "width": 1}},
        error_x={
            "array": [row["high"] - row["error_rate"] if row["n"] else 0 for row in zones],
            "arrayminus": [row["error_rate"] - row["low"] if row["n"] else 0 for row in zones],
            "color": MUTED,
            "thickness": 1.5,
        },
        hovertemplate="%{y}<br>error rate %{x:.1%}<extra></extra>",
        row=1,
        col=2,
    )
    widest = max((row["share"] for row in zones), default=1.0)
    figure.update_xaxes(
        tickformat=".0%", nticks=4, title="share of units", range=[0, widest * 1.4], col=1
    )
    figure.update_xaxes(tickformat=".0%", nticks=4, title="error rate", range=[-0.03, 1.03], col=2)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return styled(figure, height=300)


def reliability_figure(bins: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw how often units are wrong against how often they were said to be.

    Args:
        bins: The rows of `Result.reliability`.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        line={"color": MUTED, "dash": "dot"},
        hoverinfo="skip",
        name="perfect",
    )
    figure.add_scatter(
        x=[one["error_proba"] for one in bins],
        y=[one["error_rate"] for one in bins],
        mode="markers",
        name="error probability",
        marker={
            "color": OURS,
            "opacity": 1,
            "size": [5 + 2.5 * len(str(one["n"])) for one in bins],
        },
        error_y={
            "array": [one["high"] - one["error_rate"] for one in bins],
            "arrayminus": [one["error_rate"] - one["low"] for one in bins],
            "color": OURS,
            "thickness": 1,
        },
        customdata=[f"{one['n']:,} units" for one in bins],
        hovertemplate="said %{x:.1%}<br>was %{y:.1%}<br>%{customdata}<extra></extra>",
    )
    figure.update_xaxes(title="error probability", tickformat=".0%", range=[-0.02, 1.02])
    figure.update_yaxes(title="share that is wrong", tickformat=".0%", range=[-0.02, 1.02])
    return styled(figure, height=380, top=70, legend=True)


def risk_coverage_figure(curves: Mapping[str, "Curve"]) -> go.Figure:
    """Draw the error rate that remains when only the units judged safest are accepted.

    Args:
        curves: A curve a score, by its name; ours is called `error_proba`.
    """
    figure = go.Figure()
    for name, curve in curves.items():
        colour, dash = DRAWN.get(name, (OURS, "solid"))
        if name not in DRAWN and name != "error_proba":
            continue
        figure.add_scatter(
            x=curve.coverage,
            y=curve.risk,
            mode="lines",
            name=score_name(name),
            line={"color": colour, "dash": dash, "width": 3 if name == "error_proba" else 1.5},
            hovertemplate="accept %{x:.0%}: %{y:.2%} wrong<extra>" + score_name(name) + "</extra>",
        )
    figure.update_xaxes(title="share of units accepted", tickformat=".0%", range=[0, 1.01])
    # The first few units of a poor score may all be wrong; they would squeeze everything else.
    ours = curves.get("error_proba")
    ends = [curve.risk[-1] for curve in curves.values()] + (ours.risk if ours else [])
    upper = min(1.02, 1.5 * max(ends, default=0.0) or 1.0)
    figure.update_yaxes(
        title="error rate among them",
        tickformat=".0%" if upper > 0.1 else ".1%",
        range=[-0.02 * upper, upper],
    )
    return styled(figure, height=380, top=70, legend=True)


def styled(
    figure: go.Figure, *, height: int, top: int = 14, right: int = 12, legend: bool = False
) -> go.Figure:
    """Give a figure the look that all of them share, and return it."""
    figure.update_layout(
        template="none",
        height=height,
        autosize=True,
        margin={"l": 10, "r": right, "t": top, "b": 10},
        font={"family": FONT, "size": 12, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="#ffffff",
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 11}},
        hoverlabel={"bgcolor": "#ffffff", "font": {"color": INK}},
        dragmode=False,
    )
    axis = {"automargin": True, "gridcolor": GRID, "zeroline": False, "linecolor": GRID}
    figure.update_xaxes(title_standoff=10, **axis)
    figure.update_yaxes(title_standoff=12, **axis)
    return figure
