"""Two results held side by side."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.result import Result


@pytest.fixture
def evaluated(evaluated, tmp_path):
    """Return two results whose inputs have the same labels."""
    earlier, later = evaluated
    label = later.to_arrow()["label"].to_pylist()
    return copied(earlier, tmp_path / "earlier", lambda table: labelled(table, label)), later


@pytest.fixture
def frames(evaluated):
    return [one.to_pandas().set_index("input_id") for one in evaluated]


@pytest.fixture
def flow(evaluated):
    return evaluated[0].flow(evaluated[1])


@pytest.fixture
def edited(evaluated, tmp_path):
    """Return a function that gives a copy of the later result whose units were edited."""
    return lambda change: copied(evaluated[1], tmp_path / "edited", change)


def copied(result, folder, change):
    shutil.copytree(result.folder, folder, dirs_exist_ok=True)
    pq.write_table(change(result.to_arrow()), folder / "units.parquet")
    return Result.load(folder)


def replaced(table, name, values):
    return table.set_column(table.column_names.index(name), name, values)


def labelled(table, label):
    wrong = [
        one != guess for one, guess in zip(label, table["prediction"].to_pylist(), strict=True)
    ]
    table = replaced(table, "label", pa.array(label, table.schema.field("label").type))
    return replaced(table, "wrong", pa.array(wrong))


def test_regressions_are_listed_with_both_outcomes(flow, frames):
    one, two = frames
    found = flow.regressions.set_index("input_id")
    assert set(found.index) == set(one.index[~one["wrong"] & two["wrong"]])
    assert len(found) > 0
    assert (found["label"] == found["prediction"]).all()
    assert not (found["other_label"] == found["other_prediction"]).any()
    for name in ("prediction", "error_proba", "zone", "code"):
        assert (found[name] == one.loc[found.index, name].astype(found[name].dtype)).all()
        later = found[f"other_{name}"]
        assert (later == two.loc[found.index, name].astype(later.dtype)).all()
    assert flow.broken.equals(flow.regressions)


def test_the_p_value_is_that_of_mcnemar(flow, frames):
    one, two = frames
    broke, fixed = (~one["wrong"] & two["wrong"]).sum(), (one["wrong"] & ~two["wrong"]).sum()
    assert flow.p_value == pytest.approx(binomtest(broke, broke + fixed, 0.5).pvalue)
    assert f"McNemar p = {flow.p_value:.2g}" in str(flow)


def test_inputs_of_several_units_count_once(evaluated, edited):
    def paired(table):
        return replaced(table, "input_id", pa.array([str(k // 2) for k in range(400)]))

    later = edited(paired)
    earlier = copied(evaluated[0], later.folder.parent / "paired", paired)
    flow, alone = earlier.flow(later), evaluated[0].flow(evaluated[1])
    sign = {}
    for change, frame in ((1, alone.regressions), (-1, alone.fixed)):
        for name in frame["input_id"]:
            sign[int(name) // 2] = sign.get(int(name) // 2, 0) + change
    worse, better = (sum(one * way > 0 for one in sign.values()) for way in (1, -1))
    assert flow.tests.loc["all", ["worse", "better"]].to_list() == [worse, better]
    assert worse + better < len(alone.regressions) + len(alone.fixed)
    assert flow.p_value == pytest.approx(binomtest(worse, worse + better).pvalue)
    assert "(sign test by input p = " in str(flow)
    found = flow.inputs.set_index("input_id")["difference"]
    assert found.to_dict() == {str(name): one for name, one in sign.items() if one}
    assert found.is_monotonic_decreasing


def test_outcomes_are_the_table_of_mcnemar(flow, frames):
    one, two = frames
    found = flow.outcomes
    assert list(found.index) == list(found.columns) == ["right", "wrong"]
    assert (
        found.loc["right", "wrong"]
        == (~one["wrong"] & two["wrong"]).sum()
        == flow.tests.loc["all", "worse"]
    )
    assert (
        found.loc["wrong", "right"]
        == (one["wrong"] & ~two["wrong"]).sum()
        == flow.tests.loc["all", "better"]
    )
    assert found.to_numpy().sum() == 400


def test_results_of_two_tasks_are_not_followed(evaluated, tmp_path):
    folder = tmp_path / "task"
    shutil.copytree(evaluated[1].folder, folder)
    path = folder / "result.json"
    path.write_text(path.read_text().replace('"classification"', '"segmentation"'))
    with pytest.raises(InputError, match="compare results of one task"):
        evaluated[0].flow(Result.load(folder))


def test_a_result_differs_from_itself_in_nothing(evaluated):
    same = evaluated[0].flow(evaluated[0])
    assert same.moved.empty
    assert same.p_value == 1
    assert (same.confusion["difference"] == 0).all()
    assert (same.classes["difference"] == 0).all()


def test_confusion_is_signed_and_the_worst_comes_first(flow, frames):
    frame = flow.confusion
    assert frame["this"].sum() == frame["other"].sum() == 400
    assert frame["difference"].sum() == 0
    assert (frame["difference"] == frame["other"] - frame["this"]).all()
    for column, units in zip(("this", "other"), frames, strict=True):
        counted = units.groupby(["label", "prediction"], dropna=False).size()
        found = frame[frame[column] > 0].set_index(["label", "prediction"])[column]
        assert found.to_numpy().sum() == 400
        strangers = frame.loc[frame["label"].isna(), column].sum()
        assert strangers == units["label"].isna().sum()
        for (label, prediction), n in counted.items():
            if label == label:  # not NaN
                assert found[label, prediction] == n
    right = (frame["label"] == frame["prediction"]).fillna(False).astype(bool)
    worse = frame["difference"].where(~right, -frame["difference"])
    assert worse.is_monotonic_decreasing


def test_classes_show_the_difference_in_accuracy(flow, frames):
    one, two = frames
    frame = flow.classes
    assert frame["n"].sum() == 400
    known = frame[frame["label"].notna()].set_index("label")
    for label, row in known.iterrows():
        assert row["accuracy"] == pytest.approx(1 - one["wrong"][one["label"] == label].mean())
        assert row["other_accuracy"] == pytest.approx(
            1 - two["wrong"][two["label"] == label].mean()
        )
    assert (frame["accuracy"][frame["label"].isna()] == 0).all()
    assert frame["difference"].dropna().is_monotonic_increasing


def test_units_of_one_input_are_joined_by_their_position(evaluated, edited):
    pairs = pa.array([str(k // 2) for k in range(400)])
    later = edited(lambda table: replaced(table, "input_id", pairs))
    flow = later.flow(later)
    assert flow.counts.to_numpy().sum() == 400
    assert flow.moved.empty
    # The first result has one unit for each of the 200 inputs, and 200 inputs of its own.
    partly = evaluated[0].flow(later)
    assert partly.counts.to_numpy().sum() == 200
    assert (partly.only_this, partly.only_other) == (200, 200)
    assert set(partly.moved["position"]) == {0}


def test_of_several_epochs_the_latest_counts(recorder):
    run = recorder.run()
    recorder(200, n_epoch=1, seed=1, run=run)
    recorder(200, n_epoch=0, seed=0, run=run)
    both = recorder.evaluate(n_epoch="all")
    last = recorder.evaluate(n_epoch=1)
    assert len(both) == 400
    flow = both.flow(last)
    assert flow.counts.to_numpy().sum() == 200
    assert (flow.only_this, flow.only_other) == (0, 0)
    assert (flow.confusion["difference"] == 0).all()


def test_an_annotation_that_changed_is_said(evaluated, edited):
    def change(table):
        label = table.column("label").to_pylist()
        label[3], label[4] = None if label[3] is not None else 0, None
        return labelled(table, label)

    flow = evaluated[1].flow(edited(change))
    before = evaluated[1].to_pandas()["label"]
    assert flow.relabelled == 1 + before.notna()[4]
    assert "have another label" in str(flow)


def test_no_model_is_blamed_for_a_label_that_changed(evaluated, edited):
    def change(table):
        label, prediction = (table.column(name).to_pylist() for name in ("label", "prediction"))
        label[:100] = [None] * 25 + [(one + 1) % 3 for one in prediction[25:100]]
        label[100:200] = prediction[100:200]
        return labelled(table, label)

    later = edited(change)
    same = evaluated[1].flow(later)  # the predictions are the same, only labels differ
    assert same.relabelled > 100
    assert same.moved.empty
    assert same.p_value == 1
    assert (same.confusion["difference"] == 0).all()
    assert (same.classes["difference"] == 0).all()

    flow = evaluated[0].flow(later)
    one, two = (result.to_pandas().set_index("input_id") for result in (evaluated[0], later))
    assert (one.index == two.index).all()
    wrong = one["prediction"] != two["label"]
    assert set(flow.regressions["input_id"]) == set(one.index[~wrong & two["wrong"]])
    assert set(flow.fixed["input_id"]) == set(one.index[wrong & ~two["wrong"]])
    assert not flow.fixed.empty


@given(st.data())
def test_confusion_and_classes_add_up_for_any_outcome(data):
    import pandas as pd

    from ml_debugger.core.evaluation.comparison import _classes, _confusion

    n = data.draw(st.integers(1, 30))
    column = st.lists(st.integers(0, 3), min_size=n, max_size=n)
    draw = {name: data.draw(column) for name in ("label", "prediction", "other_prediction")}
    # 3 stands for a label that is none of the model's classes.
    both = pd.DataFrame(draw)
    label = pd.array([None if one == 3 else one for one in draw["label"]], dtype="Int64")
    both["label"] = both["other_label"] = label
    for prefix in ("", "other_"):
        right = (both["label"] == both[f"{prefix}prediction"]).fillna(False).astype(bool)
        both[f"{prefix}wrong"] = ~right
    confusion, classes = _confusion(both), _classes(both)
    by_label = confusion.groupby("label", dropna=False)
    assert (by_label["difference"].sum() == 0).all()
    assert by_label["this"].sum().sum() == n
    right = (confusion["label"] == confusion["prediction"]).fillna(False).astype(bool)
    gained = confusion["difference"][right].sum()
    assert (classes["n"] * classes["difference"]).sum() == pytest.approx(gained)
