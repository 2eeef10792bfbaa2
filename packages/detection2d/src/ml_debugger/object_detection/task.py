"""What this package offers, under its public names."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from ml_debugger.core.detection import judging
from ml_debugger.core.records import Array, Units
from ml_debugger.core.task import Task, Things, Verdict
from ml_debugger.object_detection import following
from ml_debugger.object_detection.boxes import GEOMETRY
from ml_debugger.object_detection.schema import SCHEMA

# relative, so that type checkers find the leaves in an editable install too
from ..data_filter.object_detection.object_detection_torch_data_filter import (
    ObjectDetectionTorchDataFilter as ObjectDetectionDataFilter,
)
from ..monitoring.object_detection.object_detection_torchlogger import (
    ObjectDetectionTorchLogger as ObjectDetectionLogger,
)
from ..training.object_detection.object_detection_torchtracer import (
    ObjectDetectionTrainingTorchTracer as ObjectDetectionTracer,
)

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.estimator import Estimates
    from ml_debugger.core.evaluation.options import EvaluationOptions
    from ml_debugger.core.evaluation.report_page.section import Section
    from ml_debugger.core.evaluation.report_page.thumbnail import Thumbnails
    from ml_debugger.core.evaluation.result import Result

__all__ = [
    "ObjectDetectionDataFilter",
    "ObjectDetectionLogger",
    "ObjectDetectionTask",
    "ObjectDetectionTracer",
]


class ObjectDetectionTask(Task):
    """Boxes in an image, each of a class."""

    schema = SCHEMA
    method = "od_v1"
    tracer = ObjectDetectionTracer
    logger = ObjectDetectionLogger
    data_filter = ObjectDetectionDataFilter

    @staticmethod
    @override
    def judge(
        predicted: Units[Array], actual: Units[Array], options: "EvaluationOptions"
    ) -> Verdict:
        return judging.judge(GEOMETRY, predicted, actual, options.aligned_iou, options.matched_iou)

    @staticmethod
    @override
    def codes(
        prediction: NDArray[Any],
        verdict: Verdict | None,
        zones: NDArray[Any],
        estimates: "Estimates",
        error_proba_thresh: float,
    ) -> Sequence[str]:
        return judging.codes(np.asarray(prediction), verdict, estimates, error_proba_thresh)

    @staticmethod
    @override
    def missed_codes(label: NDArray[Any]) -> Sequence[str]:
        return judging.missed_codes(np.asarray(label))

    @staticmethod
    @override
    def follow(
        predicted: Units[Array],
        actual: Units[Array],
        other_predicted: Units[Array],
        other_actual: Units[Array],
        options: "EvaluationOptions",
    ) -> Things:
        units = (predicted, actual, other_predicted, other_actual)
        return following.follow(*units, options.aligned_iou, options.matched_iou)

    @staticmethod
    @override
    def figures(result: "Result") -> Mapping[str, tuple[float | None, bool | None]]:
        from ml_debugger.object_detection.analysis import analysis_of

        return analysis_of(result).compared_figures()

    @staticmethod
    @override
    def sections(result: "Result", pictures: "Thumbnails") -> "Sequence[Section]":
        from ml_debugger.object_detection.report import sections

        return sections(result, pictures)
