"""A detector's boxes on scenes that it has never seen, with the truth and what is said of them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ml_debugger.core import ModelVersion, Scope, Store
from ml_debugger.core.evaluation import metrics
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.evaluation.scoring import score_missing
from ml_debugger.core.pool import StoredPool
from ml_debugger.core.records import TaskSchema
from ml_debugger.evaluator import Evaluator

HEADS = ("AUROC", "AUGRC", "AP errors", "Brier", "ECE")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Boxes:
    """The boxes of some images, and what is said of each.

    Attributes:
        image: The image of each box, shape (n,).
        images: How many images there are.
        score: Shape (n,).
        statistics: Shape (n, s).
        said: What a result says of each, by column.
        judged: Which count, shape (n,): not those in places where the truth asks not to look.
        wrong: Those that count and are errors, shape (judged,).
    """

    image: NDArray[np.int64]
    images: int
    score: Floats
    statistics: Floats
    said: Mapping[str, Floats]
    judged: NDArray[np.bool_]
    wrong: NDArray[np.bool_]

    def of_images(self, values: Floats) -> Floats:
        """Sum values of boxes image by image."""
        return np.bincount(self.image, values, self.images)


def evaluated(model_name: str) -> tuple[Result, Result]:
    """Evaluate the records of "val", which is learnt from, and those of "test", for the truth."""
    evaluator = Evaluator(model_name, "v1")
    val, test = (
        evaluator.request_evaluation(options={"dataset_type": kind}) for kind in ("val", "test")
    )
    return val, test


def compare(
    result: Result, truth: Result, schema: TaskSchema, entropy: Callable[[Floats], Floats]
) -> None:
    """Print how well each method tells the errors in "test", and which inputs it puts first.

    Args:
        result: Made of "val".
        truth: Made of "test".
        schema: The task's.
        entropy: Takes class vectors (n, C), returns (n,).
    """
    known, new = boxes_of(result, result, "val"), boxes_of(result, truth, "test")
    print(
        f"{len(new.wrong):,} boxes to judge, {new.wrong.mean():.1%} wrong; "
        f"learnt from {len(known.wrong):,}"
    )
    print(f"{'':<24}" + "".join(f"{head:>10}" for head in HEADS))
    rows = [("ours", np.asarray(new.said["error_proba"], np.float64))]
    rows += list(others(known, new))
    for name, proba in rows:
        found = figures(proba[new.judged], new.wrong)
        print(f"{name:<24}" + "".join(f"{value:>10.3f}" for value in found))
    ranking(result, truth, new, rows[0][1], schema, entropy)


def ranking(
    result: Result,
    truth: Result,
    new: Boxes,
    proba: Floats,
    schema: TaskSchema,
    entropy: Callable[[Floats], Floats],
) -> None:
    """Print which inputs each ranking puts first, and how many errors are in them."""
    with Store() as store:
        version = store.open(ModelVersion(result.model_name, result.version_name))
        records = version.records(Scope(("test",)))
        missed = StoredPool(records, result, schema).expected_missed()
        unsure = entropy(np.asarray(records.column("predicted/logits"), np.float64))
    table = truth.inputs(as_="arrow")
    units, wrong, gone = (table.column(name).to_numpy() for name in ("units", "wrong", "missed"))
    errors = wrong + gone
    boxes = np.maximum(new.of_images(np.ones(len(new.image))), 1)
    ours = new.of_images(proba)
    rankings = {
        "ours, mean (the query)": ours / boxes,
        "ours, sum and missed": ours + missed,
        "mean of 1 - score": new.of_images(1 - new.score) / boxes,
        "mean entropy": new.of_images(unsure) / boxes,
        "sum of 1 - score": new.of_images(1 - new.score),
        "at random": np.random.default_rng(0).random(new.images),
    }
    n = new.images // 10
    print(
        f"first {n} of {new.images:,}: faulty, errors in them, share of their boxes that is wrong"
    )
    chosen = {name: np.argsort(-values, kind="stable")[:n] for name, values in rankings.items()}
    for name, top in {**chosen, "all": np.arange(new.images)}.items():
        share = wrong[top].sum() / units[top].sum()
        print(f"  {name:<24}{(errors[top] > 0).sum():>6}{errors[top].sum():>8}{share:>8.3f}")
    left = ((gone - missed) ** 2).sum() / ((gone - gone.mean()) ** 2).sum()
    print(
        f"missed: {gone.sum()}, expected {missed.sum():.0f}; "
        f"R2 over inputs {1 - left:.3f} (none would be 0)"
    )


def boxes_of(result: Result, truth: Result, kind: str) -> Boxes:
    """Return the recorded boxes of a data set: what a result says of them, and another knows."""
    table = truth.to_arrow()
    columns = (table.column(name).to_pylist() for name in ("input_id", "score"))
    counted = set(zip(*columns, strict=True))
    with Store() as store:
        version = store.open(ModelVersion(result.model_name, result.version_name))
        records = version.records(Scope((kind,)))
        score_missing(records, result)
        counts = records.counts("predicted")
        ids = np.repeat(records.column("input/id").to_numpy(zero_copy_only=False), counts)
        score = np.asarray(records.column("predicted/score"), np.float64)
        names = ("error_proba", "det_error_proba", "cls_error_proba")
        judged = [one in counted for one in zip(ids.tolist(), score.tolist(), strict=True)]
        assert sum(judged) == len(table)  # else boxes of an image have the same score
        return Boxes(
            image=np.repeat(np.arange(len(counts)), counts),
            images=len(counts),
            score=score,
            statistics=np.asarray(records.column("predicted/statistics"), np.float64),
            said={name: records.estimates(result.result_name, name) for name in names},
            judged=np.array(judged),
            wrong=table.column("wrong").to_numpy(zero_copy_only=False),
        )


def others(known: Boxes, new: Boxes) -> Iterator[tuple[str, Floats]]:
    """Yield the error probabilities that other methods learn from boxes with ground truth.

    The statistics are those of our own error model, as MetaDetect (Schubert et al. 2020) has them;
    with the score they go into a logistic regression and into boosted trees.
    """
    yield "1 - score", 1 - new.score
    odds, new_odds = _odds(known.score[known.judged]), _odds(new.score)
    platt = LogisticRegression().fit(odds, known.wrong)
    yield "score, Platt-scaled", platt.predict_proba(new_odds)[:, 1]
    columns = np.nan_to_num(np.hstack([known.statistics[known.judged], odds]))
    new_columns = np.nan_to_num(np.hstack([new.statistics, new_odds]))
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.2, max_iter=1000))
    yield "MetaDetect, logistic", linear.fit(columns, known.wrong).predict_proba(new_columns)[:, 1]
    trees = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.06, random_state=0)
    yield "MetaDetect, boosted", trees.fit(columns, known.wrong).predict_proba(new_columns)[:, 1]


def figures(proba: Floats, wrong: NDArray[np.bool_]) -> list[float]:
    """Return AUROC, AUGRC x 1000, AP of the errors, Brier score and ECE."""
    from sklearn.metrics import average_precision_score

    return [
        metrics.auroc(proba, wrong),
        1000 * metrics.augrc(proba, wrong),
        float(average_precision_score(wrong, proba)),
        metrics.brier(proba, wrong),
        metrics.ece(proba, wrong),
    ]


def _odds(score: Floats) -> Floats:
    clipped = np.clip(score, 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))[:, None]
