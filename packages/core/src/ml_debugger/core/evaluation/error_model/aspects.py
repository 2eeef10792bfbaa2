"""The ways in which a unit can be wrong: a head for each, and which kind of error it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.evaluation.error_model.folds import FOLDS
from ml_debugger.core.evaluation.error_model.head import Head
from ml_debugger.core.evaluation.error_model.scaling import Array, Floats, Integers

_FEW = 5
_SAMPLE = 20_000
_RIDGE = 5.0


class Asked(NamedTuple):
    """What is known of n units beyond right and wrong.

    Attributes:
        aspects: By name 1 for wrong in this respect, 0 for right, -1 where the question does not
            arise, shape (n,).
        kind: Kind of the error in the first aspect, 0 for none, shape (n,); None where there are
            no kinds.
        kinds: How many kinds there are.
    """

    aspects: Mapping[str, Array]
    kind: Array | None = None
    kinds: int = 0

    def take(self, rows: Array) -> "Asked":
        """Return the same of some units."""
        aspects = {name: np.asarray(values)[rows] for name, values in self.aspects.items()}
        return Asked(aspects, None if self.kind is None else self.kind[rows], self.kinds)


class Answers(NamedTuple):
    """What is thought of n units beyond right and wrong.

    Attributes:
        aspects: By name the probability that a unit is wrong in this respect, if it is right in
            those before, shape (n,), float32.
        kinds: Probability of each kind of error in the first aspect, the first of which is none;
            rows add up to 1; shape (n, kinds), float32. None where there are no kinds.
    """

    aspects: Mapping[str, NDArray[np.float32]]
    kinds: NDArray[np.float32] | None

    def take(self, rows: Array) -> "Answers":
        """Return the same of some units."""
        aspects = {name: values[rows] for name, values in self.aspects.items()}
        return Answers(aspects, None if self.kinds is None else self.kinds[rows])

    @classmethod
    def joined(cls, parts: "Sequence[Answers]") -> "Answers":
        """Put units one after another."""
        first = parts[0]
        kinds = None if first.kinds is None else np.concatenate([p.kinds for p in parts])
        names = first.aspects
        return cls({n: np.concatenate([p.aspects[n] for p in parts]) for n in names}, kinds)

    def with_rows(self, rows: Array, other: "Answers") -> "Answers":
        """Return the same with some units, by mask (n,), bool, answered otherwise."""

        def put(values: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
            changed = values.copy()
            changed[rows] = others
            return changed

        aspects = {name: put(values, other.aspects[name]) for name, values in self.aspects.items()}
        if self.kinds is None or other.kinds is None:
            return Answers(aspects, None)
        return Answers(aspects, put(self.kinds, other.kinds))

    def agreeing(self, error_proba: Array) -> "Answers":
        """Return the same with the chances of errors scaled to add up to those of any error.

        Args:
            error_proba: The probability that a unit is wrong at all, shape (n,).
        """
        right = sum(np.log1p(-_below_one(values)) for values in self.aspects.values())
        wanted = np.log1p(-_below_one(error_proba))
        scale = np.where(right < -1e-9, wanted / np.minimum(right, -1e-9), 1.0)
        aspects = {
            name: (-np.expm1(scale * np.log1p(-_below_one(values)))).astype(np.float32)
            for name, values in self.aspects.items()
        }
        if self.kinds is None:
            return Answers(aspects, None)
        errors = self.kinds[:, 1:].astype(np.float64)
        shares = errors / np.maximum(errors.sum(axis=1, keepdims=True), 1e-12)
        return Answers(aspects, _joint(next(iter(aspects.values())), shares))

    @property
    def wrong_in_any(self) -> NDArray[np.float32]:
        """The probability that a unit is wrong in one of the aspects, shape (n,)."""
        right = np.prod([1 - values for values in self.aspects.values()], axis=0)
        return np.asarray(1 - right, np.float32)


@dataclass(frozen=True)
class Kinds:
    """A multinomial logistic regression: which kind of error it is, if it is one.

    Attributes:
        weights: Shape (kinds - 1, c + 1), float64; the last column is the intercept, -inf for a
            kind that was never seen.
    """

    weights: Floats

    @classmethod
    def fit(cls, scaled: Floats, kind: Array, kinds: int) -> Self:
        """Fit to scaled evidence (n, c) of units with kinds 1 and above, (n,).

        Ridge regression towards the frequencies, which two imagined units of each kind that was
        seen keep from the extremes.
        """
        from scipy.optimize import minimize  # type: ignore[import-untyped,unused-ignore]

        width = scaled.shape[1]
        weights = np.zeros((kinds - 1, width + 1))
        weights[:, -1] = -np.inf
        counts = np.bincount(kind, minlength=kinds)[1:]
        seen = np.flatnonzero(counts)
        if len(seen) == 0:
            weights[:, -1] = 0.0
            return cls(weights)
        weights[seen, -1] = np.log((counts[seen] + 2) / (counts[seen] + 2).sum())
        if len(seen) > 1 and counts.sum() >= _FEW:
            evidence, outcome = scaled[:_SAMPLE], np.searchsorted(seen, kind[:_SAMPLE] - 1)
            base, rows = weights[seen, -1], np.arange(len(outcome))

            def loss(values: Floats) -> tuple[float, Floats]:
                matrix = values.reshape(len(seen), width + 1)
                odds = evidence @ matrix[:, :-1].T + matrix[:, -1] + base
                odds -= odds.max(axis=1, keepdims=True)
                share = np.exp(odds)
                total = share.sum(axis=1, keepdims=True)
                value = float((np.log(total[:, 0]) - odds[rows, outcome]).sum())
                value += 0.5 * _RIDGE * float((matrix**2).sum())
                share /= total
                share[rows, outcome] -= 1
                slope = np.column_stack([share.T @ evidence, share.sum(axis=0)]) + _RIDGE * matrix
                return value, slope.ravel()

            start = np.zeros(len(seen) * (width + 1))
            options = {"maxiter": 300, "ftol": 1e-11, "gtol": 1e-6}
            found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
            matrix = found.x.reshape(len(seen), width + 1)
            weights[seen, :-1] = matrix[:, :-1]
            weights[seen, -1] += matrix[:, -1]
        return cls(weights)

    def __call__(self, scaled: Floats) -> Floats:
        """Return the share of each kind but none, given that it is an error, (n, kinds - 1)."""
        # summed by column, as the heads are: see there
        odds = np.stack([(scaled * row[:-1]).sum(axis=1) + row[-1] for row in self.weights], axis=1)
        share = np.exp(odds - odds.max(axis=1, keepdims=True))
        shares: Floats = share / share.sum(axis=1, keepdims=True)
        return shares


@dataclass(frozen=True)
class Aspects:
    """Everything that was learnt beyond right and wrong.

    Attributes:
        heads: By name of the aspect.
        kinds: Which kind of error in the first aspect it is, or None.
        leads: Whether `error_proba` is put together from the aspects, because that was the better
            probability of units of other folds.
    """

    heads: Mapping[str, Head]
    kinds: Kinds | None
    leads: bool = False

    @classmethod
    def fit(
        cls,
        columns: Floats,
        asked: Asked,
        folds: Integers,
        scaled: Head,
        *,
        anchor: int,
        free: int,
    ) -> tuple["Aspects", Answers, NDArray[np.float32]]:
        """Fit a head for each aspect, and tell what each unit's other folds say of it.

        Also returns the probability that a unit is wrong in one of the aspects as that of a new
        unit would be told, shape (n,), float32; see `CrossFitted`.

        Args:
            columns: Evidence, shape (n, c).
            asked: What is known of the units, n of them.
            folds: Fold of each unit, shape (n,).
            scaled: A head that scales the evidence.
            anchor: As in `Head.fit`.
            free: As in `Head.fit`.
        """
        heads, told, as_new = {}, {}, {}
        for name, values in asked.aspects.items():
            among, wrong = values >= 0, values > 0
            few = min(int(wrong.sum()), int((among & ~wrong).sum())) < _FEW
            heads[name], told[name], as_new[name] = scaled.cross_fit(
                columns, wrong, folds, anchor=anchor, only_anchor=few, free=free, among=among
            )
        wrong_in_any = Answers(as_new, None).wrong_in_any
        if asked.kind is None:
            return cls(heads, None), Answers(told, None), wrong_in_any
        evidence, errors = scaled.scale(columns), asked.kind > 0
        kinds = Kinds.fit(evidence[errors], asked.kind[errors], asked.kinds)
        shares = np.empty((len(columns), asked.kinds - 1))
        for fold in range(FOLDS):
            inside = folds == fold
            others = errors & ~inside
            part = Kinds.fit(evidence[others], asked.kind[others], asked.kinds)
            shares[inside] = part(evidence[inside])
        answers = Answers(told, _joint(next(iter(told.values())), shares))
        return cls(heads, kinds), answers, wrong_in_any

    def answer(self, columns: Floats) -> Answers:
        """Say what evidence of shape (n, c) means."""
        aspects = {name: head(columns) for name, head in self.heads.items()}
        if self.kinds is None:
            return Answers(aspects, None)
        head = next(iter(self.heads.values()))
        shares = self.kinds(head.scale(columns))
        return Answers(aspects, _joint(next(iter(aspects.values())), shares))

    def arrays(self) -> dict[str, Array]:
        """Return the numbers, by name."""
        found = {
            f"{number}.{name}": values
            for number, head in enumerate(self.heads.values())
            for name, values in head.arrays().items()
        }
        return found if self.kinds is None else {**found, "kinds": self.kinds.weights}

    def settings(self) -> dict[str, Any]:
        """Return what is not an array, as JSON values."""
        return {
            "names": list(self.heads),
            "intercepts": [head.intercept for head in self.heads.values()],
            "leads": self.leads,
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, Array], settings: Mapping[str, Any], head: Head) -> Self:
        """Rebuild them; `head` scales the evidence."""
        heads = {}
        for number, name in enumerate(settings["names"]):
            start = f"{number}."
            own = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
            heads[name] = head.with_learnt(own, settings["intercepts"][number])
        kinds = Kinds(arrays["kinds"]) if "kinds" in arrays else None
        return cls(heads, kinds, settings["leads"])


def _below_one(proba: Array) -> Floats:
    return np.clip(np.asarray(proba, np.float64), 0, 1 - 1e-7)


def _joint(wrong: Array, shares: Floats) -> NDArray[np.float32]:
    """Return the probability of every kind, of none first, from that of an error and the shares."""
    error = np.asarray(wrong, np.float64)[:, None]
    return np.hstack([1 - error, error * shares]).astype(np.float32)
