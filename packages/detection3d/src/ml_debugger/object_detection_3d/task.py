"""What this package offers, under its public names."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from ml_debugger.core.detection import following, judging
from ml_debugger.core.errors import InputError
from ml_debugger.core.records import Array, Units
from ml_debugger.core.task import Task, Things, Verdict
from ml_debugger.object_detection_3d.geometry import geometry
from ml_debugger.object_detection_3d.schema import SCHEMA

# relative, so that type checkers find the leaves in an editable install too
from ..data_filter.object_detection_3d.object_detection_3d_torch_data_filter import (
    ObjectDetection3DTorchDataFilter as ObjectDetection3DDataFilter,
)
from ..monitoring.object_detection_3d.object_detection_3d_torchlogger import (
    ObjectDetection3DTorchLogger as ObjectDetection3DLogger,
)
from ..training.object_detection_3d.object_detection_3d_torchtracer import (
    ObjectDetection3DTrainingTorchTracer as ObjectDetection3DTracer,
)

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.estimator import Estimates
    from ml_debugger.core.evaluation.options import EvaluationOptions
    from ml_debugger.core.evaluation.report_page.section import Section
    from ml_debugger.core.evaluation.report_page.thumbnail import Thumbnails
    from ml_debugger.core.evaluation.result import Result

__all__ = [
    "ObjectDetection3DDataFilter",
    "ObjectDetection3DLogger",
    "ObjectDetection3DTask",
    "ObjectDetection3DTracer",
]


class ObjectDetection3DTask(Task):
    """Boxes in space, each of a class."""

    schema = SCHEMA
    method = "od3d_v1"
    tracer = ObjectDetection3DTracer
    logger = ObjectDetection3DLogger
    data_filter = ObjectDetection3DDataFilter

    @staticmethod
    @override
    def judge(
        predicted: Units[Array], actual: Units[Array], options: "EvaluationOptions"
    ) -> Verdict:
        boxes = geometry(options.overlap)
        return judging.judge(boxes, predicted, actual, options.aligned_iou, options.matched_iou)

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
        frames, others = (np.asarray(one.inputs["frame"]) for one in (predicted, other_predicted))
        if (frames != others).any():
            raise InputError(
                f"boxes of the older version are in the frame {frames[frames != others][0]!r}, of "
                f"the newer one in {others[frames != others][0]!r}; only versions whose boxes are "
                "in the same frame can be followed box by box"
            )
        units = (predicted, actual, other_predicted, other_actual)
        boxes = geometry(options.overlap)
        return following.follow(boxes, *units, options.aligned_iou, options.matched_iou)

    @staticmethod
    @override
    def figures(result: "Result") -> Mapping[str, tuple[float | None, bool | None]]:
        from ml_debugger.object_detection_3d.analysis import analysis_of

        return analysis_of(result).compared_figures()

    @staticmethod
    @override
    def sections(result: "Result", pictures: "Thumbnails") -> "Sequence[Section]":
        from ml_debugger.object_detection_3d.report import sections

        return sections(result, pictures)
