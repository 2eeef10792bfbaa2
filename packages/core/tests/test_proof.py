"""Ours beside the baselines, and a baseline that takes its place."""

import dataclasses

import numpy as np
import pytest
import torch

from ml_debugger.core.errors import InputError, SchemaError
from ml_debugger.core.evaluation import estimation, metrics
from ml_debugger.core.evaluation.baselines import BASELINES, Case, Said
from ml_debugger.core.evaluation.edge import Scorer
from ml_debugger.core.evaluation.estimator import NOT_FINITE, ErrorModel, Observations
from ml_debugger.core.evaluation.proof import OURS, Proof
from ml_debugger.core.evaluation.substitute import Platt, Substitute
from ml_debugger.core.records import Units


@pytest.fixture
def observed():
    rng = np.random.default_rng(4)
    target = rng.integers(0, 4, 500)
    features = rng.normal(size=(4, 12))[target] + rng.normal(size=(500, 12))
    logits = (3 * np.eye(4)[target] + rng.normal(size=(500, 4)) * 2).astype(np.float32)
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    return Observations(
        {"a": features[:, :3].astype(np.float32), "last": features.astype(np.float32)},
        logits.argmax(axis=1),
        share.max(axis=1).astype(np.float32),
        logits,
    ), target


def faint(n, seed=0, width=10):
    """Units whose errors show in the size of the logits alone, which the softmax does not see."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 4))
    prediction = logits.argmax(axis=1)
    logits[np.arange(n), prediction] += 2 * rng.random(n)
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = rng.random(n) < 0.2
    logits += (2 * rng.normal(size=n) - 6 * wrong)[:, None]
    observations = Observations(
        {"last": rng.normal(size=(n, width)).astype(np.float32)},
        prediction,
        share.max(axis=1).astype(np.float32),
        logits.astype(np.float32),
    )
    return observations, np.where(wrong, (prediction + 1) % 4, prediction)


def substituted(n=400, **options):
    """A model in whose place a baseline was put, and all that led there."""
    observations, target = faint(n, **options)
    model, estimates = ErrorModel.fit(observations, target)
    proof = Proof.of(observations, target, estimates.error_proba)
    assert proof.used == "energy"
    model, changed = model.substituted(
        proof.substitute,
        observations,
        estimates,
        rows=proof.rows,
        held_out=proof.scores["energy"],
        note=proof.note,
    )
    return model, changed, estimates, proof


def test_every_baseline_is_listed_beside_ours(observed):
    observations, target = observed
    _, estimates = ErrorModel.fit(observations, target)
    proof = Proof.of(observations, target, estimates.error_proba)
    table = proof.table
    assert list(table) == [OURS, *BASELINES]
    assert table[OURS]["auroc"] > max(table[name]["auroc"] for name in BASELINES)
    assert (proof.used, proof.substitute, proof.note) == (OURS, None, None)
    wrong = target != observations.prediction
    assert table["max_softmax"]["auroc"] == pytest.approx(
        metrics.auroc(-observations.score, wrong), abs=1e-6
    )
    # Platt scaling makes even a distance a fair probability.
    assert table["knn_distance"]["brier"] <= wrong.mean() * (1 - wrong.mean()) + 0.01
    for name in BASELINES:
        row = table[name]
        for metric in ("auroc", "aurc", "augrc", "brier", "ece"):
            assert row[f"{metric}_low"] <= row[metric] <= row[f"{metric}_high"]
            gain = f"{metric}_gain"
            assert row[gain] == pytest.approx(table[OURS][metric] - row[metric])
            assert row[f"{gain}_low"] <= row[gain] <= row[f"{gain}_high"]


def test_baselines_that_do_not_apply_are_left_out(observed):
    observations, target = observed
    bare = Observations({}, observations.prediction, observations.score)
    _, estimates = ErrorModel.fit(bare, target)
    assert list(Proof.of(bare, target, estimates.error_proba).table) == [OURS, "max_softmax"]


def test_distance_baselines_against_scikit_learn(observed):
    from sklearn.neighbors import NearestNeighbors

    observations, target = observed
    case = Case.of(observations, target)
    points = observations.features["last"][case.units.rows].astype(np.float64)
    points = (points - points.mean(axis=0)) / points.std(axis=0)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    distance = NearestNeighbors(n_neighbors=11).fit(unit).kneighbors(unit)[0][:, 10]
    found = BASELINES["knn_distance"].held_out(case)
    np.testing.assert_allclose(found, np.log(distance), atol=1e-3)

    squared = BASELINES["mahalanobis"].held_out(case)
    far = np.argsort(squared)[-1]
    labels = case.units.labels
    within = np.cov((points - np.stack([points[labels == c].mean(0) for c in range(4)])[labels]).T)
    inverse = np.linalg.inv(within)
    off = [points[far] - points[labels == c].mean(0) for c in range(4)]
    assert squared[far] == pytest.approx(min(one @ inverse @ one for one in off), rel=0.15)


@pytest.mark.parametrize("name", BASELINES)
def test_a_risk_is_of_its_unit_alone_and_comes_back_from_its_arrays(observed, name):
    observations, target = observed
    case = Case.of(observations, target)
    fitted = BASELINES[name].fit(case, None)
    said = Said.of(observations, "last").take(np.arange(150))
    risk = fitted(said)
    alone = np.concatenate([fitted(said.take(np.array([row]))) for row in range(150)])
    assert np.array_equal(risk, alone)
    assert np.array_equal(risk, BASELINES[name].restore(fitted.arrays())(said))
    # What new units get is on the scale of the held-out risks that Platt scaling is fitted to.
    new = fitted(Said.of(observations, "last"))[case.units.rows]
    assert np.corrcoef(new, BASELINES[name].held_out(case))[0, 1] > 0.9


def test_no_label_reaches_the_risk_of_its_own_unit(observed):
    observations, target = observed
    case = Case.of(observations, target)
    inside = case.units.folds == 0
    labels = np.where(inside, (case.units.labels + 1) % 4, case.units.labels)
    changed = dataclasses.replace(case, units=case.units._replace(labels=labels))
    for name in ("temperature_scaled", "mahalanobis"):
        before, after = (BASELINES[name].held_out(one) for one in (case, changed))
        assert np.array_equal(before[inside], after[inside])
        assert not np.array_equal(before[~inside], after[~inside])


def test_platt_scaling_never_turns_a_risk_round():
    rng = np.random.default_rng(0)
    wrong = rng.random(500) < 0.3
    assert Platt.fit(rng.normal(size=500) + 2 * wrong, wrong).slope > 0
    assert Platt.fit(rng.normal(size=500) - 2 * wrong, wrong).slope == 0
    flat = Platt.fit(np.zeros(500), wrong)
    assert flat(np.zeros(1))[0] == pytest.approx(wrong.mean(), abs=0.01)


def test_a_baseline_that_wins_takes_the_place_of_ours():
    model, changed, before, proof = substituted()
    assert model.method == "energy"
    row = proof.table["energy"]
    assert row["auroc_gain_high"] < 0
    assert row["nll"] < proof.table[OURS]["nll"]
    assert f"{row['auroc']:.3f} vs {proof.table[OURS]['auroc']:.3f}" in model.notes[-1]
    assert metrics.auroc(changed.error_proba[proof.rows], proof.wrong) > 0.9
    assert metrics.ece(changed.error_proba[proof.rows], proof.wrong) < 0.08
    for name in ("outlier", "unstable", "shares", "plausible"):
        assert np.array_equal(getattr(changed, name), getattr(before, name))
    pool, target = faint(1000, seed=1)
    estimates = model.estimate(pool)
    wrong = target != pool.prediction
    assert metrics.auroc(estimates.error_proba, wrong) > 0.9
    assert metrics.ece(estimates.error_proba, wrong) < 0.05


def test_a_substituted_model_is_restored_to_the_bit():
    model, *_ = substituted()
    again = ErrorModel.restore(model.arrays(), model.settings())
    assert again.method == "energy"
    pool, _ = faint(130, seed=1)
    whole = model.estimate(pool).error_proba
    alone = [again.estimate(pool.take(np.array([row]))).error_proba[0] for row in range(130)]
    assert np.array_equal(whole, np.array(alone))
    settings = model.settings()
    settings["substitute"] = settings["substitute"] | {"name": "later"}
    with pytest.raises(SchemaError, match="'later'"):
        ErrorModel.restore(model.arrays(), settings)


def test_broken_units_are_never_safer_than_the_average():
    observations, target = faint(400)
    logits = observations.logits.copy()
    logits[:3, 0] = np.nan
    broken = dataclasses.replace(observations, logits=logits)
    model, estimates = ErrorModel.fit(broken, target)
    proof = Proof.of(broken, target, estimates.error_proba)
    model, changed = model.substituted(
        proof.substitute,
        broken,
        estimates,
        rows=proof.rows,
        held_out=proof.scores[proof.used],
        note=proof.note,
    )
    for found in (changed, model.estimate(broken)):
        assert (found.error_proba[:3] >= 0.15).all()
        assert (found.outlier[:3] == np.float32(NOT_FINITE)).all()
        assert np.isfinite(found.error_proba).all()


@pytest.mark.parametrize("errors", [1, 4])
def test_a_handful_of_errors_replaces_nothing(errors):
    observations, target = faint(400)
    wrong = np.flatnonzero(target != observations.prediction)
    target = target.copy()
    target[wrong[errors:]] = observations.prediction[wrong[errors:]]
    _, estimates = ErrorModel.fit(observations, target)
    assert Proof.of(observations, target, estimates.error_proba).used == OURS


def test_a_handful_of_inputs_replaces_nothing():
    observations, target = faint(400)
    for inputs, used in ((3, OURS), (100, "energy")):
        groups = np.arange(400) % inputs
        _, estimates = ErrorModel.fit(observations, target, groups=groups)
        assert Proof.of(observations, target, estimates.error_proba, groups=groups).used == used


def test_a_missing_layer_is_named(observed):
    observations, target = observed
    case = Case.of(observations, target)
    fitted = BASELINES["mahalanobis"].fit(case, None)
    with pytest.raises(InputError, match="'last'"):
        Substitute(fitted, "last", Platt(1.0, 0.0))(dataclasses.replace(observations, features={}))


# A whole evaluation


def written(recorder, make, n=600):
    """Records as of `faint`, under ids of their own."""
    observations, target = faint(n)
    batch = make(n, ids=[f"f{k}" for k in range(n)]).batch
    columns = dict(batch.predicted.columns) | {
        "prediction": torch.from_numpy(observations.prediction).int(),
        "score": torch.from_numpy(observations.score),
        "logits": torch.from_numpy(observations.logits),
    }
    for alias in ("early", "hidden"):
        noise = np.random.default_rng(9).normal(size=columns[f"feature.{alias}"].shape)
        columns[f"feature.{alias}"] = torch.from_numpy(noise).float()
    actual = Units({"label": torch.from_numpy(target)})
    recorder.repository.write(
        recorder.run(), [dataclasses.replace(batch, predicted=Units(columns), actual=actual)]
    )
    return observations, target


def test_an_evaluation_uses_and_names_the_baseline_that_wins(recorder, made):
    written(recorder, made)
    result = recorder.evaluate()
    frame = result.baselines()
    assert frame.loc[frame["used"], "name"].tolist() == ["energy"] == [result.summary().used]
    assert result.estimator.method == "energy"
    assert any(note.startswith("energy ranks errors better") for note in result.notes)
    assert "energy, used in place of ours" in str(result.summary())
    energy = frame.set_index("name").loc["energy"]
    assert result.summary().auroc == pytest.approx(energy["auroc"], abs=0.01)
    assert energy["auroc_gain_high"] < 0
    assert result.check(beats_max_softmax=True, min_auroc=0.9)
    # The borders of the zones are of the probability that is used.
    zones = result.zones().set_index("zone")
    hot = zones.loc[["hotspot", "recessive_hotspot", "critical_hotspot"]]
    assert hot["errors"].sum() / hot["n"].sum() > 0.6


def test_units_beyond_the_judged_ones_get_the_substitute_too(recorder, made, monkeypatch):
    monkeypatch.setattr(estimation, "MAX_FITTED", 500)
    monkeypatch.setattr(estimation, "MAX_COMPARED", 300)
    monkeypatch.setattr(estimation, "most_fitted", lambda _units: estimation.MAX_FITTED)
    observations, _ = written(recorder, made, 900)
    result = recorder.evaluate()
    frame = result.to_pandas()
    assert result.estimator.method == "energy"
    assert metrics.auroc(frame["error_proba"], frame["wrong"]) > 0.9
    layers = {"early": 0, "hidden": 0}
    noise = {
        alias: np.random.default_rng(9).normal(size=(900, width))
        for alias, width in zip(layers, (6, 8), strict=True)
    }
    again = result.estimator.estimate(dataclasses.replace(observations, features=noise))
    same = frame["error_proba"].to_numpy() == again.error_proba
    assert same.sum() == 600  # all but the judged ones, which are held out


def test_a_scorer_without_the_rest_uses_the_substitute_too(recorder, made, tmp_path):
    observations, _ = written(recorder, made)
    result = recorder.evaluate()
    noise = np.random.default_rng(3)
    features = {"early": noise.normal(size=(600, 6)), "hidden": noise.normal(size=(600, 8))}
    unseen = dataclasses.replace(observations, features=features)
    scored = Scorer.load(result.export_scorer(tmp_path / "scorer"))(
        features, observations.logits, score=observations.score
    )
    assert result.estimator.method == "energy"
    assert np.array_equal(scored.error_proba, result.estimator.estimate(unseen).error_proba)
