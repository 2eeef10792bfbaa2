"""What data filters of detectors, of images and of frames, have in common."""

from typing import ClassVar

from ml_debugger.core.aggregation import BBoxStrategy
from ml_debugger.core.query import FilterConfig, Strategy
from ml_debugger.data_filter.common_data_filter import CommonDataFilter


class CommonObjectDetectionDataFilter(CommonDataFilter):
    """Picks images or frames by what is estimated of their boxes.

    Strategies are those of `CommonDataFilter`, and `BBoxStrategy`, which a dict stands for that
    has none of the keys of a `FilterConfig`; the latter matches an image if one of its boxes does.
    """

    strategies: ClassVar[tuple[type[Strategy], ...]] = (BBoxStrategy, FilterConfig)
