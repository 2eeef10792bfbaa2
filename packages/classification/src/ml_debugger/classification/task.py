"""What this package offers, under its public names."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from ml_debugger.classification.schema import SCHEMA
from ml_debugger.core.records import Array, Units
from ml_debugger.core.task import Task, Verdict

# relative, so that type checkers find the leaves in an editable install too
from ..data_filter.classification.classification_torch_data_filter import (
    ClassificationTorchDataFilter as ClassificationDataFilter,
)
from ..monitoring.classification.classification_torchlogger import (
    ClassificationTorchLogger as ClassificationLogger,
)
from ..training.classification.classification_torchtracer import (
    ClassificationTrainingTorchTracer as ClassificationTracer,
)

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.estimator import Estimates
    from ml_debugger.core.evaluation.options import EvaluationOptions

__all__ = [
    "ClassificationDataFilter",
    "ClassificationLogger",
    "ClassificationTask",
    "ClassificationTracer",
]


def _quickstart(**options: Any) -> Any:
    from ml_debugger.classification.quickstart import quickstart

    return quickstart(**options)


class ClassificationTask(Task):
    """One class an input."""

    schema = SCHEMA
    method = "classification_v1"
    tracer = ClassificationTracer
    logger = ClassificationLogger
    data_filter = ClassificationDataFilter
    quickstart = staticmethod(_quickstart)

    @staticmethod
    @override
    def judge(
        predicted: Units[Array], actual: Units[Array], options: "EvaluationOptions"
    ) -> Verdict:
        return Verdict(np.asarray(actual["label"], np.int64))

    @staticmethod
    @override
    def codes(
        prediction: NDArray[Any],
        verdict: Verdict | None,
        zones: NDArray[Any],
        estimates: "Estimates",
        error_proba_thresh: float,
    ) -> Sequence[str]:
        from ml_debugger.core.evaluation.codes import class_codes

        target = None if verdict is None else verdict.target
        return list(class_codes(prediction, target, zones, estimates))
