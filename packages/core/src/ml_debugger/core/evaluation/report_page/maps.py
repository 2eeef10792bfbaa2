"""The figures of a report that are maps: score x error probability, and the confusion matrix.

Every number drawn is in a frame of the result. Names from users are escaped, since plotly reads
markup in its labels.
"""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go  # noqa: TID253  # this module is only imported to draw
from numpy.typing import NDArray

from ml_debugger.core.evaluation.report_page.marks import MARKS
from ml_debugger.core.evaluation.report_page.plots import INK, styled

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.zones import ZoneRules

# From light to dark in one hue each, so that they also read in grey.
COUNTS = ["#eef4fa", "#c6dcef", "#7fb2dc", "#3a7fbd", "#0b3f73"]
RATES = ["#fdf3e7", "#f9d9ae", "#f0a35c", "#d55e00", "#7a2f00"]

#: Bins that are narrow where most units lie: at small error probabilities and confident scores.
PROBA_EDGES = (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
SCORE_EDGES = (0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1)


def heatmap_figure(
    cells: Sequence[Mapping[str, Any]], rules: "ZoneRules", *, rates: bool
) -> go.Figure:
    """Draw counts or error rates over score x error probability, with the zones' borders.

    Args:
        cells: The rows of `Result.heatmap`.
        rules: The rules whose borders are drawn.
        rates: Colour and number the cells by error rate instead of by size.
    """
    proba, score = _edges(cells, "error_proba"), _edges(cells, "score")
    shape = (len(proba) - 1, len(score) - 1)
    n = np.array([cell["n"] for cell in cells]).reshape(shape)
    errors = np.array([cell["errors"] for cell in cells]).reshape(shape)
    used = np.flatnonzero(n.any(axis=0))
    first = int(used[0]) if len(used) else 0  # scores that no unit is as low as are left away
    n, errors, score = n[:, first:], errors[:, first:], score[first:]
    rate = errors / np.maximum(n, 1)
    shade = rate if rates else np.log10(np.maximum(n, 1)) + 0.15
    words = np.where(n > 0, np.char.mod("%.0f", 100 * rate) if rates else _short(n), "")
    figure = go.Figure(
        go.Heatmap(
            x=_middles(score),
            y=_middles(proba),
            z=np.where(n > 0, shade, np.nan).tolist(),
            text=words.tolist(),
            texttemplate="%{text}",
            textfont={"size": 9},
            customdata=[
                [
                    _cell(proba[r : r + 2], score[c : c + 2], n[r, c], errors[r, c])
                    for c in range(n.shape[1])
                ]
                for r in range(n.shape[0])
            ],
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            colorscale=_scale(RATES if rates else COUNTS),
            zmin=0,
            zmax=1 if rates else float(np.log10(max(int(n.max(initial=1)), 10))) + 0.15,
            showscale=False,
            xgap=1,
            ygap=1,
        )
    )
    _draw_borders(figure, rules, score, proba)
    figure.update_xaxes(title="score (how confident the model is)", tickangle=-60, **_binned(score))
    figure.update_yaxes(title="error probability", **_binned(proba))
    return styled(figure, height=440, top=28, right=26)


def _cell(proba: NDArray[np.float64], score: NDArray[np.float64], n: int, errors: int) -> str:
    rate = f" ({errors / n:.1%})" if n else ""
    return (
        f"score {score[0]:g} to {score[1]:g}<br>error probability {proba[0]:g} to {proba[1]:g}<br>"
        f"{n:,} units, {errors:,} wrong{rate}"
    )


def _draw_borders(
    figure: go.Figure,
    rules: "ZoneRules",
    score: NDArray[np.float64],
    proba: NDArray[np.float64],
) -> None:
    """Outline where rules about score and error probability hold, with the zones' symbols."""

    def at(value: float, edges: NDArray[np.float64]) -> float:
        return float(np.interp(value, edges, np.arange(len(edges))))

    right, top = float(len(score) - 1), float(len(proba) - 1)
    outlines: dict[tuple[float, float, float, float], list[str]] = {}
    for rule in rules.rules:
        if (rule.score is None and rule.error_proba is None) or rule.prediction is not None:
            continue  # a border of some classes would cross the cells of the others
        (x0, x1), (y0, y1) = rule.score or (0.0, 1.0), rule.error_proba or (0.0, 1.0)
        outline = (at(x0, score), at(x1, score), at(y0, proba), at(y1, proba))
        symbols = outlines.setdefault(outline, [])
        symbols += [m for m in [MARKS[rule.zone.value].symbol] if m not in symbols]
    for (x0, x1, y0, y1), symbols in outlines.items():
        line = {"color": INK, "width": 1.5}
        figure.add_shape(type="rect", x0=x0, x1=x1, y0=y0, y1=y1, line=line)
        text = " ".join(symbols)
        # Beside the map where the outline touches its edge, so that no cell is hidden.
        if y1 == top and x0 > 0:  # at its other end: its near one may be close to another's
            _mark(figure, text, x1, y1, xanchor="right", yanchor="bottom")
        elif y1 == top:
            _mark(figure, text, x0, y1, xanchor="left", yanchor="bottom")
        elif x1 == right:
            _mark(figure, text, x1, (y0 + y1) / 2, xanchor="left", yanchor="middle")
        else:
            _mark(figure, text, x0, y1, xanchor="left", yanchor="top")


def _mark(figure: go.Figure, text: str, x: float, y: float, **anchors: str) -> None:
    figure.add_annotation(
        x=x, y=y, text=text, showarrow=False, font={"size": 14, "color": INK}, **anchors
    )


def confusion_figure(
    counts: NDArray[np.int64], names: Sequence[str], nothing: str = "none of them"
) -> go.Figure:
    """Draw the confusion matrix; the diagonal is left pale, for it is the errors that matter.

    Args:
        counts: As `frames.confusion` gives them, one more row than columns.
        names: One name a class.
        nothing: The name of the last row.
    """
    labels = [escape(_clipped(name, 14)) for name in names]
    rows = [*labels, nothing]
    if not counts[-1].any():
        counts, rows = counts[:-1], rows[:-1]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    off = share.copy()
    np.fill_diagonal(off, np.nan)
    off[counts == 0] = np.nan
    figure = go.Figure(
        go.Heatmap(
            x=list(range(counts.shape[1])),
            y=list(range(counts.shape[0])),
            z=off.tolist(),
            text=np.where(counts > 0, _short(counts), "").tolist(),
            texttemplate="%{text}",
            textfont={"size": 10},
            customdata=[
                [
                    f"true {rows[r]}<br>predicted {labels[c]}<br>"
                    f"{counts[r, c]:,} units, {share[r, c]:.1%} of this true class"
                    for c in range(counts.shape[1])
                ]
                for r in range(counts.shape[0])
            ],
            hovertemplate="%{customdata}<extra></extra>",
            colorscale=_scale(RATES),
            zmin=0,
            zmax=max(float(np.nan_to_num(off).max(initial=0)), 0.05),
            showscale=False,
            xgap=1,
            ygap=1,
        )
    )
    axis = {"showgrid": False, "zeroline": False, "fixedrange": True}
    figure.update_xaxes(
        title="predicted", tickvals=list(range(len(labels))), ticktext=labels, tickangle=-60, **axis
    )
    figure.update_yaxes(
        title="true",
        tickvals=list(range(len(rows))),
        ticktext=rows,
        autorange="reversed",
        **axis,
    )
    return styled(figure, height=min(max(300, 120 + 26 * len(rows)), 680))


def _edges(cells: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array(sorted({v for one in cells for v in (one[f"{name}_low"], one[f"{name}_high"])}))


def _middles(edges: NDArray[np.float64]) -> list[float]:
    return [at + 0.5 for at, _ in enumerate(pairwise(edges))]


def _binned(edges: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "tickvals": list(range(len(edges))),
        "ticktext": [f"{edge:g}" for edge in edges],
        "range": [0, len(edges) - 1],
        "showgrid": False,
        "fixedrange": True,
    }


def _scale(colours: Sequence[str]) -> list[list[Any]]:
    return [[at / (len(colours) - 1), colour] for at, colour in enumerate(colours)]


def _short(counts: NDArray[Any]) -> NDArray[Any]:
    def word(n: int) -> str:
        if n < 1000:
            return str(n)
        return (
            f"{n / 1000:.1f}k"
            if n < 10_000
            else f"{n / 1000:.0f}k"
            if n < 1e6
            else f"{n / 1e6:.1f}M"
        )

    return np.array([word(int(n)) for n in counts.ravel()], dtype=object).reshape(counts.shape)


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
