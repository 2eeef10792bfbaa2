"""The estimator: its contract on any data, and its quality on real features."""

import json
import subprocess
import sys
import warnings
from dataclasses import fields, replace

import numpy as np
import pytest

from ml_debugger.core.errors import InputError, NothingToEvaluateError, SchemaError
from ml_debugger.core.evaluation import metrics
from ml_debugger.core.evaluation.error_model.fitting import fit
from ml_debugger.core.evaluation.estimator import (
    NOT_FINITE,
    ErrorModel,
    Estimates,
    Observations,
)
from ml_debugger.core.evaluation.zones import ZONES, ZoneRules, zone_table

NAMES = [one.name for one in fields(Estimates) if one.name != "answers"]


def made(n=400, k=5, *, seed=0, dims=(6, 12), error=0.9, dtype=np.float32):
    """Return observations of a mediocre model on Gaussian classes, and the labels."""
    fixed, rng = np.random.default_rng(99), np.random.default_rng(seed)
    target = rng.integers(0, k, n)
    features = {
        f"layer{i}": (fixed.normal(size=(k, d))[target] + rng.normal(size=(n, d))).astype(dtype)
        for i, d in enumerate(dims)
    }
    logits = 3 * np.eye(k)[target] + rng.normal(size=(n, k)) * 2 * error
    return said(features, logits), target


def said(features, logits):
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    score = share.max(axis=1).astype(np.float32)
    return Observations(features, logits.argmax(axis=1), score, logits.astype(np.float32))


def check(estimates, n, k, prediction=None):
    assert [len(getattr(estimates, name)) for name in NAMES] == [n] * 6
    assert estimates.shares.shape == (n, k)
    p, outlier, shares = estimates.error_proba, estimates.outlier, estimates.shares
    assert (p.dtype, outlier.dtype, shares.dtype) == (np.float32,) * 3
    assert (estimates.unstable.dtype, estimates.plausible.dtype) == (np.bool_, np.int32)
    assert np.isfinite(p).all()
    assert ((p > 0) & (p < 1)).all()
    assert ((outlier > 0) & (outlier <= 1)).all()
    assert np.isfinite(shares).all()
    assert (shares >= 0).all()
    if k > 1:
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    if prediction is not None:
        assert (shares[np.arange(n), prediction] == 0).all()
    assert ((estimates.plausible >= 0) & (estimates.plausible < k)).all()


def equal(one, other, tolerance=0.0):
    for name in NAMES:
        np.testing.assert_allclose(
            getattr(one, name), getattr(other, name), rtol=0, atol=tolerance, err_msg=name
        )


def changed(observations, **features):
    return replace(observations, features={**observations.features, **features})


def test_estimates_have_their_promised_form():
    observations, target = made()
    told = []
    model, estimates = ErrorModel.fit(observations, target, progress=told.append)
    check(estimates, 400, 5, observations.prediction)
    pool, _ = made(123, seed=1)
    check(model.estimate(pool), 123, 5, pool.prediction)
    assert (model.n_class, model.layers, model.notes) == (5, ("layer0", "layer1"), ())
    assert told == sorted(told)
    assert told[-1] == 1


def test_refits_are_identical_and_seeds_matter():
    observations, target = made()
    one, estimates = ErrorModel.fit(observations, target)
    other, again = ErrorModel.fit(observations, target)
    equal(estimates, again)
    for name, values in one.arrays().items():
        np.testing.assert_array_equal(values, other.arrays()[name])
    _, third = ErrorModel.fit(observations, target, seed=1)
    assert (third.error_proba != estimates.error_proba).any()


def test_estimates_do_not_depend_on_company():
    observations, target = made()
    model, _ = ErrorModel.fit(observations, target)
    pool, _ = made(333, seed=1)
    whole = model.estimate(pool)
    rows = np.random.default_rng(0).permutation(333)
    equal(model.estimate(pool.take(rows)), whole.take(rows), 1e-6)
    for row in rows[:20]:
        equal(model.estimate(pool.take(np.array([row]))), whole.take(np.array([row])), 1e-6)
    twice = model.estimate(pool.take(np.array([5, 5])))
    np.testing.assert_allclose(twice.error_proba[0], twice.error_proba[1], atol=1e-6)
    check(model.estimate(pool.take(np.zeros(0, np.int64))), 0, 5)


@pytest.mark.parametrize("most", [4096, 100])
def test_the_order_of_the_evaluated_units_changes_nothing(most):
    observations, target = made()
    model, estimates = ErrorModel.fit(observations, target, max_references=most)
    rows = np.random.default_rng(0).permutation(400)
    other, shuffled = ErrorModel.fit(observations.take(rows), target[rows], max_references=most)
    equal(shuffled, estimates.take(rows), 1e-6)
    pool, _ = made(50, seed=1)
    equal(model.estimate(pool), other.estimate(pool), 1e-6)


def test_scales_constants_and_names_change_nothing():
    observations, target = made()
    pool, _ = made(100, seed=1)

    def transformed(one):
        features = {
            "first": one.features["layer0"] * np.float32(1000),
            "second": np.column_stack([np.ones(len(one)), one.features["layer1"]]),
        }
        return replace(one, features=features, logits=one.logits + np.float32(3))

    model, estimates = ErrorModel.fit(observations, target)
    other, same = ErrorModel.fit(transformed(observations), target)
    equal(estimates, same, 1e-3)
    equal(model.estimate(pool), other.estimate(transformed(pool)), 1e-3)


def test_renumbering_classes_renumbers_the_estimates():
    observations, target = made()
    names = np.array([3, 0, 4, 1, 2])
    renamed = replace(
        observations,
        prediction=names[observations.prediction],
        logits=observations.logits[:, np.argsort(names)],
    )
    _, estimates = ErrorModel.fit(observations, target)
    _, other = ErrorModel.fit(renamed, names[target])
    np.testing.assert_allclose(other.error_proba, estimates.error_proba, atol=1e-3)
    np.testing.assert_allclose(other.shares[:, names], estimates.shares, atol=1e-3)
    assert (other.plausible == names[estimates.plausible]).mean() > 0.99


def test_a_model_is_restored_to_the_bit():
    observations, target = made(dims=(6, 200))
    model, _ = ErrorModel.fit(observations, target)
    settings = json.loads(json.dumps(model.settings()))
    arrays = model.arrays()
    assert all(values.dtype != object for values in arrays.values())
    again = ErrorModel.restore(arrays, settings)
    pool, _ = made(100, seed=1, dims=(6, 200))
    equal(model.estimate(pool), again.estimate(pool))
    assert (again.layers, again.n_class, again.notes) == (model.layers, model.n_class, model.notes)
    with pytest.raises(SchemaError, match="version"):
        ErrorModel.restore(arrays, settings | {"version": 0})


def test_estimates_use_numpy_alone(tmp_path):
    observations, target = made(60)
    model, _ = ErrorModel.fit(observations, target)
    np.savez(tmp_path / "model.npz", **model.arrays())
    code = f"""
import json, sys, numpy as np
from ml_debugger.core.evaluation.estimator import ErrorModel, Observations
before = {{"scipy", "sklearn"}} & set(sys.modules)
arrays = dict(np.load({str(tmp_path / "model.npz")!r}))
model = ErrorModel.restore(arrays, json.loads({json.dumps(model.settings())!r}))
layers = {{"layer0": np.zeros((3, 6)), "layer1": np.zeros((3, 12))}}
model.estimate(Observations(layers, np.zeros(3, int), np.ones(3), np.zeros((3, 5))))
assert not {{"scipy", "sklearn"}} & set(sys.modules) - before, "not numpy alone"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Data that is not as one would wish


@pytest.mark.parametrize("errors", [0, 1, 2, 4])
def test_few_errors_fall_back_and_say_so(errors):
    observations, target = made(error=0.1)
    target = observations.prediction.copy()
    target[:errors] = (target[:errors] + 1) % 5
    model, estimates = ErrorModel.fit(observations, target)
    check(estimates, 400, 5)
    assert model.notes[0].startswith(f"only {errors} error")
    pool, _ = made(100, seed=1, error=1)
    p = model.estimate(pool).error_proba
    # The same order as the max softmax at a temperature gives: that of its own log-odds.
    scaled = pool.logits / model.settings()["temperature"]
    other = said({}, scaled.astype(np.float64)).score
    order = np.argsort(-other)
    assert (np.diff(p[order]) >= -1e-6).all()
    assert estimates.error_proba.mean() == pytest.approx(errors / 400, abs=0.01)


def test_nothing_but_errors():
    observations, _ = made()
    model, estimates = ErrorModel.fit(observations, (observations.prediction + 1) % 5)
    check(estimates, 400, 5)
    assert "only 0 correct predictions" in model.notes[0]
    assert estimates.error_proba.min() > 0.9


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 30])
def test_a_handful_of_units(n):
    observations, target = made(n)
    model, estimates = ErrorModel.fit(observations, target)
    check(estimates, n, 5)
    pool, _ = made(70, seed=1)
    check(model.estimate(pool), 70, 5)
    rules = ZoneRules.fit(estimates, observations.score, target != observations.prediction)
    assert len(rules.assign(estimates, observations.score)) == n


def test_one_class():
    features = {"a": np.random.default_rng(0).normal(size=(50, 3))}
    observations = said(features, np.zeros((50, 1)))
    target = np.where(np.arange(50) < 10, -1, 0)
    model, estimates = ErrorModel.fit(observations, target)
    check(estimates, 50, 1)
    assert model.n_class == 1
    assert (estimates.shares == 0).all()


def test_labels_of_no_class_are_errors():
    observations, target = made()
    odd = target.copy()
    odd[:40], odd[40:80] = -1, 999
    one, estimates = ErrorModel.fit(observations, odd)
    check(estimates, 400, 5)
    assert one.n_class == 5
    odd[:80] = 5
    _, same = ErrorModel.fit(observations, odd)
    equal(estimates, same, 1e-6)


def test_classes_absent_from_the_evaluation():
    observations, target = made()
    kept = observations.take(target < 3)
    model, estimates = ErrorModel.fit(kept, target[target < 3])
    check(estimates, len(kept), 5)
    pool, _ = made(200, seed=1)
    check(model.estimate(pool), 200, 5, pool.prediction)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["features", "logits", "score"])
def test_non_finite_units_are_left_out_and_marked(where, value):
    observations, target = made()
    rows = np.array([3, 50, 399])

    def broken(one, rows):
        features = {alias: v.copy() for alias, v in one.features.items()}
        logits, score = one.logits.copy(), one.score.copy()
        if where == "features":
            features["layer1"][rows, 2] = value
        elif where == "logits":
            logits[rows] = value
        else:
            score[rows] = value
        return replace(one, features=features, logits=logits, score=score)

    rest = np.setdiff1d(np.arange(400), rows)
    clean, expected = ErrorModel.fit(observations.take(rest), target[rest])
    model, estimates = ErrorModel.fit(broken(observations, rows), target)
    check(estimates, 400, 5)
    equal(estimates.take(rest), expected, 1e-6)
    assert "3 of 400 units have non-finite" in model.notes[0]
    pool, _ = made(100, seed=1)
    found = model.estimate(broken(pool, rows[:2]))
    check(found, 100, 5)
    wanted = clean.estimate(pool)
    equal(found.take(np.arange(51, 100)), wanted.take(np.arange(51, 100)), 1e-6)
    rate = (target[rest] != observations.prediction[rest]).mean()
    for marked in (estimates.take(rows), found.take(rows[:2])):
        np.testing.assert_allclose(marked.outlier, NOT_FINITE, rtol=1e-6)
        assert marked.unstable.all()
        assert (marked.error_proba > 0.95 * rate).all()


def test_a_broken_layer_and_broken_logits_are_left_out_whole():
    observations, target = made()
    broken = replace(
        changed(observations, bad=np.full((400, 2), np.nan)),
        logits=np.full_like(observations.logits, np.inf),
    )
    model, estimates = ErrorModel.fit(broken, target)
    check(estimates, 400, 5)
    assert model.layers == ("layer0", "layer1")
    assert any("'bad'" in note for note in model.notes)
    assert any("logits" in note for note in model.notes)
    equal(estimates, model_without_logits(observations, target), 1e-6)


def model_without_logits(observations, target):
    return ErrorModel.fit(replace(observations, logits=None), target)[1]


def test_nothing_finite_is_refused():
    observations, target = made(20)
    with pytest.raises(NothingToEvaluateError):
        ErrorModel.fit(replace(observations, score=np.full(20, np.nan, np.float32)), target)
    with pytest.raises(NothingToEvaluateError):
        ErrorModel.fit(observations.take(np.zeros(0, np.int64)), target[:0])


def test_constant_columns_and_constant_layers():
    observations, target = made()
    columns = np.column_stack([observations.features["layer0"], np.full(400, 0.1)])
    odd = changed(observations, layer0=columns, flat=np.full((400, 3), 0.1, np.float16))
    model, estimates = ErrorModel.fit(odd, target)
    assert model.layers == ("layer0", "layer1")
    assert any("'flat' is constant" in note for note in model.notes)
    equal(estimates, ErrorModel.fit(observations, target)[1], 1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions(dtype):
    observations, target = made()
    cast = replace(
        observations,
        features={k: v.astype(dtype) for k, v in observations.features.items()},
        logits=observations.logits.astype(dtype),
    )
    _, estimates = ErrorModel.fit(cast, target)
    expected = ErrorModel.fit(observations, target)[1]
    assert np.abs(estimates.error_proba - expected.error_proba).mean() < 0.02
    huge = changed(cast, layer0=np.where(np.arange(400)[:, None] == 7, 1e300, 1.0))
    check(ErrorModel.fit(huge, target)[1], 400, 5)


def test_one_layer_no_layer_no_logits():
    observations, target = made()
    wrong = target != observations.prediction
    base = metrics.auroc(-observations.score, wrong)
    one = replace(observations, features={"layer1": observations.features["layer1"]})
    check(ErrorModel.fit(one, target)[1], 400, 5)
    bare = replace(observations, features={})
    model, estimates = ErrorModel.fit(bare, target)
    check(estimates, 400, 5)
    assert model.layers == ()
    assert (estimates.outlier == 1).all()
    assert metrics.auroc(estimates.error_proba, wrong) == pytest.approx(base, abs=0.02)
    only_score = replace(bare, logits=None)
    model, estimates = ErrorModel.fit(only_score, target)
    check(estimates, 400, 5)
    assert model.n_class == 5
    assert metrics.auroc(estimates.error_proba, wrong) == pytest.approx(base, abs=0.02)
    without = model_without_logits(observations, target)
    assert metrics.auroc(without.error_proba, wrong) > base + 0.05


def test_a_prediction_that_was_never_evaluated():
    observations, target = made()
    plain = replace(observations, logits=None)
    model, _ = ErrorModel.fit(plain, target)
    pool, _ = made(20, seed=1)
    known = model.estimate(replace(pool, logits=None))
    for strange in (-1, 5, 77):
        pool = replace(pool, prediction=np.full(20, strange), logits=None)
        estimates = model.estimate(pool)
        check(estimates, 20, 5)
        assert (estimates.error_proba > np.maximum(known.error_proba - 0.02, 0.8)).all()


def test_a_score_of_its_own_is_heard():
    observations, target = made()
    wrong = target != observations.prediction
    rng = np.random.default_rng(0)
    score = np.clip(0.8 - 0.5 * wrong + rng.normal(size=400) * 0.1, 0, 1).astype(np.float32)
    _, estimates = ErrorModel.fit(replace(observations, score=score), target)
    assert metrics.auroc(estimates.error_proba, wrong) > 0.95


def test_equal_units_do_not_judge_each_other():
    observations, _ = made(300)
    noise = np.random.default_rng(7).integers(0, 5, 300)  # labels that nothing can tell
    rows = np.repeat(np.arange(300), 3)
    _, estimates = ErrorModel.fit(observations.take(rows), noise[rows])
    wrong = (noise != observations.prediction)[rows]
    assert metrics.auroc(estimates.error_proba, wrong) < 0.65


def test_units_of_one_input_do_not_judge_each_other():
    rng = np.random.default_rng(7)
    observations, _ = made(300)
    labels = rng.integers(0, 5, 300)
    rows, groups = np.repeat(np.arange(300), 3), np.repeat(np.arange(300), 3)
    crowd = observations.take(rows)
    jitter = rng.normal(size=(900, 12)).astype(np.float32) * 0.01
    crowd = changed(crowd, layer1=crowd.features["layer1"] + jitter)
    wrong = labels[rows] != crowd.prediction
    _, apart = ErrorModel.fit(crowd, labels[rows], groups=groups)
    _, mixed = ErrorModel.fit(crowd, labels[rows])
    assert metrics.auroc(apart.error_proba, wrong) < 0.65
    assert metrics.auroc(mixed.error_proba, wrong) > 0.9  # the leak that groups close


@pytest.mark.parametrize("name", ["target", "layer0", "score", "logits", "groups"])
def test_lengths_that_do_not_fit_are_named(name):
    observations, target = made(30)
    groups = np.arange(30)
    if name == "target":
        target = target[1:]
    elif name == "groups":
        groups = groups[1:]
    elif name == "layer0":
        observations = changed(observations, layer0=observations.features["layer0"][1:])
    else:
        observations = replace(observations, **{name: getattr(observations, name)[1:]})
    with pytest.raises(InputError, match=f"{name}.*30.*29"):
        ErrorModel.fit(observations, target, groups=groups)


def test_observations_of_another_model_are_refused():
    observations, target = made()
    model, _ = ErrorModel.fit(observations, target)
    with pytest.raises(InputError, match="layer1"):
        model.estimate(replace(observations, features={"layer0": np.zeros((400, 6))}))
    with pytest.raises(InputError, match="'layer0' has 7"):
        model.estimate(changed(observations, layer0=np.zeros((400, 7))))
    with pytest.raises(InputError, match="logits: expected 5"):
        model.estimate(replace(observations, logits=None))


# Quality


def digits(seed, noise):
    """Train a small network on digits, some labels of which are swapped; return what it says."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    data, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    data = data / 16 + rng.normal(size=data.shape) * 0.25
    order = rng.permutation(len(data))
    train, evaluation, pool = order[:500], order[500:1050], order[1050:]
    taught = labels[train].copy()
    for true, other in ((3, 8), (1, 7), (4, 9), (8, 3)):
        taught[(labels[train] == true) & (rng.random(len(train)) < noise)] = other
    network = MLPClassifier((64, 32), max_iter=60, learning_rate_init=3e-3, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sixty epochs do not converge, on purpose
        network.fit(data[train], taught)

    def observe(rows):
        features, hidden = {}, data[rows]
        for i in range(2):
            hidden = np.maximum(hidden @ network.coefs_[i] + network.intercepts_[i], 0)
            features[f"hidden{i}"] = hidden.astype(np.float32)
        logits = hidden @ network.coefs_[2] + network.intercepts_[2]
        return said(features, logits), labels[rows]

    return observe(evaluation), observe(pool)


@pytest.mark.parametrize("noise", [0.0, 0.42])
def test_errors_of_a_network_are_ranked_and_calibrated(noise):
    gains, calibration, stable, operational = [], [], [], []
    for seed in range(3):
        (evaluation, target), (pool, truth) = digits(seed, noise)
        model, estimates = ErrorModel.fit(evaluation, target)
        wrong = truth != pool.prediction
        found = model.estimate(pool)
        gain = metrics.auroc(found.error_proba, wrong) - metrics.auroc(-pool.score, wrong)
        assert gain > 0
        gains.append(gain)
        calibration.append(metrics.ece(found.error_proba, wrong))
        rules = ZoneRules.fit(estimates, evaluation.score, target != evaluation.prediction)
        table = zone_table(rules.assign(found, pool.score), wrong, pool.score)
        rates = {row["zone"]: row["error_rate"] for row in table}
        stable.append(rates["stable_coverage"] or 0)
        operational.append(rates["operational_coverage"])
        assert rates["hotspot"] > 2 * rates["operational_coverage"]
    assert np.mean(gains) > (0.03 if noise == 0 else 0.08)
    assert np.mean(calibration) < 0.05
    assert np.mean(stable) < 0.4 * np.mean(operational)


def test_no_unit_is_judged_by_a_head_that_saw_its_label():
    observations, target = made(80)
    shuffled = np.random.default_rng(3).permutation(target)
    fitted = fit(
        observations,
        shuffled,
        None,
        n_class=None,
        seed=0,
        max_references=4096,
        progress=lambda _: None,
    )
    wrong = (shuffled != observations.prediction)[fitted.rows]
    seen = metrics.nll(fitted.head(fitted.evidence.columns), wrong)
    unseen = metrics.nll(fitted.error_proba, wrong)
    assert unseen > seen + 0.005


def test_the_temperature_of_overconfident_logits_is_found():
    observations, target = made(1000)
    loud = said(observations.features, observations.logits.astype(np.float64) * 4)
    usual, estimates = ErrorModel.fit(observations, target)
    model, same = ErrorModel.fit(loud, target)
    ratio = model.settings()["temperature"] / usual.settings()["temperature"]
    assert ratio == pytest.approx(4, rel=0.05)
    np.testing.assert_allclose(same.error_proba, estimates.error_proba, atol=0.02)


def test_few_errors_do_no_harm():
    differences = []
    for seed in range(3):
        (evaluation, target), (pool, truth) = digits(seed, 0.0)
        wrong = np.flatnonzero(target != evaluation.prediction)
        right = np.flatnonzero(target == evaluation.prediction)
        for errors in (5, 10):
            rows = np.concatenate([wrong[:errors], right[: errors * 10]])
            model, _ = ErrorModel.fit(evaluation.take(rows), target[rows])
            failed = truth != pool.prediction
            ours = metrics.auroc(model.estimate(pool).error_proba, failed)
            differences.append(ours - metrics.auroc(-pool.score, failed))
    assert min(differences) > -0.03
    assert np.mean(differences) > 0.0


def test_systematic_errors_are_found_where_the_model_is_sure():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, 10)) * 2

    def observe(n):
        cluster = rng.integers(0, 12, n)
        target, taught = cluster % 4, np.where(cluster == 7, 0, cluster % 4)
        features = (centres[cluster] + rng.normal(size=(n, 10))).astype(np.float32)
        return said({"a": features}, 6 * np.eye(4)[taught] + rng.normal(size=(n, 4))), target

    (evaluation, target), (pool, truth) = observe(800), observe(2000)
    model, estimates = ErrorModel.fit(evaluation, target)
    wrong, found = truth != pool.prediction, model.estimate(pool)
    assert metrics.auroc(-pool.score, wrong) < 0.7
    assert metrics.auroc(found.error_proba, wrong) > 0.97
    rules = ZoneRules.fit(estimates, evaluation.score, target != evaluation.prediction)
    zones = rules.assign(found, pool.score)
    critical = zones == [str(z) for z in ZONES].index("critical_hotspot")
    assert wrong[critical].mean() > 0.8
    assert pool.score[critical].mean() > 0.9
    # The features know what the units truly are.
    assert (found.plausible == truth)[wrong].mean() > 0.9
    assert (found.shares.argmax(axis=1) == truth)[wrong].mean() > 0.9


def test_permuted_labels_teach_nothing():
    observations, target = made(600)
    shuffled = np.random.default_rng(0).permutation(target)
    model, estimates = ErrorModel.fit(observations, shuffled)
    rate = (shuffled != observations.prediction).mean()
    assert estimates.error_proba.mean() == pytest.approx(rate, abs=0.03)
    pool, _ = made(400, seed=1)
    assert model.estimate(pool).error_proba.mean() == pytest.approx(rate, abs=0.06)


def test_a_layer_of_noise_costs_little():
    observations, target = made(800)
    pool, truth = made(2000, seed=1)
    rng = np.random.default_rng(0)
    wrong = truth != pool.prediction
    plain = ErrorModel.fit(observations, target)[0].estimate(pool)
    noisy, _ = ErrorModel.fit(changed(observations, noise=rng.normal(size=(800, 8))), target)
    other = noisy.estimate(changed(pool, noise=rng.normal(size=(2000, 8))))
    loss = metrics.auroc(plain.error_proba, wrong) - metrics.auroc(other.error_proba, wrong)
    assert loss < 0.01


def test_fewer_references_cost_little():
    observations, target = made(2000)
    pool, truth = made(1000, seed=1)
    wrong = truth != pool.prediction
    scores = [
        metrics.auroc(
            ErrorModel.fit(observations, target, max_references=most)[0].estimate(pool).error_proba,
            wrong,
        )
        for most in (4096, 300)
    ]
    assert scores[0] - scores[1] < 0.02


def test_outlier_p_values_are_uniform_and_strange_units_have_small_ones():
    observations, target = made(800, dims=(12,))
    model, estimates = ErrorModel.fit(observations, target)
    same, _ = made(2000, seed=1, dims=(12,))
    p_value = model.estimate(same).outlier
    for level in (0.05, 0.2, 0.5):
        assert (p_value <= level).mean() == pytest.approx(level, abs=0.04)
        assert (estimates.outlier <= level).mean() == pytest.approx(level, abs=0.01)
    strange = changed(same, layer0=-3 * same.features["layer0"])
    assert (model.estimate(strange).outlier <= 0.05).mean() > 0.1
