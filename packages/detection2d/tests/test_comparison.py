"""What became of true objects and false alarms from one version to another."""

import shutil
from collections import Counter
from random import Random

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from typer.testing import CliRunner

from ml_debugger.core.cli import app
from ml_debugger.core.detection.following import OUTCOMES
from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.records import Units
from ml_debugger.core.task import Task
from ml_debugger.evaluator import Evaluator
from ml_debugger.object_detection.following import follow
from ml_debugger.object_detection.task import ObjectDetectionTask
from ml_debugger.training import ObjectDetectionTracer

from . import small
from .made_result import Image, make_result
from .slow_matching import area, iou, match_image
from .test_matching import images, thresholds


def box(x, y, width=20.0, height=20.0):
    return (float(x), float(y), float(x + width), float(y + height))


TRUE = {
    "lost": [(box(0, 0), 1), (box(40, 0), 2)],
    "won": [(box(0, 0), 1)],
    "both": [(box(0, 0), 1), (box(40, 40), 2)],
    "class": [(box(0, 0), 1)],
    "alarms": [],
    "empty": [],
    "never": [(box(50, 50), 2)],
}
OLD = {
    "lost": [(box(0, 0), 1, 0.9), (box(41, 0), 2, 0.8)],
    "won": [(box(10, 0), 1, 0.5)],
    "both": [(box(1, 0), 1, 0.9), (box(40, 40), 2, 0.7), (box(2, 0), 1, 0.4)],
    "class": [(box(0, 0), 1, 0.9)],
    "alarms": [(box(70, 70), 1, 0.3), (box(0, 70), 1, 0.6)],
    "empty": [],
    "never": [],
}
NEW = {
    "lost": [(box(0, 0), 1, 0.9)],
    "won": [(box(1, 0), 1, 0.9)],
    "both": [(box(0, 1), 1, 0.8), (box(40, 41), 2, 0.8)],
    "class": [(box(0, 0), 2, 0.9)],
    "alarms": [(box(1, 71), 2, 0.6), (box(40, 0), 2, 0.9), (box(40, 40), 2, 0.2)],
    "empty": [(box(0, 0), 1, 0.9)],
    "never": [],
}


def made(home, predicted, true=TRUE, crowd=None, **options):
    scenes = {
        name: Image(boxes, true[name], (crowd or {}).get(name, ()))
        for name, boxes in predicted.items()
    }
    return make_result(home, scenes, **options)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return [made(tmp_path_factory.mktemp("home"), one) for one in (OLD, NEW)]


@pytest.fixture
def flow(results):
    return results[0].flow(results[1])


def rows(frame, *names):
    return sorted(frame[["input_id", *names]].astype(str).itertuples(index=False, name=None))


def test_it_says_what_became_of_each_object_and_false_alarm(flow):
    assert rows(flow.regressions, "outcome", "other_outcome") == [
        ("alarms", "nothing", "background"),
        ("alarms", "nothing", "background"),
        ("class", "right", "class"),
        ("empty", "nothing", "background"),
        ("lost", "right", "missed"),
    ]
    assert rows(flow.fixed, "outcome", "other_outcome") == [
        ("alarms", "background", "nothing"),
        ("both", "duplicate", "nothing"),
        ("won", "place", "right"),
    ]
    counted = flow.outcomes.stack()
    assert dict(counted[counted > 0]) == {
        ("right", "right"): 3,
        ("right", "class"): 1,
        ("right", "missed"): 1,
        ("place", "right"): 1,
        ("missed", "missed"): 1,
        ("duplicate", "nothing"): 1,
        ("background", "background"): 1,
        ("background", "nothing"): 1,
        ("nothing", "background"): 3,
    }
    assert (flow.relabelled, flow.only_this, flow.only_other) == (0, 0, 0)


def test_a_lost_object_has_its_place_and_its_code(flow, results):
    lost = flow.moved[flow.moved["other_outcome"] == "missed"]
    (one,) = lost.to_dict("records")
    assert tuple(one[name] for name in ("x1", "y1", "x2", "y2")) == box(40, 0)
    assert (one["input_id"], one["label"], one["other_label"], one["prediction"]) == (
        "lost",
        2,
        2,
        2,
    )
    assert np.isnan(one["other_error_proba"])
    assert one["other_zone"] == "nothing"
    assert one["other_code"] == "DET:no_prediction:CLS2->-"
    before = results[0].to_pandas().query("input_id == 'lost' and prediction == 2").iloc[0]
    assert [one[name] for name in ("zone", "code", "error_proba")] == [
        str(before["zone"]),
        str(before["code"]),
        before["error_proba"],
    ]


def test_a_false_alarm_that_stayed_is_followed_whatever_its_class(flow):
    counted = flow.confusion.set_index(["label", "prediction"])
    stayed = flow.moved.query("outcome == 'background' and other_outcome == 'background'")
    assert set(stayed["prediction"]) <= {1}
    assert counted.loc[(pd.NA, 1)].to_list() == [3, 1, -2]
    assert counted.loc[(pd.NA, 2)].to_list() == [0, 3, 3]
    assert counted.loc[(2, pd.NA)].to_list() == [1, 2, 1]
    # of the right class, but in the wrong place before
    assert counted.loc[(1, pd.NA)].to_list() == [1, 0, -1]
    assert counted.loc[(1, 2)].to_list() == [0, 1, 1]


def test_classes_are_those_of_true_objects(flow):
    frame = flow.classes.set_index("label")
    assert frame["n"].to_dict() == {1: 4, 2: 3}
    assert frame["accuracy"].to_dict() == pytest.approx({1: 3 / 4, 2: 2 / 3})
    assert frame["other_accuracy"].to_dict() == pytest.approx({1: 3 / 4, 2: 1 / 3})


def test_the_p_value_counts_an_image_once(flow):
    changed = flow.inputs.set_index("input_id")["difference"].to_dict()
    assert changed == {"alarms": 1, "both": -1, "class": 1, "empty": 1, "lost": 1, "won": -1}
    assert flow.p_value == pytest.approx(binomtest(4, 6).pvalue)
    assert flow.tests.drop(columns="p_value").to_dict("index") == {
        "all": {"n": 13, "fixed": 3, "broke": 5, "better": 2, "worse": 4},
        "true": {"n": 7, "fixed": 1, "broke": 2, "better": 1, "worse": 2},
        "false alarms": {"n": 6, "fixed": 2, "broke": 3, "better": 1, "worse": 2},
    }
    assert flow.tests.loc["true", "p_value"] == 1


def test_it_reads_what_happened(flow):
    lines = str(flow).split("\n")
    assert [" ".join(line.split()) for line in lines[1:4]] == [
        "true objects 1 fixed, 2 broke, of 7",
        "false alarms 2 gone, 3 new, of 6",
        f"inputs 2 better, 4 worse (sign test by input p = {flow.p_value:.2g})",
    ]
    assert f"{flow.this} -> {flow.other}" == lines[0]
    assert len(lines) <= 4 + 2 + len(flow.outcomes)  # and one table
    assert max(map(len, lines)) <= 100
    assert "..." not in str(flow)


def test_the_older_version_is_judged_as_its_own_result_judges_it(flow, results):
    for at, result in enumerate(results):
        outcome = flow.outcomes.sum(axis=1 - at)
        kinds = result.to_pandas()
        assert outcome["missed"] == result.truths()["missed"].sum()
        assert outcome["right"] == (~kinds["wrong"]).sum()
        wrong = outcome[["class", "place", "duplicate", "background"]].sum()
        assert wrong == kinds["wrong"].sum()
        zones = flow.counts.sum(axis=1 - at).drop("nothing")
        assert list(zones) == list(result.zones()["n"])


def test_the_largest_rise_of_error_proba_comes_first(flow):
    moved = flow.moved
    before = moved["error_proba"].fillna(moved["wrong"].astype(float))
    now = moved["other_error_proba"].fillna(moved["other_wrong"].astype(float))
    assert (now - before).is_monotonic_decreasing


def test_a_result_differs_from_itself_in_nothing(tmp_path):
    nan = float("nan")
    odd = [((5.0, 5.0, 5.0, 9.0), 1, 0.5), ((nan, 0.0, 9.0, 9.0), 2, 0.4), (box(0, 0), 1, 0.9)]
    result = made(tmp_path, {**OLD, "empty": odd + odd}, {**TRUE, "empty": []})
    same = result.flow(result)
    assert same.moved.empty
    assert same.inputs.empty
    assert same.p_value == 1
    assert (same.confusion["difference"] == 0).all()
    assert same.relabelled == 0
    assert np.trace(same.outcomes.to_numpy()) == same.outcomes.to_numpy().sum()


def test_images_without_any_box_are_shared_too(tmp_path):
    result = made(tmp_path, {"empty": [], "never": [(box(0, 0), 1, 0.5)]}, {**TRUE, "never": []})
    assert result.flow(result).moved.empty


def test_no_version_is_blamed_for_an_annotation_that_changed(tmp_path, results):
    true = {**TRUE, "both": [(box(0, 0), 2), (box(40, 40), 2)], "class": [], "never": []}
    later = made(tmp_path, OLD, true)
    flow = results[0].flow(later)
    assert flow.relabelled == 3
    assert not flow.moved["wrong"].ne(flow.moved["other_wrong"]).any()
    assert flow.p_value == 1
    assert "3 have another label" in str(flow)


def test_ignore_regions_and_what_lies_in_them_are_nothing(tmp_path, results):
    later = made(
        tmp_path, NEW, crowd={"alarms": [box(30, 0, 40, 90)], "empty": [box(0, 0, 90, 90)]}
    )
    flow = results[0].flow(later)
    assert rows(flow.regressions, "other_outcome") == [("class", "class"), ("lost", "missed")]
    assert flow.relabelled == 0


def test_images_that_one_version_lacks_are_counted(tmp_path, results):
    some = {name: NEW[name] for name in ("lost", "alarms")}
    later = made(tmp_path, some)
    flow = results[0].flow(later)
    assert set(flow.moved["input_id"]) == {"lost", "alarms"}
    assert (flow.only_this, flow.only_other) == (5, 0)
    back = later.flow(results[0])
    assert (back.only_this, back.only_other) == (0, 5)
    assert rows(back.fixed, "outcome") == rows(flow.regressions, "other_outcome")
    others = made(tmp_path / "other", {"x": [(box(0, 0), 1, 0.5)]}, {"x": []})
    with pytest.raises(InputError, match="share no input"):
        results[0].flow(others)


def test_boxes_of_another_size_of_the_image_are_scaled(tmp_path, results):
    def larger(boxes):
        return {
            name: [(tuple(2 * c for c in one), *rest) for one, *rest in some]
            for name, some in boxes.items()
        }

    later = made(tmp_path, larger(NEW), larger(TRUE), size=(200, 240))
    flow, wanted = results[0].flow(later), results[0].flow(results[1])
    assert flow.outcomes.equals(wanted.outcomes)
    assert flow.relabelled == 0
    corners = [
        flow.moved.sort_values(["input_id", "position"])[["x1", "y2"]] for flow in (flow, wanted)
    ]
    assert (corners[0].to_numpy() == 2 * corners[1].to_numpy()).all()
    unknown = made(tmp_path / "unknown", NEW, size=None)
    assert results[0].flow(unknown).outcomes.equals(wanted.outcomes)


def test_of_several_epochs_the_latest_counts(tmp_path, results):
    """The same records, once more as an epoch before, in which nothing was seen."""
    folder = tmp_path / "both"
    shutil.copytree(results[1].folder, folder)
    for name in ("truths", "inputs"):
        table = pq.read_table(folder / f"{name}.parquet")
        at = table.column_names.index("n_epoch")
        earlier = table.set_column(at, "n_epoch", pa.array([-1] * len(table), pa.int64()))
        whole = pa.concat_tables([table, earlier.cast(table.schema)])
        pq.write_table(whole, folder / f"{name}.parquet")
    both = Result.load(folder)
    assert both.flow(results[1]).moved.empty
    assert str(results[0].flow(both)) == str(results[0].flow(results[1]))


def test_figures_of_a_detector_are_compared(results):
    frame = results[0].compare(results[1]).set_index("figure")
    assert frame.loc["truths", ["this", "other"]].to_list() == [7, 7]
    assert frame.loc["missed", ["this", "other", "better"]].to_list() == [1, 2, False]
    assert frame.loc["found", ["this", "other"]].to_list() == pytest.approx([6 / 7, 5 / 7])
    assert not frame.loc["found", "better"]
    assert 0 < frame.loc["ap50", "other"] < 1
    assert frame.loc["missed", "difference"] == 1
    assert results[1].compare(results[0]).set_index("figure").loc["missed", "better"]


def test_a_task_that_cannot_tell_is_said(results, monkeypatch):
    monkeypatch.setattr(ObjectDetectionTask, "follow", Task.follow)
    with pytest.raises(InputError, match="cannot tell"):
        results[0].flow(results[1])


def test_two_traced_versions():
    given = small.images(24)
    truths = small.truths(small.faster_rcnn(0), given)
    found = []
    for seed in (0, 1):
        with (
            ObjectDetectionTracer(small.faster_rcnn(seed), "m", f"v{seed}") as tracer,
            torch.no_grad(),
        ):
            for at in range(0, 24, 2):
                tracer(given[at : at + 2], truths[at : at + 2], range(at, at + 2), "val")
        found.append(Evaluator("m", f"v{seed}").request_evaluation())
    flow = found[0].flow(found[1])
    for at, result in enumerate(found):
        outcome = flow.outcomes.sum(axis=1 - at)
        assert outcome["missed"] == result.truths()["missed"].sum()
        assert outcome["right"] == (~result.to_pandas()["wrong"]).sum()
    assert flow.outcomes.sum(axis=1)["right"] > flow.outcomes.sum(axis=0)["right"]
    assert len(flow.regressions)
    names = [one.result_name for one in found]
    said = CliRunner().invoke(app, ["compare", *names, "--max-regressions", "0"])
    assert said.exit_code == 1
    lost, won = (int(flow.tests.loc["true", name]) for name in ("broke", "fixed"))
    n = int((~found[1].truths()["ignored"]).sum())
    assert f"{lost} regressed, {won} fixed, of {n} shared true units" in said.output
    assert "sign test by input" in said.output


@st.composite
def versions(draw):
    """Return boxes, scores and classes of two versions, and true boxes, labels and crowd."""
    boxes, _, _, true, labels, crowd = draw(images())
    other = draw(images())[0]
    # some boxes of the one version are where the other's are, or where the truth is
    pairs = [boxes + draw(st.sampled_from([[], other[:2], true]))]
    pairs.append(other + draw(st.sampled_from([[], boxes[:3], true])))

    def some(values, n):
        return draw(st.lists(st.sampled_from(values), min_size=n, max_size=n))

    sides = [(one, some([0.25, 0.5, 0.75], len(one)), some([1, 2], len(one))) for one in pairs]
    return sides, true, labels, crowd


def units(scenes, counts, **columns):
    corners = np.array([c for one in scenes for c in one], np.float32).reshape(-1, 4)
    known = {name: corners[:, at] for at, name in enumerate(("x1", "y1", "x2", "y2"))}
    joined = {name: np.array([v for one in some for v in one]) for name, some in columns.items()}
    size = {name: np.full(len(counts), 9.0) for name in ("image_width", "image_height")}
    return Units({**known, **joined}, np.array(counts, np.int32), size)


def fast(scenes, aligned, matched):
    sides = []
    for at in (0, 1):
        boxes = [sides[at][0] for sides, *_ in scenes]
        sides.append(
            units(
                boxes,
                [len(one) for one in boxes],
                score=[sides[at][1] for sides, *_ in scenes],
                prediction=[sides[at][2] for sides, *_ in scenes],
            )
        )
    true = [one for _, one, _, _ in scenes]
    actual = units(
        true,
        [len(one) for one in true],
        label=[one for *_, one, _ in scenes],
        ignored=[one for *_, one in scenes],
    )
    found = follow(sides[0], actual, sides[1], actual, aligned, matched)
    assert found.relabelled == 0
    assert (np.diff(found.owner) >= 0).all()
    starts = [np.append(0, np.cumsum(one.counts)) for one in sides]
    return Counter(
        (
            int(owner),
            int(label),
            *(
                int(u - start[owner]) if u >= 0 else -1
                for u, start in zip(pair, starts, strict=True)
            ),
            *(OUTCOMES[one] for one in outcome),
        )
        for owner, label, pair, outcome in zip(
            found.owner,
            found.label,
            zip(*found.units, strict=True),
            zip(*found.outcome, strict=True),
            strict=True,
        )
    )


def slow(scenes, aligned, matched):
    things = Counter()
    for image, (sides, true, labels, crowd) in enumerate(scenes):
        found = [match_image(*side, true, labels, crowd, aligned, matched) for side in sides]

        def become(at, t, found=found, sides=sides, labels=labels):
            p = found[at]["by"][t]
            if p < 0:
                return "missed"
            if found[at]["kind"][p] != "A":
                return "place"
            return "right" if sides[at][2][p] == labels[t] else "class"

        for t, one in enumerate(true):
            if not crowd[t] and area(one) > 0:
                best = (found[0]["by"][t], found[1]["by"][t])
                things[(image, labels[t], *best, become(0, t), become(1, t))] += 1
        rest = [
            [p for p in range(len(side[0])) if p not in f["by"] and not f["ignored"][p]]
            for side, f in zip(sides, found, strict=True)
        ]

        def alarm(at, p, found=found):
            return "duplicate" if found[at]["truth"][p] >= 0 else "background"

        here, there = (side[0] for side in sides)
        near = [(-iou(here[p], there[q]), p, q) for p in rest[0] for q in rest[1]]
        near = sorted(one for one in near if -one[0] >= aligned)
        flat = [
            [p for p in some if area(side[0][p]) == 0]
            for some, side in zip(rest, sides, strict=True)
        ]
        for p, q in [*((p, q) for _, p, q in near), *zip(*flat, strict=False)]:
            if p in rest[0] and q in rest[1]:
                rest[0].remove(p)
                rest[1].remove(q)
                things[(image, -1, p, q, alarm(0, p), alarm(1, q))] += 1
        for p in rest[0]:
            things[(image, -1, p, -1, alarm(0, p), "nothing")] += 1
        for q in rest[1]:
            things[(image, -1, -1, q, "nothing", alarm(1, q))] += 1
    return things


@given(st.lists(versions(), min_size=1, max_size=3), thresholds)
def test_fast_is_as_slow(scenes, limits):
    assert fast(scenes, *limits) == slow(scenes, *limits)


@given(st.integers(0, 2**32).map(Random), st.sampled_from([0.2, 0.5]))
def test_fast_is_as_slow_where_false_alarms_crowd(random, aligned):
    def some(n):
        corners = [(random.randint(0, 6), random.randint(0, 6)) for _ in range(n)]
        boxes = [[x, y, x + random.randint(6, 12), y + random.randint(6, 12)] for x, y in corners]
        return boxes, [random.random() for _ in boxes], [random.choice([1, 2]) for _ in boxes]

    scenes = [([some(random.randint(0, 8)) for _ in range(2)], [], [], []) for _ in range(2)]
    assert fast(scenes, aligned, 0.1) == slow(scenes, aligned, 0.1)
