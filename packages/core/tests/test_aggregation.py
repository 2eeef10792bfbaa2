"""From boxes to images, against a naive reading of the same rules."""

import math
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_debugger.core.aggregation import BBoxStrategy
from ml_debugger.core.errors import StrategyError

VALUES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, math.nan])
WEIGHTS = st.sampled_from([0.0, 1.0, 2.0, 5.0])
BOX = st.tuples(VALUES, WEIGHTS, st.sampled_from([0.2, 0.6]))
IMAGES = st.lists(st.lists(BOX, max_size=6), max_size=5)


def naive(boxes, strategy):
    kept = [(p, w) for p, w, score in boxes if not math.isnan(p)]
    if strategy.bbox_filter is not None:
        kept = [(p, w) for p, w, score in boxes if not math.isnan(p) and score >= 0.5]
    kept = sorted(kept, key=lambda one: -one[0])[: strategy.top_n]
    if not kept:
        return math.nan
    values, weights = [p for p, _ in kept], [w for _, w in kept]
    if strategy.weight_column is None or not sum(weights):
        return sum(values) / len(values) if strategy.aggregation == "mean" else median(values)
    if strategy.aggregation == "mean":
        return sum(p * w for p, w in kept) / sum(weights)
    copies = sorted(p for p, w in kept for _ in range(int(w)))  # whole weights: repeat the value
    return median(copies)


@given(
    IMAGES,
    st.sampled_from(["mean", "median"]),
    st.sampled_from([None, 1, 2, 3]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_every_image_has_the_value_that_its_boxes_give(images, how, top_n, weighted, filtered):
    strategy = BBoxStrategy(
        aggregation=how,
        top_n=top_n,
        weight_column="pred_size" if weighted else None,
        bbox_filter={"conditions": [{"score": ">=0.5"}]} if filtered else None,
    )
    flat = [box for boxes in images for box in boxes]
    columns = {
        name: np.array([box[at] for box in flat], np.float64)
        for at, name in enumerate(("error_proba", "pred_size", "score"))
    }
    counts = np.array([len(boxes) for boxes in images], np.int64)
    found = strategy.aggregate(columns.__getitem__, counts, len(images))
    expected = [naive(boxes, strategy) for boxes in images]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_boxes_that_a_value_is_made_of_are_counted():
    columns = {
        "error_proba": np.array([0.5, 0.7, np.nan, 0.2, 0.3]),
        "score": np.array([0.9, 0.1, 0.9, 0.9, 0.9]),
    }
    counts, confident = np.array([3, 0, 2]), {"conditions": [{"score": ">0.5"}]}
    for chosen, expected in (
        ({}, [2, 0, 2]),
        ({"top_n": 500}, [2, 0, 2]),
        ({"top_n": 1}, [1, 0, 1]),
        ({"bbox_filter": confident}, [1, 0, 2]),
    ):
        sizes = BBoxStrategy(**chosen).sizes(columns.__getitem__, counts, 3)
        assert sizes.tolist() == expected


def test_flags_are_true_from_the_threshold_on():
    columns = {"error_proba": np.array([0.5, 0.7, 0.2])}
    counts = np.array([1, 0, 2])
    strategy = BBoxStrategy(img_error_threshold=0.4)
    assert strategy.flags(columns.__getitem__, counts, 3) == [True, False, True]
    assert BBoxStrategy().flags(columns.__getitem__, counts, 3) == [None] * 3


def test_it_says_which_columns_it_looks_at_and_what_its_value_is():
    strategy = BBoxStrategy(
        target_column="cls_error_proba",
        top_n=3,
        weight_column="pred_size",
        bbox_filter={"target_zones": ["hotspot"]},
    )
    assert strategy.columns == {"cls_error_proba", "pred_size", "zone"}
    assert "mean cls_error_proba of its 3 worst boxes" in strategy.describe(3)
    assert "mean cls_error_proba of its 2 boxes that match" in strategy.describe(2)
    assert BBoxStrategy().describe(1) == "mean error_proba of its 1 box"
    assert strategy.descending


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"target_column": "score"}, "target_column"),
        ({"aggregation": "max"}, "aggregation"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": True}, "top_n"),
        ({"top_n": "2"}, "top_n"),
        ({"sort": "down"}, "sort"),
        ({"img_error_threshold": 1.5}, "img_error_threshold"),
        ({"bbox_filter": {}}, "target_zones"),
        ({"bbox_filter": {"target_zones": ["hot"]}}, "target_zones"),
        ({"worst": 3}, "worst"),
        ("mean", "BBoxStrategy"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(given, said):
    valid, message = BBoxStrategy.validate_dict(given)
    assert not valid
    assert said in message
    with pytest.raises(StrategyError):
        BBoxStrategy.read(given)


def test_a_huge_box_elsewhere_changes_nothing():
    columns = {
        "error_proba": np.array([0.5, 0.3, 0.9, 0.1, 0.2, 0.7]),
        "pred_size": np.array([1e20, 1.0, 1.0, 2.0, 3.0, 3.0]),
    }
    strategy = BBoxStrategy(aggregation="median", weight_column="pred_size")
    found = strategy.aggregate(columns.__getitem__, np.array([1, 2, 3]), 3)
    np.testing.assert_allclose(found, [0.5, 0.6, 0.2])
