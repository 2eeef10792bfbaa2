"""What can be asked of a saved result."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from ml_debugger.core.errors import InputError, ResultNotFoundError, SchemaError
from ml_debugger.core.evaluation import metrics
from ml_debugger.core.evaluation.check import CheckFailedError
from ml_debugger.core.evaluation.estimator import Observations
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.evaluation.zones import ZONES


@pytest.fixture
def result(evaluated) -> Result:
    return evaluated[1]


def test_figures_are_those_of_its_units(result):
    frame = result.to_pandas()
    summary = result.summary()
    assert summary.n == len(result) == len(frame)
    assert summary.errors == frame["wrong"].sum()
    assert summary.accuracy == pytest.approx(1 - frame["wrong"].mean())
    assert summary.accuracy_low < summary.accuracy < summary.accuracy_high
    assert summary.auroc == pytest.approx(metrics.auroc(frame["error_proba"], frame["wrong"]))
    assert summary.auroc_low < summary.auroc < summary.auroc_high
    assert ((frame["label"] != frame["prediction"]) == frame["wrong"]).all()
    assert (frame["wrong"] | frame["label"].notna()).all()


def test_a_summary_is_a_mapping_that_reads_well(result):
    summary = result.summary()
    assert dict(summary)["accuracy"] == summary["accuracy"] == summary.accuracy
    assert set(summary) >= {"n", "errors", "auroc", "zones", "notes"}
    with pytest.raises(KeyError):
        summary["precision"]
    text = str(summary)
    assert text.startswith("later\n")
    assert f"{summary.errors:,} wrong" in text
    assert summary.best_baseline in text


def test_a_summary_is_shown_by_rich_and_notebooks(result, capsys):
    from rich.console import Console

    Console(width=100, file=None).print(result.summary())
    assert "accuracy" in capsys.readouterr().out
    html = result._repr_html_()
    assert html.startswith("<table>")
    assert repr(result).startswith("<Result later: n=400")


def test_zones_add_up_and_carry_their_rules(result):
    frame, units = result.zones(), result.to_pandas()
    assert list(frame["zone"]) == [zone.value for zone in ZONES]
    assert frame["n"].sum() == len(units)
    assert frame["errors"].sum() == units["wrong"].sum()
    assert frame["share"].sum() == pytest.approx(1)
    for row in frame[frame["n"] > 0].itertuples():
        inside = units[units["zone"] == row.zone]
        assert row.n == len(inside)
        assert row.error_rate == pytest.approx(inside["wrong"].mean())
        assert row.low <= row.error_rate <= row.high
        assert row.mean_score == pytest.approx(inside["score"].mean(), rel=1e-5)
        assert row.rule
    stated = " ".join(frame["rule"])
    for rule in result.rules.describe():
        assert rule.partition(": ")[2] in stated


@pytest.mark.parametrize(("rows", "cols"), [(10, 10), (1, 1), (4, [0, 0.5, 0.9, 1])])
def test_heatmap_counts_every_unit_once(result, rows, cols):
    frame, units = result.heatmap(rows, cols), result.to_pandas()
    n_rows = rows if isinstance(rows, int) else len(rows) - 1
    n_cols = cols if isinstance(cols, int) else len(cols) - 1
    assert len(frame) == n_rows * n_cols
    assert frame["n"].sum() == len(units)
    assert frame["errors"].sum() == units["wrong"].sum()
    assert (frame["error_rate"].isna() == (frame["n"] == 0)).all()
    cell = frame.loc[frame["n"].idxmax()]
    inside = units["error_proba"].between(
        cell.error_proba_low, cell.error_proba_high, inclusive="left"
    ) & units["score"].between(cell.score_low, cell.score_high, inclusive="left")
    if rows != 1:
        assert cell.n == pytest.approx(inside.sum(), abs=1)  # a score of 1 is in the last cell


@pytest.mark.parametrize("bad", [0, True, "10", [0, 1, 0.5], [0.1, 1], [], [0, float("nan"), 1]])
def test_heatmap_refuses_what_are_no_bins(result, bad):
    with pytest.raises(InputError, match="rows"):
        result.heatmap(rows=bad)
    with pytest.raises(InputError, match="cols"):
        result.heatmap(cols=bad)


def test_error_codes_count_every_unit(result):
    frame, units = result.error_codes(), result.to_pandas()
    assert frame["n"].sum() == len(units)
    assert frame["errors"].sum() == units["wrong"].sum()
    assert frame["errors"].is_monotonic_decreasing
    first = frame.iloc[0]
    inside = units[units["code"] == first["code"]]
    assert first["n"] == len(inside)
    assert first["share"] == pytest.approx(len(inside) / len(units))
    assert first["mean_error_proba"] == pytest.approx(inside["error_proba"].mean(), rel=1e-5)


def test_errors_are_the_wrong_units_worst_first(result):
    errors, units = result.errors(), result.to_pandas()
    assert len(errors) == units["wrong"].sum()
    assert errors["wrong"].all()
    assert errors["error_proba"].is_monotonic_decreasing
    strangers = result.errors(kind="unknown_class")
    assert strangers["label"].isna().all()
    assert len(strangers) + len(result.errors(kind="misclassified")) == len(errors)
    assert result.errors(kind="confirmed")["code"].str.endswith("**").all()
    suspects = result.errors(kind="suspect_label")
    assert (suspects["plausible"] == suspects["prediction"]).all()
    code = errors["code"].iloc[0]
    assert set(result.errors(code=code)["code"]) == {code}
    hot = result.errors(zone="critical_hotspot")
    assert set(hot["zone"]) <= {"critical_hotspot"}
    with pytest.raises(InputError, match="misclassified"):
        result.errors(kind="fp")
    with pytest.raises(InputError, match="stable_coverage"):
        result.errors(zone="cold")


def test_samples_are_all_units_worst_first_and_ties_by_id(result):
    samples = result.samples()
    assert len(samples) == len(result)
    key = list(zip(-samples["error_proba"], samples["input_id"], strict=True))
    assert key == sorted(key)
    zone = samples["zone"].iloc[0]
    assert set(result.samples(zone=zone)["zone"]) == {zone}


@pytest.mark.parametrize("equal", ["size", "width"])
def test_reliability_is_about_every_unit(result, equal):
    frame, units = result.reliability(bins=5, equal=equal), result.to_pandas()
    assert frame["n"].sum() == len(units)
    assert len(frame) <= 5
    assert frame["error_proba"].is_monotonic_increasing
    total = (frame["n"] * frame["error_proba"]).sum()
    assert total == pytest.approx(units["error_proba"].sum(), rel=1e-5)
    assert (frame["n"] * frame["error_rate"]).sum() == pytest.approx(units["wrong"].sum())
    assert ((frame["low"] <= frame["error_rate"]) & (frame["error_rate"] <= frame["high"])).all()
    with pytest.raises(InputError, match="bins"):
        result.reliability(bins=0)
    with pytest.raises(InputError, match="equal"):
        result.reliability(equal="mass")


def test_baselines_hold_ours_and_the_others(result):
    frame = result.baselines()
    assert frame["name"].iloc[0] == "error_proba"
    assert {"max_softmax", "energy", "knn_distance"} <= set(frame["name"])
    assert frame["auroc"].iloc[0] == pytest.approx(result.summary().auroc)
    assert frame["auroc"].iloc[1:].is_monotonic_decreasing
    summary = result.summary()
    assert summary.best_baseline == frame["name"].iloc[1]
    assert frame["name"][frame["used"]].tolist() == ["error_proba"] == [summary.used]
    for name in ("auroc", "aurc", "augrc", "brier", "ece"):
        assert (frame[f"{name}_low"] <= frame[name]).all()
        assert (frame[name] <= frame[f"{name}_high"]).all()
    gains = frame["auroc"].iloc[0] - frame["auroc"].iloc[1:]
    assert frame["auroc_gain"].iloc[1:].tolist() == pytest.approx(gains.tolist())
    assert np.isnan(frame["auroc_gain"].iloc[0])
    assert summary.auroc_gain_low == frame["auroc_gain_low"].iloc[1] > 0


def test_results_without_intervals_are_read(result, tmp_path):
    copy = tmp_path / "earlier"
    shutil.copytree(result.folder, copy)
    content = json.loads((copy / "result.json").read_text())
    known = ("auroc", "aurc", "augrc", "brier", "ece")
    content["baselines"] = {
        name: {figure: row[figure] for figure in known}
        for name, row in content["baselines"].items()
    }
    for name in ("aurc", "augrc", "ece"):
        del content["metrics"][f"{name}_low"], content["metrics"][f"{name}_high"]
    (copy / "result.json").write_text(json.dumps(content))
    earlier = Result.load(copy)
    frame = earlier.baselines()
    assert frame["auroc_low"].isna().all()
    assert frame["name"][frame["used"]].tolist() == ["error_proba"]
    assert earlier.estimator.method == "error_proba"
    assert "best baseline" in str(earlier.summary())
    assert earlier.report(tmp_path / "earlier.html").exists()


@pytest.mark.parametrize(("part", "message"), [("error_model", "evaluate anew"), ("rules", "form")])
def test_an_error_model_or_zones_of_another_version_are_refused(result, tmp_path, part, message):
    copy = tmp_path / "earlier"
    shutil.copytree(result.folder, copy)
    content = json.loads((copy / "result.json").read_text())
    content[part]["version"] = 1
    (copy / "result.json").write_text(json.dumps(content))
    earlier = Result.load(copy)
    assert len(earlier.to_arrow()) == len(result)  # what was found can still be read
    with pytest.raises(SchemaError, match=message):
        _ = (earlier.estimator, earlier.rules)


@pytest.mark.parametrize("name", ["zones", "heatmap", "error_codes", "errors", "samples"])
def test_frames_come_in_three_kinds(result, name):
    pl = pytest.importorskip("polars")
    ask = getattr(result, name)
    pandas, polars, arrow = ask(), ask(as_="polars"), ask(as_="arrow")
    assert type(pandas).__module__.startswith("pandas")
    assert isinstance(polars, pl.DataFrame)
    assert isinstance(arrow, pa.Table)
    assert list(pandas.columns) == polars.columns == arrow.column_names
    assert len(pandas) == len(polars) == len(arrow)
    with pytest.raises(InputError, match="as_"):
        ask(as_="csv")


def test_units_come_in_three_kinds(result):
    pytest.importorskip("polars")
    assert list(result.to_pandas()["input_id"]) == result.to_polars()["input_id"].to_list()
    assert result.to_arrow().column("input_id").to_pylist() == [str(k) for k in range(400)]


def test_compare_reads_from_this_to_the_other(evaluated):
    first, second = evaluated
    frame = first.compare(second).set_index("figure")
    row = frame.loc["accuracy"]
    assert row["this"] == pytest.approx(first.summary().accuracy)
    assert row["other"] == pytest.approx(second.summary().accuracy)
    assert row["difference"] == pytest.approx(row["other"] - row["this"])
    assert row["better"] == (row["difference"] > 0)
    assert frame.loc["errors", "better"] == (frame.loc["errors", "difference"] < 0)
    back = second.compare(first).set_index("figure")
    assert back.loc["accuracy", "difference"] == pytest.approx(-row["difference"])


def test_flow_follows_inputs_by_id(evaluated):
    first, second = evaluated
    flow = first.flow(second)
    assert flow.counts.to_numpy().sum() == 400
    assert (flow.only_this, flow.only_other) == (0, 0)
    assert list(flow.counts.sum(axis=1)) == list(first.zones()["n"])
    assert list(flow.counts.sum(axis=0)) == list(second.zones()["n"])
    one, two = (r.to_pandas().set_index("input_id") for r in evaluated)
    was_wrong = ~(one["prediction"] == two["label"]).fillna(False).astype(bool)
    assert set(flow.broken["input_id"]) == set(one.index[~was_wrong & two["wrong"]])
    assert set(flow.fixed["input_id"]) == set(one.index[was_wrong & ~two["wrong"]])
    changed = (one["zone"].astype(str) != two["zone"].astype(str)) | (was_wrong != two["wrong"])
    assert set(flow.moved["input_id"]) == set(one.index[changed])
    rise = flow.moved["other_error_proba"] - flow.moved["error_proba"]
    assert rise.is_monotonic_decreasing
    assert "kept their zone" in str(flow)
    assert first.flow(first).moved.empty


def test_flow_needs_inputs_in_common(evaluated, tmp_path):
    first = evaluated[0]
    copy = tmp_path / "other"
    shutil.copytree(first.folder, copy)
    table = first.to_arrow()
    others = pa.array([f"x{k}" for k in range(len(table))])
    import pyarrow.parquet as pq

    pq.write_table(table.set_column(0, "input_id", others), copy / "units.parquet")
    with pytest.raises(InputError, match="share no input"):
        first.flow(Result.load(copy))


def test_checks_pass_and_fail(result):
    metrics = result.manifest.metrics
    report = result.check(min_accuracy=metrics.accuracy, max_ece=1, min_auroc=0.5)
    assert report
    assert report.passed
    assert str(report).count("PASS") == len(report.lines) == 3
    report.raise_if_failed()
    failed = result.check(min_accuracy=0.999, max_critical_share=1, beats_max_softmax=True)
    assert not failed
    assert [line.passed for line in failed.lines] == [False, True, True]
    assert "accuracy" in str(failed)
    assert "wanted >= 0.999" in str(failed)
    with pytest.raises(CheckFailedError, match="1 of 2 checks") as caught:
        result.check(min_accuracy=0.999, max_ece=1, raise_on_failure=True)
    assert isinstance(caught.value, AssertionError)
    assert not caught.value.report.passed


def test_checks_refuse_what_is_no_limit(result):
    with pytest.raises(InputError, match="at least one limit"):
        result.check()
    for bad in ("0.9", True, float("nan")):
        with pytest.raises(InputError, match="min_auroc"):
            result.check(min_auroc=bad)


def test_a_figure_that_is_not_defined_keeps_no_limit(recorder):
    recorder(200, perfect=True)
    report = recorder.evaluate().check(min_auroc=0.1)
    assert not report
    assert "not defined" in str(report)


def test_the_error_model_comes_back_from_disk(result, made):
    again = Result.load(result.folder)
    pool = made(50, seed=99).batch.predicted.columns
    observations = Observations(
        features={"early": pool["feature.early"].numpy(), "hidden": pool["feature.hidden"].numpy()},
        prediction=pool["prediction"].numpy().astype(np.int64),
        score=pool["score"].numpy(),
        logits=pool["logits"].numpy(),
    )
    first, second = (one.estimator.estimate(observations) for one in (result, again))
    assert np.array_equal(first.error_proba, second.error_proba)
    assert again.rules == result.rules
    zones = again.rules.assign(second, observations.score)
    assert set(zones) <= set(range(len(ZONES)))


def test_a_result_is_complete_in_its_folder(result, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(result.folder, moved)
    names = sorted(file.name for file in moved.iterdir())
    assert names == ["model.safetensors", "result.json", "units.parquet"]
    again = Result.load(str(moved))
    assert again.manifest == result.manifest
    assert again.to_arrow().equals(result.to_arrow())
    header = (again.result_name, again.model_name, again.version_name, again.method_name)
    assert header == ("later", "net", "v1", "classification_v1")
    assert again.created_at <= again.completed_at
    assert again.options["seed"] == 0
    assert again.layers == {"early": "0", "hidden": "1"}
    assert again.class_names == ["cat", "dog", "<b>cow</b>", "hen"]


def test_what_cannot_be_read_is_said(result, tmp_path):
    with pytest.raises(ResultNotFoundError, match=r"result\.json"):
        Result.load(tmp_path)
    later = tmp_path / "later"
    shutil.copytree(result.folder, later)
    content = json.loads((later / "result.json").read_text())
    (later / "result.json").write_text(json.dumps({**content, "schema_number": 99}))
    with pytest.raises(SchemaError, match=r"99.*upgrade"):
        Result.load(later)
    (later / "result.json").write_text(json.dumps({**content, "rows": "many"}))
    with pytest.raises(SchemaError, match="damaged at rows"):
        Result.load(later)
    for broken in ("{", "[]", '{"a": 1}'):
        (later / "result.json").write_text(broken)
        with pytest.raises(SchemaError):
            Result.load(later)
    (later / "result.json").write_text(json.dumps(content))
    for name in ("units.parquet", "model.safetensors"):
        (later / name).write_bytes(b"no")
    opened = Result.load(later)
    with pytest.raises(SchemaError, match=r"units\.parquet"):
        opened.to_pandas()
    with pytest.raises(SchemaError, match=r"model\.safetensors"):
        _ = opened.estimator


def test_a_later_minor_version_may_add_what_this_one_does_not_know(result, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(result.folder, copy)
    content = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps({**content, "mood": "good"}))
    assert Result.load(copy).manifest == result.manifest
