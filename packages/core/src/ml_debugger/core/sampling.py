"""How the final inputs are drawn from a query's candidates."""

from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ml_debugger.core.query import Config
from ml_debugger.core.records import Array

#: How many times as many candidates as wanted a diverse selection looks at.
CANDIDATES = 4


class SamplingConfig(Config):
    """Draw from the candidates instead of taking the first.

    Attributes:
        method: 'random' draws among those whose rank value lies in the range; 'class_balanced'
            takes a share for each predicted class, in the candidates' order.
        min_per_class: How many of each class to aim for, 'class_balanced' only. Not a guarantee:
            a class may have fewer candidates, and the number wanted may be reached first.
        seed: Of the random draw, 0 or more, 'random' only; None draws differently each time.
        min_value: Smallest rank value, inclusive. 'random' needs this or `max_value`.
        max_value: Largest rank value, inclusive.
    """

    method: Literal["random", "class_balanced"]
    min_per_class: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=0)
    min_value: float | None = None
    max_value: float | None = None

    @model_validator(mode="after")
    def _fits_method(self) -> Self:
        if self.method == "random" and self.min_value is None and self.max_value is None:
            raise ValueError("method 'random' needs min_value, max_value or both")
        if self.method == "random" and self.min_per_class is not None:
            raise ValueError("min_per_class belongs to method 'class_balanced'")
        if self.method == "class_balanced" and self.min_per_class is None:
            raise ValueError("method 'class_balanced' needs min_per_class")
        low, high = self.min_value, self.max_value
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_value {low} is above max_value {high}")
        return self

    def draw(self, values: Array, classes: Array, n: int) -> NDArray[np.int64]:
        """Return positions of the chosen candidates, in their order.

        Args:
            values: Rank value of each candidate, best first.
            classes: Predicted class of each candidate.
            n: How many at most.
        """
        low = -np.inf if self.min_value is None else self.min_value
        high = np.inf if self.max_value is None else self.max_value
        inside = np.flatnonzero((values >= low) & (values <= high))
        if self.method == "random":
            drawn = np.random.default_rng(self.seed).permutation(len(inside))[:n]
            return np.asarray(inside[np.sort(drawn)])
        # the position of each candidate among those of its class
        order = np.argsort(classes[inside], kind="stable")
        _, starts, sizes = np.unique(classes[inside][order], return_index=True, return_counts=True)
        turn = np.empty(len(inside), np.int64)
        turn[order] = np.arange(len(inside)) - np.repeat(starts, sizes)
        first = np.flatnonzero(turn < (self.min_per_class or 1))
        rest = np.flatnonzero(turn >= (self.min_per_class or 1))
        # class by class in turns, so that a short budget is shared evenly
        first = first[np.argsort(turn[first], kind="stable")]
        return np.asarray(inside[np.sort(np.concatenate([first, rest])[:n])])


def spread(features: Array, n: int) -> NDArray[np.int64]:
    """Return n positions far from each other, beginning with the first: greedy k-centre.

    Source: Sener and Savarese, Active learning for convolutional neural networks: a core-set
    approach, ICLR 2018.

    Args:
        features: Shape (candidates, d), best candidate first.
        n: How many at most.
    """
    if n >= len(features):
        return np.arange(len(features))
    points = np.nan_to_num(np.asarray(features, np.float32))
    scale = points.std(0)
    points = (points - points.mean(0)) / np.where(scale > 0, scale, 1)
    chosen = [0]
    nearest = ((points - points[0]) ** 2).sum(1)
    while len(chosen) < n:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(1))
    return np.sort(np.array(chosen))
