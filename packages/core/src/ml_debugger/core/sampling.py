"""How the final inputs are drawn from a query's candidates."""

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ml_debugger.core.config import Config
from ml_debugger.core.query import ZoneName
from ml_debugger.core.records import Array

#: How many times as many candidates as wanted a diverse selection looks at.
CANDIDATES = 4


class SamplingConfig(Config):
    """Draw from the candidates instead of taking the first.

    Attributes:
        method: 'random' draws among those whose rank value lies in the range; 'class_balanced'
            takes a share for each predicted class, 'zone_quotas' a number of each zone, both in
            the candidates' order.
        min_per_class: How many of each class to aim for, 'class_balanced' only. Not a guarantee:
            a class may have fewer candidates, and the number wanted may be reached first.
        per_zone: How many of each zone at most, 'zone_quotas' only; zones left out give none.
            Where they add up to more than is wanted, the zones take turns.
        seed: Of the random draw, 0 or more, 'random' only; None draws differently each time.
        min_value: Smallest rank value, inclusive. 'random' needs this or `max_value`.
        max_value: Largest rank value, inclusive.
    """

    method: Literal["random", "class_balanced", "zone_quotas"]
    min_per_class: int | None = Field(default=None, ge=1)
    per_zone: dict[ZoneName, Annotated[int, Field(ge=1)]] | None = Field(default=None, min_length=1)
    seed: int | None = Field(default=None, ge=0)
    min_value: float | None = None
    max_value: float | None = None

    @model_validator(mode="after")
    def _fits_method(self) -> Self:
        if self.method == "random" and self.min_value is None and self.max_value is None:
            raise ValueError("method 'random' needs min_value, max_value or both")
        for name, method in (("min_per_class", "class_balanced"), ("per_zone", "zone_quotas")):
            given = getattr(self, name) is not None
            if given and self.method != method:
                raise ValueError(f"{name} belongs to method {method!r}")
            if self.method == method and not given:
                raise ValueError(f"method {method!r} needs {name}")
        low, high = self.min_value, self.max_value
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_value {low} is above max_value {high}")
        return self

    def draw(self, values: Array, groups: Array, n: int) -> NDArray[np.int64]:
        """Return positions of the chosen candidates, in their order.

        Args:
            values: Rank value of each candidate, best first.
            groups: Predicted class of each candidate; the name of its zone for 'zone_quotas'.
            n: How many at most.
        """
        inside = np.arange(len(values))  # also those without a value, where no range is asked for
        for end, beyond in ((self.min_value, np.greater_equal), (self.max_value, np.less_equal)):
            if end is not None:
                inside = inside[beyond(values[inside], end)]
        if self.method == "random":
            drawn = np.random.default_rng(self.seed).permutation(len(inside))[:n]
            return np.asarray(inside[np.sort(drawn)])
        found, group, sizes = np.unique(groups[inside], return_inverse=True, return_counts=True)
        # the position of each candidate among those of its group
        order = np.argsort(group, kind="stable")
        turn = np.empty(len(inside), np.int64)
        turn[order] = np.arange(len(inside)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        if self.per_zone is None:
            quota = np.full(len(found), self.min_per_class or 1)
        else:
            quota = np.array([self.per_zone.get(one, 0) for one in found.tolist()], np.int64)
        first = np.flatnonzero(turn < quota[group])
        # group by group in turns, so that a short budget is shared evenly
        chosen = first[np.argsort(turn[first], kind="stable")]
        if self.per_zone is None:
            chosen = np.concatenate([chosen, np.flatnonzero(turn >= quota[group])])
        return np.asarray(inside[np.sort(chosen[:n])])


def spread(features: Array, weights: Array, n: int) -> NDArray[np.int64]:
    """Return n positions far from each other, beginning with the first.

    Greedy k-centre with weights: the next is always the candidate with the largest product of its
    weight and its squared distance to the nearest one chosen.

    Source: Sener and Savarese, Active learning for convolutional neural networks: a core-set
    approach, ICLR 2018; the weights are ours.

    Args:
        features: Shape (candidates, d), best candidate first.
        weights: How much each is wanted, shape (candidates,), 0 or more.
        n: How many at most.
    """
    if n >= len(features):
        return np.arange(len(features))
    points = np.nan_to_num(np.asarray(features, np.float32), posinf=0, neginf=0)
    scale = points.std(0)
    points = (points - points.mean(0)) / np.where(scale > 0, scale, 1)
    free = np.ones(len(points), np.bool_)
    nearest = np.full(len(points), np.inf, np.float32)
    chosen = 0
    for _ in range(n):
        free[chosen] = False
        nearest = np.minimum(nearest, ((points - points[chosen]) ** 2).sum(1))
        chosen = int(np.where(free, weights * nearest, -1).argmax())
    return np.flatnonzero(~free)
