"""A detector's boxes on scenes that it has never seen, with the truth and what is said of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from detection.detector import pair
from ml_debugger.core import ModelVersion, Scope, Store
from ml_debugger.core.evaluation import metrics
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.evaluation.scoring import score_missing
from ml_debugger.object_detection.scenes import Scene
from ml_debugger.training import ObjectDetectionTracer

AT_ONCE = 20

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
    """

    image: NDArray[np.int64]
    images: int
    score: Floats
    statistics: Floats
    said: Mapping[str, Floats]

    def of_images(self, values: Floats) -> Floats:
        """Sum values of boxes image by image."""
        return np.bincount(self.image, values, self.images)


def trace(model: nn.Module, scenes: Sequence[Scene], kind: str, **arguments: Any) -> None:
    """Record a detector's boxes and the truth; ids count from 0."""
    with ObjectDetectionTracer(model, "shapes", "v1", **arguments) as tracer, torch.no_grad():
        for start in range(0, len(scenes), AT_ONCE):
            images, targets = zip(*map(pair, scenes[start : start + AT_ONCE]), strict=True)
            ids = [f"{start + at:05d}" for at in range(len(images))]
            tracer(list(images), list(targets), ids, kind)


def boxes_of(result: Result, kind: str) -> Boxes:
    """Return the recorded boxes of a data set, judged by a result."""
    with Store() as store:
        records = store.open(ModelVersion("shapes", "v1")).records(Scope((kind,)))
        score_missing(records, result)
        counts = records.counts("predicted")
        names = ("error_proba", "det_error_proba", "cls_error_proba")
        return Boxes(
            image=np.repeat(np.arange(len(counts)), counts),
            images=len(counts),
            score=np.asarray(records.column("predicted/score"), np.float64),
            statistics=np.asarray(records.column("predicted/statistics"), np.float64),
            said={name: records.estimates(result.result_name, name) for name in names},
        )


def others(known: Boxes, wrong: NDArray[np.bool_], new: Boxes) -> Iterator[tuple[str, Floats]]:
    """Yield the error probabilities that other methods learn from boxes with ground truth.

    The statistics are those of our own error model, as MetaDetect (Schubert et al. 2020) has them;
    with the score they go into a logistic regression and into boosted trees.
    """
    yield "1 - score", 1 - new.score
    odds, new_odds = _odds(known.score), _odds(new.score)
    platt = LogisticRegression().fit(odds, wrong)
    yield "score, Platt-scaled", platt.predict_proba(new_odds)[:, 1]
    columns = np.nan_to_num(np.hstack([known.statistics, odds]))
    new_columns = np.nan_to_num(np.hstack([new.statistics, new_odds]))
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.2, max_iter=1000))
    yield "MetaDetect, logistic", linear.fit(columns, wrong).predict_proba(new_columns)[:, 1]
    trees = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.06, random_state=0)
    yield "MetaDetect, boosted", trees.fit(columns, wrong).predict_proba(new_columns)[:, 1]


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
