"""Print time and memory to find overlapping 3D boxes, beside MMCV's rotated IoU (many minutes).

    uv run --group openmmlab python tests/benchmarks/detection3d_geometry.py [--frames 1000]

Frames of 500 predicted and 500 true cars within 100 x 100 m: strewn, each of both sides near one of
the other, or crowded around 10 places, so that each overlaps 50. `judge` is the whole of what an
evaluation does with them. Each is measured in a process of its own, which says the most memory that
it had beyond the boxes. MMCV is given frame after frame in single precision, as it takes them; it
compares all pairs of a frame, and what it returns is only counted.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ml_debugger.core import Units
from ml_debugger.core.detection import judging
from ml_debugger.object_detection_3d.geometry import BOX, geometry, overlaps

BOXES, PLACES, SIDE = 500, 10, 100.0
KINDS = ("strewn", "crowded")
WHATS = ("mmcv", "bev", "3d", "distance", "judge")

Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


def made(kind: str, frames: int) -> Pair:
    """Return predicted and true boxes, each of shape (frames, 500, 7)."""
    rng = np.random.default_rng(0)
    each = 1 if kind == "strewn" else BOXES // PLACES
    centre = rng.uniform(0, SIDE, (frames, BOXES // each, 1, 2))
    yaw = rng.uniform(-np.pi, np.pi, (frames, BOXES // each, 1))

    def side() -> NDArray[np.float64]:
        boxes = np.zeros((frames, BOXES // each, each, 7))
        boxes[..., :2] = centre + rng.normal(0, 0.3, (*boxes.shape[:3], 2))
        boxes[..., 3:6] = [4, 2, 1.6] * rng.uniform(0.9, 1.1, (*boxes.shape[:3], 3))
        boxes[..., 6] = yaw + rng.normal(0, 0.1, boxes.shape[:3])
        return boxes.reshape(frames, BOXES, 7)

    return side(), side()


def rotated(a: NDArray[np.float64], b: NDArray[np.float64]) -> int:
    """Let MMCV compare all boxes of each frame; count those that overlap."""
    from mmcv.ops import box_iou_rotated

    seen = [torch.from_numpy(one[..., [0, 1, 3, 4, 6]]).float() for one in (a, b)]
    return sum(int((box_iou_rotated(*pair) > 0).sum()) for pair in zip(*seen, strict=True))


def judged(a: NDArray[np.float64], b: NDArray[np.float64]) -> int:
    """Match predictions with truths as an evaluation does; count those that are right."""
    rng = np.random.default_rng(1)
    counts = np.full(len(a), BOXES, np.int32)

    def units(boxes: NDArray[np.float64], **more: NDArray[Any]) -> Units[Any]:
        columns = dict(zip(BOX, boxes.reshape(-1, 7).T.astype(np.float32), strict=True))
        return Units({**columns, **more}, counts)

    number = a.shape[0] * BOXES
    predicted = units(
        a,
        prediction=np.zeros(number, np.int32),
        score=rng.random(number, np.float32),
        finite=np.ones(number, np.bool_),
    )
    actual = units(b, label=np.zeros(number, np.int64), ignored=np.zeros(number, np.bool_))
    verdict = judging.judge(geometry("bev"), predicted, actual, 0.5, 0.1)
    return int(np.count_nonzero(verdict.target == 0))


def measure(kind: str, what: str, frames: int) -> None:
    """Print one line."""
    a, b = made(kind, frames)
    acts: dict[str, Callable[[Pair], int]] = {
        "mmcv": lambda pair: rotated(*pair),
        "judge": lambda pair: judged(*pair),
    }
    counts = [BOXES] * frames

    def ours(pair: Pair) -> int:
        first, second = (one.reshape(-1, 7) for one in pair)
        return len(overlaps(first, counts, second, counts, what))  # type: ignore[arg-type]

    act = acts.get(what, ours)
    act((a[:1], b[:1])) if what in acts else iou_once(a, b, what)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = act((a, b))
    wall = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    said = "right boxes" if what == "judge" else "pairs"
    print(f"{kind:<9}{what:<9}{wall:>9.2f} s{grown:>8.0f} MiB more at most{found:>12,} {said}")


def iou_once(a: NDArray[np.float64], b: NDArray[np.float64], what: str) -> None:
    """Load what the first call loads."""
    overlaps(a[0], [BOXES], b[0], [BOXES], what)  # type: ignore[arg-type]


def main() -> None:
    """Measure each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        torch.set_num_threads(1)
        with threadpool_limits(1):
            measure(*given.one, given.frames)
        return
    print(f"{given.frames:,} frames of {BOXES} predicted and {BOXES} true boxes, one thread")
    for kind in KINDS:
        for what in WHATS:
            command = [sys.executable, __file__, "--frames", str(given.frames), "--one", kind, what]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
