"""What the report of a 3D detector shows beside what core shows of every result."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ml_debugger.core.detection.analysis import Analysis
from ml_debugger.core.detection.pairs import Floats
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
    Circle,
    Picture,
    Section,
    Table,
    View,
)
from ml_debugger.core.evaluation.report_page.verdict import UNKNOWN
from ml_debugger.object_detection_3d.analysis import analysis_of, heading_errors, with_sensor
from ml_debugger.object_detection_3d.average_precision import average_precision
from ml_debugger.object_detection_3d.geometry import LIMIT, Measure

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.report_page.thumbnail import Thumbnails
    from ml_debugger.core.evaluation.result import Result

#: How far around the sensor a frame is drawn at most, the least side, and the margin, in metres.
_REACH, _LEAST, _MARGIN = 100.0, 20.0, 3.0
#: Metres between the rings around the sensor, and by how much a heading juts out of its box.
_RING, _JUT = 10, 0.6

_SAID: Mapping[Measure, str] = {
    "bev": "by the IoU of boxes seen from above",
    "3d": "by the IoU of volumes",
    "distance": "by the distance of centres seen from above",
}
_OF_BOX = "That of the box, or of the true one for those missed."
_BY = {
    "distance": Grouping("By distance", "Distance", f"From the sensor, seen from above. {_OF_BOX}"),
    "points": Grouping("By points", "Points", f"How many points lie in the box. {_OF_BOX}"),
    "size": Grouping(
        "By size", "Size", f"Thirds of the true boxes by the area seen from above. {_OF_BOX}"
    ),
    "heading": Grouping(
        "By heading",
        "Heading is off by",
        "How far the yaw is from that of the true box that the box belongs to; what was missed has "
        "none. A heading alone makes no box wrong: from 150\u00b0 on, front and back are confused.",
    ),
    "score": SCORE,
    "class": CLASS,
}


def sections(result: "Result", pictures: "Thumbnails") -> Sequence[Section]:
    """Return the sections of a 3D detector's report; see `Task.sections`."""
    analysis = analysis_of(result)
    measure: Measure = result.options["overlap"]
    least = analysis.iou
    placed = (
        f"centres within {_apart(least):.3g} m"
        if measure == "distance"
        else f"IoU of {least:g} or more"
    )
    return (
        _precision_section(result, analysis, measure, placed),
        types_section(analysis, _BY, placed),
        _frames_section(analysis, measure),
    )


def _precision_section(
    result: "Result", analysis: Analysis, measure: Measure, placed: str
) -> Section:
    rows: list[list[Cell]] = []
    classes: dict[str, Mapping[int, float | None]] = {}
    for one, said in _SAID.items():
        found = average_precision(result, one)
        unit = " m" if one == "distance" else ""
        each = ", ".join(
            f"{threshold:g}{unit}: {UNKNOWN if ap is None else f'{ap:.3f}'}"
            for threshold, ap in found.at.items()
        )
        rows.append([f"AP {said}", each, found.ap])
        if one == measure:
            for threshold in found.at:
                classes[f"AP {threshold:g}{unit}"] = {
                    label: aps[threshold] for label, aps in found.per_class.items()
                }
    return Section(
        "Average precision",
        "COCO's way of working it out, by three measures of how well a box fits; means over the "
        "classes. Every recorded box counts, so a score threshold of the model lowers them. This "
        f"result was judged {_SAID[measure]}: the classes' AP is by this measure, and what errors "
        f"cost is counted in AP at {placed}.",
        table=Table(("Measure", "At each threshold", "Mean"), rows, words=2),
        parts=(class_section(analysis, classes),),
    )


def _frames_section(analysis: Analysis, measure: Measure) -> Section:
    sensors, headings = with_sensor(analysis), heading_errors(analysis)

    def draw(number: int, name: str, fates: Sequence[Fate]) -> Picture:
        boxes = [_box(analysis, one, headings) for one in fates]
        sensor = bool(sensors[number])
        view = _view(boxes, sensor)
        return Picture(name, "", view, boxes, list(_rings(view)) if sensor else ())

    return worst_images(
        analysis,
        draw,
        "Frames",
        "The frames with the most wrong and missed boxes, seen from above: x of the boxes' frame "
        "is up, y to the left. Predicted boxes are solid, true ones dashed, with a line from the "
        "middle to the front and beyond; the pointer on a box tells more. Rings are "
        f"{_RING} m apart, around the sensor; what is farther than {_REACH:.0f} m to a side is "
        "left out. Expected is what an evaluation without labels would say.",
        (lambda near: f"{_apart(near):.2f} m off")
        if measure == "distance"
        else "IoU {:.2f}".format,
    )


def _apart(nearness: float) -> float:
    """Return how many metres apart boxes are that are so near; see `geometry.overlaps`."""
    return 2 * LIMIT * (1 - nearness)


def _box(analysis: Analysis, one: Fate, headings: Floats) -> Box:
    boxes = analysis.boxes.true if one.true else analysis.boxes.predicted
    x, y, _, dx, dy, _, yaw = boxes.places[one.at].tolist()
    title = one.title
    if not one.true and not np.isnan(headings[one.at]):
        title += f"; heading off by {headings[one.at]:.0f}\u00b0"
    corners = (-y - dx / 2, -x - dy / 2, -y + dx / 2, -x + dy / 2)
    # x is up on the page, and what turns counter-clockwise there has a negative angle
    turn = -90 - float(np.degrees(yaw))
    return Box(corners, one.style, title, one.label, turn, dx / 2 + _JUT)


def _view(boxes: Sequence[Box], sensor: bool) -> View:
    """Return a canvas in metres that holds the boxes, and the sensor if it is their origin."""
    corners = np.array([one.corners for one in boxes]).reshape(-1, 4)
    middle, length = (corners[:, :2] + corners[:, 2:]) / 2, np.ptp(corners[:, ::2], axis=1)
    around = length[:, None] / 2 + _MARGIN  # whichever way a box is turned
    origin = np.zeros(2) if sensor or not boxes else np.median(middle, axis=0)
    low = np.vstack([middle - around, origin - _MARGIN]).min(0).clip(origin - _REACH)
    high = np.vstack([middle + around, origin + _MARGIN]).max(0).clip(None, origin + _REACH)
    more = (_LEAST - (high - low)).clip(0)
    (left, top), (width, height) = (low - more / 2).tolist(), (high - low + more).tolist()
    return View(None, left, top, width, height)


def _rings(view: View) -> Iterator[Circle]:
    """Yield the sensor, and the rings around it that are in the picture."""
    yield Circle(0, 0, 0.4)
    sides = [abs(one) for one in (view.left, view.left + view.width)]
    ends = [abs(one) for one in (view.top, view.top + view.height)]
    farthest = float(np.hypot(max(sides), max(ends)))
    for radius in range(_RING, int(farthest) + 1, _RING):
        yield Circle(0, 0, radius, f"{radius} m")
