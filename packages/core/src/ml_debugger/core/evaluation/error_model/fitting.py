"""Learn the sources of evidence, and how to combine them, from labelled units."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.errors import InputError, NothingToEvaluateError
from ml_debugger.core.evaluation.error_model.aspects import Answers, Asked, Aspects
from ml_debugger.core.evaluation.error_model.discriminant import Discriminant, Moments
from ml_debugger.core.evaluation.error_model.evidence import (
    Evidence,
    Observations,
    Sources,
    finite_rows,
)
from ml_debugger.core.evaluation.error_model.folds import (
    FOLDS,
    assign_folds,
    canonical_order,
    choose_references,
)
from ml_debugger.core.evaluation.error_model.head import CrossFitted, Head, fit_temperature
from ml_debugger.core.evaluation.error_model.layer import Layer, References
from ml_debugger.core.evaluation.error_model.scaling import (
    Array,
    Floats,
    Integers,
    Scaling,
    log_softmax,
)
from ml_debugger.core.evaluation.error_model.usual import Usual
from ml_debugger.core.evaluation.metrics import nll

_FEW = 5
_MOST_CLASSES = 10_000
_SAMPLE = 100_000


class Fitted(NamedTuple):
    """What was learnt.

    Attributes:
        sources: Where evidence comes from.
        head: How it is combined.
        rows: The units that took part, shape (m,): those that are finite.
        evidence: About them, each without its own label.
        error_proba: Of them, each by a head fitted to other units, shape (m,), float32.
        as_new: The same as that of a new unit would be told; see `CrossFitted`.
        error_rate: Smoothed share of errors among them.
        notes: What a user should know about the fit.
        aspects: What was learnt beyond right and wrong, or None.
        answers: What that says of them, each by heads fitted to other units, or None.
    """

    sources: Sources
    head: Head
    rows: Integers
    evidence: Evidence
    error_proba: NDArray[np.float32]
    as_new: NDArray[np.float32]
    error_rate: float
    notes: tuple[str, ...]
    aspects: Aspects | None = None
    answers: Answers | None = None


class Units(NamedTuple):
    """The units that take part in a fit, in canonical order.

    Attributes:
        rows: Their positions, shape (m,).
        labels: True classes, `n_class` for none of them, shape (m,).
        wrong: Whether each prediction is wrong, shape (m,).
        groups: Units of one group must not judge each other, shape (m,).
        folds: 0..4, shape (m,).
    """

    rows: Integers
    labels: Integers
    wrong: NDArray[np.bool_]
    groups: Integers
    folds: Integers


class Prepared(NamedTuple):
    """What a fit starts from.

    Attributes:
        observations: Without layers and logits that are of no use; all units are still there.
        units: Those that take part.
        n_class: K.
        notes: What was left out.
    """

    observations: Observations
    units: Units
    n_class: int
    notes: list[str]


def prepare(
    observations: Observations,
    target: Integers,
    groups: Integers | None,
    *,
    n_class: int | None,
    seed: int,
) -> Prepared:
    """Choose, order and split the units of a fit; see `ErrorModel.fit` for the arguments."""
    _check_lengths(observations, target, groups)
    observations, notes = _usable(observations)
    rows = np.flatnonzero(observations.finite(observations.features, logits=True))
    if len(rows) == 0:
        raise NothingToEvaluateError(
            "no unit is finite in features, score, logits and its other outputs; look at the "
            "recorded layers"
        )
    if len(rows) < len(observations):
        notes.append(
            f"{len(observations) - len(rows)} of {len(observations)} units have non-finite "
            "features, scores, logits or other outputs and were left out of the fit"
        )
    n_class = _n_class(observations, target, n_class)
    units = _units(observations, target, groups, rows, n_class, seed)
    return Prepared(observations, units, n_class, notes)


def fit(
    observations: Observations,
    target: Integers,
    groups: Integers | None,
    *,
    n_class: int | None,
    seed: int,
    max_references: int,
    progress: Callable[[float], None],
    asked: Asked | None = None,
) -> Fitted:
    """Fit everything that `ErrorModel` needs; see there for the arguments."""
    observations, units, n_class, notes = prepare(
        observations, target, groups, n_class=n_class, seed=seed
    )
    chosen, weights = choose_references(units.wrong, max_references)
    count = np.bincount(units.labels, minlength=n_class + 1).astype(np.float64)
    prior: Floats = (count + 1.0) / (len(units.rows) + n_class + 1.0)
    references = References(units.labels[chosen], weights, prior)
    layers: dict[str, Layer] = {}
    crossed: list[dict[str, Discriminant]] = [{} for _ in range(FOLDS)]
    for number, (alias, values) in enumerate(observations.features.items()):
        scaling = Scaling.fit(values, units.rows)
        if len(scaling.columns) == 0:
            notes.append(f"layer {alias!r} is constant and was left out")
            continue
        full, without = _discriminants(scaling, values, units, n_class)
        layers[alias] = Layer(scaling, scaling(values[units.rows[chosen]]), full)
        for fold in range(FOLDS):
            crossed[fold][alias] = without[fold]
        progress(0.2 * (number + 1) / len(observations.features))

    usual = None
    if observations.statistics is not None and observations.statistics.shape[1]:
        some = units.rows[:_SAMPLE]  # in canonical order, so the first are a sample
        usual = Usual.fit(observations.statistics[some], observations.prediction[some], n_class)
    opinion = _model_opinion(observations, units)
    sources = Sources(
        layers,
        references,
        n_class,
        temperature=opinion.temperature,
        has_score=opinion.has_score,
        usual=usual,
        of_logits=opinion.of_logits and not (asked is not None and asked.aspects),
    )
    evidence = _crossed_evidence(
        sources, observations, units, crossed, units.groups[chosen], progress
    )
    combined, more = _combine(evidence.columns, units, sources.anchor, sources.free)
    head, error_proba, as_new = combined
    aspects = answers = None
    if asked is not None and asked.aspects:
        aspects, answers, together_as_new = Aspects.fit(
            evidence.columns,
            asked.take(units.rows),
            units.folds,
            head,
            anchor=sources.anchor,
            free=sources.free,
        )
        together = answers.wrong_in_any
        if nll(together, units.wrong) < nll(error_proba, units.wrong):
            aspects = replace(aspects, leads=True)
            error_proba, as_new = together, together_as_new
        else:
            answers = answers.agreeing(error_proba)
    progress(1.0)
    rate = (float(units.wrong.sum()) + 0.5) / (len(units.rows) + 1)
    return Fitted(
        sources,
        head,
        units.rows,
        evidence,
        error_proba,
        as_new,
        rate,
        (*notes, *more),
        aspects,
        answers,
    )


def _check_lengths(observations: Observations, target: Integers, groups: Integers | None) -> None:
    n = len(observations)
    lengths = {alias: len(values) for alias, values in observations.features.items()}
    lengths |= {"score": len(observations.score), "target": len(target)}
    if observations.logits is not None:
        lengths["logits"] = len(observations.logits)
    if groups is not None:
        lengths["groups"] = len(groups)
    for name, length in lengths.items():
        if length != n:
            raise InputError(f"{name}: expected {n} rows, one for each prediction, got {length}")


def _usable(observations: Observations) -> tuple[Observations, list[str]]:
    """Leave out layers and logits that are mostly broken: they would take all units with them."""
    notes = []
    features = dict(observations.features)
    for alias, values in observations.features.items():
        if len(values) and 2 * finite_rows(values).sum() < len(values):
            notes.append(f"layer {alias!r} is non-finite in most units and was left out")
            del features[alias]
    logits = observations.logits
    if logits is not None and len(logits) and 2 * finite_rows(logits).sum() < len(logits):
        notes.append("the logits are non-finite in most units and were left out")
        logits = None
    return replace(observations, features=features, logits=logits), notes


def _n_class(observations: Observations, target: Integers, n_class: int | None) -> int:
    if observations.logits is not None:
        return int(observations.logits.shape[1])
    if n_class is not None:
        return n_class
    # A label beyond any number of classes, such as -1 or 2**31, marks "none of them".
    seen = np.concatenate([observations.prediction, target[target < _MOST_CLASSES], [0]])
    return int(seen.max()) + 1


def _units(
    observations: Observations,
    target: Integers,
    groups: Integers | None,
    rows: Integers,
    n_class: int,
    seed: int,
) -> Units:
    others: list[Array] = [observations.score, observations.prediction]
    if observations.statistics is not None:
        others.insert(0, observations.statistics)
    if observations.logits is not None:
        others.insert(0, observations.logits)
    rows, same = canonical_order(observations.features, tuple(others), target, rows, seed=seed)
    known = (target >= 0) & (target < n_class)
    labels = np.where(known, target, n_class)[rows].astype(np.int64)
    wrong = labels != observations.prediction[rows]
    if groups is not None:
        same = groups[rows]
    elif len(np.unique(same)) < 2 * FOLDS:
        same = np.arange(len(rows))
    return Units(rows, labels, wrong, same, assign_folds(same, wrong))


def _discriminants(
    scaling: Scaling, values: Array, units: Units, n_class: int
) -> tuple[Discriminant, list[Discriminant]]:
    """Fit to all units, and for each fold to those outside it."""
    labels = np.zeros(len(values), np.int64)
    labels[units.rows] = units.labels
    parts = [
        Moments.of(scaling, values, units.rows[units.folds == fold], labels, n_class + 1)
        for fold in range(FOLDS)
    ]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    # "None of the classes" is an answer only where units with such a label exist.
    possible = np.append(np.ones(n_class, np.bool_), whole.count[-1] > 0)
    full = Discriminant.fit(whole, possible=possible)
    return full, [Discriminant.fit(whole - part, possible=possible) for part in parts]


class _Opinion(NamedTuple):
    """What the model itself says of the units; see `Sources`."""

    temperature: float | None
    has_score: bool
    of_logits: bool


def _model_opinion(observations: Observations, units: Units) -> _Opinion:
    logits = observations.logits
    if logits is None:
        return _Opinion(None, has_score=True, of_logits=False)
    temperature = _temperature(logits, units, np.ones(len(units.rows), np.bool_))
    some = units.rows[:4096]
    vectors, said = logits[some].astype(np.float64), observations.prediction[some]
    largest = np.exp(log_softmax(vectors).max(axis=1))
    has_score = bool(np.abs(largest - observations.score[some]).mean() > 0.02)
    # By value, since of two that are equally large either may be predicted.
    own = vectors[np.arange(len(some)), np.clip(said, 0, vectors.shape[1] - 1)]
    return _Opinion(temperature, has_score, not has_score and bool((own == vectors.max(1)).all()))


def _temperature(logits: Array, units: Units, chosen: NDArray[np.bool_]) -> float:
    """Fit the temperature to some of the units; in canonical order, so the first are a sample."""
    some = np.flatnonzero(chosen)[:_SAMPLE]
    return fit_temperature(logits[units.rows[some]], units.labels[some])


def _crossed_evidence(
    sources: Sources,
    observations: Observations,
    units: Units,
    crossed: list[dict[str, Discriminant]],
    reference_groups: Integers,
    progress: Callable[[float], None],
) -> Evidence:
    groups = np.full(len(observations), -1, np.int64)
    groups[units.rows] = units.groups
    done = 0

    def tell(size: int) -> None:
        nonlocal done
        done += size
        progress(0.2 + 0.7 * done / len(units.rows))

    parts, order = [], []
    for fold, discriminants in enumerate(crossed):
        inside = units.folds == fold
        members = np.flatnonzero(inside)
        order.append(members)
        cooled = sources
        if observations.logits is not None:
            temperature = _temperature(observations.logits, units, ~inside)
            cooled = replace(sources, temperature=temperature)
        parts.append(
            cooled.gather(
                observations,
                units.rows[members],
                discriminants=discriminants,
                groups=(groups, reference_groups),
                progress=tell,
            )
        )
    back = np.argsort(np.concatenate(order))
    return Evidence(*(np.concatenate(column)[back] for column in zip(*parts, strict=True)))


def _combine(
    columns: Floats, units: Units, anchor: int, free: int
) -> tuple[CrossFitted, list[str]]:
    """Fit the head, and for each fold one to the units outside it for the units inside."""
    errors, n = int(units.wrong.sum()), len(units.wrong)
    notes = []
    few = min(errors, n - errors) < _FEW
    if few:
        which = "errors" if errors < _FEW else "correct predictions"
        count = min(errors, n - errors)
        notes.append(
            f"only {count} {which if count != 1 else which[:-1]} among {n} units: error_proba is "
            "the calibrated max softmax alone; evaluate more labelled units"
        )
    combined = Head.scaled_to(columns).cross_fit(
        columns, units.wrong, units.folds, anchor=anchor, only_anchor=few, free=free
    )
    return combined, notes
