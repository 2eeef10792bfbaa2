"""Data filters, one for each installed task, and their settings."""

from pkgutil import extend_path
from typing import TYPE_CHECKING

from ml_debugger.core.facade import facade
from ml_debugger.data_filter.common_data_filter import CommonDataFilter as CommonDataFilter
from ml_debugger.data_filter.config.bbox_strategy import BBoxStrategy as BBoxStrategy
from ml_debugger.data_filter.config.filter_config import FilterConfig as FilterConfig
from ml_debugger.data_filter.config.sampling_config import SamplingConfig as SamplingConfig

__path__ = extend_path(__path__, __name__)  # task packages keep their leaves in here

if TYPE_CHECKING:  # what type checkers know; at run time any installed task's name resolves
    from ml_debugger.classification.task import ClassificationDataFilter as ClassificationDataFilter
    from ml_debugger.object_detection.task import (
        ObjectDetectionDataFilter as ObjectDetectionDataFilter,
    )
    from ml_debugger.object_detection_3d.task import (
        ObjectDetection3DDataFilter as ObjectDetection3DDataFilter,
    )
else:
    __getattr__, __dir__ = facade(__name__, suffix="DataFilter", slot="data_filter")
