"""Tables of errors, and what errors cost, on boxes whose fate is known."""

from functools import partial

import numpy as np
import pytest

from ml_debugger.core.detection.average_precision import average_precisions
from ml_debugger.core.detection.result_boxes import Boxes
from ml_debugger.core.errors import InputError
from ml_debugger.object_detection.analysis import (
    analysis_of,
    class_table,
    error_types,
    image_table,
    size_borders,
)
from ml_debugger.object_detection.boxes import GEOMETRY

from .made_result import Image, make_result

boxes_of = partial(Boxes.of, GEOMETRY)


def box(x, y, width=20.0, height=20.0):
    return (float(x), float(y), float(x + width), float(y + height))


IMAGES = {
    "good": Image([(box(0, 0), 1, 0.61), (box(40, 0), 2, 0.8)], [(box(0, 0), 1), (box(40, 0), 2)]),
    "class": Image([(box(0, 0), 2, 0.85)], [(box(0, 0), 1)]),
    "place": Image([(box(10, 0), 1, 0.7)], [(box(0, 0), 1)]),
    "both": Image([(box(10, 0), 1, 0.65)], [(box(0, 0), 2)]),
    "split": Image([(box(0, 0, 9, 20), 2, 0.4), (box(12, 0, 8, 20), 2, 0.45)], [(box(0, 0), 2)]),
    "merged": Image([(box(0, 0, 40), 1, 0.6)], [(box(0, 0, 18), 1), (box(20, 0, 19), 1)]),
    "double": Image([(box(0, 0), 1, 0.9), (box(1, 0), 1, 0.75)], [(box(0, 0), 1)]),
    "background": Image([(box(70, 70), 2, 0.95)], []),
    "missed": Image([], [(box(0, 0), 2)]),
    "empty": Image([], []),
}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return make_result(tmp_path_factory.mktemp("home"), IMAGES)


def mended(result, change):
    """Return AP50 after a change of the boxes themselves, minus what it was."""
    boxes = analysis_of(result).boxes
    kind = np.array(boxes.units.column("kind").to_pylist())
    names = np.array(boxes.images.column("input_id").to_pylist())
    after = change(boxes.predicted, boxes.true, kind, names)
    before = average_precisions(boxes.predicted, boxes.true)
    new = average_precisions(*after)
    return np.mean(list(new.values())) - np.mean(list(before.values()))


def right_class(predicted, true, kind, names):
    label = np.where(names[predicted.image] == "class", 1, predicted.label)
    return boxes_of(predicted.image, label, predicted.places, predicted.score), true


def right_place(predicted, true, kind, names):
    name = names[predicted.image]
    corners = predicted.places.copy()
    corners[name == "place"] = box(0, 0)
    corners[name == "merged"] = box(20, 0, 19)
    best = (name == "split") & (predicted.places[:, 0] == 0)
    corners[best] = box(0, 0)
    kept = ~((name == "both") | ((name == "split") & ~best))
    return boxes_of(predicted.image, predicted.label, corners, predicted.score)[kept], true


def without(*kinds):
    return lambda predicted, true, kind, names: (predicted[~np.isin(kind, kinds)], true)


def nothing_missed(predicted, true, kind, names):
    return predicted, true[names[true.image] != "missed"]


@pytest.mark.parametrize(
    ("name", "n", "of", "change"),
    [
        ("class", 1, 11, right_class),
        ("place", 5, 11, right_place),
        ("duplicate", 1, 11, without("D")),
        ("background", 1, 11, without("ON", "N")),
        ("missed", 1, 10, nothing_missed),
    ],
)
def test_a_type_costs_what_its_boxes_cost(result, name, n, of, change):
    row = error_types(result).set_index("type").loc[name]
    assert (row["n"], row["of"], row["share"]) == (n, of, n / of)
    assert row["ap50_cost"] == pytest.approx(mended(result, change), abs=1e-12)
    assert row["ap50_cost"] > 0


def test_means_are_of_the_boxes_of_a_type(result):
    rows = error_types(result).set_index("type")
    units = result.to_pandas()
    units = units[units["wrong"] & (units["kind"] == "D")]
    assert rows.loc["duplicate", "mean_score"] == pytest.approx(0.75)
    assert rows.loc["duplicate", "mean_error_proba"] == pytest.approx(units["error_proba"].mean())
    assert np.isnan(rows.loc["missed", "mean_score"])


@pytest.mark.parametrize("by", ["class", "size", "score"])
def test_groups_hold_every_error_once(result, by):
    whole, grouped = error_types(result), error_types(result, by)
    total = grouped.groupby("type")["n"].sum()
    for row in whole.itertuples():
        if by != "score" or row.type != "missed":
            assert total[row.type] == row.n
    first = grouped[grouped["type"] == "class"]
    assert first["of"].sum() == len(result)


def test_scores_are_cut_into_fifths(result):
    rows = error_types(result, "score")
    rows = rows[rows["type"] == "place"].set_index("group")["n"]
    assert rows.to_dict() == {
        "0.0 to 0.2": 0, "0.2 to 0.4": 0, "0.4 to 0.6": 2, "0.6 to 0.8": 3, "0.8 to 1.0": 0
    }  # fmt: skip


def test_classes_are_those_predicted_and_for_missed_boxes_the_true_ones(result):
    rows = error_types(result, "class").set_index(["group", "type"])["n"]
    assert (rows["1", "class"], rows["2", "class"]) == (0, 1)
    assert (rows["1", "missed"], rows["2", "missed"]) == (0, 1)
    with pytest.raises(InputError, match="class, size, score"):
        error_types(result, "colour")


def test_sizes_are_those_of_coco_unless_nearly_all_are_one():
    even = np.array([10.0, 50.0, 200.0]) ** 2
    assert size_borders(even).tolist() == [32, 96]
    assert size_borders(np.zeros(0)).tolist() == [32, 96]
    small = np.arange(1.0, 31) ** 2
    low, high = size_borders(small)
    assert [(small < low**2).sum(), (small < high**2).sum()] == [10, 20]


def test_classes_have_their_figures(result):
    rows = class_table(result).set_index("label")
    one = rows.loc[1]
    assert [one[k] for k in ("truths", "found", "missed", "boxes", "right")] == [6, 6, 0, 6, 2]
    assert (one["precision"], one["recall"]) == (2 / 6, 2 / 6)
    two = rows.loc[2]
    assert [two[k] for k in ("truths", "found", "missed", "boxes", "right")] == [4, 3, 1, 5, 1]
    boxes = analysis_of(result).boxes
    assert rows["ap50"].to_dict() == average_precisions(boxes.predicted, boxes.true)
    units = result.to_pandas()
    proba = units[units["prediction"] == 1]["error_proba"].mean()
    assert one["mean_error_proba"] == pytest.approx(proba)


def test_the_images_with_the_most_errors_come_first(result):
    rows = image_table(result)
    assert set(rows["input_id"]) == set(IMAGES)
    assert rows["input_id"][0] == "split"
    errors = rows["wrong"] + rows["missed"]
    assert errors.is_monotonic_decreasing
    for row in rows.itertuples():
        image = IMAGES[row.input_id]
        assert (row.boxes, row.truths) == (len(image.predicted), len(image.true))
    units = result.to_pandas()
    sums = units.groupby("input_id")["error_proba"].sum()
    for name, total in sums.items():
        expected = rows.set_index("input_id").loc[name, "expected_wrong"]
        assert expected == pytest.approx(total, rel=1e-5)


def test_frames_are_of_the_kind_that_was_asked_for(result):
    assert image_table(result, as_="arrow").num_rows == len(IMAGES)
    assert class_table(result, as_="polars").shape[0] == 2
    with pytest.raises(InputError, match="as_"):
        error_types(result, as_="list")


def test_a_detector_that_sees_nothing_right(home):
    result = make_result(home, {"a": Image([(box(0, 0), 1, 0.5)], [])})
    rows = error_types(result).set_index("type")
    assert rows.loc["background", "n"] == 1
    assert rows["ap50_cost"].isna().all()  # without a true box there is no AP
    assert class_table(result)["recall"].isna().all()
