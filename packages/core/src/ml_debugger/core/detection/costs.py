"""What errors cost: how much higher average precision at one IoU would be without them.

This is done in the manner of TIDE (Bolya et al. 2020): all errors of one sort are mended and
nothing else. Costs overlap, so they do not add up. AP is COCO's mean over the classes that have a
true box: one whose true boxes are all missed and not asked for any more is not among them.
"""

from dataclasses import dataclass, field

import numpy as np

from ml_debugger.core.detection.average_precision import (
    class_counts,
    in_turn,
    judged,
    precisions,
)
from ml_debugger.core.detection.pairs import Bools, Floats, Integers
from ml_debugger.core.detection.result_boxes import Boxes, matched_pairs


@dataclass
class Costs:
    """Average precision as it is, and as it would be.

    Attributes:
        predicted: The predicted boxes.
        true: The true boxes and ignore regions.
        iou: Least IoU of a box that is right, in (0, 1].
        ap: That of each class that has a true box; their mean is COCO's at this IoU.
    """

    predicted: Boxes
    true: Boxes
    iou: float = 0.5
    ap: dict[int, float] = field(init=False)

    def __post_init__(self) -> None:
        self._counted, self._right = judged(self.predicted, self.true, iou=self.iou)
        self._truths = class_counts(self.true)
        self.ap = self._precisions(self.predicted.label, self._counted, self._right, self._truths)

    def of_class(self, which: Bools, label: Integers) -> float | None:
        """Return the cost of well-placed boxes of the wrong class; mended, they have the right one.

        Args:
            which: The boxes, shape (n,), bool.
            label: The right class, shape (n,), negative where it is not known: that box goes.
        """
        known = which & (label >= 0)
        return self._gain(
            label=np.where(known, label, self.predicted.label), right=known, gone=which & ~known
        )

    def of_place(self, which: Bools, label: Integers, iou: Floats, pieces: Bools) -> float | None:
        """Return the cost of poorly placed boxes; mended, the best of a true box becomes right.

        The best is that of the right class with the largest IoU; the others go.

        Args:
            which: The boxes, shape (n,), bool.
            label: Class of the true box that each belongs to, shape (n,).
            iou: With that true box, shape (n,).
            pieces: Which boxes share their true box with others, shape (n,), bool.
        """
        own = which & (label == self.predicted.label)
        right = own & ~pieces
        right[self._best(np.flatnonzero(own & pieces), iou)] = True
        return self._gain(right=right, gone=which & ~right)

    def of_presence(self, which: Bools) -> float | None:
        """Return the cost of boxes that should not be there; shape (n,), bool."""
        return self._gain(gone=which)

    def of_missing(self, which: Bools) -> float | None:
        """Return the cost of missed true boxes, shape (m,), bool; mended, none asks for them."""
        return self._gain(missed=which)

    def _gain(
        self,
        label: Integers | None = None,
        right: Bools | None = None,
        gone: Bools | None = None,
        missed: Bools | None = None,
    ) -> float | None:
        """Return how much higher AP is with other classes, more right boxes, fewer boxes."""
        before = self.predicted.label
        after = before if label is None else label
        now = self._right if right is None else self._right | right
        counted = self._counted if gone is None else self._counted & (self._right | ~gone)
        truths = self._truths
        if missed is not None:
            truths = truths - class_counts(self.true[missed], len(truths))
        changed = (after != before) | (now != self._right) | (counted != self._counted)
        fewer = np.flatnonzero(truths != self._truths)
        # only classes that something has changed in are worked out again
        classes = np.unique(np.concatenate([before[changed], after[changed], fewer]))
        asked = np.where(np.isin(np.arange(len(truths)), classes), truths, 0)
        new = self._precisions(after, counted & np.isin(after, classes), now, asked)
        again = set(classes.tolist())
        found = {one: ap for one, ap in self.ap.items() if one not in again} | new
        if not self.ap:
            return None
        # without a single true box left there is nothing to miss
        best = float(np.mean(list(found.values()))) if found else 1.0
        return best - float(np.mean(list(self.ap.values())))

    def _precisions(
        self, label: Integers, counted: Bools, right: Bools, truths: Integers
    ) -> dict[int, float]:
        order = in_turn(self.predicted.score, counted)
        return precisions(label[order], right[order], truths)

    def _best(self, rows: Integers, iou: Floats) -> Integers:
        """Return which of some boxes fit their true box best, one of each true box."""
        some = self.predicted[rows]
        pairs = matched_pairs(some, self.true[~self.true.ignored], some.label, iou[rows])
        pairs = pairs[np.argsort(-pairs.iou, kind="stable")]
        return rows[pairs.first[np.unique(pairs.second, return_index=True)[1]]]
