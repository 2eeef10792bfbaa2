"""Print how well the errors of a real detector are told (about 8 minutes on one core).

    cd tests/benchmarks; uv run python -m detection

A Faster R-CNN is trained on generated scenes; an error model learns from boxes on 1,000 other
scenes with ground truth, and is judged on 2,000 more that it has never seen.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping

import numpy as np
import torch

from detection.detector import train
from detection.study import Boxes, Floats, boxes_of, figures, others, trace
from ml_debugger.core import ModelVersion, Scope, Store
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.pool import StoredPool
from ml_debugger.evaluator import Evaluator
from ml_debugger.object_detection.average_precision import mean_average_precision
from ml_debugger.object_detection.scenes import make_scenes
from ml_debugger.object_detection.schema import SCHEMA

HEADS = ("AUROC", "AUGRC", "AP errors", "Brier", "ECE")
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
    evaluator = Evaluator("shapes", "v1")
    result = evaluator.request_evaluation(options={"dataset_type": "val"})
    truth = evaluator.request_evaluation(options={"dataset_type": "test"})
    known, new = boxes_of(result, "val"), boxes_of(result, "test")
    wrong = truth.to_arrow().column("wrong").to_numpy(zero_copy_only=False)
    was_wrong = result.to_arrow().column("wrong").to_numpy(zero_copy_only=False)
    print(
        f"\nscore >= {thresh}, {what}: {len(wrong):,} boxes to judge, {wrong.mean():.1%} wrong; "
        f"learnt from {len(was_wrong):,}"
    )
    found = mean_average_precision(truth)
    print(f"average precision of the detector: {found.ap:.3f}, AP50 {found.ap50:.3f}")
    print(f"{'':<24}" + "".join(f"{head:>10}" for head in HEADS))
    rows = [("ours", np.asarray(new.said["error_proba"], np.float64))]
    rows += list(others(known, was_wrong, new))
    for name, proba in rows:
        print(f"{name:<24}" + "".join(f"{value:>10.3f}" for value in figures(proba, wrong)))
    ranking(result, truth, new, dict(rows))


def ranking(result: Result, truth: Result, new: Boxes, rows: Mapping[str, Floats]) -> None:
    """Print which images each ranking puts first, and how many errors are in them."""
    with Store() as store:
        records = store.open(ModelVersion("shapes", "v1")).records(Scope(("test",)))
        missed = StoredPool(records, result, SCHEMA).expected_missed()
        logits = np.asarray(records.column("predicted/logits"), np.float64)
    table = truth.inputs(as_="arrow")
    errors = table.column("wrong").to_numpy() + table.column("missed").to_numpy()
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    entropy = -(share * np.log(share + 1e-12)).sum(1)
    boxes = np.maximum(new.of_images(np.ones(len(new.image))), 1)
    ours = new.of_images(rows["ours"])
    rankings = {
        "ours, mean (the query)": ours / boxes,
        "ours, sum and missed": ours + missed,
        "mean of 1 - score": new.of_images(1 - new.score) / boxes,
        "mean entropy": new.of_images(entropy) / boxes,
        "sum of 1 - score": new.of_images(1 - new.score),
        "at random": np.random.default_rng(0).random(new.images),
    }
    n = new.images // 10
    print(
        f"first {n} images of {new.images:,} ({(errors > 0).mean():.0%} of all are faulty): "
        "faulty, errors in them"
    )
    for name, values in rankings.items():
        top = np.argsort(-values, kind="stable")[:n]
        print(f"  {name:<24}{(errors[top] > 0).sum():>6}{errors[top].sum():>8}")
    actual = table.column("missed").to_numpy()
    left = ((actual - missed) ** 2).sum() / ((actual - actual.mean()) ** 2).sum()
    print(
        f"missed: {actual.sum()}, expected {missed.sum():.0f}; "
        f"R2 over images {1 - left:.3f} (none would be 0)"
    )


if __name__ == "__main__":
    main()
