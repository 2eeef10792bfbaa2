"""From boxes to images: a strategy that folds a value of an input's units into one."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from typing_extensions import override

from ml_debugger.core.errors import StrategyError
from ml_debugger.core.query import Columns, FilterConfig, Strategy
from ml_debugger.core.records import owners


class BBoxStrategy(Strategy):
    """Rank images (or frames) by what is estimated of their boxes.

    Attributes:
        target_column: The estimate to fold.
        top_n: Only the n boxes of each image with the highest estimate; None for all.
        bbox_filter: Only boxes in any of some zones, or fulfilling any of some conditions; before
            `top_n`. None for all.
        aggregation: What becomes of the estimates of an image's boxes.
        weight_column: A recorded column of numbers, 0 or more, by which boxes weigh; `pred_size`
            for example. None: all alike.
        sort: 'desc' for images with the highest value first.
        img_error_threshold: Least value, in [0, 1], of an image that calls flag; None flags none.
    """

    target_column: Literal["error_proba", "det_error_proba", "cls_error_proba"] = "error_proba"
    top_n: int | None = Field(default=None, ge=1, strict=True)
    bbox_filter: FilterConfig | None = None
    aggregation: Literal["mean", "median"] = "mean"
    weight_column: str | None = None
    sort: Literal["asc", "desc"] = "desc"
    img_error_threshold: float | None = Field(default=None, ge=0, le=1)

    @field_validator("bbox_filter", mode="before")
    @classmethod
    def _as_filter(cls, given: Any) -> Any:
        return None if given is None else FilterConfig.read(given)

    @property
    @override
    def columns(self) -> set[str]:
        named = {self.target_column} | ({self.weight_column} if self.weight_column else set())
        return named if self.bbox_filter is None else named | self.bbox_filter.columns

    @property
    def descending(self) -> bool:
        """Whether the highest value comes first."""
        return self.sort == "desc"

    def aggregate(
        self, columns: Columns, counts: NDArray[Any] | None, inputs: int
    ) -> NDArray[np.float64]:
        """Return the value of each input, shape (inputs,), NaN for one without a box left.

        The weighted median is where half of the weight is reached: with equal weights, the
        median.

        Args:
            columns: Gives a column's values, one a box.
            counts: How many boxes each input has; None where all have one.
            inputs: How many inputs there are.

        Raises:
            StrategyError: A value of the filter cannot be compared with its column, or the
                weights are no numbers.
        """
        values = np.asarray(columns(self.target_column), np.float64)
        weights = np.ones(len(values))
        if self.weight_column is not None:
            try:
                given = np.asarray(columns(self.weight_column), np.float64)
            except (TypeError, ValueError):
                raise StrategyError(
                    f"weight_column {self.weight_column!r} is no column of numbers"
                ) from None
            weights = np.maximum(np.nan_to_num(given, posinf=0.0), 0.0)
        rows, sizes = self._chosen(columns, counts, inputs)
        return _folded(values[rows], weights[rows], sizes, self.aggregation)

    def sizes(
        self, columns: Columns, counts: NDArray[Any] | None, inputs: int
    ) -> NDArray[np.int64]:
        """Return of how many boxes the value of each input is made, shape (inputs,).

        See `aggregate` for the arguments.
        """
        return self._chosen(columns, counts, inputs)[1]

    def _chosen(
        self, columns: Columns, counts: NDArray[Any] | None, inputs: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the boxes to fold, the worst first in each input, and how many each input has."""
        values = np.asarray(columns(self.target_column), np.float64)
        owner = owners(counts, inputs)
        kept = np.isfinite(values)
        if self.bbox_filter is not None:
            kept &= self.bbox_filter.matches(columns)
        rows = np.flatnonzero(kept)
        rows = rows[np.lexsort((-values[rows], owner[rows]))]
        sizes = np.bincount(owner[rows], minlength=inputs)
        if self.top_n is None:
            return rows, sizes
        place = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return rows[place < self.top_n], np.minimum(sizes, self.top_n)

    def flags(
        self, columns: Columns, counts: NDArray[Any] | None, inputs: int
    ) -> list[bool | None]:
        """Tell which inputs reach `img_error_threshold`; one without a box left does not.

        See `aggregate` for the arguments. All None without a threshold.
        """
        if self.img_error_threshold is None:
            return [None] * inputs
        values = self.aggregate(columns, counts, inputs)
        return [bool(value >= self.img_error_threshold) for value in values]

    def describe(self, size: int) -> str:
        """Say what a value is that is made of so many boxes."""
        which = f"{size} worst" if size == self.top_n else str(size)
        which += " box" if size == 1 else " boxes"
        weighted = "" if self.weight_column is None else f", weighted by {self.weight_column}"
        filtered = "" if self.bbox_filter is None else " that match bbox_filter"
        return f"{self.aggregation} {self.target_column} of its {which}{filtered}{weighted}"


def _folded(
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    sizes: NDArray[np.int64],
    aggregation: Literal["mean", "median"],
) -> NDArray[np.float64]:
    """Fold values that lie input by input, the highest first in each."""
    found = np.full(len(sizes), np.nan)
    some = np.flatnonzero(sizes)
    if len(some) == 0:
        return found
    starts = (np.cumsum(sizes) - sizes)[some]
    total = np.add.reduceat(weights, starts)
    nothing = np.repeat(~(total > 0) | ~np.isfinite(total), sizes[some])  # boxes weigh alike
    weights = np.where(nothing, 1.0, weights)
    total = np.add.reduceat(weights, starts)
    if aggregation == "mean":
        found[some] = np.add.reduceat(values * weights, starts) / total
        return found
    # shares of the image's weight; a running sum over all would lose the small ones after a large
    share = weights / np.repeat(total, sizes[some])
    width = int(sizes.max())
    place = np.arange(len(values)) - np.repeat(starts, sizes[some])
    row = np.repeat(np.arange(len(some)), sizes[some])
    within = np.zeros((len(some), width))
    within[row, place] = share
    within = within.cumsum(axis=1)[row, place]
    # the first box at which half is reached, and the first at which it is passed
    reached, passed = within >= 0.5 - 1e-12, within > 0.5 + 1e-12
    for mask in (reached, passed):
        number = np.where(mask, np.arange(len(values)), len(values))
        first = np.minimum.reduceat(number, starts)
        part = values[np.minimum(first, len(values) - 1)]
        found[some] = part if mask is reached else (found[some] + part) / 2
    return found
