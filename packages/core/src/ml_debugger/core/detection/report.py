"""What the reports of detectors have in common: tables, error types, and the worst images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ml_debugger.core.detection.analysis import MISSED, TYPES, Analysis
from ml_debugger.core.detection.figures import (
    IGNORED,
    RIGHT,
    STYLES,
    TRUE,
    groups_figure,
    title_of,
    types_figure,
)
from ml_debugger.core.evaluation.report_page.section import (
    Cell,
    Picture,
    Section,
    Style,
    Table,
)
from ml_debugger.core.evaluation.report_page.verdict import UNKNOWN, percent

#: Most classes in a table or a figure, and most images that are drawn.
CLASSES, IMAGES = 20, 12


class Grouping(NamedTuple):
    """How a report speaks of what boxes are counted by.

    Attributes:
        title: The heading.
        column: What the groups are.
        hint: How to read it.
    """

    title: str
    column: str
    hint: str


SCORE = Grouping("By score", "Score", "What was missed has no score.")
CLASS = Grouping("By class", "Class", "The predicted class, or the true one for those missed.")


class Fate(NamedTuple):
    """What became of a box.

    Attributes:
        true: Whether it is a true box.
        at: Its position among these, or among the predicted ones.
        style: How it is drawn.
        title: All there is to say of it.
        label: A word beside it, or none.
    """

    true: bool
    at: int
    style: Style
    title: str
    label: str


def class_section(
    analysis: Analysis, precisions: Mapping[str, Mapping[int, float | None]]
) -> Section:
    """Return a table of each class.

    Args:
        analysis: Of the result.
        precisions: Average precisions of classes by the header of their column.
    """
    table = analysis.class_table().to_pylist()
    table.sort(key=lambda one: -one["truths"])
    rows: list[list[Cell]] = []
    for one in table[:CLASSES]:
        counts: list[Cell] = [one[name] for name in ("truths", "missed", "boxes", "right")]
        shares = [percent(one[name]) for name in ("precision", "recall")]
        found = [of_class.get(one["label"]) for of_class in precisions.values()]
        rows.append([one["name"], *counts, *shares, *found, percent(one["mean_error_proba"])])
    header = ("Class", "True boxes", "Missed", "Boxes", "Right", "Precision", "Recall")
    return Section(
        "Each class",
        "Recall is the share of true boxes with a right one; missed are those that no box has to "
        "do with, however poorly placed. Expected errors: the mean error probability of the boxes, "
        "which needs no label." + _first(len(table), "true"),
        table=Table([*header, *precisions, "Expected errors"], rows),
    )


def types_section(analysis: Analysis, groupings: Mapping[str, Grouping], placed: str) -> Section:
    """Return how many errors of each type there are, and by group.

    Args:
        analysis: Of the result.
        groupings: What to count by.
        placed: What makes a box well placed.
    """
    rows = analysis.error_types().to_pylist()
    cells: list[list[Cell]] = [
        [
            title_of(one["type"]),
            one["kinds"].replace("no_prediction", UNKNOWN),
            one["n"],
            percent(one["share"]),
            one["mean_score"],
            one["mean_error_proba"],
            one[analysis.cost_name],
        ]
        for one in rows
    ]
    ap = analysis.ap.upper()
    header = ("Type", "Kinds", "Boxes", "Share", "Mean score", "Error probability", f"{ap} cost")
    return Section(
        "Error types",
        f"Wrong class: well placed ({placed}), taken for another. Wrong place: poorly placed (M), "
        "one of several for one true box (SP), or one for several (SG). Duplicate: of a true box "
        "that another has found (D). Background: no true box is there (ON beside other boxes, N "
        "alone). Missed: no box has to do with this true one; its share is of the true boxes. The "
        f"cost is what {ap} would gain if all errors of this type were mended and no other; costs "
        "overlap, so they do not add up.",
        figure=types_figure(rows, analysis.ap),
        table=Table(header, cells, words=2),
        parts=tuple(_group_section(analysis, by, how) for by, how in groupings.items()),
    )


def _group_section(analysis: Analysis, by: str, how: Grouping) -> Section:
    groups: dict[str, dict[str, Any]] = {}
    for one in analysis.error_types(by).to_pylist():
        groups.setdefault(one["group"], {})[one["type"]] = one
    total, hint = len(groups), how.hint
    if by == "class":  # those with the most errors; other groups have an order of their own
        ranked = sorted(groups, key=lambda name: -sum(one["n"] for one in groups[name].values()))
        groups = {name: groups[name] for name in ranked[:CLASSES]}
        hint += _first(total, "wrong")
    missed = any(MISSED in types for types in groups.values())
    rows: list[list[Cell]] = []
    for name, types in groups.items():
        boxes = types["class"]["of"]
        wrong = sum(types[one]["n"] for one in TYPES)
        row: list[Cell] = [name, boxes, *(types[one]["n"] for one in TYPES)]
        row += [percent(wrong / boxes if boxes else None)]
        if missed:
            row += [types[MISSED]["of"], types[MISSED]["n"]]
        costs = [(one[analysis.cost_name] or 0.0, STYLES[kind].name) for kind, one in types.items()]
        cost, kind = max(costs)
        rows.append([*row, f"{kind} {cost:.3f}" if cost > 0 else UNKNOWN])
    header = [how.column, "Boxes", *map(title_of, TYPES), "Wrong"]
    header += ["True boxes", "Missed"] if missed else []
    return Section(
        how.title,
        f"{hint} Costliest: the type that costs most {analysis.ap.upper()} here.",
        figure=groups_figure(groups, how.column.lower()),
        table=Table([*header, "Costliest"], rows),
    )


def worst_images(
    analysis: Analysis,
    draw: Callable[[int, str, Sequence[Fate]], Picture],
    title: str,
    hint: str,
    fit: Callable[[float], str] = "IoU {:.2f}".format,
) -> Section:
    """Return pictures of the images with the most errors.

    Args:
        analysis: Of the result.
        draw: Returns the picture of an image, of its number, its id and its boxes, uncaptioned.
        title: The heading.
        hint: How to read the pictures.
        fit: Says how well a box fits its true one, by its IoU.
    """
    table = analysis.image_table().slice(0, IMAGES).to_pylist()
    drawn: list[Picture] = []
    found: set[Style] = set()
    for number, row in zip(analysis.worst_images.tolist(), table, strict=False):
        if not row["wrong"] + row["missed"]:
            break
        boxes = list(_fates(analysis, number, fit))
        caption = (
            f"{row['boxes']:,} boxes, {row['wrong']:,} wrong ({row['expected_wrong']:.1f} "
            f"expected); {row['missed']:,} of {row['truths']:,} true boxes missed "
            f"({row['expected_missed']:.1f} expected)"
        )
        drawn.append(draw(number, row["input_id"], boxes)._replace(caption=caption))
        found |= {one.style for one in boxes}
    known = [RIGHT, *STYLES.values(), TRUE, IGNORED]
    return Section(
        title,
        hint if drawn else "No box is wrong, and none was missed.",
        legend=[one for one in known if one in found],
        pictures=drawn,
    )


def _fates(analysis: Analysis, number: int, fit: Callable[[float], str]) -> Iterator[Fate]:
    """Yield the true boxes of an image, then the duplicates, then the other predicted ones.

    A predicted box without an extent is left out: it has no place that could be drawn.
    """
    true, predicted = analysis.boxes.true, analysis.boxes.predicted
    for at in range(*np.searchsorted(true.image, [number, number + 1]).tolist()):
        name = analysis.class_name(int(true.label[at]))
        missed = bool(analysis.missed[at])
        style = IGNORED if true.ignored[at] else STYLES[MISSED] if missed else TRUE
        yield Fate(True, at, style, f"{style.name}: {name}", name if missed else "")
    first, last = np.searchsorted(predicted.image, [number, number + 1])
    types = list(TYPES)
    duplicate = analysis.type_of[first:last] == types.index("duplicate")
    for at in (first + np.argsort(~duplicate, kind="stable")).tolist():
        if not predicted.places[at].any():
            continue
        kind = int(analysis.type_of[at])
        style = RIGHT if kind < 0 else STYLES[types[kind]]
        name = analysis.class_name(int(predicted.label[at]))
        said = f"{name}, score {predicted.score[at]:.2f}: {style.name}"
        if kind >= 0 and analysis.label[at] >= 0:
            of = analysis.class_name(int(analysis.label[at]))
            said += f" ({analysis.kind[at]}, true {of}, {fit(analysis.shared[at])})"
        said += f"; error probability {analysis.error_proba[at]:.2f}"
        label = name if kind >= 0 and types[kind] in ("class", "background") else ""
        yield Fate(False, at, style, said, label)


def _first(classes: int, which: str) -> str:
    """Say that not all classes are shown, if so."""
    if classes <= CLASSES:
        return ""
    return f" The {CLASSES} of {classes} classes with the most {which} boxes."
