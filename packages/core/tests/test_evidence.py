"""The evidence of a layer, against independent computations."""

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from ml_debugger.core.evaluation.error_model.discriminant import Discriminant, Moments
from ml_debugger.core.evaluation.error_model.folds import (
    assign_folds,
    canonical_order,
    choose_references,
)
from ml_debugger.core.evaluation.error_model.head import (
    Head,
    fit_temperature,
    logistic,
    logit_columns,
)
from ml_debugger.core.evaluation.error_model.layer import NEIGHBOURS, Layer, References
from ml_debugger.core.evaluation.error_model.scaling import Scaling

K = 3


@pytest.fixture
def blobs():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, 200)
    centres = rng.normal(size=(K, 6))
    features = (centres[labels] + rng.normal(size=(200, 6))).astype(np.float32)
    return features * np.float32([1, 10, 0.1, 1, 3, 1]), labels.astype(np.int64)


@pytest.fixture
def layer(blobs):
    features, labels = blobs
    rows = np.arange(len(features))
    scaling = Scaling.fit(features, rows)
    moments = Moments.of(scaling, features, rows, labels, K + 1)
    possible = np.array([True, True, True, False])
    return Layer(scaling, scaling(features), Discriminant.fit(moments, possible=possible))


@pytest.fixture
def references(blobs):
    count = np.bincount(blobs[1], minlength=K + 1)
    return References(blobs[1], np.ones(200), (count + 1) / (200 + K + 1))


def test_scaling_standardises_and_drops_what_is_constant(blobs):
    features = np.column_stack([blobs[0], np.full(200, 7.3, np.float32)])
    scaling = Scaling.fit(features, np.arange(200))
    scaled = scaling(features)
    assert scaled.shape == (200, 6)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-5)


def test_scaling_clips_and_reads_non_finite_values_as_the_mean(blobs):
    scaling = Scaling.fit(blobs[0], np.arange(200))
    odd = blobs[0][:3].copy()
    odd[0, 0], odd[1, 1], odd[2, 2] = 1e30, np.nan, np.inf
    scaled = scaling(odd)
    assert scaled[0, 0] == 8
    assert scaled[1, 1] == 0
    assert scaled[2, 2] == 0


@pytest.mark.parametrize("width", [200, 2100])
def test_wide_layers_keep_their_principal_directions(width):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(300, 20)) @ rng.normal(size=(20, width))
    values = values.astype(np.float32)
    scaling = Scaling.fit(values, np.arange(300))
    scaled = scaling(values)
    plain = (values - values.mean(axis=0)) / values.std(axis=0)
    assert scaled.shape[1] <= 128
    # Twenty directions hold everything, so distances survive the projection.
    expected = np.linalg.norm(plain[:50] - plain[50:100], axis=1)
    np.testing.assert_allclose(
        np.linalg.norm(scaled[:50] - scaled[50:100], axis=1), expected, rtol=1e-3
    )


def test_votes_and_distances_are_those_of_an_exact_search(blobs, layer, references):
    from sklearn.neighbors import NearestNeighbors

    features, labels = blobs
    prediction = np.roll(labels, 1)
    own = np.eye(200, dtype=bool)
    view = layer.view(features, prediction, references, excluded=own)

    points = layer.scaling(features).astype(np.float64)
    search = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(points)
    distance, index = search.kneighbors(points)
    distance, index = distance[:, 1:], index[:, 1:]  # the first is the unit itself
    weight = np.exp(-np.square(distance / distance[:, -1:]))
    votes = np.stack([(weight * (labels[index] == c)).sum(axis=1) for c in range(K + 1)], axis=1)
    votes += 0.5 * references.prior
    votes /= votes.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(view.votes, votes, rtol=1e-4)
    np.testing.assert_allclose(view.columns[:, 1], np.log(distance[:, -1]), rtol=1e-4, atol=1e-5)
    chance = votes[np.arange(200), prediction]
    np.testing.assert_allclose(view.columns[:, 0], np.log((1 - chance) / chance), rtol=1e-3)


def test_trust_is_the_ratio_of_nearest_distances(blobs, layer, references):
    features, labels = blobs
    prediction = np.roll(labels, 1)
    view = layer.view(features, prediction, references, excluded=np.eye(200, dtype=bool))
    points = layer.scaling(features).astype(np.float64)
    for row in range(0, 200, 17):
        distance = np.linalg.norm(points - points[row], axis=1)
        distance[row] = np.inf
        agrees = labels == prediction[row]
        expected = np.log(distance[agrees].min() / distance[~agrees].min())
        assert view.columns[row, 2] == pytest.approx(np.clip(expected, -4, 4), abs=1e-4)


def test_remoteness_is_the_angle_to_the_tenth_neighbour(blobs, layer, references):
    features, labels = blobs
    view = layer.view(features, labels, references, excluded=np.eye(200, dtype=bool))
    points = layer.scaling(features).astype(np.float64)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    distance = np.sort(np.linalg.norm(points[:, None] - points[None], axis=2), axis=1)
    np.testing.assert_allclose(view.remoteness, np.log(distance[:, NEIGHBOURS]), atol=1e-3)


def test_a_reference_votes_for_as_many_units_as_it_stands_for(blobs, layer, references):
    features, labels = blobs
    plain = layer.view(features + 1, labels, references)
    heavy = np.where(labels == 1, 4.0, 1.0)
    weighted = layer.view(features + 1, labels, References(labels, heavy, references.prior))
    total = 1 / (plain.votes[:, 3] / (0.5 * references.prior[3]))  # votes before normalising
    expected = plain.votes * total[:, None]
    expected[:, 1] += 3 * (expected[:, 1] - 0.5 * references.prior[1])
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weighted.votes, expected, rtol=1e-6)


def test_discriminant_approaches_the_textbook_one(blobs):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.default_rng(2)
    labels = rng.integers(0, K, 20_000)
    features = (rng.normal(size=(K, 6))[labels] + rng.normal(size=(20_000, 6))).astype(np.float32)
    rows = np.arange(len(features))
    scaling = Scaling.fit(features, rows)
    moments = Moments.of(scaling, features, rows, labels, K + 1)
    possible = np.array([True, True, True, False])
    ours = Discriminant.fit(moments, possible=possible).log_posterior(scaling(features))
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.02).fit(
        scaling(features), labels
    )
    np.testing.assert_allclose(
        np.exp(ours[:, :K]), theirs.predict_proba(scaling(features)), atol=0.01
    )
    assert np.exp(ours[:, K]).max() == 0


def test_moments_of_a_rest_are_a_difference(blobs):
    features, labels = blobs
    scaling = Scaling.fit(features, np.arange(200))
    whole, part, rest = (
        Moments.of(scaling, features, rows, labels, K)
        for rows in (np.arange(200), np.arange(50), np.arange(50, 200))
    )
    for name in ("count", "total", "scatter"):
        np.testing.assert_allclose(
            getattr(whole - part, name), getattr(rest, name), rtol=1e-4, atol=1e-3
        )


def test_of_a_class_without_references_nearness_says_nothing(blobs, layer, references):
    features, _ = blobs
    absent = np.full(200, K)
    view = layer.view(features, absent, references, excluded=np.eye(200, dtype=bool))
    assert np.isnan(view.columns).all(axis=0).tolist() == [True, False, True, False]
    assert (view.columns[:, 3] == 20).all()
    head = Head.scaled_to(view.columns).fit(
        view.columns, np.arange(200) % 9 == 0, anchor=3, only_anchor=False
    )
    assert head.weights[0] == head.weights[2] == 0
    assert np.isfinite(head(view.columns)).all()


def test_a_group_does_not_see_itself(blobs, layer, references):
    features, labels = blobs
    groups = np.repeat(np.arange(20), 10)
    view = layer.view(features, labels, references, excluded=groups[:, None] == groups)
    points = layer.scaling(features).astype(np.float64)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    distance[groups[:, None] == groups] = np.inf
    tenth = np.sort(distance, axis=1)[:, NEIGHBOURS - 1]
    np.testing.assert_allclose(view.columns[:, 1], np.log(tenth), atol=1e-4)


def test_logit_columns_against_scipy():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(50, 5)) * 3
    prediction = logits.argmax(axis=1)
    columns = logit_columns(logits, prediction)
    share = np.exp(log_softmax(logits, axis=1))
    chance = share.max(axis=1)
    np.testing.assert_allclose(columns[:, 0], np.log1p(-chance) - np.log(chance), atol=1e-9)
    two = np.sort(logits, axis=1)[:, -2:]
    np.testing.assert_allclose(columns[:, 1], two[:, 0] - two[:, 1])
    np.testing.assert_allclose(columns[:, 2], -(share * np.log(share)).sum(axis=1))
    np.testing.assert_allclose(logit_columns(logits + 1000, prediction), columns, atol=1e-9)


@pytest.mark.parametrize("width", [1, 2])
def test_logit_columns_of_extreme_vectors_are_finite(width):
    logits = np.array([[1e30] * width, [0.0] * width, [-1e30] + [1e30] * (width - 1)])
    columns = logit_columns(logits, np.array([0, width, 0]))
    assert np.isfinite(columns).all()
    assert np.abs(columns).max() <= 20


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_temperature_undoes_a_scale(scale):
    rng = np.random.default_rng(4)
    true = rng.normal(size=(20_000, 4)) * 2
    share = np.exp(log_softmax(true, axis=1))
    labels = (share.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    assert fit_temperature(true * scale, labels) == pytest.approx(scale, rel=0.05)


def test_temperature_without_labels_is_one():
    assert fit_temperature(np.zeros((10, 3)), np.full(10, -1)) == 1.0


def test_logistic_against_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(5)
    evidence = rng.normal(size=(500, 3))
    outcome = (evidence @ [1.0, 0.5, 0.2] + rng.logistic(size=500) > 0.5).astype(float)
    weights, intercept = logistic(
        evidence, outcome, np.ones(500), prior=np.zeros(3), ridge=2.0, usable=np.ones(3, bool)
    )
    theirs = LogisticRegression(C=0.5, tol=1e-8).fit(evidence, outcome)
    np.testing.assert_allclose(weights, theirs.coef_[0], atol=1e-3)
    assert intercept == pytest.approx(theirs.intercept_[0], abs=1e-3)


def test_weights_never_count_in_favour_of_a_prediction():
    rng = np.random.default_rng(6)
    columns = rng.normal(size=(400, 3))
    wrong = columns @ [1.0, -3.0, 0.5] + rng.logistic(size=400) > 0
    head = Head.scaled_to(columns).fit(columns, wrong, anchor=0, only_anchor=False)
    assert (head.weights >= 0).all()
    assert head.weights[1] == 0
    assert head.weights[0] > 0.5


def test_few_errors_leave_the_head_near_its_prior():
    rng = np.random.default_rng(7)
    columns = rng.normal(size=(400, 4))
    wrong = np.zeros(400, bool)
    wrong[np.argsort(-columns[:, 3])[:5]] = True
    few = Head.scaled_to(columns).fit(columns, wrong, anchor=0, only_anchor=False)
    assert few.weights[0] == pytest.approx(0.5 * columns[:, 0].std(), abs=0.2)
    wrong[np.argsort(-columns[:, 3])[:100]] = True
    many = Head.scaled_to(columns).fit(columns, wrong, anchor=0, only_anchor=False)
    assert many.weights[3] > few.weights[3] + 1


def test_folds_keep_groups_whole_and_errors_even():
    rng = np.random.default_rng(8)
    groups = rng.integers(0, 100, 600)
    wrong = rng.random(600) < 0.2
    folds = assign_folds(groups, wrong)
    assert all(len(set(folds[groups == g])) == 1 for g in set(groups))
    assert np.ptp(np.bincount(folds, wrong)) <= 10
    single = assign_folds(np.arange(600), wrong)
    assert np.ptp(np.bincount(single, wrong)) <= 1
    assert np.ptp(np.bincount(single)) <= 1


def test_order_depends_on_content_alone():
    rng = np.random.default_rng(9)
    features, logits = rng.normal(size=(300, 20)), rng.normal(size=(300, 3))
    target, rows = rng.integers(0, 3, 300), np.arange(300)
    order, _ = canonical_order({"a": features}, (logits,), target, rows, seed=0)
    shuffle = rng.permutation(300)
    shuffled = (features[shuffle], logits[shuffle], target[shuffle])
    again, _ = canonical_order({"a": shuffled[0]}, (shuffled[1],), shuffled[2], rows, seed=0)
    np.testing.assert_array_equal(shuffle[again], order)
    rescaled = np.column_stack([np.full(300, 5.0), features * 0.37])
    same, _ = canonical_order({"a": rescaled}, (logits + 4,), target, rows, seed=0)
    np.testing.assert_array_equal(same, order)
    other, _ = canonical_order({"a": features}, (logits,), target, rows, seed=1)
    assert (other != order).mean() > 0.9
    assert abs(np.corrcoef(order, features[order, 0])[0, 1]) < 0.2


def test_references_are_errors_first_and_stand_for_all():
    wrong = np.arange(1000) % 10 == 0
    chosen, weights = choose_references(wrong, 300)
    assert len(chosen) == 300
    assert wrong[chosen].sum() == 100
    assert weights.mean() == pytest.approx(1)
    ratio = weights[~wrong[chosen]][0] / weights[wrong[chosen]][0]
    assert ratio == pytest.approx(900 / 200)
    chosen, _ = choose_references(~wrong, 300)
    assert (~wrong[chosen]).sum() == 200
    everything, ones = choose_references(wrong, 1000)
    assert len(everything) == 1000
    assert (ones == 1).all()


def test_votes_of_a_uniform_neighbourhood_follow_the_odds(layer, references, blobs):
    view = layer.view(blobs[0], blobs[1], references)
    assert view.votes.sum(axis=1) == pytest.approx(1)
    total = logsumexp(view.log_posterior, axis=1)
    np.testing.assert_allclose(total, 0, atol=1e-6)
