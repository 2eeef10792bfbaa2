"""Semantic segmentation for ml-debugger: one unit for each class seen in an image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from ml_debugger.core import Activations, Array, Column, Task, TaskSchema, Tracer, Units, Verdict
from ml_debugger.core.errors import InputError, UnsupportedModelError
from ml_debugger.data_filter import CommonDataFilter
from ml_debugger.monitoring import MonitoringLogger
from ml_debugger.training import TrainingTracer

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.estimator import Estimates
    from ml_debugger.core.evaluation.options import EvaluationOptions

SCHEMA = TaskSchema(
    name="segmentation",
    extracted_feature=(
        Column("prediction", int),
        Column("score", float),
        Column("finite", bool),
        Column("area", float),
    ),
    ground_truth=(Column("label", int), Column("area", float)),
)

BACKGROUND = 0


class SegmentationTorchTracer(Tracer):
    """How a segmentation model's output becomes units; shared by every purpose."""

    schema = SCHEMA

    def parse_output(self, output: Any, activations: Activations) -> Units[Tensor]:
        """Read (image, class, height, width) logits."""
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise UnsupportedModelError(
                f"expected (image, class, height, width) logits, got {type(output).__name__}"
            )
        logits = output.detach().float().flatten(2)
        score, mask = logits.softmax(1).max(1)
        pixels = one_hot(mask, logits.shape[1]).movedim(-1, 1).float()
        size = pixels.sum(2)
        image, prediction = _seen(size)
        per_class = size.clamp(min=1)[..., None]
        mean_score = (pixels * score[:, None]).sum(2, keepdim=True) / per_class
        mean_logits = torch.einsum("ncp,nkp->nck", pixels, logits) / per_class
        units = {
            "prediction": prediction.int(),
            "score": mean_score[image, prediction, 0],
            "finite": torch.isfinite(mean_logits[image, prediction]).all(1),
            "area": (size / logits.shape[2])[image, prediction],
            "logits": mean_logits[image, prediction],
        }
        features = {f"feature.{alias}": activations[alias][image] for alias in activations}
        return Units({**units, **features}, _counts(image, len(output)))

    def parse_ground_truth(self, ground_truth: Any, inputs: int | None) -> Units[Tensor]:
        """Read (image, height, width) masks of class numbers."""
        if not isinstance(ground_truth, Tensor) or ground_truth.ndim != 3:
            raise InputError(
                f"expected (image, height, width) masks, got {type(ground_truth).__name__}"
            )
        if inputs is not None and len(ground_truth) != inputs:
            raise InputError(f"{len(ground_truth)} masks for {inputs} images; give one an image")
        area = one_hot(ground_truth.long().flatten(1)).float().mean(1)
        image, label = _seen(area)
        return Units(
            {"label": label, "area": area[image, label]}, _counts(image, len(ground_truth))
        )


class SegmentationTracer(TrainingTracer, SegmentationTorchTracer):
    """Trace a segmentation model while it trains."""


class SegmentationLogger(MonitoringLogger, SegmentationTorchTracer):
    """Log a deployed segmentation model."""


class SegmentationDataFilter(CommonDataFilter, SegmentationTorchTracer):
    """Pick the images that a segmentation model gets wrong."""


class SegmentationTask(Task):
    """What this package gives ml-debugger."""

    schema = SCHEMA
    method = "segmentation_v1"
    tracer = SegmentationTracer
    logger = SegmentationLogger
    data_filter = SegmentationDataFilter

    @staticmethod
    def judge(
        predicted: Units[Array], actual: Units[Array], options: "EvaluationOptions"
    ) -> Verdict:
        """Find the classes that the image does not show."""
        prediction = predicted["prediction"].astype(np.int64)
        shown = set(zip(_images(actual).tolist(), actual["label"].tolist(), strict=True))
        seen = zip(_images(predicted).tolist(), prediction.tolist(), strict=True)
        right = np.array([one in shown for one in seen], np.bool_)
        return Verdict(np.where(right, prediction, -1))

    @staticmethod
    def codes(
        prediction: NDArray[Any],
        verdict: Verdict | None,
        zones: NDArray[Any],
        estimates: "Estimates",
        error_proba_thresh: float,
    ) -> Sequence[str]:
        """Name what was seen, and whether it was there."""
        if verdict is None:
            return [f"SEG?->{one}" for one in prediction]
        names = np.where(verdict.target < 0, "none", verdict.target.astype(str))
        return [f"SEG{one}->{other}" for one, other in zip(names, prediction, strict=True)]


def _seen(size: Tensor) -> tuple[Tensor, Tensor]:
    """Return image and class of each unit, given the size of each (image, class)."""
    seen = size > 0
    seen[:, BACKGROUND] = False
    image, label = seen.nonzero(as_tuple=True)
    return image, label


def _counts(image: Tensor, images: int) -> Tensor:
    return torch.bincount(image, minlength=images).int()


def _images(units: Units[Array]) -> Array:
    """Return the image of each unit; counts of one each may be left out."""
    if units.counts is None:
        return np.arange(len(units))
    return np.repeat(np.arange(len(units.counts)), units.counts)
