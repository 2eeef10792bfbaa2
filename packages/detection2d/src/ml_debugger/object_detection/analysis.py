"""Which errors a detector makes, where it makes them, and what each sort costs in AP50.

Costs are counted in the manner of TIDE (Bolya et al. 2020): by how much AP50 would rise if all
errors of one sort were mended and nothing else. They overlap, so they do not add up.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa

from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.frames import FrameKind, as_frame, numbers, texts
from ml_debugger.object_detection.average_precision import (
    class_counts,
    in_turn,
    judged,
    precisions,
)
from ml_debugger.object_detection.boxes import Array, Bools, Floats, Integers, overlaps
from ml_debugger.object_detection.result_boxes import Boxes, ResultBoxes

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

#: COCO's borders of small, medium and large boxes, as the side of a square in pixels.
_SIDES = (32.0, 96.0)
#: Where one size would hold more than this share of the true boxes, thirds of them are taken.
_LOPSIDED = 0.9
_SCORES = np.linspace(0, 1, 6)


def error_types(result: "Result", by: By | None = None, as_: FrameKind = "pandas") -> Any:
    """Return how many errors of each type there are, and what each costs in AP50.

    The types: "class" (well placed, but of the wrong class), "place" (poorly placed, split or
    merged, whatever its class), "duplicate", "background" (no true box is there) and "missed" (a
    true box that no predicted one has found). To mend them means: a class is put right; of the
    poorly placed boxes of a true box the best of the right class becomes right and the others go;
    duplicates and boxes on background go; of missed boxes none is asked for any more.

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
        `wrong`, `missed` and `expected_wrong` (the sum of its boxes' error probabilities, which
        needs no label). Ordered by wrong and missed boxes together, then by `expected_wrong`.

    Raises:
        InputError: The result is no detector's.
    """
    return as_frame(Analysis(result).image_table(), as_)


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
        self.error_proba = numbers(units, "error_proba").astype(np.float64)
        label = numbers(units, "label").astype(np.float64)
        self.label = np.where(np.isnan(label), -1, label).astype(np.int64)
        self.type_of = np.full(len(self.wrong), -1, np.int64)
        for at, kinds in enumerate(TYPES.values()):
            self.type_of[self.wrong & np.isin(self.kind, kinds)] = at

    @cached_property
    def counted(self) -> tuple[Bools, Bools]:
        """Which boxes count for AP50, and which of them are right."""
        return judged(self.boxes.predicted, self.boxes.true)

    @cached_property
    def ap50(self) -> dict[int, float]:
        """AP50 of each class that has a true box."""
        return self._precisions(self.boxes.predicted.label, *self.counted, self.truths)

    @cached_property
    def truths(self) -> Integers:
        """How many true boxes each class has."""
        return class_counts(self.boxes.true)

    def error_types(self, by: By | None = None) -> pa.Table:
        """Return the table of `error_types`."""
        rows = []
        for group in self.groups(by):
            for at, (name, kinds) in enumerate(TYPES.items()):
                which = group.predicted & (self.type_of == at)
                row = {
                    "type": name,
                    "kinds": ", ".join(kinds),
                    "n": int(which.sum()),
                    "of": int(group.predicted.sum()),
                    "mean_score": _mean(self.score[which]),
                    "mean_error_proba": _mean(self.error_proba[which]),
                    "ap50_cost": self._cost(name, which),
                }
                rows.append((group.name, row))
            if by != "score":
                which = group.true & self.missed
                row = {
                    "type": MISSED,
                    "kinds": "no_prediction",
                    "n": int(which.sum()),
                    "of": int((group.true & self.real).sum()),
                    "mean_score": None,
                    "mean_error_proba": None,
                    "ap50_cost": self._gain(missed=which),
                }
                rows.append((group.name, row))
        types = {
            "type": pa.string(),
            "kinds": pa.string(),
            "n": pa.int64(),
            "of": pa.int64(),
            "mean_score": pa.float64(),
            "mean_error_proba": pa.float64(),
            "ap50_cost": pa.float64(),
        }
        columns = {name: pa.array([row[name] for _, row in rows], types[name]) for name in types}
        share = [row["n"] / row["of"] if row["of"] else None for _, row in rows]
        table = pa.table(columns).add_column(4, "share", pa.array(share, pa.float64()))
        if by is None:
            return table
        return table.add_column(0, "group", pa.array([name for name, _ in rows], pa.string()))

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
                    "ap50": self.ap50.get(one),
                    "mean_error_proba": _mean(self.error_proba[here]),
                }
            )
        return pa.Table.from_pylist(rows, schema=_CLASSES)

    def image_table(self) -> pa.Table:
        """Return the table of `image_table`."""
        images = self.boxes.images
        here, there = self.boxes.predicted.image, self.boxes.true.image

        def count(image: Integers, which: Bools | None = None) -> Integers:
            found = image if which is None else image[which]
            return np.bincount(found, minlength=len(images))

        proba = np.bincount(here, weights=self.error_proba, minlength=len(images))
        wrong, missed = count(here, self.wrong), count(there, self.missed)
        columns = {
            "truths": count(there, self.real),
            "boxes": count(here),
            "wrong": wrong,
            "missed": missed,
            "expected_wrong": proba,
        }
        for name, values in columns.items():
            images = images.append_column(name, pa.array(values))
        # equal images stay in the order of their names
        return images.take(pa.array(np.lexsort((-proba, -(wrong + missed)))))

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
            at, there = (np.searchsorted(sides**2, one.size, "right") for one in (predicted, true))
            for place, name in enumerate(_size_names(sides)):
                yield Group(name, at == place, there == place)
        elif by == "score":
            at = np.clip(np.searchsorted(_SCORES, predicted.score, "right") - 1, 0, 4)
            for place in range(len(_SCORES) - 1):
                name = f"{_SCORES[place]:.1f} to {_SCORES[place + 1]:.1f}"
                yield Group(name, at == place, np.zeros(len(true), np.bool_))
        else:
            raise InputError(f"by must be one of {', '.join(get_args(By))} or None, got {by!r}")

    def _cost(self, name: str, which: Bools) -> float | None:
        """Return what AP50 would gain if some errors of one type were mended."""
        label, right = self.boxes.predicted.label, np.zeros(len(which), np.bool_)
        if name == "class":
            right = which & (self.label >= 0)
            label = np.where(right, self.label, label)
        elif name == "place":
            own = which & (self.label == label)
            right = own & np.isin(self.kind, ("M", "SG"))
            right[self._best_pieces(np.flatnonzero(own & (self.kind == "SP")))] = True
        return self._gain(label, right, gone=which & ~right)

    def _gain(
        self,
        label: Integers | None = None,
        right: Bools | None = None,
        gone: Bools | None = None,
        missed: Bools | None = None,
    ) -> float | None:
        """Return how much higher AP50 is with other labels, with more right boxes, or with less."""
        before = self.boxes.predicted.label
        counts, was_right = self.counted
        after = before if label is None else label
        right = was_right if right is None else was_right | right
        counts = counts if gone is None else counts & (was_right | ~gone)
        less = self.truths
        if missed is not None:
            less = less - np.bincount(self.boxes.true.label[missed], minlength=len(less))
        # only classes that something has changed in are worked out again
        changed = (after != before) | (right != was_right) | (counts != self.counted[0])
        classes = np.union1d(before[changed], after[changed])
        some = np.isin(after, classes)
        new = self._precisions(after, counts & some, right, np.where(_listed(classes, less), less, 0))
        if missed is None:
            found = {**self.ap50, **new}
        else:
            found = self._precisions(before, *self.counted, less)
        if not found or not self.ap50:
            return None
        return float(np.mean(list(found.values())) - np.mean(list(self.ap50.values())))

    def _precisions(
        self, label: Integers, counted: Bools, right: Bools, truths: Integers
    ) -> dict[int, float]:
        order = in_turn(self.boxes.predicted.score, counted)
        return precisions(label[order], right[order], truths)

    def _best_pieces(self, rows: Integers) -> Integers:
        """Return those of some split boxes that fit their true box best, one of each true box."""
        pieces, true = self.boxes.predicted[rows], self.boxes.true
        images = len(self.boxes.images)
        counts = [np.bincount(one.image, minlength=images) for one in (pieces, true)]
        pairs = overlaps(pieces.corners, counts[0], true.corners, counts[1])
        pairs = pairs[self.real[pairs.second] & (pieces.label[pairs.first] == true.label[pairs.second])]
        pairs = pairs[np.lexsort((-pairs.iou, pairs.first))]
        own = np.unique(pairs.first, return_index=True)[1]  # the true box that each piece is of
        pairs = pairs[own][np.argsort(-pairs.iou[own], kind="stable")]
        return rows[pairs.first[np.unique(pairs.second, return_index=True)[1]]]


_CLASSES = pa.schema(
    [
        ("label", pa.int64()),
        ("name", pa.string()),
        *((name, pa.int64()) for name in ("truths", "found", "missed", "boxes", "right")),
        *((name, pa.float64()) for name in ("precision", "recall", "ap50", "mean_error_proba")),
    ]
)
