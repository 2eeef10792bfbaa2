"""Which predicted box found which true one, and what went wrong with the others.

One matching serves every table: it is made once for all images of a chunk of records.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from ml_debugger.core.detection.pairs import (
    Array,
    Bools,
    Geometry,
    Integers,
    Pairs,
    image_counts,
    image_groups,
)
from ml_debugger.core.errors import InputError

#: What a predicted box can be: Aligned, Matched (but poorly placed), Separated Predictions (one of
#: several boxes for one truth), Separated Ground truths (one box for several truths), Duplicate,
#: Overlap with predictions but No truth, No truth at all, Undefined.
KINDS = ("A", "M", "SP", "SG", "D", "ON", "N", "U")

#: A box lies in another, or covers another, from this share of its area on.
_HALF = 0.5


@dataclass(frozen=True, slots=True)
class Matches:
    """What became of n predicted and m true boxes.

    Attributes:
        kind: Position of each prediction's kind in `KINDS`, shape (n,), int8. U where nothing can
            be said: the box has no area, is not finite, or is ignored.
        truth: The truth that a prediction belongs to, shape (n,), int64; -1 for none. For SG the
            one with the largest IoU of those that it merges.
        iou: With that truth, shape (n,), float32, in [0, 1]; 0 where there is none.
        ignored: Whether a prediction lies in an ignore region, so that it is neither right nor
            wrong, shape (n,), bool.
        found: Whether a truth was found, as A, M, SP or SG, shape (m,), bool.
        by: The best prediction of each truth, shape (m,), int64; -1 for none. For SP the one with
            the largest IoU of its pieces. Truths that are merged have the same one.
        undecidable: Truths that took no part as they have no area or are not finite, shape (m,),
            bool. Ignore regions are no truths, and not among them.
    """

    kind: Array
    truth: Integers
    iou: Array
    ignored: Bools
    found: Bools
    by: Integers
    undecidable: Bools


def match_boxes(
    geometry: Geometry,
    boxes: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    counts: ArrayLike,
    truth_boxes: ArrayLike,
    truth_labels: ArrayLike,
    truth_counts: ArrayLike,
    crowd: ArrayLike | None = None,
    *,
    aligned: float = 0.5,
    matched: float = 0.1,
) -> Matches:
    """Match the boxes of many images, given one image after the other, by their IoU.

    Images are taken in groups, so that memory grows with what is returned and with the largest
    image only. What becomes of an image does not depend on the others.

    Args:
        geometry: What a box is.
        boxes: The boxes that the user sees, shape (n, d).
        scores: Their scores, shape (n,).
        labels: Their classes, shape (n,).
        counts: How many of them each image has, shape (images,).
        truth_boxes: True boxes and ignore regions, shape (m, d).
        truth_labels: Their classes, shape (m,).
        truth_counts: How many of them each image has, shape (images,).
        crowd: Which of them are crowd or ignore regions, not truths, shape (m,), bool; or None.
        aligned: See `match`.
        matched: See `match`.

    Returns:
        Positions count through all images.

    Raises:
        InputError: Shapes do not fit together, or a threshold is out of range.
    """
    predicted, true = geometry.array(boxes), geometry.array(truth_boxes)
    crowd = np.zeros(len(true), np.bool_) if crowd is None else np.asarray(crowd, np.bool_)
    scores, labels, truth_labels = map(np.asarray, (scores, labels, truth_labels))
    n, *_ = (image_counts(counts, one) for one in (predicted, scores, labels))
    m, *_ = (image_counts(truth_counts, one) for one in (true, truth_labels, crowd))
    if len(n) != len(m):
        raise InputError(f"counts of {len(n)} and {len(m)} images; give one of each an image")
    parts = []
    for images, rows, columns in image_groups(n, m):
        some, real = predicted[rows], true[columns]
        part = match(
            geometry.overlaps(some, n[images], real, m[images]),
            geometry.overlaps(some, n[images], some, n[images], least=matched),
            scores=scores[rows],
            labels=labels[rows],
            decidable=geometry.sound(some),
            truth_labels=truth_labels[columns],
            truth_decidable=geometry.sound(real),
            crowd=crowd[columns],
            aligned=aligned,
            matched=matched,
        )
        part.truth[part.truth >= 0] += columns.start
        part.by[part.by >= 0] += rows.start
        parts.append(part)
    columns_of = ([getattr(part, one.name) for part in parts] for one in fields(Matches))
    return Matches(*map(np.concatenate, columns_of))


def match(
    pairs: Pairs,
    neighbours: Pairs,
    *,
    scores: Array,
    labels: Array,
    decidable: Bools,
    truth_labels: Array,
    truth_decidable: Bools,
    crowd: Bools,
    aligned: float = 0.5,
    matched: float = 0.1,
) -> Matches:
    """Match predicted with true boxes, whatever their overlap means.

    Each step takes what the steps before have left; "in score order" is by descending score, then
    by order of appearance, and of equal IoUs the first truth is taken:

    1. A: in score order each prediction takes the free truth of its class with the largest IoU of
       at least `aligned`; then the others likewise, of any class.
    2. A prediction at least half of which lies in one ignore region is ignored. It takes no truth,
       even if it overlaps one a little: most of it is where nothing is known.
    3. SG: in score order, a prediction that covers at least half of each of two or more free
       truths, with an IoU of at least `matched`, merges them; all of these are found.
    4. SP: a prediction that lies at least half in free truths, with an IoU of at least `matched`,
       is a piece of the one with the largest IoU. A truth with two or more pieces is split.
    5. M: as A, with an IoU of at least `matched`.
    6. D: an IoU of at least `matched` with some truth; all of those have been found by others.
    7. ON: an IoU of at least `matched` with another prediction, of whatever kind. Else N.

    M means that the overlap is one to one, so it comes after SG and SP, which it would leave
    without truths.

    Args:
        pairs: Predictions (first) and truths or ignore regions (second) that overlap. Images need
            not be told apart: boxes of different images are in no pair.
        neighbours: Predictions that overlap each other, in one direction or both; pairs of a
            prediction with itself do not count.
        scores: Scores of the predictions, shape (n,); NaN comes last.
        labels: Their classes, shape (n,).
        decidable: Which of them have an area and are finite, shape (n,), bool; others are U.
        truth_labels: Classes of the truths, shape (m,).
        truth_decidable: Which of them have an area and are finite, shape (m,), bool.
        crowd: Which of them are no truths but ignore regions, of whatever class, shape (m,), bool.
        aligned: Least IoU of a well-placed box, in [`matched`, 1].
        matched: Least IoU of boxes that have to do with each other, in (0, 1].

    Returns:
        The same whatever the order of the pairs.

    Raises:
        InputError: A threshold is out of range.
    """
    if not 0 < matched <= aligned <= 1:
        raise InputError(f"expected 0 < matched <= aligned <= 1, got {matched=}, {aligned=}")
    turn = np.empty(len(scores), np.int64)
    turn[np.argsort(-np.asarray(scores, np.float64), kind="stable")] = np.arange(len(scores))
    board = _Board(decidable, truth_decidable & ~crowd)
    near = board.live(pairs[pairs.iou >= matched])
    own = labels[near.first] == truth_labels[near.second]
    well = near.iou >= aligned

    for candidates in (near[well & own], near[well]):
        board.one_to_one("A", candidates, turn)
    inside = pairs[crowd[pairs.second] & (pairs.share_first >= _HALF)]
    ignored = board.left & (np.bincount(inside.first, minlength=len(scores)) > 0)
    board.left &= ~ignored

    live = board.live(near)
    merged = _merges(live[live.share_second >= _HALF], turn)
    board.find(merged)
    board.settle("SG", merged[_largest(merged)])

    live = board.live(near)
    pieces = live[live.share_first >= _HALF]
    pieces = pieces[_largest(pieces)]
    pieces = pieces[np.bincount(pieces.second, minlength=len(crowd))[pieces.second] > 1]
    board.find(pieces[_lead(pieces.second, -pieces.iou, turn[pieces.first])])
    board.settle("SP", pieces)

    for candidates in (near[own], near):
        board.one_to_one("M", candidates, turn)
    again = near[board.left[near.first]]
    board.settle("D", again[_largest(again)])

    touch = neighbours[(neighbours.iou >= matched) & (neighbours.first != neighbours.second)]
    crowded = np.zeros(len(scores), np.bool_)
    crowded[touch.first] = crowded[touch.second] = True
    board.kind[board.left] = KINDS.index("N")
    board.kind[board.left & crowded] = KINDS.index("ON")
    found, undecidable = board.by >= 0, ~truth_decidable & ~crowd
    return Matches(board.kind, board.truth, board.iou, ignored, found, board.by, undecidable)


class _Board:
    """What is decided so far.

    Attributes:
        left: Predictions without a kind, shape (n,), bool.
        free: Truths that nothing has found, shape (m,), bool.
    """

    def __init__(self, left: Bools, free: Bools) -> None:
        self.left, self.free = left.copy(), free.copy()
        self.kind = np.full(len(left), KINDS.index("U"), np.int8)
        self.truth = np.full(len(left), -1, np.int64)
        self.iou = np.zeros(len(left), np.float32)
        self.by = np.full(len(free), -1, np.int64)

    def live(self, pairs: Pairs) -> Pairs:
        """Return the pairs of a prediction without a kind and a free truth."""
        return pairs[self.left[pairs.first] & self.free[pairs.second]]

    def settle(self, kind: str, pairs: Pairs) -> None:
        """Give predictions, of which each is in one pair, their kind."""
        self.kind[pairs.first] = KINDS.index(kind)
        self.truth[pairs.first] = pairs.second
        self.iou[pairs.first] = pairs.iou
        self.left[pairs.first] = False

    def find(self, pairs: Pairs) -> None:
        """Mark truths, of which each is in one pair, as found."""
        self.by[pairs.second] = pairs.first
        self.free[pairs.second] = False

    def one_to_one(self, kind: str, candidates: Pairs, turn: Integers) -> None:
        """Let predictions take free truths, in their turn."""
        live = self.live(candidates)
        taken = one_to_one(live[np.lexsort((live.second, -live.iou, turn[live.first]))])
        self.settle(kind, taken)
        self.find(taken)


def one_to_one(pairs: Pairs) -> Pairs:
    """Choose pairs in their order, each unless one of its boxes is in a pair chosen before.

    The second box cannot be taken from the first that wants it, if it is also its best. All such
    pairs are chosen at once, and the rest start anew: a few rounds for all images.
    """
    chosen = [pairs[:0]]
    taken, gone = (
        np.zeros(one.max(initial=-1) + 1, np.bool_) for one in (pairs.first, pairs.second)
    )
    while len(pairs):
        sure = pairs[_first(pairs.first) & _first(pairs.second)]
        chosen.append(sure)
        taken[sure.first] = gone[sure.second] = True
        pairs = pairs[~(taken[pairs.first] | gone[pairs.second])]
    return _joined(chosen)


def _merges(pairs: Pairs, turn: Integers) -> Pairs:
    """Choose predictions of two or more truths, in their turn; no truth is in two of them."""
    pairs = pairs[np.argsort(turn[pairs.first], kind="stable")]
    chosen: list[Pairs] = []
    free = np.ones(pairs.second.max(initial=-1) + 1, np.bool_)
    while len(pairs) or not chosen:
        pairs = pairs[np.bincount(pairs.first)[pairs.first] > 1]
        # as in one_to_one: those that are the first on all of their truths are sure
        later = np.zeros(len(turn), np.bool_)
        later[pairs.first[~_first(pairs.second)]] = True
        sure = pairs[~later[pairs.first]]
        chosen.append(sure)
        free[sure.second] = False
        pairs = pairs[free[pairs.second]]
    return _joined(chosen)


def _joined(parts: Sequence[Pairs]) -> Pairs:
    return Pairs(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Pairs)))


def _first(values: Integers) -> Bools:
    """Tell where a value stands for the first time."""
    first = np.zeros(len(values), np.bool_)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def _lead(group: Integers, *keys: Array) -> Integers:
    """Return the position of the least member of each group, by the keys in their order."""
    order = np.lexsort((*reversed(keys), group))
    return order[_first(group[order])]


def _largest(pairs: Pairs) -> Integers:
    """Return the position of each prediction's pair with the largest IoU."""
    return _lead(pairs.first, -pairs.iou, pairs.second)
