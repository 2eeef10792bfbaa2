"""The rules of matching once more, one image and one box at a time, as a reference for tests.

Nothing here is shared with the package: boxes are lists of four numbers, and every question is
asked of every pair of boxes.
"""

import math


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


def match_image(boxes, scores, labels, truth_boxes, truth_labels, crowd, aligned=0.5, matched=0.1):
    """Return kind, truth, iou and ignored of each prediction, found and by of each truth."""
    kind, truth = ["?"] * len(boxes), [-1] * len(boxes)
    by = [-1] * len(truth_boxes)
    ignored = [False] * len(boxes)
    truths = [t for t, box in enumerate(truth_boxes) if area(box) > 0 and not crowd[t]]
    regions = [box for t, box in enumerate(truth_boxes) if crowd[t]]
    in_score_order = sorted(range(len(boxes)), key=lambda p: (-scores[p], p))

    def overlap(p, t):
        return iou(boxes[p], truth_boxes[t])

    def undecided():
        return [p for p in in_score_order if kind[p] == "?"]

    def free():
        return [t for t in truths if by[t] == -1]

    def nearest(p, among):
        best = None
        for t in among:
            if best is None or overlap(p, t) > overlap(p, best):
                best = t
        return best

    def take(letter, least):
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
        if area(box) == 0:
            kind[p] = "U"

    take("A", aligned)

    for p in undecided():
        if any(share(boxes[p], region) >= 0.5 for region in regions):
            kind[p], ignored[p] = "U", True

    for p in undecided():
        merged = [
            t for t in free() if overlap(p, t) >= matched and share(truth_boxes[t], boxes[p]) >= 0.5
        ]
        if len(merged) >= 2:
            kind[p], truth[p] = "SG", nearest(p, merged)
            for t in merged:
                by[t] = p

    home = {}
    for p in undecided():
        inside = [
            t for t in free() if overlap(p, t) >= matched and share(boxes[p], truth_boxes[t]) >= 0.5
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
        kind[p] = "ON" if any(iou(boxes[p], boxes[q]) >= matched for q in others) else "N"

    return {
        "kind": kind,
        "truth": truth,
        "iou": [overlap(p, t) if t >= 0 else 0.0 for p, t in enumerate(truth)],
        "ignored": ignored,
        "found": [p >= 0 for p in by],
        "by": by,
        "undecidable": [area(b) == 0 and not c for b, c in zip(truth_boxes, crowd, strict=True)],
    }
