"""The rules of matching once more, one input and one box at a time, as a reference for tests.

Nothing here is shared with what is tested: boxes are lists of numbers, and every question is asked
of every pair of boxes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Box = Sequence[float]


class SlowGeometry(NamedTuple):
    """What a box is.

    Attributes:
        sound: Tells whether a box is finite and has an extent.
        iou: Tells how far two boxes overlap, in [0, 1].
        share: Tells how much of the first lies in the second, in [0, 1].
    """

    sound: Callable[[Box], bool]
    iou: Callable[[Box, Box], float]
    share: Callable[[Box, Box], float]


def match_input(
    how: SlowGeometry,
    boxes: Sequence[Box],
    scores: Sequence[float],
    labels: Sequence[int],
    truth_boxes: Sequence[Box],
    truth_labels: Sequence[int],
    crowd: Sequence[bool],
    aligned: float = 0.5,
    matched: float = 0.1,
) -> dict[str, list[Any]]:
    """Match the boxes of one input, as `ml_debugger.core.detection.matching.match` says.

    Returns:
        `kind`, `truth`, `iou` and `ignored` of each prediction, `found`, `by` and `undecidable` of
        each truth.
    """
    kind, truth = ["?"] * len(boxes), [-1] * len(boxes)
    by = [-1] * len(truth_boxes)
    ignored = [False] * len(boxes)
    truths = [t for t, box in enumerate(truth_boxes) if how.sound(box) and not crowd[t]]
    regions = [box for t, box in enumerate(truth_boxes) if crowd[t]]
    in_score_order = sorted(range(len(boxes)), key=lambda p: (-scores[p], p))

    def overlap(p: int, t: int) -> float:
        return how.iou(boxes[p], truth_boxes[t])

    def undecided() -> list[int]:
        return [p for p in in_score_order if kind[p] == "?"]

    def free() -> list[int]:
        return [t for t in truths if by[t] == -1]

    def nearest(p: int, among: Sequence[int]) -> int:
        best = among[0]
        for t in among:
            if overlap(p, t) > overlap(p, best):
                best = t
        return best

    def take(letter: str, least: float) -> None:
        for own_class in (True, False):
            for p in undecided():
                wanted = [t for t in free() if overlap(p, t) >= least]
                if own_class:
                    wanted = [t for t in wanted if truth_labels[t] == labels[p]]
                if wanted:
                    truth[p] = nearest(p, wanted)
                    by[truth[p]] = p
                    kind[p] = letter

    for p, box in enumerate(boxes):
        if not how.sound(box):
            kind[p] = "U"

    take("A", aligned)

    for p in undecided():
        if any(how.share(boxes[p], region) >= 0.5 for region in regions):
            kind[p], ignored[p] = "U", True

    for p in undecided():
        merged = [
            t
            for t in free()
            if overlap(p, t) >= matched and how.share(truth_boxes[t], boxes[p]) >= 0.5
        ]
        if len(merged) >= 2:
            kind[p], truth[p] = "SG", nearest(p, merged)
            for t in merged:
                by[t] = p

    home = {}
    for p in undecided():
        inside = [
            t
            for t in free()
            if overlap(p, t) >= matched and how.share(boxes[p], truth_boxes[t]) >= 0.5
        ]
        if inside:
            home[p] = nearest(p, inside)
    for t in truths:
        pieces = [p for p in in_score_order if home.get(p) == t]
        if len(pieces) >= 2:
            for p in pieces:
                kind[p], truth[p] = "SP", t
            by[t] = max(pieces, key=lambda p: overlap(p, t))  # the first of several

    take("M", matched)

    for p in undecided():
        doubled = [t for t in truths if overlap(p, t) >= matched]
        if doubled:
            kind[p], truth[p] = "D", nearest(p, doubled)

    for p in undecided():
        others = [q for q in range(len(boxes)) if q != p]
        kind[p] = "ON" if any(how.iou(boxes[p], boxes[q]) >= matched for q in others) else "N"

    return {
        "kind": kind,
        "truth": truth,
        "iou": [overlap(p, t) if t >= 0 else 0.0 for p, t in enumerate(truth)],
        "ignored": ignored,
        "found": [p >= 0 for p in by],
        "by": by,
        "undecidable": [
            not how.sound(b) and not c for b, c in zip(truth_boxes, crowd, strict=True)
        ],
    }
