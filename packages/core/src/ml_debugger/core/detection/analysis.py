"""Which errors a detector makes, where it makes them, and what each sort costs in AP.

A task says what its boxes are and what else than class and score they can be counted by.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from ml_debugger.core.detection.codes import NO_PREDICTION
from ml_debugger.core.detection.costs import Costs
from ml_debugger.core.detection.pairs import Array, Bools, Floats, Geometry, Integers
from ml_debugger.core.detection.result_boxes import ResultBoxes
from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.frames import numbers, texts

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result

#: The kinds of boxes (see `matching.KINDS`) behind each type of error of a predicted box.
TYPES = {
    "class": ("A",),
    "place": ("M", "SP", "SG"),
    "duplicate": ("D",),
    "background": ("ON", "N", "U"),
}
MISSED = "missed"

_SCORES = np.linspace(0, 1, 6)


class Bins(NamedTuple):
    """What boxes are counted by.

    Attributes:
        names: The groups.
        predicted: Place of each predicted box's group among them, shape (n,); -1 for none.
        true: That of each true box, shape (m,); None where a true box that nothing has found
            cannot be in any.
    """

    names: Sequence[str]
    predicted: Integers
    true: Integers | None


class Group(NamedTuple):
    """Some boxes, and which of the predicted and of the true ones they are; see `Bins`."""

    name: str
    predicted: Bools
    true: Bools | None


class Analysis:
    """What the tables of a result have in common, worked out once.

    Attributes:
        bins: What boxes can be counted by, and how.
        iou: From which IoU on AP takes a box to be right.
        ap: What AP at this IoU is called in the tables.
        boxes: The boxes of the result.
        missed: Which true boxes nothing has found, shape (m,), bool.
        real: Which true boxes are no ignore regions, shape (m,), bool.
        shared: IoU of each predicted box with the true one it was matched with, shape (n,).
        label: Class of that true box, shape (n,), int64; -1 for none.
        type_of: Place of each predicted box's type of error in `TYPES`; -1 where it is right.
    """

    def __init__(
        self,
        result: "Result",
        geometry: Geometry,
        bins: "Mapping[str, Callable[[Analysis], Bins]]",
        *,
        iou: float = 0.5,
        ap: str = "ap",
    ) -> None:
        """Read a result.

        Raises:
            InputError: It is no detector's.
        """
        self.bins, self.iou, self.ap = bins, iou, ap
        self.boxes = ResultBoxes.of(result, geometry)
        self.names = result.class_names
        units, truths = self.boxes.units, self.boxes.truths
        self.missed = numbers(truths, "missed").astype(np.bool_)
        self.real = ~self.boxes.true.ignored
        self.kind = texts(units, "kind")
        self.wrong = numbers(units, "wrong").astype(np.bool_)
        self.score = numbers(units, "score").astype(np.float64)
        self.shared = numbers(units, "iou").astype(np.float64)
        self.error_proba = numbers(units, "error_proba").astype(np.float64)
        label = numbers(units, "label").astype(np.float64)
        self.label = np.where(np.isnan(label), -1, label).astype(np.int64)
        self.type_of = np.full(len(self.wrong), -1, np.int64)
        for at, kinds in enumerate(TYPES.values()):
            self.type_of[self.wrong & np.isin(self.kind, kinds)] = at

    @cached_property
    def costs(self) -> Costs:
        """What errors cost in AP."""
        return Costs(self.boxes.predicted, self.boxes.true, self.iou)

    def error_types(self, by: str | None = None) -> pa.Table:
        """Return how many errors of each type there are, and what each costs in AP.

        The types: "class" (well placed, but of the wrong class), "place" (poorly placed, split or
        merged, whatever its class), "duplicate", "background" (no true box is there) and "missed"
        (a true box that no predicted one has found). To mend them means: a class is put right; of
        the poorly placed boxes of a true box the best of the right class becomes right and the
        others go; duplicates and boxes on background go; of missed boxes none is asked for any
        more. What AP gains by mending all errors of one type alone is their cost; costs overlap,
        and do not add up.

        Args:
            by: Count by one of `bins`.

        Returns:
            A row a type, of each group: `group` (where `by` is given), `type`, `kinds`, `n`, `of`
            (all boxes of the group; for missed the true ones), `share`, `mean_score`,
            `mean_error_proba` and the cost. What is not defined is null.

        Raises:
            InputError: Not something to count by.
        """
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
                        self.cost_name: self._cost(name, which),
                    }
                )
            if group.true is not None:
                which = group.true & self.missed
                rows.append(
                    {
                        "group": group.name,
                        "type": MISSED,
                        "kinds": NO_PREDICTION,
                        "n": int(which.sum()),
                        "of": int((group.true & self.real).sum()),
                        self.cost_name: self.costs.of_missing(which),
                    }
                )
        for row in rows:
            row["share"] = row["n"] / row["of"] if row["of"] else None
        table = pa.Table.from_pylist(rows, _TYPES.append(pa.field(self.cost_name, pa.float64())))
        return table if by is not None else table.drop_columns("group")

    def class_table(self) -> pa.Table:
        """Return how a detector does on each class that is predicted or true.

        Returns:
            A row a class: `label`, `name`, `truths`, `found` (by a box that has to do with it,
            however poorly placed), `missed`, `boxes`, `right`, `precision` (of the boxes),
            `recall` (right boxes by truths), the AP and `mean_error_proba` (of the boxes). What is
            not defined is null.
        """
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
                    self.ap: self.costs.ap.get(one),
                    "mean_error_proba": _mean(self.error_proba[here]),
                }
            )
        figures = ("precision", "recall", self.ap, "mean_error_proba")
        schema = pa.schema([*_CLASSES, *((name, pa.float64()) for name in figures)])
        return pa.Table.from_pylist(rows, schema=schema)

    def image_table(self) -> pa.Table:
        """Return how a detector does on each image, those with the most errors first.

        Returns:
            A row an image: `input_id`, `dataset_type`, `n_epoch`, `truths`, `boxes`, `wrong`,
            `missed`, `expected_wrong` and `expected_missed` (see `Result.inputs`). Ordered by
            wrong and missed boxes together, then by those expected.
        """
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

    def groups(self, by: str | None) -> Iterator[Group]:
        """Yield the groups that boxes are counted by.

        Raises:
            InputError: Not something to count by.
        """
        if by is None:
            predicted, true = (len(one) for one in (self.boxes.predicted, self.boxes.true))
            yield Group("", np.ones(predicted, np.bool_), np.ones(true, np.bool_))
            return
        if by not in [*self.bins]:
            raise InputError(f"by must be one of {', '.join(self.bins)} or None, got {by!r}")
        bins = self.bins[by](self)
        for place, name in enumerate(bins.names):
            there = None if bins.true is None else bins.true == place
            yield Group(name, bins.predicted == place, there)

    def compared_figures(self) -> dict[str, tuple[float | None, bool | None]]:
        """Return what `Result.compare` shows of a detector, and whether a larger one is better.

        `truths` is how many true boxes there are, `missed` how many of them no box has to do with,
        `found` the share of the others, in [0, 1]; the last is the AP, of all recorded boxes.
        """
        truths, missed = int(self.real.sum()), int(self.missed.sum())
        ap = [*self.costs.ap.values()]
        return {
            "truths": (truths, None),
            "missed": (missed, False),
            "found": (1 - missed / truths if truths else None, True),
            self.ap: (float(np.mean(ap)) if ap else None, True),
        }

    @property
    def cost_name(self) -> str:
        """What the cost of an error is called in the tables."""
        return f"{self.ap}_cost"

    def _cost(self, name: str, which: Bools) -> float | None:
        if name == "class":
            return self.costs.of_class(which, self.label)
        if name == "place":
            return self.costs.of_place(which, self.label, self.shared, self.kind == "SP")
        return self.costs.of_presence(which)


def class_bins(analysis: Analysis) -> Bins:
    """Count by the predicted class, and what was missed by the true one."""
    predicted, true = analysis.boxes.predicted, analysis.boxes.true
    present = np.union1d(predicted.label, true.label[analysis.real])
    here, there = (np.searchsorted(present, one.label) for one in (predicted, true))
    # a class that only ignore regions have is no group
    there = np.where(np.isin(true.label, present), there, -1)
    return Bins([analysis.class_name(one) for one in present.tolist()], here, there)


def score_bins(analysis: Analysis) -> Bins:
    """Count by fifths of the score, which what was missed has none of."""
    here = np.clip(np.searchsorted(_SCORES, analysis.boxes.predicted.score, "right"), 1, 5) - 1
    return Bins([f"{low:.1f} to {high:.1f}" for low, high in pairwise(_SCORES)], here, None)


def thirds(sizes: Floats) -> Floats:
    """Return the two numbers that part sizes into thirds, ascending."""
    found: Floats = np.quantile(sizes, (1 / 3, 2 / 3))
    return found


def _mean(values: Array) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


_TYPES = pa.schema(
    [
        *((name, pa.string()) for name in ("group", "type", "kinds")),
        *((name, pa.int64()) for name in ("n", "of")),
        *((name, pa.float64()) for name in ("share", "mean_score", "mean_error_proba")),
    ]
)
_JUDGED = ("wrong", "missed", "expected_wrong", "expected_missed")
_CLASSES = pa.schema(
    [
        ("label", pa.int64()),
        ("name", pa.string()),
        *((name, pa.int64()) for name in ("truths", "found", "missed", "boxes", "right")),
    ]
)
