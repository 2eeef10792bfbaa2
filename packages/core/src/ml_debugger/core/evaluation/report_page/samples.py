"""The units that a report shows, and the pictures of them."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow.compute as pc

from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.report_page.marks import class_name
from ml_debugger.core.evaluation.report_page.plots import OURS
from ml_debugger.core.evaluation.report_page.section import Box, Style, View
from ml_debugger.core.evaluation.report_page.thumbnail import SIZE, Extent, Thumbnails

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result

#: How many units of a group are shown, without and with pictures.
LISTED = 20
PICTURED = 24

#: Columns that say where a unit lies in its input, in tasks in which it lies somewhere.
CORNERS = ("x1", "y1", "x2", "y2")
#: What tells an input from the others, and how large one is, if it is an image.
_INPUT = ("input_id", "dataset_type", "n_epoch")
_SIZE = ("image_width", "image_height")
UNIT = Style("predicted", OURS)
#: Where a unit lies somewhere, it is shown with half its size around it, a little larger.
AROUND, CUT = 0.5, 2 * SIZE


class SampleGroup(NamedTuple):
    """Some units worth a look, and why."""

    title: str
    hint: str
    total: int
    rows: list[dict[str, Any]]


def missed_units(result: "Result") -> int | None:
    """Return how many true units nothing was predicted for; None where none can be missed."""
    try:
        return len(result.truths(missed=True, as_="arrow"))
    except InputError:
        return None


def sample_groups(result: "Result", thumbnails: Thumbnails) -> list[SampleGroup]:
    """Return the units a reader should see first, in groups that ask for different things."""
    wrong = result.errors(as_="arrow")
    confident = wrong.sort_by([("score", "descending"), ("input_id", "ascending")])
    suspect = result.errors(kind="suspect_label", as_="arrow")
    other = pc.not_equal(suspect.column("label"), suspect.column("prediction"))
    suspect = suspect.filter(other).sort_by(
        [("error_proba", "ascending"), ("input_id", "ascending")]
    )
    outliers = result.samples(zone="aleatoric_hotspot", as_="arrow").sort_by(
        [("outlier", "ascending"), ("input_id", "ascending")]
    )
    groups = [
        (
            "Expected errors",
            "Wrong units with the highest error probability: what the model is bad at.",
            wrong,
        ),
        (
            "Confident errors",
            "Wrong units with the highest score: what a confidence threshold would let through.",
            confident,
        ),
        (
            "Labels worth a second look",
            "Wrong by annotation, while the features side with the prediction: a wrong label, or "
            "a mistake that the features share.",
            suspect,
        ),
        (
            "Outliers",
            "Units unlike the rest of the evaluated data, right or wrong: the strangest first.",
            outliers,
        ),
    ]
    limit = PICTURED if thumbnails else LISTED
    return [
        SampleGroup(title, hint, len(units), _rows(units.slice(0, limit), result, thumbnails))
        for title, hint, units in groups
        if len(units)
    ]


def _rows(units: Any, result: "Result", thumbnails: Thumbnails) -> list[dict[str, Any]]:
    names, missed = result.class_names, missed_units(result)
    extents = _extents(result) if thumbnails else {}
    rows: list[dict[str, Any]] = units.to_pylist()
    for row in rows:
        row["predicted"] = class_name(row["prediction"], names)
        row["truth"] = class_name(row["label"], names, missed)
        extent = extents.get(tuple(row[name] for name in _INPUT))
        row["picture"], row["boxes"] = unit_picture(row, thumbnails, extent)
    return rows


def _extents(result: "Result") -> dict[tuple[Any, ...], Extent]:
    """Return width and height of each input that is an image, where they were recorded."""
    try:
        inputs = result.inputs(as_="arrow")
    except InputError:
        return {}
    if not set(_SIZE) <= set(inputs.column_names):
        return {}
    columns = [inputs.column(name).to_pylist() for name in (*_INPUT, *_SIZE)]
    rows = zip(*columns, strict=True)
    return {tuple(key): (width, height) for *key, width, height in rows if width and height}


def unit_picture(
    row: Mapping[str, Any], thumbnails: Thumbnails, extent: Extent | None = None
) -> tuple[View | None, Sequence[Box]]:
    """Return a unit's picture: of its input, or of where it lies in it, with its box.

    Args:
        row: The unit.
        thumbnails: Gives the pictures.
        extent: Width and height of the picture that its corners are in.
    """
    corners = [float(row[name]) for name in CORNERS if name in row]
    if len(corners) != len(CORNERS) or not all(map(math.isfinite, corners)):
        return thumbnails.view(row["input_id"], SIZE), ()
    x1, y1, x2, y2 = corners
    side = (1 + 2 * AROUND) * max(x2 - x1, y2 - y1, 8)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    window = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    view = thumbnails.view(row["input_id"], CUT, window, extent)
    return view, [Box((x1, y1, x2, y2), UNIT)]
