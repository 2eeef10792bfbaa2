"""What the report of a detector shows beside what core shows of every result."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ml_debugger.core.detection.analysis import Analysis
from ml_debugger.core.detection.report import (
    CLASS,
    SCORE,
    Fate,
    Grouping,
    class_section,
    types_section,
    worst_images,
)
from ml_debugger.core.evaluation.report_page.section import (
    Box,
    Cell,
    Picture,
    Section,
    Table,
    View,
)
from ml_debugger.object_detection.analysis import analysis_of
from ml_debugger.object_detection.average_precision import coco_figures

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.report_page.thumbnail import Thumbnails
    from ml_debugger.core.evaluation.result import Result

#: How large an image is drawn.
SIZE = 360

_BY = {
    "size": Grouping(
        "By size", "Size", "The size of the box, or of the true one for those missed."
    ),
    "score": SCORE,
    "class": CLASS,
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
    analysis = analysis_of(result)
    return (
        _precision_section(analysis),
        types_section(analysis, _BY, "IoU of 0.5 or more"),
        _images_section(analysis, pictures),
    )


def _precision_section(analysis: Analysis) -> Section:
    ap50 = analysis.costs.ap
    classes: dict[str, Mapping[int, float | None]] = {"AP50": ap50}
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
        classes["AP"] = {label: one.ap for label, one in found.per_class.items()}
        means: list[Cell] = [getattr(found, name) for name in _FIGURES]
        figures = Table(tuple(_FIGURES.values()), [means], words=0)
    parts = (class_section(analysis, classes),)
    return Section("Average precision", hint, table=figures, parts=parts)


def _images_section(analysis: Analysis, pictures: "Thumbnails") -> Section:
    def draw(number: int, name: str, fates: Sequence[Fate]) -> Picture:
        boxes = [Box(_corners(analysis, one), one.style, one.title, one.label) for one in fates]
        width, height = extent = _extent(analysis, number, boxes)
        view = pictures.view(name, SIZE, extent=extent) or View(None, 0, 0, width, height)
        return Picture(name, "", view, boxes)

    hint = (
        "The images with the most wrong and missed boxes. Predicted boxes are solid, true ones "
        "dashed; the pointer on a box tells more. Expected is what an evaluation without labels "
        "would say."
    )
    section = worst_images(analysis, draw, "Images", hint)
    unlike = sum(one.view.distorted for one in section.pictures)
    if not section.pictures:
        return section
    if not pictures:
        hint += " With images= in Result.report, the boxes are drawn into the images."
    elif unlike:
        hint += (
            f" {unlike} of these pictures are not of the shape of the image that the model was "
            "given, so the boxes may not lie where they should."
        )
    return replace(section, hint=hint)


def _extent(analysis: Analysis, number: int, boxes: Sequence[Box]) -> tuple[float, float]:
    """Return width and height of an image, or where its boxes end if they were not recorded."""
    row = analysis.boxes.images.slice(number, 1).to_pylist()[0]
    width, height = row.get("image_width"), row.get("image_height")
    right, lower = (max((box.corners[at] for box in boxes), default=1) for at in (2, 3))
    return float(width or max(right, 1)), float(height or max(lower, 1))


def _corners(analysis: Analysis, one: Fate) -> tuple[float, float, float, float]:
    boxes = analysis.boxes.true if one.true else analysis.boxes.predicted
    x1, y1, x2, y2 = boxes.places[one.at].tolist()
    return x1, y1, x2, y2
