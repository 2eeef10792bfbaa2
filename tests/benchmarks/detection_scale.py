"""Print time and memory for many boxes (about 3 minutes).

    uv run python tests/benchmarks/detection_scale.py [--images 10000] [--boxes 100]

Boxes of made scenes, each a jittered copy of a true one or alone, are written to a store as a
tracer would, evaluated, queried, and their mAP taken by faster-coco-eval.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from threadpoolctl import threadpool_limits

from ml_debugger.core import Batch, ModelVersion, Store, Units
from ml_debugger.core.pool import open_pool
from ml_debugger.core.selection import select
from ml_debugger.core.store import Scope
from ml_debugger.data_filter.common_object_detection_data_filter import (
    CommonObjectDetectionDataFilter,
)
from ml_debugger.evaluator import Evaluator
from ml_debugger.object_detection.average_precision import mean_average_precision
from ml_debugger.object_detection.schema import CORNERS, SCHEMA
from ml_debugger.object_detection.statistics import HIDDEN

CLASSES, WIDTH, TRUTHS, AT_ONCE, SIDE = 20, 128, 15, 100, 640.0
VERSION = ModelVersion("made", "v1")
STRATEGY = {"top_n": 5, "aggregation": "median", "weight_column": "pred_size"}

T = TypeVar("T")


def timed(what: str, act: Callable[[], T]) -> T:
    """Do something and print what it took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    found = act()
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{what:<46}{wall:>9.2f} s{cpu:>9.2f} s CPU{grown:>8.0f} MiB more at most")
    return found


def made(rng: np.random.Generator, images: int, boxes: int) -> tuple[Units[Any], Units[Any]]:
    """Return the units of some images: predicted and actual."""
    truth_at = rng.uniform(0, SIDE * 0.8, (images, TRUTHS, 2))
    truth = np.concatenate([truth_at, truth_at + rng.uniform(15, 120, (images, TRUTHS, 2))], 2)
    label = rng.integers(0, CLASSES, (images, TRUTHS))
    of = rng.integers(0, TRUTHS, (images, boxes))
    alone = rng.random((images, boxes)) < 0.4
    at = rng.uniform(0, SIDE * 0.8, (images, boxes, 2))
    own = np.concatenate([at, at + rng.uniform(15, 120, (images, boxes, 2))], 2)
    near = np.take_along_axis(truth, of[..., None], 1) + rng.normal(0, 6, (images, boxes, 4))
    corners = np.where(alone[..., None], own, near)
    corners[..., 2:] = np.maximum(corners[..., 2:], corners[..., :2] + 1)
    said = np.take_along_axis(label, of, 1)
    said = np.where(rng.random(said.shape) < 0.15, rng.integers(0, CLASSES, said.shape), said)
    n = images * boxes
    score = np.clip(rng.beta(4, 3, n) - 0.25 * alone.ravel(), 0.05, 0.99).astype(np.float32)
    looks = np.eye(CLASSES, WIDTH)[said.ravel()] * 3 + rng.normal(size=(n, WIDTH))
    logits = rng.normal(size=(n, CLASSES)) + 4 * np.eye(CLASSES)[said.ravel()]
    columns: dict[str, Any] = {
        "prediction": said.ravel().astype(np.int32),
        "score": score,
        "finite": np.ones(n, np.bool_),
        "pred_size": (corners[..., 2:] - corners[..., :2]).prod(2).ravel().astype(np.float32),
        "logits": logits.astype(np.float32),
        "statistics": rng.normal(size=(n, len(SCHEMA.statistics))).astype(np.float32),
        "feature.box": looks.astype(np.float32),
        **dict(zip(CORNERS, corners.reshape(-1, 4).T.astype(np.float32), strict=True)),
    }
    actual: dict[str, Any] = {
        "label": label.ravel(),
        "ignored": np.zeros(label.size, np.bool_),
        **dict(zip(CORNERS, truth.reshape(-1, 4).T.astype(np.float32), strict=True)),
    }
    hidden = {name: torch.from_numpy(rng.random(images)) for name in HIDDEN}
    hidden |= dict.fromkeys(("image_height", "image_width"), torch.full((images,), int(SIDE)))

    def units(given: dict[str, Any], each: int, inputs: dict[str, Any]) -> Units[Any]:
        counts = torch.full((images,), each, dtype=torch.int32)
        tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in given.items()}
        return Units(tensors, counts, inputs)

    return units(columns, boxes, hidden), units(actual, TRUTHS, {})


def write(store: Store, images: int, boxes: int) -> None:
    """Record the images, as a tracer does."""
    fields = [
        {"name": one.name, "type": one.type.__name__, "nullable": True} for one in SCHEMA.inputs
    ]
    repository = store.register(
        VERSION,
        task=SCHEMA.name,
        architecture=["made"],
        layers={"box": "head"},
        fields=fields,
    )
    run = repository.start_run("training")
    for start in range(0, images, AT_ONCE):
        predicted, actual = made(np.random.default_rng(start), AT_ONCE, boxes)
        batch = Batch(
            input_ids=[str(start + at) for at in range(AT_ONCE)],
            dataset_type="val",
            n_epoch=0,
            recorded_at=time.time_ns(),
            predicted=predicted,
            actual=actual,
            fields={name: values.tolist() for name, values in predicted.inputs.items()},
        )
        repository.write(run, [batch])


def reference(images: int, boxes: int) -> Any:
    """Return COCO's figures of the same boxes, handed to the library without any of our code."""
    # equal scores are taken in the order of the images, which is that of their ids
    place = np.argsort(np.argsort([str(one) for one in range(images)]))
    sides: list[list[dict[str, Any]]] = [[], []]
    for start in range(0, images, AT_ONCE):
        for rows, some in zip(
            sides, made(np.random.default_rng(start), AT_ONCE, boxes), strict=True
        ):
            corners = np.stack([np.asarray(some[name], np.float64) for name in CORNERS], axis=1)
            label = some["prediction" if "prediction" in some.columns else "label"]
            score = some["score"] if "score" in some.columns else np.ones(len(corners))
            owner = np.repeat(place[start : start + AT_ONCE], np.asarray(some.counts))
            columns = (one.tolist() for one in (owner, np.asarray(label), np.asarray(score)))
            for image, category, value, (x1, y1, x2, y2) in zip(
                *columns, corners.tolist(), strict=True
            ):
                rows.append(
                    {
                        "id": len(rows) + 1,
                        "image_id": image,
                        "category_id": category,
                        "score": value,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                    }
                )
    about = {
        "images": [{"id": one} for one in range(images)],
        "categories": [{"id": one} for one in sorted({row["category_id"] for row in sides[1]})],
    }
    predicted, true = (COCO({**about, "annotations": rows}) for rows in sides)
    judge = COCOeval_faster(true, predicted, iouType="bbox")
    judge.run()
    return judge.stats


def main() -> None:
    """Write, evaluate, query, and take the mAP."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--boxes", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home, threadpool_limits(1), Store(home) as store:
        os.environ["MLD_HOME"] = home
        timed("made and written", lambda: write(store, given.images, given.boxes))
        evaluator = Evaluator(*VERSION, home=home)
        result = timed("evaluated", evaluator.request_evaluation)
        print(f"{'':4}{len(result):,} boxes, {result.manifest.metrics.errors:,} wrong")
        repository = store.open(VERSION)
        kinds = CommonObjectDetectionDataFilter.strategies
        for name, strategy in (
            ("high_error_proba", "high_error_proba"),
            ("BBoxStrategy", STRATEGY),
        ):

            def query(strategy: Any = strategy) -> Any:
                pool = open_pool(repository, Scope(("val",), 0), result, SCHEMA)
                return select(pool, 50, strategy, kinds=kinds)

            timed(f"query of 50 images, {name}, first", query)
            timed(f"query of 50 images, {name}, again", query)
        found = timed("average precision", lambda: mean_average_precision(result))
        judge = timed("the library alone", lambda: reference(given.images, given.boxes))
        print(f"{'':4}AP {found.ap:.9f} and {judge[0]:.9f}, AP50 {found.ap50:.9f}, {judge[1]:.9f}")


if __name__ == "__main__":
    main()
