"""What boxes in space are for the slow matching: lists of seven numbers, cut out by Shapely."""

import math
from collections import Counter
from functools import partial

import shapely
from shapely import affinity
from shapely.geometry import Polygon, box

from ml_debugger.testing.slow_matching import SlowGeometry, match_input


def above(one) -> Polygon:
    x, y, _, dx, dy, _, yaw = one
    upright = box(x - dx / 2, y - dy / 2, x + dx / 2, y + dy / 2)
    return affinity.rotate(upright, yaw, origin=(x, y), use_radians=True)


def shared(a: Polygon, b: Polygon) -> float:
    """Return the area that two polygons share.

    Without the grid, GEOS 3.14 finds none for some rectangles whose long sides lie on each other.
    """
    return shapely.intersection(a, b, grid_size=1e-12).area


def sound(one) -> bool:
    return all(map(math.isfinite, one)) and min(one[3:6]) > 0


def size(one, measure) -> float:
    return one[3] * one[4] * (one[5] if measure == "3d" else 1.0)


def common(a, b, measure) -> float:
    if not (sound(a) and sound(b)):
        return 0.0
    area = shared(above(a), above(b))
    if measure == "3d":
        ends = [(one[2] - one[5] / 2, one[2] + one[5] / 2) for one in (a, b)]
        area *= max(0.0, min(ends[0][1], ends[1][1]) - max(ends[0][0], ends[1][0]))
    return area


def near(a, b) -> float:
    if not (sound(a) and sound(b)):
        return 0.0
    return max(0.0, 1 - math.hypot(a[0] - b[0], a[1] - b[1]) / 4)


def iou(measure, a, b) -> float:
    if measure == "distance":
        return near(a, b)
    both = common(a, b, measure)
    return both / (size(a, measure) + size(b, measure) - both) if both else 0.0


def share(measure, a, b) -> float:
    if measure == "distance":
        return near(a, b)
    both = common(a, b, measure)
    return both / size(a, measure) if both else 0.0


def slow(measure) -> SlowGeometry:
    return SlowGeometry(sound, partial(iou, measure), partial(share, measure))


def error_codes(measure, said, scene) -> tuple[list[str | None], Counter[str]]:
    """Name the errors of a frame: one of each box, None if it is excused, and the missed ones.

    Args:
        measure: What of boxes is compared.
        said: `boxes`, `scores` and `labels`, as the bare model gives them.
        scene: Its `boxes`, `labels` and `ignored`.
    """
    labels, classes = said["labels"].tolist(), scene.labels.tolist()
    found = match_input(
        slow(measure),
        said["boxes"].double().tolist(),
        said["scores"].tolist(),
        labels,
        scene.boxes.astype(float).tolist(),
        classes,
        scene.ignored.tolist(),
    )
    codes = []
    for at, label in enumerate(labels):
        kind, owner = found["kind"][at], found["truth"][at]
        true = "-" if owner < 0 or kind in ("ON", "N", "U") else classes[owner]
        codes.append(None if found["ignored"][at] else f"DET:{kind}:CLS{true}->{label}")
    asked = zip(classes, found["found"], found["undecidable"], scene.ignored, strict=True)
    gone = (label for label, *excuses in asked if not any(excuses))
    return codes, Counter(f"DET:no_prediction:CLS{label}->-" for label in gone)
