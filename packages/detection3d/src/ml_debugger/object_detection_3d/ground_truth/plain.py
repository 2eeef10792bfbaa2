"""Pairs of boxes and labels, and dicts of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_debugger.core.given import require
from ml_debugger.object_detection_3d.ground_truth.truth import Truth, truth_of


def fits_dicts(frames: Sequence[Any]) -> bool:
    """Tell whether these are dicts, and boxes or labels are in one of them."""
    return all(isinstance(one, Mapping) for one in frames) and any(
        "boxes" in one or "labels" in one for one in frames
    )


def read_dict(one: Mapping[str, Any]) -> Truth:
    """Read one frame: `boxes`, `labels`, and if there `ignored`, `num_points` and `frame`."""
    require(one, "boxes", "labels")
    optional = {name: one.get(name) for name in ("ignored", "num_points", "frame")}
    return truth_of(one["boxes"], one["labels"], **optional)


def fits_pairs(frames: Sequence[Any]) -> bool:
    """Tell whether these are pairs of boxes and labels."""
    return all(
        isinstance(one, (list, tuple))
        and len(one) == 2
        and not any(isinstance(each, Mapping) for each in one)
        for one in frames
    )


def read_pair(one: Sequence[Any]) -> Truth:
    """Read one frame: boxes and labels."""
    boxes, labels = one
    return truth_of(boxes, labels)
