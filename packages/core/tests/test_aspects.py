"""The ways in which units can be wrong, and the kinds of their errors."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ml_debugger.core.errors import InputError, SchemaError
from ml_debugger.core.evaluation import metrics
from ml_debugger.core.evaluation.estimator import Asked, ErrorModel, Observations

KINDS = 3


def made(n=1200, *, seed=0):
    """Return boxes whose place and class go wrong for different reasons, and what is true."""
    rng = np.random.default_rng(seed)
    misplaced = rng.random(n)  # what the statistics show
    confused = rng.random(n)  # what the features show
    det = rng.random(n) < misplaced**2
    cls = rng.random(n) < confused**3
    kind = np.where(det, np.where(rng.random(n) < confused, 1, 2), 0).astype(np.int8)
    prediction = rng.integers(0, 4, n)
    target = np.where(det, -1, np.where(cls, (prediction + 1) % 4, prediction))
    looks = np.eye(4)[prediction] * (1 - confused[:, None]) + rng.normal(size=(n, 4)) * 0.1
    observations = Observations(
        features={"box": looks.astype(np.float32)},
        prediction=prediction,
        score=np.clip(0.5 + 0.2 * rng.normal(size=n), 0.01, 0.99).astype(np.float32),
        logits=(looks * 4).astype(np.float32),
        statistics=np.column_stack([misplaced, rng.normal(size=n)]).astype(np.float32),
    )
    aspects = {"det": det.astype(np.int8), "cls": np.where(det, -1, cls).astype(np.int8)}
    return observations, target, Asked(aspects, kind, KINDS)


def test_each_aspect_is_told_by_what_shows_it():
    observations, target, asked = made()
    _, found = ErrorModel.fit(observations, target, asked=asked)
    answers = found.answers
    det, cls = asked.aspects["det"] > 0, asked.aspects["cls"]
    assert metrics.auroc(answers.aspects["det"], det) > 0.8
    located = cls >= 0
    assert metrics.auroc(answers.aspects["cls"][located], cls[located] > 0) > 0.75
    assert metrics.ece(answers.aspects["det"], det) < 0.06
    assert answers.kinds.shape == (len(target), KINDS)
    np.testing.assert_allclose(answers.kinds.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(1 - answers.kinds[:, 0], answers.aspects["det"], atol=1e-6)
    wrong = np.flatnonzero(det)
    share = answers.kinds[wrong, 1] / answers.kinds[wrong, 1:].sum(1)
    assert metrics.auroc(share, asked.kind[wrong] == 1) > 0.7


def test_statistics_speak_for_a_unit_as_well_as_against_it():
    observations, target, _ = made()
    wrong = target != observations.prediction
    _, without = ErrorModel.fit(
        Observations(
            observations.features, observations.prediction, observations.score, observations.logits
        ),
        target,
    )
    turned = observations.statistics * np.float32([-1, 1])
    for statistics in (observations.statistics, turned):
        given = Observations(
            observations.features,
            observations.prediction,
            observations.score,
            observations.logits,
            statistics,
        )
        _, found = ErrorModel.fit(given, target)
        gain = metrics.auroc(found.error_proba, wrong) - metrics.auroc(without.error_proba, wrong)
        assert gain > 0.1


@pytest.mark.parametrize("rare", [0, 40])
def test_a_statistic_is_seen_against_what_is_usual_of_the_class(rare):
    """Four metres are short for a lorry, and long for a car; either way they are odd."""
    rng = np.random.default_rng(0)
    n = 1200
    prediction = rng.choice(3, n, p=[0.5, 0.5 - rare / n, rare / n])
    off = rng.normal(size=n)
    wrong = np.abs(off) > 1.3
    length = np.array([4.0, 12.0, 30.0])[prediction] + off * np.array([0.3, 2.0, 5.0])[prediction]
    observations = Observations(
        features={},
        prediction=prediction,
        score=np.full(n, 0.6, np.float32),
        statistics=length[:, None].astype(np.float32),
    )
    observations.statistics[0] = 1e9  # one that is out of all measure changes nothing for others
    model, found = ErrorModel.fit(observations, np.where(wrong, -1, prediction), n_class=3)
    assert metrics.auroc(found.error_proba, wrong) > 0.9
    again = ErrorModel.restore(model.arrays(), json.loads(json.dumps(model.settings())))
    elsewhere = replace(observations, prediction=np.where(prediction == 1, 7, prediction))
    for one in (observations, elsewhere):  # a class that was never seen has all others' numbers
        np.testing.assert_array_equal(
            model.estimate(one).error_proba, again.estimate(one).error_proba
        )
        assert np.isfinite(model.estimate(one).error_proba).all()
    old = {name: one for name, one in model.arrays().items() if not name.startswith("usual.")}
    with pytest.raises(SchemaError, match="usual of its statistics.*evaluate anew"):
        ErrorModel.restore(old, json.loads(json.dumps(model.settings())))


def test_statistics_without_a_column_are_none():
    observations, target, _ = made(300)
    observations = replace(observations, statistics=np.zeros((300, 0), np.float32))
    model, _ = ErrorModel.fit(observations, target)
    again = ErrorModel.restore(model.arrays(), json.loads(json.dumps(model.settings())))
    np.testing.assert_array_equal(
        model.estimate(observations).error_proba, again.estimate(observations).error_proba
    )


def test_a_restored_model_gives_the_same_answers():
    observations, target, asked = made()
    model, _ = ErrorModel.fit(observations, target, asked=asked)
    again = ErrorModel.restore(model.arrays(), json.loads(json.dumps(model.settings())))
    others, _, _ = made(300, seed=1)
    first, second = model.estimate(others), again.estimate(others)
    assert again.aspects == ("det", "cls")
    np.testing.assert_array_equal(first.error_proba, second.error_proba)
    np.testing.assert_array_equal(first.answers.kinds, second.answers.kinds)
    for name in again.aspects:
        np.testing.assert_array_equal(first.answers.aspects[name], second.answers.aspects[name])


def test_a_unit_is_answered_for_by_itself():
    observations, target, asked = made()
    model, _ = ErrorModel.fit(observations, target, asked=asked)
    others, _, _ = made(50, seed=2)
    whole = model.estimate(others)
    one = model.estimate(others.take(np.array([17])))
    np.testing.assert_allclose(one.answers.kinds[0], whole.answers.kinds[17], atol=1e-6)


def test_what_is_not_finite_in_the_statistics_says_nothing():
    observations, target, asked = made()
    observations.statistics[::7, 0] = observations.statistics[:, 1] = np.nan
    model, found = ErrorModel.fit(observations, target, asked=asked)
    assert np.isfinite(found.error_proba).all()
    assert np.isfinite(found.answers.kinds).all()
    other = Observations(
        observations.features, observations.prediction, observations.score, observations.logits
    )
    with pytest.raises(InputError, match="statistics: expected 2"):
        model.estimate(other)


@pytest.mark.parametrize("errors", [0, 1, 3])
def test_few_errors_do_no_harm(errors):
    observations, target, asked = made(200)
    kind = np.zeros(200, np.int8)
    kind[:errors] = 1
    det = (kind > 0).astype(np.int8)
    target = np.where(kind > 0, -1, observations.prediction)
    asked = Asked({"det": det, "cls": np.where(kind > 0, -1, 0).astype(np.int8)}, kind, KINDS)
    _, found = ErrorModel.fit(observations, target, asked=asked)
    assert np.isfinite(found.answers.kinds).all()
    assert (found.answers.aspects["cls"] < 0.5).all()
