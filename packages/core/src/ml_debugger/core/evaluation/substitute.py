"""A baseline that takes the place of our error probability."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ml_debugger.core.errors import InputError, SchemaError
from ml_debugger.core.evaluation.baselines import BASELINES, Baseline, Said
from ml_debugger.core.evaluation.error_model.evidence import Observations
from ml_debugger.core.evaluation.error_model.folds import FOLDS
from ml_debugger.core.evaluation.error_model.head import logistic
from ml_debugger.core.evaluation.error_model.scaling import Array, Floats, Integers, Singles


@dataclass(frozen=True)
class Platt:
    """Turns a risk into a probability (Platt 1999).

    Attributes:
        slope: Never negative: a larger risk is never a smaller probability.
        intercept: The log-odds at a risk of 0.
    """

    slope: float
    intercept: float

    @classmethod
    def fit(cls, risk: Floats, wrong: Array) -> Self:
        """Fit to risks (n,) and whether the predictions were wrong (n,)."""
        centre, spread = float(risk.mean()), float(risk.std()) or 1.0
        weights, intercept = logistic(
            ((risk - centre) / spread)[:, None],
            np.asarray(wrong, np.float64),
            np.ones(len(risk)),
            prior=np.zeros(1),
            ridge=0.1,
            usable=np.ones(1, np.bool_),
        )
        slope = float(weights[0]) / spread
        return cls(slope, intercept - slope * centre)

    @classmethod
    def held_out(cls, risk: Floats, wrong: Array, folds: Integers) -> Floats:
        """Return the probabilities of units, each by a fit to the other folds, shape (n,)."""
        proba = np.empty(len(risk))
        for fold in range(FOLDS):
            inside = folds == fold
            if inside.all():  # a unit alone
                proba[inside] = 0.5
            elif inside.any():
                proba[inside] = cls.fit(risk[~inside], wrong[~inside])(risk[inside])
        return proba

    def __call__(self, risk: Floats) -> Floats:
        """Return error probabilities, shape (n,), float64."""
        proba: Floats = 1 / (1 + np.exp(-np.clip(risk * self.slope + self.intercept, -30, 30)))
        return proba


@dataclass(frozen=True)
class Substitute:
    """A fitted baseline and its Platt scaling, which together give an error probability.

    Attributes:
        baseline: Fitted to all evaluated units.
        layer: Alias of the layer that it looks at, or None where it looks at none.
        platt: Fitted to the held-out risks of all evaluated units.
    """

    baseline: Baseline
    layer: str | None
    platt: Platt

    @property
    def name(self) -> str:
        """The baseline's name."""
        return self.baseline.name

    def __call__(self, observations: Observations) -> Singles:
        """Return the error probability of each unit, dependent on that unit alone, (n,), float32.

        Raises:
            InputError: The layer is missing.
        """
        if self.layer is not None and self.layer not in observations.features:
            raise InputError(
                f"features of layer {self.layer!r} are missing, which {self.name} looks at"
            )
        risk = self.baseline(Said.of(observations, self.layer))
        return self.platt(risk).astype(np.float32)

    def arrays(self) -> dict[str, Array]:
        """Return what the baseline learnt, by name."""
        return self.baseline.arrays()

    def settings(self) -> dict[str, Any]:
        """Return what is not an array, as JSON values."""
        return {
            "name": self.name,
            "layer": self.layer,
            "slope": self.platt.slope,
            "intercept": self.platt.intercept,
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, Array], settings: Mapping[str, Any]) -> Self:
        """Rebuild it from its arrays and settings; it gives the same to the last bit.

        Raises:
            SchemaError: This version knows no such baseline.
        """
        kind = BASELINES.get(settings["name"])
        if kind is None:
            raise SchemaError(
                f"the error probability is made of {settings['name']!r}, which this version does "
                "not know; upgrade ml-debugger"
            )
        baseline = kind.restore(arrays)
        platt = Platt(settings["slope"], settings["intercept"])
        return cls(baseline, settings["layer"], platt)
