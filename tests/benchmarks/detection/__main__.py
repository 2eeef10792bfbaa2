"""Print how well the errors of a real detector are told (about 8 minutes on one core).

    cd tests/benchmarks; uv run python -m detection

A Faster R-CNN is trained on generated scenes; an error model learns from boxes on 1,000 other
scenes with ground truth, and is judged on 2,000 more that it has never seen.
"""

import argparse
import os
import tempfile
import time

import numpy as np
import torch

from detection.detector import trace, train
from detection.study import Floats, compare, evaluated
from ml_debugger.object_detection.average_precision import mean_average_precision
from ml_debugger.object_detection.scenes import make_scenes
from ml_debugger.object_detection.schema import SCHEMA

LAYERS = {"box": "roi_heads.box_head", "early": "backbone.2", "map": "backbone.4"}


def main() -> None:
    """Train, trace, evaluate, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--known", type=int, default=1000, help="scenes with ground truth")
    parser.add_argument("--new", type=int, default=2000, help="scenes to judge on")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    model = train(make_scenes(800, 10 * given.seed + 1), given.steps, given.seed)
    print(f"trained in {time.perf_counter() - began:.0f} s")
    known = make_scenes(given.known, 10 * given.seed + 2)
    new = make_scenes(given.new, 10 * given.seed + 3)
    for thresh in (0.1, 0.3, 0.5):
        for layers in (None, LAYERS):
            if layers is not None and thresh != 0.3:
                continue
            with tempfile.TemporaryDirectory() as home:
                os.environ["MLD_HOME"] = home
                trace(model, known, "val", score_thresh=thresh, target_layers=layers)
                trace(model, new, "test", score_thresh=thresh, target_layers=layers)
                judge(thresh, "with two maps of the backbone" if layers else "head's vector alone")


def judge(thresh: float, what: str) -> None:
    """Evaluate what was recorded with a score threshold, and print the tables."""
    result, truth = evaluated("shapes")
    found = mean_average_precision(truth)
    print(f"\nscore >= {thresh}, {what}: AP {found.ap:.3f}, AP50 {found.ap50:.3f}")
    compare(result, truth, SCHEMA, entropy)


def entropy(logits: Floats) -> Floats:
    """Return that of classes of which one is true, and background one of them."""
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    found: Floats = -(share * np.log(share + 1e-12)).sum(1)
    return found


if __name__ == "__main__":
    main()
