"""What an evaluation takes, chooses, refuses and leaves behind."""

import re
import warnings
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from ml_debugger.core.errors import (
    EpochError,
    InputError,
    NothingToEvaluateError,
    ResultNotFoundError,
    StoreError,
)
from ml_debugger.core.evaluation import estimation, folder, method
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.evaluation.zones import ZONES
from ml_debugger.core.service import client
from ml_debugger.core.store import Scope
from ml_debugger.evaluator import Evaluator
from ml_debugger.evaluator.evaluator import Evaluator as DocumentedEvaluator


@pytest.fixture
def evaluator(recorder, monkeypatch):
    monkeypatch.delenv("MLD_API_ENDPOINT", raising=False)
    monkeypatch.setattr("ml_debugger.core.task.task_named", method.task_named)
    return Evaluator("net", "v1", home=recorder.home)


def test_is_importable_by_both_documented_paths():
    assert Evaluator is DocumentedEvaluator


def test_names_itself_after_model_version_method_and_day(recorder, evaluator):
    recorder()
    day = datetime.now(UTC).strftime("%Y%m%d")
    names = [evaluator.request_evaluation().result_name for _ in range(3)]
    start = f"net_v1_classification_v1_{day}"
    assert names == [start, f"{start}_2", f"{start}_3"]


def test_a_taken_name_is_refused(recorder, evaluator):
    recorder()
    first = evaluator.request_evaluation(result_name="mine")
    assert first.result_name == "mine"
    with pytest.raises(InputError, match="'mine' already"):
        evaluator.request_evaluation(result_name="mine")
    for bad in ("", " ", "two\nlines", 3):
        with pytest.raises(InputError, match="result_name"):
            evaluator.request_evaluation(result_name=bad)


@pytest.mark.parametrize("name", ["a/b", "..", "../../escape", "ünï", "con", "x" * 200, ".hidden"])
def test_any_printable_name_stays_inside_the_store(recorder, evaluator, name):
    recorder()
    result = evaluator.request_evaluation(result_name=name)
    assert result.folder.parent == recorder.home / "results"
    assert evaluator.get_result(name).result_name == name


def test_training_data_is_left_out_where_there_is_other(recorder, evaluator):
    recorder(dataset_type="train", seed=1)
    recorder(dataset_type="val", run=recorder.repository.runs()[0].run, seed=2)
    result = evaluator.request_evaluation()
    assert result.manifest.dataset_types == ["val"]
    assert set(result.to_pandas()["dataset_type"]) == {"val"}
    assert not any("optimistic" in note for note in result.notes)


def test_training_data_alone_is_evaluated_with_a_warning(recorder, evaluator):
    recorder(dataset_type="train")
    with pytest.warns(UserWarning, match="optimistic"):
        result = evaluator.request_evaluation()
    assert result.manifest.optimistic
    assert any("optimistic" in note for note in result.notes)


def test_dataset_types_can_be_named(recorder, evaluator):
    run = recorder.run()
    for kind in ("train", "val", "test"):
        recorder(200, dataset_type=kind, run=run)
    one = evaluator.request_evaluation(options={"dataset_type": "test"})
    two = evaluator.request_evaluation(options={"dataset_type": ["val", "test"]})
    assert set(one.to_pandas()["dataset_type"]) == {"test"}
    assert set(two.to_pandas()["dataset_type"]) == {"val", "test"}


def test_nothing_labelled_says_what_is_there_and_leaves_nothing(recorder, evaluator):
    recorder(dataset_type="pool", labelled=False)
    with pytest.raises(NothingToEvaluateError, match=r"pool \(300, no labels\)"):
        evaluator.request_evaluation()
    recorder(dataset_type="val")
    with pytest.raises(NothingToEvaluateError, match=r"test.*val \(300, labelled\)"):
        evaluator.request_evaluation(options={"dataset_type": "test"})
    with pytest.raises(NothingToEvaluateError, match="epoch 7"):
        evaluator.request_evaluation(n_epoch=7)
    assert evaluator.list_results(n_epoch="all").empty
    assert not list((recorder.home / "results").glob("*"))


def test_an_unknown_version_is_named(recorder):
    with pytest.raises(NothingToEvaluateError, match="net/v1"):
        Evaluator("net", "v2", home=recorder.home).request_evaluation()


def test_epochs(recorder, evaluator):
    run = recorder.run()
    recorder(200, n_epoch=5, run=run, seed=1)
    recorder(250, n_epoch=None, run=run, seed=2)
    recorder(300, n_epoch=0, run=run, seed=3)
    assert evaluator.request_evaluation().n_epoch == 0  # written last
    assert len(evaluator.request_evaluation(n_epoch=5)) == 200
    assert len(evaluator.request_evaluation(n_epoch=None)) == 250
    everything = evaluator.request_evaluation(n_epoch="all")
    assert everything.n_epoch == "all"
    assert len(everything) == 750
    for bad in (True, "newest", 1.5):
        with pytest.raises(EpochError):
            evaluator.request_evaluation(n_epoch=bad)
        with pytest.raises(EpochError):
            evaluator.list_results(n_epoch=bad)


def test_the_same_input_in_several_epochs_does_not_judge_itself(recorder, evaluator):
    # Labels without any connection to the features: only a copy of itself could tell.
    run = recorder.run()
    made = [recorder(200, n_epoch=epoch, run=run, seed=0) for epoch in range(3)]
    result = evaluator.request_evaluation(n_epoch="all")
    single = evaluator.request_evaluation(n_epoch=0)
    assert len(result) == 3 * len(made[0].wrong)
    assert result.summary().auroc == pytest.approx(single.summary().auroc, abs=0.06)


def test_methods(recorder, evaluator):
    recorder()
    assert evaluator.request_evaluation("classification_v1").method_name == "classification_v1"
    with pytest.raises(InputError, match=r"'od_v1'.*'default', 'classification_v1'"):
        evaluator.request_evaluation("od_v1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"zone": {}}, "no option 'zone'; the options are: dataset_type, run, zones"),
        ({"stable_risk": 2}, "option 'stable_risk'"),
        ({"seed": True}, "option 'seed'"),
        ({"max_references": 1.5}, "option 'max_references'"),
        ({"error_proba_thresh": -0.1}, "option 'error_proba_thresh'"),
        ({"dataset_type": 3}, "option 'dataset_type"),
        ({"dataset_type": []}, "option 'dataset_type"),
        ({"zones": {"rules": [{"zone": "lukewarm"}]}}, "option 'zones"),
        ([("seed", 1)], "options must be a dict"),
    ],
)
def test_options_that_do_not_fit(recorder, evaluator, options, said):
    recorder()
    with pytest.raises(InputError, match=re.escape(said)):
        evaluator.request_evaluation(options=options)


def test_two_runs_of_an_epoch_are_named_and_can_be_told_apart(recorder, evaluator):
    first, second = recorder.run(), recorder.run()
    recorder(200, run=first)
    recorder(200, run=second, ids=[f"b{k}" for k in range(200)], seed=1)
    with pytest.warns(UserWarning, match=f"{first}, {second}"):
        mixed = evaluator.request_evaluation()
    assert len(mixed) == 400
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = evaluator.request_evaluation(options={"run": second})
    assert set(one.to_pandas()["run"]) == {second}
    assert one.manifest.runs == [second]


def test_what_was_left_out_is_counted(recorder, evaluator):
    run = recorder.run()
    recorder(200, run=run)
    recorder(50, run=run, ids=[f"u{k}" for k in range(50)], labelled=False)
    recorder(20, run=run, seed=9)  # the first twenty again
    result = evaluator.request_evaluation()
    rows = result.manifest.rows
    assert (rows.stored, rows.without_label, rows.replaced) == (250, 50, 20)
    assert rows.evaluated == rows.fitted == len(result) == 200
    assert any("50 of 250" in note for note in result.notes)


def test_rows_that_are_not_finite_are_in_the_result_and_not_in_the_fit(recorder, evaluator):
    recorder(300, broken=7)
    result = evaluator.request_evaluation()
    frame = result.to_pandas()
    assert (~frame["finite"]).sum() == result.manifest.rows.not_finite == 7
    assert np.isfinite(frame["error_proba"]).all()
    assert any("non-finite" in note for note in result.notes)


def test_queries_find_the_estimates_that_were_made_without_the_label(recorder, evaluator):
    run = recorder.run()
    recorder(200, run=run)
    recorder(50, run=run, dataset_type="pool", labelled=False)
    result = evaluator.request_evaluation()
    frame = result.to_pandas()
    records = recorder.repository.records(Scope(("val",)))
    for name in ("error_proba", "outlier", "unstable"):
        assert np.array_equal(records.estimates(result.result_name, name), frame[name].to_numpy())
    positions = records.estimates(result.result_name, "zone")
    assert [ZONES[at].value for at in positions] == list(frame["zone"])
    assert records.missing_estimates(result.result_name) is None
    pool = recorder.repository.records(Scope(("pool",)))
    assert pool.missing_estimates(result.result_name) is not None


def test_nothing_is_left_of_an_evaluation_that_fails(recorder, evaluator, monkeypatch):
    recorder()

    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write", full)
        with pytest.raises(StoreError, match="No space left"):
            evaluator.request_evaluation(result_name="lost")
    with monkeypatch.context() as patch:
        patch.setattr("ml_debugger.core.store.records.Records.write_estimates", full)
        with pytest.raises(OSError, match="No space left"):
            evaluator.request_evaluation(result_name="lost")
    assert not list((recorder.home / "results").glob("*"))
    assert evaluator.list_results(n_epoch="all").empty
    assert evaluator.request_evaluation(result_name="lost").result_name == "lost"


def test_what_a_killed_process_left_is_replaced(recorder, evaluator):
    recorder()
    left = recorder.store.result_folder("mine")
    left.mkdir(parents=True)
    (left / "result.json").write_text("{}")
    recorder.repository.records().write_estimates("mine", {"stale": np.zeros(300)})
    assert evaluator.request_evaluation(result_name="mine").summary().n == 300
    assert len(evaluator.get_result("mine")) == 300
    with pytest.raises(ResultNotFoundError, match="no 'stale'"):
        recorder.repository.records().estimates("mine", "stale")


def test_only_what_is_listed_stays(recorder, evaluator):
    recorder()
    left = recorder.store.result_folder("left")
    left.mkdir()
    evaluator.request_evaluation(result_name="mine")
    recorder.store.compact()
    assert not left.exists()
    assert len(evaluator.get_result("mine")) == 300


def test_results_are_listed(recorder, evaluator):
    run = recorder.run()
    recorder(200, n_epoch=1, run=run)
    recorder(200, n_epoch=0, run=run)
    for epoch in (0, 1, "all"):
        evaluator.request_evaluation(result_name=f"of {epoch}", n_epoch=epoch)
    latest = evaluator.list_results()
    assert list(latest.columns) == [
        "result_name",
        "method_name",
        "n_epoch",
        "created_at",
        "completed_at",
        "options",
    ]
    assert list(latest["result_name"]) == ["of 0", "of all"]
    assert list(evaluator.list_results(n_epoch="all")["result_name"]) == ["of 0", "of 1", "of all"]
    assert list(evaluator.list_results(n_epoch=1)["result_name"]) == ["of 1"]
    assert evaluator.list_results(n_epoch=None).empty
    assert list(evaluator.list_results("of 0")["n_epoch"]) == [0]
    assert len(evaluator.list_results(method_name="default", n_epoch="all")) == 3
    assert len(evaluator.list_results(method_name="classification_v1", n_epoch="all")) == 3
    with pytest.raises(InputError):
        evaluator.list_results(method_name="other")
    row = latest.iloc[0]
    assert row["created_at"] <= row["completed_at"]
    assert row["options"]["stable_risk"] == 0.01


def test_a_result_is_found_again(recorder, evaluator):
    recorder()
    made = evaluator.request_evaluation(result_name="mine")
    found = evaluator.get_result("mine")
    assert isinstance(found, Result)
    assert found.to_arrow().equals(made.to_arrow())
    assert found.summary() == made.summary()
    with pytest.raises(ResultNotFoundError, match="mine"):
        evaluator.get_result("mine_")
    with pytest.raises(ResultNotFoundError, match="belongs to net/v1"):
        Evaluator("net", "v2", home=recorder.home).get_result("mine")


def test_an_endpoint_is_taken_seriously(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"https://there needs an API key: set MLD_API_KEY"):
        Evaluator("net", "v1", "https://there", home=tmp_path)
    monkeypatch.setenv("MLD_API_KEY", "mldbg_0123456789abcdef_secret")
    for wrong in ("there", "ftp://there", "https://user:secret@there", "https://there?key=1"):
        with pytest.raises(InputError, match="api_endpoint must be"):
            Evaluator("net", "v1", wrong, home=tmp_path)
    monkeypatch.setenv("MLD_API_ENDPOINT", "http://127.0.0.1:9")
    evaluator = Evaluator("net", "v1", home=tmp_path)
    assert "secret" not in repr(evaluator.service_client)
    monkeypatch.setattr(client, "RETRY_SECONDS", 0.0)
    for act in (
        evaluator.request_evaluation,
        evaluator.list_results,
        lambda: evaluator.get_result("mine"),
    ):
        with pytest.raises(ConnectionError, match="http://127.0.0.1:9 cannot be reached"):
            act()
    assert Evaluator("net", "v1", api_endpoint=None, home=tmp_path).service_client is not None


def test_class_names_fit_the_classes(recorder, evaluator):
    recorder()
    with pytest.raises(InputError, match="'class_names' has 2 names, the model 4 classes"):
        evaluator.request_evaluation(options={"class_names": ["cat", "dog"]})


def test_a_name_taken_meanwhile_gives_the_next(recorder, evaluator, monkeypatch):
    recorder()
    first = []
    estimate = method.estimate

    def slow(*arguments):
        if not first:
            first.append(None)
            first.append(evaluator.request_evaluation())
        return estimate(*arguments)

    monkeypatch.setattr(method, "estimate", slow)
    assert evaluator.request_evaluation().result_name == f"{first[1].result_name}_2"


def test_rules_of_one_result_serve_another(recorder, evaluator):
    recorder()
    rules = evaluator.request_evaluation().rules
    wider = rules.model_dump(mode="json")
    assert evaluator.request_evaluation(options={"zones": wider}).rules == rules
    assert evaluator.request_evaluation(options={"zones": rules}).rules == rules


def test_more_units_than_are_fitted(recorder, evaluator, monkeypatch):
    run = recorder.run()
    made = [recorder(300, run=run, seed=s, ids=[f"{s}-{k}" for k in range(300)]) for s in range(3)]
    whole = evaluator.request_evaluation()
    monkeypatch.setattr(estimation, "MAX_FITTED", 400)
    monkeypatch.setattr(estimation, "MAX_COMPARED", 200)
    monkeypatch.setattr(estimation, "most_fitted", lambda _units: estimation.MAX_FITTED)
    monkeypatch.setattr(estimation, "AT_ONCE", 128)
    part = evaluator.request_evaluation()
    wrong = np.concatenate([one.wrong for one in made])
    for result in (whole, part):
        frame = result.to_pandas()
        assert np.array_equal(frame["wrong"], wrong)
        assert list(frame["input_id"]) == [f"{s}-{k}" for s in range(3) for k in range(300)]
        assert frame["error_proba"].mean() == pytest.approx(wrong.mean(), abs=0.03)
        assert result.summary().auroc > 0.85
    assert (whole.manifest.rows.fitted, part.manifest.rows.fitted) == (900, 400)
    assert any("400 of 900" in note for note in part.notes)


def test_a_model_that_is_never_wrong(recorder, evaluator):
    recorder(200, perfect=True)
    result = evaluator.request_evaluation()
    summary = result.summary()
    assert (summary.errors, summary.accuracy, summary.auroc) == (0, 1.0, None)
    assert result.notes
    assert len(result.errors()) == 0


def test_few_units(recorder, evaluator):
    recorder(6)
    result = evaluator.request_evaluation()
    assert len(result) == 6
    assert result.zones()["n"].sum() == 6


def test_additional_fields_are_columns(recorder, evaluator):
    recorder()
    result = evaluator.request_evaluation()
    assert result.fields == ["camera"]
    assert list(result.to_pandas()["camera"][:2]) == ["rear", "front"]


def test_a_layer_that_not_all_records_have_is_left_out(recorder, evaluator):
    run = recorder.run()
    recorder(200, run=run)
    recorder(100, run=run, ids=[f"b{k}" for k in range(100)], without=["feature.hidden"])
    with pytest.warns(UserWarning, match="hidden"):
        result = evaluator.request_evaluation()
    assert len(result) == 300
    assert result.layers == {"early": "0"}
    assert any("hidden" in note for note in result.notes)


def test_scores_alone_can_be_evaluated(recorder, evaluator):
    recorder(without=["feature.early", "feature.hidden", "logits"])
    with pytest.warns(UserWarning, match="early, hidden"):
        result = evaluator.request_evaluation()
    assert result.layers == {}
    assert 0.5 < result.summary().auroc <= 1


def test_the_same_records_give_the_same_result(recorder, evaluator):
    recorder()
    first, second = (evaluator.request_evaluation() for _ in range(2))
    assert isinstance(first.to_arrow(), pa.Table)
    assert first.to_arrow().equals(second.to_arrow())
    assert first.manifest.metrics == second.manifest.metrics
