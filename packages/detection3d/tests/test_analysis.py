"""Tables of errors in space, what errors cost, and average precision, on boxes of known fate."""

from math import hypot, pi, radians

import numpy as np
import pytest
import shapely

from ml_debugger.core.detection.average_precision import average_precisions
from ml_debugger.core.detection.result_boxes import Boxes, ResultBoxes
from ml_debugger.core.errors import InputError
from ml_debugger.object_detection_3d.analysis import (
    analysis_of,
    class_table,
    error_types,
    frame_table,
    heading_errors,
)
from ml_debugger.object_detection_3d.average_precision import THRESHOLDS, average_precision
from ml_debugger.object_detection_3d.geometry import geometry
from ml_debugger.object_detection_3d.task import ObjectDetection3DTask

from .made_result import Frame, car, make_result
from .slow_matching import shared

FRAMES = {
    "good": Frame(
        [(car(5, 0, pi), 1, 0.61), (car(15, 3), 2, 0.8)],
        [(car(5, 0), 1), (car(15, 3), 2)],
        points=[150, 30],
        truth_points=[140, 28],
    ),
    "class": Frame([(car(25, 0), 2, 0.85)], [(car(25, 0), 1)]),
    "place": Frame([(car(12, 0, radians(-175)), 1, 0.7)], [(car(10, 0, radians(178)), 1)]),
    "double": Frame([(car(5, 0), 1, 0.9), (car(5.2, 0), 1, 0.75)], [(car(5, 0), 1)]),
    "background": Frame([(car(0, -60), 2, 0.95)], [], points=[3]),
    "missed": Frame([], [(car(0, 35), 2)], truth_points=[4]),
    "hard": Frame([(car(45, 0), 1, 0.3)], [], [(car(45, 0), 1)]),
    "empty": Frame([], []),
}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return make_result(tmp_path_factory.mktemp("home"), FRAMES)


def mended(result, change):
    """Return AP after a change of the boxes themselves, minus what it was."""
    boxes = analysis_of(result).boxes
    kind = np.array(boxes.units.column("kind").to_pylist())
    names = np.array(boxes.images.column("input_id").to_pylist())
    before = average_precisions(boxes.predicted, boxes.true)
    new = average_precisions(*change(boxes.predicted, boxes.true, kind, names))
    return np.mean(list(new.values())) - np.mean(list(before.values()))


def other(predicted, *, label=None, places=None):
    label = predicted.label if label is None else label
    places = predicted.places if places is None else places
    return Boxes.of(predicted.geometry, predicted.image, label, places, predicted.score)


def right_class(predicted, true, kind, names):
    wrong = names[predicted.image] == "class"
    return other(predicted, label=np.where(wrong, 1, predicted.label)), true


def right_place(predicted, true, kind, names):
    places = predicted.places.copy()
    places[names[predicted.image] == "place"] = car(10, 0)
    return other(predicted, places=places), true


def without(*kinds):
    return lambda predicted, true, kind, names: (predicted[~np.isin(kind, kinds)], true)


def nothing_missed(predicted, true, kind, names):
    return predicted, true[names[true.image] != "missed"]


@pytest.mark.parametrize(
    ("name", "n", "of", "change"),
    [
        ("class", 1, 7, right_class),
        ("place", 1, 7, right_place),
        ("duplicate", 1, 7, without("D")),
        ("background", 1, 7, without("ON", "N")),
        ("missed", 1, 6, nothing_missed),
    ],
)
def test_a_type_costs_what_its_boxes_cost(result, name, n, of, change):
    row = error_types(result).set_index("type").loc[name]
    assert (row["n"], row["of"], row["share"]) == (n, of, n / of)
    assert row["ap_cost"] == pytest.approx(mended(result, change), abs=1e-12)
    assert row["ap_cost"] > 0


def counts(result, by, kind):
    rows = error_types(result, by)
    return rows[rows["type"] == kind].set_index("group")["n"].to_dict()


def test_distances_are_from_the_sensor(result):
    names = ["0 to 10 m", "10 to 20 m", "20 to 30 m", "30 to 50 m", "50 m or more"]
    assert list(counts(result, "distance", "background")) == names
    assert counts(result, "distance", "background")["50 m or more"] == 1
    assert counts(result, "distance", "missed")["30 to 50 m"] == 1
    assert counts(result, "distance", "class")["20 to 30 m"] == 1


def test_on_a_map_no_distance_is_known(home):
    frame = Frame([(car(1000, 0), 1, 0.9)], [(car(1000, 50), 1)])
    made = make_result(home, {"a": frame}, "global")
    assert counts(made, "distance", "background") == {
        "0 to 10 m": 0, "10 to 20 m": 0, "20 to 30 m": 0, "30 to 50 m": 0, "50 m or more": 0,
        "not known": 1,
    }  # fmt: skip
    assert counts(made, "distance", "missed")["not known"] == 1


def test_points_are_those_in_the_box_if_they_were_counted(result):
    found = error_types(result, "points").set_index(["type", "group"])["n"]
    assert found["background", "1 to 4"] == 1
    assert found["missed", "1 to 4"] == 1
    assert found["class", "not counted"] == 1
    of = error_types(result, "points").query("type == 'class'").set_index("group")["of"]
    assert of.to_dict() == {
        "0": 0, "1 to 4": 1, "5 to 19": 0, "20 to 99": 1, "100 or more": 1, "not counted": 4
    }  # fmt: skip


def test_headings_are_compared_the_short_way_round(result):
    analysis = analysis_of(result)
    names = np.array(analysis.boxes.images.column("input_id").to_pylist())
    found = dict(zip(names[analysis.boxes.predicted.image], heading_errors(analysis), strict=True))
    assert found["place"] == pytest.approx(7, abs=1e-4)
    assert found["class"] == 0
    assert np.isnan(found["background"])
    of = error_types(result, "heading").query("type == 'class'").set_index("group")["of"]
    assert of["0 to 10\u00b0"] == 5
    assert of["150 to 180\u00b0"] == 1  # front and back are confused, and the box is right
    assert of["no true box"] == 1
    assert "missed" not in set(error_types(result, "heading")["type"])


@pytest.mark.parametrize("by", ["class", "distance", "points", "heading", "size", "score"])
def test_groups_hold_every_error_once(result, by):
    whole, grouped = error_types(result), error_types(result, by)
    total = grouped.groupby("type")["n"].sum()
    for row in whole.itertuples():
        if by not in ("heading", "score") or row.type != "missed":
            assert total[row.type] == row.n
    assert grouped[grouped["type"] == "class"]["of"].sum() == len(result)


def test_sizes_are_thirds_of_the_true_boxes(home):
    boxes = [(car(10 * k, 0, 0, 2.0 + k), 1) for k in range(6)]
    made = make_result(home, {"a": Frame([(car(90, 90, 0, 1.0), 1, 0.9)], boxes)})
    rows = error_types(made, "size")
    assert rows[rows["type"] == "missed"]["of"].tolist() == [2, 2, 2]
    assert rows[rows["type"] == "class"]["of"].tolist() == [1, 0, 0]


def test_nothing_else_can_be_counted_by(result):
    with pytest.raises(InputError, match="class, distance, points, heading, size, score"):
        error_types(result, "colour")


def test_classes_and_frames_have_their_figures(result):
    rows = class_table(result).set_index("label")
    names = ("truths", "found", "missed", "boxes", "right")
    assert [rows.loc[1, k] for k in names] == [4, 4, 0, 4, 2]
    assert [rows.loc[2, k] for k in names] == [2, 1, 1, 3, 1]
    assert rows["ap"].to_dict() == analysis_of(result).costs.ap
    frames = frame_table(result)
    assert set(frames["input_id"]) == set(FRAMES)
    errors = frames["wrong"] + frames["missed"]
    assert errors.is_monotonic_decreasing
    assert errors.sum() == 5


def test_a_comparison_shows_what_was_missed(result):
    found = ObjectDetection3DTask.figures(result)
    assert found["truths"] == (6, None)
    assert found["missed"] == (1, False)
    assert found["found"] == (pytest.approx(5 / 6), True)
    assert found["ap"] == (pytest.approx(average_precision(result).at[0.5]), True)


def test_ap_is_by_the_overlap_of_the_result(home):
    high = (4.0, 0.0, 1.5, 4.0, 2.0, 2.0, 0.0)  # right above what is true, a quarter shared
    frames = {
        "a": Frame([(high, 1, 0.9), (car(20, 1.5), 1, 0.8)], [(car(4, 0), 1), (car(20, 0), 1)])
    }
    found = {
        overlap: average_precision(make_result(home / overlap, frames, overlap=overlap))
        for overlap in THRESHOLDS
    }
    assert {name: one.measure for name, one in found.items()} == {name: name for name in found}
    assert found["3d"].ap == 0
    assert found["bev"].ap == pytest.approx(51 / 101)
    assert found["distance"].at == {
        0.5: pytest.approx(51 / 101), 1: pytest.approx(51 / 101), 2: 1, 4: 1
    }  # fmt: skip
    made = make_result(home / "more", frames, overlap="distance", aligned_iou=0.75)  # 1 m
    assert analysis_of(made).costs.ap[1] == pytest.approx(51 / 101)
    with pytest.raises(InputError, match="bev, 3d, distance"):
        average_precision(made, "volume")


# ------------------------------------------------------- average precision, one box at a time


def rectangle(box):
    x, y, _, dx, dy, _, yaw = box
    cos, sin = np.cos(yaw), np.sin(yaw)
    corners = [(1, 1), (1, -1), (-1, -1), (-1, 1)]
    ends = [(a * dx / 2, b * dy / 2) for a, b in corners]
    return shapely.Polygon([(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in ends])


def fit(a, b, measure):
    """Return how well boxes fit: more is better."""
    if measure == "distance":
        return -hypot(a[0] - b[0], a[1] - b[1])
    area = shared(rectangle(a), rectangle(b))
    sizes = a[3] * a[4], b[3] * b[4]
    if measure == "3d":
        top, bottom = min(a[2] + a[5] / 2, b[2] + b[5] / 2), max(a[2] - a[5] / 2, b[2] - b[5] / 2)
        area *= max(top - bottom, 0)
        sizes = sizes[0] * a[5], sizes[1] * b[5]
    return area / (sizes[0] + sizes[1] - area)


def slow_ap(frames, label, measure, threshold):
    """Return the average precision of a class as its definition says, without ignored boxes."""
    least = -threshold if measure == "distance" else threshold
    boxes = [
        (score, name, box)
        for name, frame in frames.items()
        for box, of, score in frame.predicted
        if of == label
    ]
    free = {name: [box for box, of in one.true if of == label] for name, one in frames.items()}
    truths = sum(map(len, free.values()))
    right = []
    for _, name, box in sorted(boxes, key=lambda one: -one[0]):
        fits = [(fit(box, one, measure), at) for at, one in enumerate(free[name])]
        best, at = max(fits, default=(-np.inf, -1))
        right.append(best >= least)
        if right[-1]:
            del free[name][at]
    total = 0.0
    for recall in np.linspace(0, 1, 101):
        hits = [
            (sum(right[: k + 1]) / (k + 1)) for k in range(len(right))
            if sum(right[: k + 1]) / truths >= recall
        ]  # fmt: skip
        total += max(hits, default=0.0)
    return total / 101


def drawn(rng):
    """Draw frames of boxes near true ones and elsewhere."""
    frames = {}
    for number in range(5):
        true, predicted = [], []
        for _ in range(rng.integers(0, 6)):
            box = np.array(
                [*rng.uniform(-15, 15, 2), rng.normal(), 4.2, 1.9, 1.6, rng.uniform(-4, 4)]
            )
            true.append((tuple(box), int(rng.integers(0, 2))))
            for _ in range(rng.integers(0, 3)):
                moved = box + np.array([*rng.normal(0, 0.4, 2), *rng.normal(0, 0.15, 5)])
                label = true[-1][1] if rng.random() < 0.9 else 1 - true[-1][1]
                predicted.append((tuple(moved), label, float(rng.random())))
        predicted += [
            ((*rng.uniform(-15, 15, 2), 0.0, 4.0, 2.0, 1.5, 0.0), 1, float(rng.random()))
            for _ in range(rng.integers(0, 3))
        ]
        frames[str(number)] = Frame(predicted, true)
    return frames


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_what_its_definition_says(home, seed):
    frames = drawn(np.random.default_rng(seed))
    result = make_result(home, frames)
    some = 0
    for measure, thresholds in THRESHOLDS.items():
        found = average_precision(result, measure)
        labels = {of for one in frames.values() for _, of in one.true}
        assert set(found.per_class) == labels
        slow = {
            one: {label: slow_ap(frames, label, measure, one) for label in labels}
            for one in thresholds
        }
        for label in labels:
            assert found.per_class[label] == pytest.approx(
                {one: slow[one][label] for one in thresholds}, abs=1e-9
            )
        means = {one: np.mean(list(slow[one].values())) for one in thresholds}
        assert found.at == pytest.approx(means, abs=1e-9)
        assert found.ap == pytest.approx(np.mean(list(means.values())), abs=1e-9)
        some += 0.01 < found.ap < 0.99
    assert some == 3


def test_a_box_in_an_ignored_one_does_not_count(home):
    true, hard = [(car(5, 0), 1)], [(car(30, 0), 1)]
    predicted = [(car(30, 0), 1, 0.9), (car(5, 0), 1, 0.5)]
    excused = make_result(home / "a", {"a": Frame(predicted, true, hard)})
    assert [average_precision(excused, one).ap for one in THRESHOLDS] == pytest.approx([1, 1, 1])
    wrong = make_result(home / "b", {"a": Frame(predicted, true)})
    assert average_precision(wrong).ap == pytest.approx(0.5)


def test_without_a_true_box_nothing_is_defined(home):
    result = make_result(home, {"a": Frame([(car(5, 0), 1, 0.5)], [])})
    found = average_precision(result)
    assert (found.ap, found.at, found.per_class) == (None, {0.5: None, 0.7: None}, {})
    assert error_types(result)["ap_cost"].isna().all()
    assert error_types(result, "size")["of"].sum() > 0
    assert ObjectDetection3DTask.figures(result)["ap"] == (None, True)


def test_a_result_of_other_boxes_is_refused(result):
    class Flat:
        columns = ("x1", "y1", "x2", "y2")

    with pytest.raises(InputError, match="object_detection_3d"):
        ResultBoxes.of(result, Flat())
    assert len(ResultBoxes.of(result, geometry("3d")).predicted) == len(result)
