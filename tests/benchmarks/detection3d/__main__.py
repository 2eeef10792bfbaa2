"""Print how well the errors of a real 3D detector are told (about 4 minutes on one core).

    cd tests/benchmarks; uv run python -m detection3d

The pillar detector of the examples is trained on generated scenes; an error model learns from boxes
on 1,000 other frames with ground truth, and is judged on 1,500 more that it has never seen. The
detector is recorded twice: as the example has it, by a class derived from the tracer, and by an
adapter, which tells what the head says around each box too.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detection.study import Floats, compare, evaluated

from detection3d.detector import example, load, trace, train
from ml_debugger.core.evaluation.result import Result
from ml_debugger.object_detection_3d.average_precision import average_precision
from ml_debugger.object_detection_3d.scenes import Scene, make_scenes
from ml_debugger.object_detection_3d.schema import SCHEMA

CHECKED = 100


def main() -> None:
    """Train, trace, evaluate, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--known", type=int, default=1000, help="frames with ground truth")
    parser.add_argument("--new", type=int, default=1500, help="frames to judge on")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    model = train(make_scenes(400, 10 * given.seed + 1), given.epochs, given.seed)
    print(f"trained in {time.perf_counter() - began:.0f} s")
    known = make_scenes(given.known, 10 * given.seed + 2)
    new = make_scenes(given.new, 10 * given.seed + 3)
    for thresh in (0.3, 0.1):
        model.score_thresh = thresh
        for adapter in (True, False) if thresh == 0.3 else (True,):
            with tempfile.TemporaryDirectory() as home:
                os.environ["MLD_HOME"] = home
                trace(model, example.batches(known), "val", adapter=adapter)
                trace(model, example.batches(new), "test", adapter=adapter)
                result, truth = evaluated("adapter" if adapter else "subclass")
                found = average_precision(truth)
                print(
                    f"\nscore >= {thresh}, {'adapter' if adapter else 'derived class'}: "
                    f"AP from above {found.at[0.5]:.3f} at 0.5, {found.at[0.7]:.3f} at 0.7"
                )
                compare(result, truth, SCHEMA, entropy)
                check(model, new[:CHECKED], truth)
    print(f"\n{time.perf_counter() - began:.0f} s in all")


def entropy(logits: Floats) -> Floats:
    """Return that of classes each of which is true or not, summed."""
    here, gone = (-np.logaddexp(0, -one) for one in (logits, -logits))
    found: Floats = -(np.exp(here) * here + np.exp(gone) * gone).sum(1)
    return found


def check(model: Any, scenes: Sequence[Scene], truth: Result) -> None:
    """Print whether the first frames' errors are named as the slow matching names them."""
    slow = load("packages/detection3d/tests/slow_matching.py")
    units = truth.to_pandas()
    codes = units["code"].str.replace("*", "", regex=False).groupby(units["input_id"])
    ours = {name: sorted(some) for name, some in codes}
    boxes = differ = 0
    with torch.no_grad():
        for ids, clouds, _ in example.batches(scenes):
            for number, said in zip(ids, model(clouds), strict=True):
                named, _ = slow.error_codes("bev", said, scenes[number])
                named = sorted(one for one in named if one is not None)
                boxes += len(named)
                differ += named != ours.get(f"{number:05d}", [])
    print(
        f"error codes of {boxes} boxes in {len(scenes)} frames by the slow matching: "
        f"{'the same' if differ == 0 else f'{differ} frames differ'}"
    )


if __name__ == "__main__":
    main()
