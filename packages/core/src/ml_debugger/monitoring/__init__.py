"""Loggers for models in use, one for each installed task."""

from pkgutil import extend_path
from typing import TYPE_CHECKING

from ml_debugger.core.facade import facade
from ml_debugger.monitoring.logger import MonitoringLogger as MonitoringLogger

__path__ = extend_path(__path__, __name__)  # task packages keep their leaves in here

if TYPE_CHECKING:  # what type checkers know; at run time any installed task's name resolves
    from ml_debugger.classification.task import ClassificationLogger as ClassificationLogger
    from ml_debugger.object_detection.task import ObjectDetectionLogger as ObjectDetectionLogger
    from ml_debugger.object_detection_3d.task import (
        ObjectDetection3DLogger as ObjectDetection3DLogger,
    )
else:
    __getattr__, __dir__ = facade(__name__, suffix="Logger", slot="logger")
