"""What the report of a detector shows beside what core shows of every result."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_debugger.core.detection.pairs import Floats
from ml_debugger.core.evaluation.report_page.section import (
    Box,
    Cell,
    Picture,
    Section,
    Table,
    View,
)
from ml_debugger.core.evaluation.report_page.verdict import UNKNOWN, percent
from ml_debugger.object_detection.analysis import MISSED, TYPES, Analysis, By
from ml_debugger.object_detection.average_precision import AveragePrecision, coco_figures
from ml_debugger.object_detection.figures import (
    IGNORED,
    RIGHT,
    STYLES,
    TRUE,
    groups_figure,
    title_of,
    types_figure,
)

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.report_page.thumbnail import Thumbnails
    from ml_debugger.core.evaluation.result import Result

#: Most classes in a table or a figure, and most images that are drawn, and how large.
CLASSES, IMAGES, SIZE = 20, 12, 360

_BY: Mapping[By, tuple[str, str]] = {
    "size": ("By size", "Size"),
    "score": ("By score", "Score"),
    "class": ("By class", "Class"),
}
_FIGURES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar1": "AR1",
    "ar10": "AR10",
    "ar100": "AR100",
}


def sections(result: "Result", pictures: "Thumbnails") -> Sequence[Section]:
    """Return the sections of a detector's report; see `Task.sections`."""
    analysis = Analysis(result)
    return (
        _precision_section(analysis),
        _types_section(analysis),
        _images_section(analysis, pictures),
    )


def _precision_section(analysis: Analysis) -> Section:
    ap50 = analysis.costs.ap50
    table = analysis.class_table().to_pylist()
    coco: Mapping[int, AveragePrecision] = {}
    try:
        found = coco_figures(analysis.boxes.predicted, analysis.boxes.true)
    except ImportError as error:
        hint = f"AP50 alone is shown: {error}"
        mean = float(np.mean(list(ap50.values()))) if ap50 else None
        figures = Table(("AP50",), [(mean,)], words=0)
    else:
        hint = (
            "COCO's figures, means over the classes: AP is the mean over IoU thresholds from 0.5 "
            "to 0.95, AP50 and AP75 are at one of them; small is below 32\u00b2 px, large above "
            "96\u00b2 px; AR is the mean recall with 1, 10 or 100 boxes an image. Every recorded "
            "box counts, so a score threshold of the model lowers them."
        )
        coco = found.per_class
        means: list[Cell] = [getattr(found, name) for name in _FIGURES]
        figures = Table(tuple(_FIGURES.values()), [means], words=0)
    table.sort(key=lambda one: -one["truths"])
    header = ["Class", "True boxes", "Missed", "Boxes", "Right", "Precision", "Recall", "AP50"]
    rows: list[list[Cell]] = []
    for one in table[:CLASSES]:
        counts: list[Cell] = [one[name] for name in ("truths", "missed", "boxes", "right")]
        shares = [percent(one[name]) for name in ("precision", "recall")]
        row: list[Cell] = [one["name"], *counts, *shares, one["ap50"]]
        row += [getattr(coco.get(one["label"]), "ap", None)] if coco else []
        rows.append([*row, percent(one["mean_error_proba"])])
    header += ["AP"] if coco else []
    return Section(
        "Average precision",
        hint,
        table=figures,
        parts=(
            Section(
                "Each class",
                "Recall is the share of true boxes with a right one; missed are those that no box "
                "has to do with, however poorly placed. Expected errors: the mean error "
                "probability of the boxes, which needs no label." + _first(len(table), "true"),
                table=Table([*header, "Expected errors"], rows),
            ),
        ),
    )


def _types_section(analysis: Analysis) -> Section:
    rows = analysis.error_types().to_pylist()
    cells: list[list[Cell]] = [
        [
            title_of(one["type"]),
            one["kinds"].replace("no_prediction", UNKNOWN),
            one["n"],
            percent(one["share"]),
            one["mean_score"],
            one["mean_error_proba"],
            one["ap50_cost"],
        ]
        for one in rows
    ]
    header = ("Type", "Kinds", "Boxes", "Share", "Mean score", "Error probability", "AP50 cost")
    return Section(
        "Error types",
        "Wrong class: well placed (IoU of 0.5 or more), taken for another. Wrong place: poorly "
        "placed (M), one of several for one true box (SP), or one for several (SG). Duplicate: of "
        "a true box that another has found (D). Background: no true box is there (ON beside other "
        "boxes, N alone). Missed: no box has to do with this true one; its share is of the true "
        "boxes. The cost is what AP50 would gain if all errors of this type were mended and no "
        "other; costs overlap, so they do not add up.",
        figure=types_figure(rows),
        table=Table(header, cells, words=2),
        parts=tuple(_group_section(analysis, by) for by in _BY),
    )


def _group_section(analysis: Analysis, by: By) -> Section:
    groups: dict[str, dict[str, Any]] = {}
    for one in analysis.error_types(by).to_pylist():
        groups.setdefault(one["group"], {})[one["type"]] = one
    title, first = _BY[by]
    total = len(groups)
    if by == "class":  # those with the most errors; sizes and scores have an order of their own
        ranked = sorted(groups, key=lambda name: -sum(one["n"] for one in groups[name].values()))
        groups = {name: groups[name] for name in ranked[:CLASSES]}
    rows: list[list[Cell]] = []
    for name, types in groups.items():
        boxes = types["class"]["of"]
        wrong = sum(types[one]["n"] for one in TYPES)
        row: list[Cell] = [name, boxes, *(types[one]["n"] for one in TYPES)]
        row += [percent(wrong / boxes if boxes else None)]
        if MISSED in types:
            row += [types[MISSED]["of"], types[MISSED]["n"]]
        costs = [(one["ap50_cost"] or 0.0, STYLES[kind].name) for kind, one in types.items()]
        cost, kind = max(costs)
        rows.append([*row, f"{kind} {cost:.3f}" if cost > 0 else UNKNOWN])
    header = [first, "Boxes", *map(title_of, TYPES), "Wrong"]
    header += [] if by == "score" else ["True boxes", "Missed"]
    hints = {
        "size": "The size of the box, or of the true one for those missed.",
        "score": "What was missed has no score.",
        "class": "The predicted class, or the true one for those missed." + _first(total, "wrong"),
    }
    return Section(
        title,
        hints[by] + " Costliest: the type that costs most AP50 here.",
        figure=groups_figure(groups, first.lower()),
        table=Table([*header, "Costliest"], rows),
    )


def _images_section(analysis: Analysis, pictures: "Thumbnails") -> Section:
    table = analysis.image_table().slice(0, IMAGES).to_pylist()
    drawn, unlike = [], 0
    for number, row in zip(analysis.worst_images.tolist(), table, strict=False):
        if not row["wrong"] + row["missed"]:
            break
        boxes = list(_boxes(analysis, number))
        width, height = extent = _extent(analysis, number, boxes)
        view = pictures.view(row["input_id"], SIZE, extent=extent)
        unlike += view is not None and view.distorted
        caption = (
            f"{row['boxes']:,} boxes, {row['wrong']:,} wrong ({row['expected_wrong']:.1f} "
            f"expected); {row['missed']:,} of {row['truths']:,} true boxes missed "
            f"({row['expected_missed']:.1f} expected)"
        )
        view = view or View(None, 0, 0, width, height)
        drawn.append(Picture(row["input_id"], caption, view, boxes))
    hint = (
        "The images with the most wrong and missed boxes. Predicted boxes are solid, true ones "
        "dashed; the pointer on a box tells more. Expected is what an evaluation without labels "
        "would say."
    )
    if not pictures:
        hint += " With images= in Result.report, the boxes are drawn into the images."
    elif unlike:
        hint += (
            f" {unlike} of these pictures are not of the shape of the image that the model was "
            "given, so the boxes may not lie where they should."
        )
    if not drawn:
        hint = "No box is wrong, and none was missed."
    legend = dict.fromkeys(style for one in drawn for style in (box.style for box in one.boxes))
    known = [RIGHT, *STYLES.values(), TRUE, IGNORED]
    return Section("Images", hint, legend=[one for one in known if one in legend], pictures=drawn)


def _extent(analysis: Analysis, number: int, boxes: Sequence[Box]) -> tuple[float, float]:
    """Return width and height of an image, or where its boxes end if they were not recorded."""
    row = analysis.boxes.images.slice(number, 1).to_pylist()[0]
    width, height = row.get("image_width"), row.get("image_height")
    right, lower = (max((box.corners[at] for box in boxes), default=1) for at in (2, 3))
    return float(width or max(right, 1)), float(height or max(lower, 1))


def _boxes(analysis: Analysis, number: int) -> Iterator[Box]:
    """Yield the true boxes of an image, then the duplicates, then the other predicted ones."""
    true, predicted = analysis.boxes.true, analysis.boxes.predicted
    first, last = np.searchsorted(true.image, [number, number + 1])
    for at in range(first, last):
        name = analysis.class_name(int(true.label[at]))
        missed = bool(analysis.missed[at])
        style = IGNORED if true.ignored[at] else STYLES[MISSED] if missed else TRUE
        corners = _four(true.corners[at])
        yield Box(corners, style, f"{style.name}: {name}", name if missed else "")
    first, last = np.searchsorted(predicted.image, [number, number + 1])
    types = list(TYPES)
    duplicate = analysis.type_of[first:last] == types.index("duplicate")
    for at in first + np.argsort(~duplicate, kind="stable"):
        if not predicted.corners[at].any():
            continue  # it has no place that could be drawn
        kind = int(analysis.type_of[at])
        style = RIGHT if kind < 0 else STYLES[types[kind]]
        name = analysis.class_name(int(predicted.label[at]))
        said = f"{name}, score {predicted.score[at]:.2f}: {style.name}"
        if kind >= 0 and analysis.label[at] >= 0:
            of = analysis.class_name(int(analysis.label[at]))
            said += f" ({analysis.kind[at]}, true {of}, IoU {analysis.iou[at]:.2f})"
        said += f"; error probability {analysis.error_proba[at]:.2f}"
        label = name if kind >= 0 and types[kind] in ("class", "background") else ""
        yield Box(_four(predicted.corners[at]), style, said, label)


def _four(corners: Floats) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = corners.tolist()
    return x1, y1, x2, y2


def _first(classes: int, which: str) -> str:
    """Say that not all classes are shown, if so."""
    if classes <= CLASSES:
        return ""
    return f" The {CLASSES} of {classes} classes with the most {which} boxes."
