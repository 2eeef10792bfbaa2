"""Training tracers, one for each installed task."""

from pkgutil import extend_path
from typing import TYPE_CHECKING

from ml_debugger.core.facade import facade
from ml_debugger.training.tracer import TrainingTracer as TrainingTracer

__path__ = extend_path(__path__, __name__)  # task packages keep their leaves in here

if TYPE_CHECKING:  # what type checkers know; at run time any installed task's name resolves
    from ml_debugger.classification.task import ClassificationTracer as ClassificationTracer
    from ml_debugger.object_detection.task import ObjectDetectionTracer as ObjectDetectionTracer
    from ml_debugger.object_detection_3d.task import (
        ObjectDetection3DTracer as ObjectDetection3DTracer,
    )
else:
    __getattr__, __dir__ = facade(__name__, suffix="Tracer", slot="tracer")
