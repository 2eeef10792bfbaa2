"""What boxes are for the slow matching: lists of four numbers."""

import math
from functools import partial

from ml_debugger.testing.slow_matching import SlowGeometry, match_input


def area(box):
    if not all(math.isfinite(corner) for corner in box):
        return 0.0
    width, height = box[2] - box[0], box[3] - box[1]
    return float(width * height) if width > 0 and height > 0 else 0.0


def common_area(a, b):
    if area(a) == 0 or area(b) == 0:
        return 0.0
    return area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])


def iou(a, b):
    common = common_area(a, b)
    return common / (area(a) + area(b) - common) if common else 0.0


def share(a, b):
    """How much of `a` lies in `b`."""
    common = common_area(a, b)
    return common / area(a) if common else 0.0


match_image = partial(match_input, SlowGeometry(lambda box: area(box) > 0, iou, share))
