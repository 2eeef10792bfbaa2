"""How likely each prediction is wrong, learnt once from labelled units.

In every layer, neighbours, distances and a linear discriminant say how well the features agree
with the predicted class. A logistic regression that may count evidence only against a prediction,
and that starts from the max softmax, turns this into a calibrated probability.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.errors import SchemaError
from ml_debugger.core.evaluation.error_model.aspects import Answers, Asked, Aspects
from ml_debugger.core.evaluation.error_model.evidence import Evidence, Observations, Sources
from ml_debugger.core.evaluation.error_model.fitting import fit
from ml_debugger.core.evaluation.error_model.head import Head
from ml_debugger.core.evaluation.error_model.layer import Layer, References
from ml_debugger.core.evaluation.error_model.scaling import Array, Floats, Integers
from ml_debugger.core.evaluation.error_model.usual import Usual
from ml_debugger.core.evaluation.substitute import Substitute

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.bootstrap import Score

__all__ = ["NOT_FINITE", "Answers", "Asked", "ErrorModel", "Estimates", "Observations"]

#: The outlier p-value of units with non-finite values: below any that a finite one can have.
NOT_FINITE = 1e-6

_VERSION = 3


@dataclass(frozen=True, slots=True)
class Estimates:
    """What is thought of each unit.

    Attributes:
        error_proba: Calibrated probability that the prediction is wrong, (n,), float32.
        outlier: Conformal p-value in (0, 1], (n,), float32: the share of evaluated units that are
            at least as far from the others. 1 everywhere for a model without layers.
        unstable: Whether neighbours are split between classes or layers disagree, (n,), bool.
        shares: Plausibility of each class given that the prediction is wrong, (n, K), float32;
            0 for the predicted class; rows add up to 1, to 0 where there is no other class.
        plausible: The class that the features alone speak for, (n,), int32.
        as_new: What `error_proba` would be of a new unit with the same evidence, (n,), float32:
            what units of which the labels are known compare with others by.
        answers: What is thought of the ways in which they can be wrong; None for a task that
            names none.
    """

    error_proba: NDArray[np.float32]
    outlier: NDArray[np.float32]
    unstable: NDArray[np.bool_]
    shares: NDArray[np.float32]
    plausible: NDArray[np.int32]
    as_new: NDArray[np.float32]
    answers: Answers | None = None

    def __len__(self) -> int:
        return len(self.error_proba)

    def take(self, rows: Array) -> "Estimates":
        """Return the estimates of some units, by position (m,), int64, or by mask (n,), bool."""
        return Estimates(
            error_proba=self.error_proba[rows],
            outlier=self.outlier[rows],
            unstable=self.unstable[rows],
            shares=self.shares[rows],
            plausible=self.plausible[rows],
            as_new=self.as_new[rows],
            answers=None if self.answers is None else self.answers.take(rows),
        )

    def joined(self, other: "Estimates") -> "Estimates":
        """Append other units."""
        both: dict[str, Any] = {}
        for one in fields(self):
            parts = getattr(self, one.name), getattr(other, one.name)
            if one.name == "answers":
                both["answers"] = None if parts[0] is None else Answers.joined(parts)
            else:
                both[one.name] = np.concatenate(parts)
        return Estimates(**both)


class Remoteness(NamedTuple):
    """How far the evaluated units are from each other, left out in turn.

    Attributes:
        centre: Median by layer, shape (L,), float64.
        spread: Robust standard deviation by layer, shape (L,), float64.
        ranked: Mean of the standardised values over layers, ascending, shape (n,), float64.
    """

    centre: Floats
    spread: Floats
    ranked: Floats

    @classmethod
    def of(cls, remoteness: Floats) -> tuple["Remoteness", Floats]:
        """Rank evaluated units (n, L); also return their own p-values, each among the others."""
        if remoteness.size == 0:
            return cls(*(np.zeros(0),) * 3), np.ones(len(remoteness))
        centre = np.median(remoteness, axis=0)
        spread = 1.4826 * np.median(np.abs(remoteness - centre), axis=0)
        spread = np.where(spread > 1e-9, spread, np.maximum(remoteness.std(axis=0), 1e-9))
        mean = ((remoteness - centre) / spread).mean(axis=1)
        ranked = np.sort(mean)
        beyond = len(ranked) - np.searchsorted(ranked, mean, side="left")
        return cls(centre, spread, ranked), beyond / len(ranked)

    def p_value(self, remoteness: Floats) -> Floats:
        """Return conformal p-values of other units (Vovk et al. 2005), in (0, 1], shape (n,)."""
        if len(self.ranked) == 0:
            return np.ones(len(remoteness))
        mean = ((remoteness - self.centre) / self.spread).mean(axis=1)
        beyond = len(self.ranked) - np.searchsorted(self.ranked, mean, side="left")
        p_value: Floats = (1 + beyond) / (len(self.ranked) + 1)
        return p_value


class ErrorModel:
    """An estimator of errors, fitted once and applied to any units of the same model.

    Non-finite features, scores, logits or other outputs, such as the corners of a box, are never
    repaired in silence: such units take no part in the fit. They still get finite estimates out of
    what is finite about them, with an `error_proba` of at least the evaluated error rate, an
    `outlier` p-value of `NOT_FINITE`, and `unstable` set.

    Attributes:
        n_class: K; a label outside 0..K-1 means "none of the model's classes".
        layers: Aliases of the layers in use.
        aspects: Names of the ways to be wrong that it knows.
        of_logits: Whether predictions and scores follow from the logits; see `Sources`.
        notes: Sentences that a user should read beside the estimates.
    """

    def __init__(
        self,
        sources: Sources,
        head: Head,
        remoteness: Remoteness,
        *,
        error_rate: float,
        notes: tuple[str, ...],
        substitute: Substitute | None = None,
        aspects: Aspects | None = None,
    ) -> None:
        self.n_class = sources.n_class
        self.layers = tuple(sources.layers)
        self.aspects = () if aspects is None else tuple(aspects.heads)
        self.of_logits = sources.of_logits
        self.notes = notes
        self._sources = sources
        self._head = head
        self._remoteness = remoteness
        self._error_rate = error_rate
        self._substitute = substitute
        self._aspects = aspects

    @property
    def method(self) -> str:
        """What `error_proba` is, as `Result.baselines` calls it: "error_proba" for ours."""
        return "error_proba" if self._substitute is None else self._substitute.name

    @classmethod
    def fit(
        cls,
        observations: Observations,
        target: Integers,
        *,
        groups: Integers | None = None,
        seed: int = 0,
        max_references: int = 4096,
        n_class: int | None = None,
        progress: Callable[[float], None] | None = None,
        asked: Asked | None = None,
    ) -> tuple["ErrorModel", Estimates]:
        """Learn from labelled units.

        The same units and seed give the same model, whatever order they come in.

        Args:
            observations: What the model saw and said.
            target: True class of each unit, shape (n,); one outside 0..K-1 is always an error.
            groups: The input each unit belongs to, shape (n,); units of one input never judge
                each other. None where each is an input of its own; units that are equal in
                everything recorded then count as one input.
            seed: Another seed draws other folds and references.
            max_references: Most units that others are compared with; bounds memory and time.
            n_class: K; by default the width of the logits, or one more than the largest class
                among predictions and targets.
            progress: Told the share that is done, up to 1.
            asked: In which ways the units are wrong, for a task that tells; n of them.

        Returns:
            The model, and estimates of the evaluated units themselves, in their order. What judges
            a unit (temperature, discriminants, head) was fitted to units of other folds, and its
            neighbours' votes leave it out; its label counts only as a neighbour of those units.

        Raises:
            InputError: The lengths do not fit.
            NothingToEvaluateError: No unit is finite.
        """
        fitted = fit(
            observations,
            np.asarray(target, np.int64),
            groups,
            n_class=n_class,
            seed=seed,
            max_references=max_references,
            progress=progress or (lambda _: None),
            asked=asked,
        )
        remoteness, outlier = Remoteness.of(fitted.evidence.remoteness)
        model = cls(
            fitted.sources,
            fitted.head,
            remoteness,
            error_rate=fitted.error_rate,
            notes=fitted.notes,
            aspects=fitted.aspects,
        )
        estimates = _estimates(
            fitted.evidence, fitted.error_proba, fitted.as_new, outlier, fitted.answers
        )
        back = np.full(len(observations), -1, np.int64)
        back[fitted.rows] = np.arange(len(fitted.rows))
        left_out = np.flatnonzero(back < 0)
        if len(left_out):
            back[left_out] = np.arange(len(fitted.rows), len(back))
            rest = model.estimate(observations.take(left_out))
            # All of them, also where what is broken is of a layer that is not in use.
            rest = model._flagged(rest, np.ones(len(rest), np.bool_))
            estimates = estimates.joined(rest)
        return model, estimates.take(back)

    def substituted(
        self,
        substitute: Substitute,
        observations: Observations,
        estimates: Estimates,
        *,
        rows: Integers,
        held_out: "Score",
        note: str,
    ) -> tuple["ErrorModel", Estimates]:
        """Take the error probability of a baseline in place of this model's; the rest stays.

        Args:
            substitute: The baseline.
            observations: As given to `fit`.
            estimates: As returned by `fit`, in the same order.
            rows: Positions of the units that the baseline was fitted to, shape (m,).
            held_out: Their risks and error probabilities by the other folds, m of them.
            note: What a user should know about it.

        Returns:
            The model, and the estimates of the evaluated units.
        """
        model = ErrorModel(
            self._sources,
            self._head,
            self._remoteness,
            error_rate=self._error_rate,
            notes=(*self.notes, note),
            substitute=substitute,
            aspects=self._aspects,
        )
        error_proba = substitute(observations)
        as_new = error_proba.copy()
        error_proba[rows] = held_out.proba
        as_new[rows] = substitute.platt(held_out.risk)
        # The fit marked so what is broken, in layers that are not in use too.
        broken = estimates.outlier <= np.float32(NOT_FINITE)
        answers = None if estimates.answers is None else estimates.answers.agreeing(error_proba)
        changed = replace(estimates, error_proba=error_proba, as_new=as_new, answers=answers)
        return model, model._flagged(changed, broken)

    def estimate(self, observations: Observations) -> Estimates:
        """Estimate units that took no part in the fit.

        Each unit's estimates depend on that unit alone (up to rounding, below 1e-6), whatever
        else is estimated in the same call.

        Raises:
            InputError: A layer or the logits are missing, or are as wide as another model's.
        """
        self._sources.check(observations)
        evidence = self._sources.gather(observations, np.arange(len(observations)))
        outlier = self._remoteness.p_value(evidence.remoteness)
        answers = None if self._aspects is None else self._aspects.answer(evidence.columns)
        if self._substitute is not None:
            error_proba = self._substitute(observations)
        elif self._aspects is not None and answers is not None and self._aspects.leads:
            error_proba = answers.wrong_in_any
        else:
            error_proba = self._head(evidence.columns)
        if answers is not None:
            answers = answers.agreeing(error_proba)
        estimates = _estimates(evidence, error_proba, error_proba, outlier, answers)
        return self._flagged(estimates, ~self._sources.finite(observations))

    def _flagged(self, estimates: Estimates, broken: NDArray[np.bool_]) -> Estimates:
        """Mark units that hold non-finite values."""
        if not broken.any():
            return estimates
        rate = np.where(broken, np.float32(self._error_rate), np.float32(0))
        error_proba = np.maximum(estimates.error_proba, rate)
        answers = estimates.answers
        if answers is not None:
            raised = answers.take(broken).agreeing(error_proba[broken])
            answers = answers.with_rows(broken, raised)
        return replace(
            estimates,
            error_proba=error_proba,
            as_new=np.maximum(estimates.as_new, rate),
            answers=answers,
            outlier=np.where(broken, np.float32(NOT_FINITE), estimates.outlier),
            unstable=estimates.unstable | broken,
        )

    def arrays(self) -> dict[str, Array]:
        """Return the numbers of the model, by name; with `settings` they are all there is."""
        sources, head = self._sources, self._head
        arrays: dict[str, Array] = {
            "references.labels": sources.references.labels,
            "references.weights": sources.references.weights,
            "references.prior": sources.references.prior,
            "head.centre": head.centre,
            "head.inverse": head.inverse,
            **{f"head.{name}": values for name, values in head.arrays().items()},
            "remoteness.centre": self._remoteness.centre,
            "remoteness.spread": self._remoteness.spread,
            "remoteness.ranked": self._remoteness.ranked,
        }
        # Numbered, since an alias may hold characters that a file format does not take.
        for number, layer in enumerate(sources.layers.values()):
            for name, values in layer.arrays().items():
                arrays[f"layer.{number}.{name}"] = values
        if sources.usual is not None:
            for name, values in sources.usual.arrays().items():
                arrays[f"usual.{name}"] = values
        if self._substitute is not None:
            for name, values in self._substitute.arrays().items():
                arrays[f"substitute.{name}"] = values
        if self._aspects is not None:
            for name, values in self._aspects.arrays().items():
                arrays[f"aspect.{name}"] = values
        return arrays

    def settings(self) -> dict[str, Any]:
        """Return what is not an array, as JSON values."""
        return {
            "version": _VERSION,
            "n_class": self.n_class,
            "layers": list(self.layers),
            "widths": [layer.scaling.width for layer in self._sources.layers.values()],
            "notes": list(self.notes),
            "temperature": self._sources.temperature,
            "has_score": self._sources.has_score,
            "intercept": self._head.intercept,
            "error_rate": self._error_rate,
            "substitute": None if self._substitute is None else self._substitute.settings(),
            "statistics": 0 if self._sources.usual is None else self._sources.usual.width,
            "of_logits": self.of_logits,
            "aspects": None if self._aspects is None else self._aspects.settings(),
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, Array], settings: Mapping[str, Any]) -> "ErrorModel":
        """Rebuild a model whose estimates equal the original's to the last bit.

        Raises:
            SchemaError: It was written by a version that this one cannot read.
        """
        usual = _below("usual.", arrays)
        if settings.get("statistics") and not usual:
            raise SchemaError(
                "the estimator does not know what is usual of its statistics, as those of this "
                "version do; evaluate anew"
            )
        if settings.get("version") != _VERSION:
            raise SchemaError(
                f"estimator of version {settings.get('version')!r}, this one reads {_VERSION} and "
                "would not give the same probabilities; evaluate anew"
            )
        layers = {
            alias: Layer.restore(_below(f"layer.{number}.", arrays), width)
            for number, (alias, width) in enumerate(
                zip(settings["layers"], settings["widths"], strict=True)
            )
        }
        sources = Sources(
            layers=layers,
            references=References(
                arrays["references.labels"],
                arrays["references.weights"],
                arrays["references.prior"],
            ),
            n_class=settings["n_class"],
            temperature=settings["temperature"],
            has_score=settings["has_score"],
            usual=Usual.restore(usual) if usual else None,
            # Results of earlier versions do not say it; only boxes were asked about in aspects.
            of_logits=settings.get("of_logits", settings.get("aspects") is None),
        )
        scaled = Head(arrays["head.centre"], arrays["head.inverse"], np.zeros(0), 0.0)
        head = scaled.with_learnt(_below("head.", arrays), settings["intercept"])
        remoteness = Remoteness(
            arrays["remoteness.centre"], arrays["remoteness.spread"], arrays["remoteness.ranked"]
        )
        substitute, aspects = settings.get("substitute"), settings.get("aspects")
        return cls(
            sources,
            head,
            remoteness,
            error_rate=settings["error_rate"],
            notes=tuple(settings["notes"]),
            substitute=None
            if substitute is None
            else Substitute.restore(_below("substitute.", arrays), substitute),
            aspects=None
            if aspects is None
            else Aspects.restore(_below("aspect.", arrays), aspects, head),
        )


def _below(start: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays whose names start so, by the rest of their names."""
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}


def _estimates(
    evidence: Evidence,
    error_proba: NDArray[np.float32],
    as_new: NDArray[np.float32],
    outlier: Floats,
    answers: Answers | None,
) -> Estimates:
    return Estimates(
        error_proba=error_proba,
        outlier=outlier.astype(np.float32),
        unstable=evidence.unstable,
        shares=evidence.shares,
        plausible=evidence.plausible,
        as_new=as_new,
        answers=answers,
    )
