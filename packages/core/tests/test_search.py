"""The search for nearest references, against an exhaustive one in double precision."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_debugger.core.evaluation.error_model import search
from ml_debugger.core.evaluation.error_model.search import Points

K = 4


def made(m, n, seed=0, width=5):
    rng = np.random.default_rng(seed)
    references = rng.normal(size=(m, width)).astype(np.float32)
    units = rng.normal(size=(n, width)).astype(np.float32)
    return references, units, rng.integers(0, K, m), rng.integers(0, K, n)


def check(found, references, units, labels, prediction, k, excluded):
    points, rows = references.astype(np.float64), units.astype(np.float64)
    distance = np.linalg.norm(rows[:, None] - points[None], axis=2)
    cosine = rows @ points.T
    cosine /= np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(points, axis=1)
    if excluded is not None:
        distance[excluded], cosine[excluded] = np.inf, -np.inf
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(found.distance, np.sort(distance, axis=1)[:, :k], **close)
    chosen = np.take_along_axis(distance, found.nearest, axis=1)
    np.testing.assert_allclose(found.distance, chosen, **close)
    assert all(len(set(row)) == k for row in found.nearest.tolist())
    agrees = labels == prediction[:, None]
    same, other = (np.where(one, distance, np.inf).min(axis=1) for one in (agrees, ~agrees))
    np.testing.assert_allclose(found.same, same, **close)
    np.testing.assert_allclose(found.other, other, **close)
    kth = np.maximum(np.sort(cosine, axis=1)[:, -k], -1)
    angle = 0.5 * np.log(np.maximum(2 - 2 * kth, 1e-6))
    np.testing.assert_allclose(found.remoteness, angle, rtol=1e-3, atol=1e-3)


@given(
    m=st.integers(1, 60),
    part=st.integers(1, 70),
    k=st.integers(1, 12),
    seed=st.integers(0, 2**16),
    hides=st.booleans(),
)
def test_parts_of_any_size_find_what_an_exhaustive_search_finds(m, part, k, seed, hides):
    references, units, labels, prediction = made(m, 7, seed)
    k = min(k, m)
    excluded = np.random.default_rng(seed).random((7, m)) < 0.3 if hides else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "PART", part)
        found = Points.of(references).search(units, labels, prediction, k, excluded)
    check(found, references, units, labels, prediction, k, excluded)


def test_many_references_are_searched_exactly():
    references, units, labels, prediction = made(3 * search.PART + 5, 64, width=16)
    found = Points.of(references).search(units, labels, prediction, 10)
    check(found, references, units, labels, prediction, 10, None)


def test_a_unit_is_found_the_same_in_any_company():
    references, units, labels, prediction = made(2 * search.PART + 1, 64, width=16)
    points = Points.of(references)
    found = points.search(units, labels, prediction, 10)
    turned = points.search(units[::-1].copy(), labels, prediction[::-1], 10)
    np.testing.assert_array_equal(found.nearest, turned.nearest[::-1])
    for one, other in zip(found[1:], turned[1:], strict=True):
        np.testing.assert_allclose(one, other[::-1], rtol=1e-6)


@pytest.mark.parametrize("m", [search.PART, 9000])
def test_what_is_equally_far_is_found_the_same_in_any_company(m):
    rng = np.random.default_rng(0)
    references, units = (rng.integers(0, 3, (n, 8)).astype(np.float32) for n in (m, 64))
    labels, prediction = rng.integers(0, K, m), rng.integers(0, K, 64)
    points = Points.of(references)
    found = points.search(units, labels, prediction, 10)
    distance = np.linalg.norm(units[:, None] - references[None], axis=2)
    first = np.argsort(distance, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(found.nearest, first)
    turned = rng.permutation(64)
    for rows in (turned, *np.arange(64)[:, None]):
        again = points.search(units[rows], labels, prediction[rows], 10)
        for one, other in zip(found, again, strict=True):
            np.testing.assert_array_equal(one[rows], other)


def test_references_that_are_equal_come_in_their_order():
    references, units, labels, prediction = made(1, 3)
    found = Points.of(np.repeat(references, 40, axis=0)).search(
        units, np.repeat(labels, 40), prediction, 10
    )
    assert (np.diff(found.nearest, axis=1) > 0).all()


def test_what_is_not_there_is_infinitely_far():
    references, units, labels, _ = made(20, 5)
    none = np.ones((5, 20), bool)
    points = Points.of(references)
    for found in (
        points.search(units, labels, np.full(5, K), 3).same,
        points.search(units, np.zeros(20, np.int64), np.zeros(5, np.int64), 3).other,
        points.search(units, labels, labels[:5], 3, none).distance,
    ):
        assert np.isinf(found).all()
