"""Put units into zones by rules that are plain data, with nothing but NumPy."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.error_model.scaling import Array, Floats


class Zone(StrEnum):
    """How a unit stands to what the model knows; the hot zones are worth collecting data for."""

    STABLE_COVERAGE = "stable_coverage"
    OPERATIONAL_COVERAGE = "operational_coverage"
    HOTSPOT = "hotspot"
    RECESSIVE_HOTSPOT = "recessive_hotspot"
    CRITICAL_HOTSPOT = "critical_hotspot"
    ALEATORIC_HOTSPOT = "aleatoric_hotspot"

    @property
    def is_hot(self) -> bool:
        """Whether its units are to be looked at."""
        return self.value.endswith("hotspot")


#: The zones by the number that stands for them in arrays.
ZONES = tuple(Zone)
_NUMBER = {zone.value: number for number, zone in enumerate(ZONES)}

#: The conditions of a rule that are ranges, by the column they are about.
RANGES = ("score", "error_proba", "outlier")


def assign_zones(
    rules: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Array],
    prediction: Array | None,
) -> NDArray[np.int8]:
    """Return the zone of each unit as a position in `ZONES`, shape (n,).

    The first rule that a unit meets names its zone; one that meets none is
    `operational_coverage`. A unit without a finite score or error probability is never
    `stable_coverage`.

    Args:
        rules: As `ZoneRules.model_dump(mode="json")["rules"]` gives them.
        columns: `score`, `error_proba`, `outlier` and `unstable`, shape (n,).
        prediction: Predicted classes, shape (n,); None where no rule asks for them.

    Raises:
        InputError: A rule is about predicted classes, and there are none.
    """
    # A comparison with nan is false: an unknown value meets no condition.
    exact = {name: np.asarray(columns[name], np.float64) for name in RANGES}
    exact["score"] = finite_score(exact["score"])
    operational = _NUMBER[Zone.OPERATIONAL_COVERAGE]
    zones = np.full(len(exact["score"]), operational, np.int8)
    free = np.ones(len(zones), np.bool_)
    for rule in rules:
        met = free.copy()
        for name in RANGES:
            if (allowed := rule.get(name)) is not None:
                met &= (exact[name] >= allowed[0]) & (exact[name] <= allowed[1])
        if (unstable := rule.get("unstable")) is not None:
            met &= np.asarray(columns["unstable"], np.bool_) == unstable
        if (classes := rule.get("prediction")) is not None:
            if prediction is None:
                raise InputError(
                    "these zones differ by predicted class, and no predictions were given"
                )
            met &= np.isin(prediction, classes)
        zones[met] = _NUMBER[rule["zone"]]
        free &= ~met
    unknown = ~(np.isfinite(exact["score"]) & np.isfinite(exact["error_proba"]))
    zones[unknown & (zones == _NUMBER[Zone.STABLE_COVERAGE])] = operational
    return zones


def finite_score(score: Array) -> Floats:
    """Return scores as numbers in 0..1, which rounding may have left; nan where not finite."""
    score = np.asarray(score, np.float64)
    return np.where(np.isfinite(score), np.clip(score, 0.0, 1.0), np.nan)
