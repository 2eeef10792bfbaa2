"""Which errors a detector makes, where it makes them, and what each sort costs in AP50."""

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa

from ml_debugger.core.detection.codes import NO_PREDICTION
from ml_debugger.core.detection.pairs import Array, Bools, Floats, Integers
from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.frames import FrameKind, as_frame, numbers, texts
from ml_debugger.object_detection.average_precision import average_precision_50
from ml_debugger.object_detection.costs import Costs
from ml_debugger.object_detection.result_boxes import ResultBoxes, size_borders

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result

By = Literal["class", "size", "score"]

#: The kinds of boxes (see `matching.KINDS`) behind each type of error of a predicted box.
TYPES = {
    "class": ("A",),
    "place": ("M", "SP", "SG"),
    "duplicate": ("D",),
    "background": ("ON", "N", "U"),
}
MISSED = "missed"

_SCORES = np.linspace(0, 1, 6)


def error_types(result: "Result", by: By | None = None, as_: FrameKind = "pandas") -> Any:
    """Return how many errors of each type there are, and what each costs in AP50.

    The types: "class" (well placed, but of the wrong class), "place" (poorly placed, split or
    merged, whatever its class), "duplicate", "background" (no true box is there) and "missed" (a
    true box that no predicted one has found). To mend them means: a class is put right; of the
    poorly placed boxes of a true box the best of the right class becomes right and the others go;
    duplicates and boxes on background go; of missed boxes none is asked for any more. What AP50
    gains by mending all errors of one type alone is their cost; costs overlap, and do not add up.

    Args:
        result: A detector's.
        by: Count by the predicted "class" (that of the truth for what was missed), by "size" of
            the box, or by "score". Sizes are COCO's, with borders at 32 x 32 and 96 x 96 pixels;
            where one of these would hold more than nine in ten of the true boxes, thirds of the
            true boxes. Scores are five bins of equal width; what was missed has none.
        as_: The kind of frame.

    Returns:
        A frame with a row a type, of each group: `group` (where `by` is given), `type`, `kinds`,
        `n`, `of` (all boxes of the group; for missed the true ones), `share`, `mean_score`,
        `mean_error_proba` and `ap50_cost`. What is not defined is null.

    Raises:
        InputError: The result is no detector's, or `by` is something else.
    """
    return as_frame(Analysis(result).error_types(by), as_)


def class_table(result: "Result", as_: FrameKind = "pandas") -> Any:
    """Return how a detector does on each class.

    Returns:
        A frame with a row a class that is predicted or true: `label`, `name`, `truths`, `found`
        (by a box that has to do with it, however poorly placed), `missed`, `boxes`, `right`,
        `precision` (of the boxes), `recall` (right boxes by truths), `ap50` and
        `mean_error_proba` (of the boxes). What is not defined is null.

    Raises:
        InputError: The result is no detector's.
    """
    return as_frame(Analysis(result).class_table(), as_)


def image_table(result: "Result", as_: FrameKind = "pandas") -> Any:
    """Return how a detector does on each image, those with the most errors first.

    Returns:
        A frame with a row an image: `input_id`, `dataset_type`, `n_epoch`, `truths`, `boxes`,
        `wrong`, `missed`, `expected_wrong` and `expected_missed` (see `Result.inputs`). Ordered by
        wrong and missed boxes together, then by those expected.

    Raises:
        InputError: The result is no detector's.
    """
    return as_frame(Analysis(result).image_table(), as_)


def compared_figures(result: "Result") -> dict[str, tuple[float | None, bool | None]]:
    """Return what `Result.compare` shows of a detector only, and whether a larger one is better.

    `truths` is how many true boxes there are, `missed` how many of them no box has to do with,
    `found` the share of the others, in [0, 1]; `ap50` is COCO's, of all recorded boxes.
    """
    boxes = ResultBoxes.of(result)
    truths = int((~boxes.true.ignored).sum())
    missed = int(numbers(boxes.truths, "missed").sum())
    ap50 = average_precision_50(boxes.predicted, boxes.true)
    return {
        "truths": (truths, None),
        "missed": (missed, False),
        "found": (1 - missed / truths if truths else None, True),
        "ap50": (float(np.mean(list(ap50.values()))) if ap50 else None, True),
    }


class Group(NamedTuple):
    """Some boxes, and which of the predicted and of the true ones they are."""

    name: str
    predicted: Bools
    true: Bools


class Analysis:
    """What the tables have in common, worked out once.

    Attributes:
        boxes: The boxes of the result.
        missed: Which true boxes nothing has found, shape (m,), bool.
        real: Which true boxes are no ignore regions, shape (m,), bool.
        type_of: Place of each predicted box's type of error in `TYPES`; -1 where it is right.
    """

    def __init__(self, result: "Result") -> None:
        self.boxes = ResultBoxes.of(result)
        self.names = result.class_names
        units, truths = self.boxes.units, self.boxes.truths
        self.missed = numbers(truths, "missed").astype(np.bool_)
        self.real = ~self.boxes.true.ignored
        self.kind = texts(units, "kind")
        self.wrong = numbers(units, "wrong").astype(np.bool_)
        self.score = numbers(units, "score").astype(np.float64)
        self.iou = numbers(units, "iou").astype(np.float64)
        self.error_proba = numbers(units, "error_proba").astype(np.float64)
        label = numbers(units, "label").astype(np.float64)
        self.label = np.where(np.isnan(label), -1, label).astype(np.int64)
        self.type_of = np.full(len(self.wrong), -1, np.int64)
        for at, kinds in enumerate(TYPES.values()):
            self.type_of[self.wrong & np.isin(self.kind, kinds)] = at

    @cached_property
    def costs(self) -> Costs:
        """What errors cost in AP50."""
        return Costs(self.boxes.predicted, self.boxes.true)

    def error_types(self, by: By | None = None) -> pa.Table:
        """Return the table of `error_types`."""
        rows: list[dict[str, Any]] = []
        for group in self.groups(by):
            for at, (name, kinds) in enumerate(TYPES.items()):
                which = group.predicted & (self.type_of == at)
                rows.append(
                    {
                        "group": group.name,
                        "type": name,
                        "kinds": ", ".join(kinds),
                        "n": int(which.sum()),
                        "of": int(group.predicted.sum()),
                        "mean_score": _mean(self.score[which]),
                        "mean_error_proba": _mean(self.error_proba[which]),
                        "ap50_cost": self._cost(name, which),
                    }
                )
            if by != "score":
                which = group.true & self.missed
                rows.append(
                    {
                        "group": group.name,
                        "type": MISSED,
                        "kinds": NO_PREDICTION,
                        "n": int(which.sum()),
                        "of": int((group.true & self.real).sum()),
                        "ap50_cost": self.costs.of_missing(which),
                    }
                )
        for row in rows:
            row["share"] = row["n"] / row["of"] if row["of"] else None
        table = pa.Table.from_pylist(rows, schema=_TYPES)
        return table if by is not None else table.drop_columns("group")

    def class_table(self) -> pa.Table:
        """Return the table of `class_table`."""
        predicted, true = self.boxes.predicted, self.boxes.true
        present = np.union1d(predicted.label, true.label[self.real])
        rows = []
        for one in present.tolist():
            here, there = predicted.label == one, (true.label == one) & self.real
            truths, missed = int(there.sum()), int((there & self.missed).sum())
            right = int((here & ~self.wrong).sum())
            rows.append(
                {
                    "label": one,
                    "name": self.class_name(one),
                    "truths": truths,
                    "found": truths - missed,
                    "missed": missed,
                    "boxes": int(here.sum()),
                    "right": right,
                    "precision": right / here.sum() if here.any() else None,
                    "recall": right / truths if truths else None,
                    "ap50": self.costs.ap50.get(one),
                    "mean_error_proba": _mean(self.error_proba[here]),
                }
            )
        return pa.Table.from_pylist(rows, schema=_CLASSES)

    def image_table(self) -> pa.Table:
        """Return the table of `image_table`."""
        there, images = self.boxes.true.image, self.boxes.images
        truths = np.bincount(there[self.real], minlength=len(images))
        names = ["input_id", "dataset_type", "n_epoch", "truths", "boxes", *_JUDGED]
        table = images.append_column("truths", pa.array(truths))
        table = table.append_column("boxes", images.column("units")).select(names)
        return table.take(pa.array(self.worst_images))

    @cached_property
    def worst_images(self) -> Integers:
        """Numbers of the images in the order of `image_table`."""
        wrong, missed, *expected = (numbers(self.boxes.images, name) for name in _JUDGED)
        # equal images stay in the order of their names
        order: Integers = np.lexsort((-np.sum(expected, axis=0), -(wrong + missed)))
        return order

    def class_name(self, label: int) -> str:
        """Return the name of a class, or its number where it has none."""
        return self.names[label] if 0 <= label < len(self.names) else str(label)

    def groups(self, by: By | None) -> Iterator[Group]:
        """Yield the groups that boxes are counted by.

        Raises:
            InputError: Not something to group by.
        """
        predicted, true = self.boxes.predicted, self.boxes.true
        if by is None:
            yield Group("", np.ones(len(predicted), np.bool_), np.ones(len(true), np.bool_))
        elif by == "class":
            for one in np.union1d(predicted.label, true.label[self.real]).tolist():
                yield Group(self.class_name(one), predicted.label == one, true.label == one)
        elif by == "size":
            sides = size_borders(true.size[self.real])
            here, there = (np.searchsorted(sides**2, b.size, "right") for b in (predicted, true))
            for place, name in enumerate(_size_names(sides)):
                yield Group(name, here == place, there == place)
        elif by == "score":
            nothing = np.zeros(len(true), np.bool_)
            here = np.clip(np.searchsorted(_SCORES, predicted.score, "right"), 1, 5)
            for place, (low, high) in enumerate(pairwise(_SCORES.tolist()), 1):
                yield Group(f"{low:.1f} to {high:.1f}", here == place, nothing)
        else:
            raise InputError(f"by must be one of {', '.join(get_args(By))} or None, got {by!r}")

    def _cost(self, name: str, which: Bools) -> float | None:
        if name == "class":
            return self.costs.of_class(which, self.label)
        if name == "place":
            return self.costs.of_place(which, self.label, self.iou, self.kind == "SP")
        return self.costs.of_presence(which)


def _size_names(sides: Floats) -> tuple[str, str, str]:
    small, large = (f"{side:.0f}\u00b2" for side in sides)
    return f"small (< {small} px)", "medium", f"large (\u2265 {large} px)"


def _mean(values: Array) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


_TYPES = pa.schema(
    [
        *((name, pa.string()) for name in ("group", "type", "kinds")),
        *((name, pa.int64()) for name in ("n", "of")),
        *(
            (name, pa.float64())
            for name in ("share", "mean_score", "mean_error_proba", "ap50_cost")
        ),
    ]
)
_JUDGED = ("wrong", "missed", "expected_wrong", "expected_missed")
_CLASSES = pa.schema(
    [
        ("label", pa.int64()),
        ("name", pa.string()),
        *((name, pa.int64()) for name in ("truths", "found", "missed", "boxes", "right")),
        *((name, pa.float64()) for name in ("precision", "recall", "ap50", "mean_error_proba")),
    ]
)
