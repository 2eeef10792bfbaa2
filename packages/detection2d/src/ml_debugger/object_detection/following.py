"""Which boxes of two versions are about the same thing, where images may have been resized."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ml_debugger.core.detection import following
from ml_debugger.core.detection.pairs import Floats
from ml_debugger.core.records import Array, Units, owners
from ml_debugger.core.task import Things
from ml_debugger.object_detection.boxes import CORNERS, GEOMETRY


def follow(
    predicted: Units[Array],
    actual: Units[Array],
    other_predicted: Units[Array],
    other_actual: Units[Array],
    aligned: float = 0.5,
    matched: float = 0.1,
) -> Things:
    """Tell what became of each true object, and of each box beside them, in two versions.

    Where the recorded sizes of an image differ, boxes are scaled to the newer one; the rest is
    that of `ml_debugger.core.detection.following.follow`.
    """
    scale = _scale(predicted.inputs, other_predicted.inputs)
    predicted, actual = _scaled(predicted, scale), _scaled(actual, scale)
    units = (predicted, actual, other_predicted, other_actual)
    return following.follow(GEOMETRY, *units, aligned, matched)


def _scaled(units: Units[Array], scale: Floats) -> Units[Array]:
    assert units.counts is not None  # Task.follow is always given them
    by = scale[owners(np.asarray(units.counts, np.int64), len(scale))]
    corners = (GEOMETRY.boxes_of(units) * by).T
    return replace(units, columns={**units.columns, **dict(zip(CORNERS, corners, strict=True))})


def _scale(inputs: Mapping[str, Any], other: Mapping[str, Any]) -> Floats:
    """Return what to multiply older corners by, shape (images, 4); 1 where a size is unknown."""
    older, newer = (
        np.stack([np.asarray(one[name], np.float64) for name in ("image_width", "image_height")], 1)
        for one in (inputs, other)
    )
    known = (older > 0) & (newer > 0)
    return np.tile(np.divide(newer, older, out=np.ones_like(older), where=known), 2)
