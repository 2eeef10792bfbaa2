"""Our average precision beside faster-coco-eval's, and COCO's figures of results."""

import sys
from functools import partial

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_debugger.core.detection.average_precision import average_precisions
from ml_debugger.core.detection.result_boxes import Boxes, ResultBoxes
from ml_debugger.object_detection.average_precision import (
    _annotations,
    coco_figures,
    mean_average_precision,
)
from ml_debugger.object_detection.boxes import GEOMETRY

from .made_result import Image, make_result

boxes_of = partial(Boxes.of, GEOMETRY)


def box(x, y, side=20.0):
    return (float(x), float(y), float(x + side), float(y + side))


def scene(rng, images=6, classes=3, step=1.0, ties=False, crowds=True):
    """Draw boxes near true ones and elsewhere; some images have none of a sort."""
    true_image = np.sort(rng.integers(0, images, rng.integers(0, 4 * images)))
    m = len(true_image)
    corner = np.round(rng.uniform(0, 60, (m, 2)) / step) * step
    true = np.hstack([corner, corner + np.round(rng.uniform(4, 50, (m, 2)) / step) * step])
    labels = rng.integers(0, classes, m)
    near = rng.integers(0, max(m, 1), rng.integers(0, 5 * images) if m else 0)
    moved = true[near] + np.round(rng.normal(0, 4, (len(near), 4)) / step) * step
    other = rng.integers(0, images, rng.integers(0, 10))
    far = np.round(rng.uniform(0, 60, (len(other), 2)))
    boxes = np.vstack([moved.reshape(-1, 4), np.hstack([far, far + 10])])
    image = np.concatenate([true_image[near], other])
    wrong = rng.random(len(near)) < 0.2
    label = np.concatenate([np.where(wrong, 0, labels[near]), rng.integers(0, classes, len(far))])
    score = rng.integers(0, 4, len(image)) / 4 if ties else rng.random(len(image))
    order = np.argsort(image, kind="stable")
    sparse = 7 * np.arange(images) + 3  # images are numbered as they like
    return (
        boxes_of(sparse[image[order]], label[order], boxes[order], score[order]),
        Boxes.of(
            GEOMETRY, sparse[true_image], labels, true, ignored=crowds & (rng.random(m) < 0.15)
        ),
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    step=st.sampled_from([1.0, 4.0, 0.001]),
    ties=st.booleans(),
    images=st.integers(1, 8),
)
@settings(deadline=None, max_examples=60)
def test_it_is_what_faster_coco_eval_says(seed, step, ties, images):
    predicted, true = scene(np.random.default_rng(seed), images, step=step, ties=ties)
    ours, coco = average_precisions(predicted, true), coco_figures(predicted, true)
    assert set(ours) == set(coco.per_class)
    for label, figures in coco.per_class.items():
        assert ours[label] == pytest.approx(figures.ap50, abs=1e-6)
    if ours:
        assert np.mean(list(ours.values())) == pytest.approx(coco.ap50, abs=1e-6)
    else:
        assert coco.ap50 is None


def test_class_by_class_is_what_it_is_at_once():
    predicted, true = scene(np.random.default_rng(5), 30, classes=5)
    known = np.isin(predicted.label, true.label[~true.ignored])
    images = [{"id": int(one)} for one in np.union1d(predicted.image, true.image)]
    kinds = [{"id": one, "name": str(one)} for one in range(5)]
    data = [
        {"images": images, "categories": kinds, "annotations": list(_annotations(one))}
        for one in (true, predicted[known])
    ]
    judge = COCOeval_faster(COCO(data[0]), COCO(data[1]), iouType="bbox")
    judge.run()
    found = coco_figures(predicted, true)
    ours = [getattr(found, name) for name in found.__dataclass_fields__ if name != "per_class"]
    assert [one for one in judge.stats if one >= 0] == pytest.approx(
        [one for one in ours if one is not None], abs=1e-9
    )
    assert [one < 0 for one in judge.stats] == [one is None for one in ours]


def test_an_ignore_region_excuses_boxes_of_its_class_only():
    true = boxes_of([0, 0], [1, 1], [box(0, 0), box(40, 0, 50)], ignored=[False, True])
    inside = [box(45, 5, 10), box(0, 0)]
    excused = boxes_of([0, 0], [1, 1], inside, [0.9, 0.5])
    assert average_precisions(excused, true) == {1: pytest.approx(1.0)}
    both = boxes_of([0, 0], [1, 2], [box(0, 0), box(0, 60)])
    outside = boxes_of([0, 0], [1, 1], inside, [0.9, 0.5])
    assert average_precisions(outside, both) == {1: pytest.approx(0.5), 2: 0.0}


def test_only_the_first_hundred_of_a_class_in_an_image_count():
    many = Boxes.of(
        GEOMETRY, [0] * 101, [1] * 101, [box(60, 60)] * 100 + [box(0, 0)], [0.9] * 100 + [0.1]
    )
    true = boxes_of([0], [1], [box(0, 0)])
    assert average_precisions(many, true) == {1: 0.0}
    assert average_precisions(many, true, limit=101)[1] == pytest.approx(1 / 101)
    assert coco_figures(many, true).ap50 == 0.0


def test_boxes_that_are_no_boxes_are_wrong_and_come_last_without_a_score():
    nan = float("nan")
    places = [(nan, 0.0, 5.0, 5.0), box(0, 0), box(0, 0, 0), box(0, 0)]
    predicted = boxes_of([0] * 4, [1] * 4, places, [0.9, 0.8, 0.7, nan])
    true = boxes_of([0], [1], [box(0, 0)])
    found = coco_figures(predicted, true)
    assert average_precisions(predicted, true)[1] == pytest.approx(0.5)
    assert found.ap50 == pytest.approx(0.5)


def test_a_result_has_its_figures(home):
    images = {
        "a": Image([(box(0, 0), 1, 0.9), (box(50, 50), 2, 0.8)], [(box(0, 0), 1)]),
        "nothing at all": Image([], []),
        "7": Image([], [(box(40, 40, 40), 1)]),
        "crowd": Image([(box(5, 5), 1, 0.95)], [], [box(0, 0, 80)]),
    }
    found = mean_average_precision(make_result(home, images))
    assert found.ap == found.ap50 == found.ap75 == pytest.approx(51 / 101)
    assert (found.ap_small, found.ap_medium, found.ap_large) == (pytest.approx(1), 0, None)
    assert found.ar100 == pytest.approx(0.5)
    assert list(found.per_class) == [1]  # class 2 has no true box
    assert found.per_class[1].ap50 == found.ap50


def test_images_are_told_apart_by_their_ids(home):
    images = {
        "b": Image([(box(0, 0), 1, 0.9)], []),
        "a": Image([], [(box(0, 0), 1)]),
    }
    result = make_result(home, images)
    boxes = ResultBoxes.of(result, GEOMETRY)
    assert boxes.images.column("input_id").to_pylist() == ["a", "b"]
    assert (boxes.predicted.image.tolist(), boxes.true.image.tolist()) == ([1], [0])
    assert mean_average_precision(result).ap == 0


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    none = boxes_of([], [], [])
    assert average_precisions(none, none) == {}
    with pytest.raises(ImportError, match=r"pip install 'ml-debugger-detection2d\[map\]'"):
        coco_figures(none, none)
