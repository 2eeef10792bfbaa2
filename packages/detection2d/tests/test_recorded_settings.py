"""The settings that boxes were recorded with stay with their run and their result."""

import json

import pytest
import torch

from ml_debugger.core import ModelVersion, Store
from ml_debugger.core.detection.matching import KINDS
from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.folder import MANIFEST
from ml_debugger.core.evaluation.result import Result
from ml_debugger.data_filter import ObjectDetectionDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.monitoring import ObjectDetectionLogger
from ml_debugger.training import ObjectDetectionTracer

from . import small


def trace(version="v", n=48, **settings):
    model = small.faster_rcnn()
    given = small.images(n)
    with ObjectDetectionTracer(model, "m", version, **settings) as tracer, torch.no_grad():
        for at in range(0, n, 8):
            batch = given[at : at + 8]
            tracer(batch, small.truths(model, batch), range(at, at + 8), "val", n_epoch=0)
        return model, tracer.nms_config.model_dump()


def evaluated(version="v", **settings):
    model, known = trace(version, **settings)
    return model, known, Evaluator("m", version).request_evaluation()


@pytest.fixture
def older(tmp_path):
    """Give a result as an earlier version would have written it."""

    def forget(result):
        content = json.loads((result.folder / MANIFEST).read_text())
        del content["settings"]
        (result.folder / MANIFEST).write_text(json.dumps(content))
        return Result.load(result.folder)

    return forget


def test_a_run_and_a_result_say_what_they_were_recorded_with(tmp_path, older):
    _, known, result = evaluated(score_thresh=0.32)
    assert known["score_thresh"] == 0.32
    assert known["iou_thresh"] == 0.5  # the model's own
    with Store() as store:
        (run,) = store.open(ModelVersion("m", "v")).runs()
    assert run.settings == known == result.settings == result.summary().settings
    assert "score_thresh=0.32, iou_thresh=0.5" in str(result.summary())
    page = result.report(tmp_path).read_text()
    assert "<dt>Settings</dt><dd><code>score_thresh=0.32</code>" in page
    before = older(result)
    assert before.settings == {}
    assert "settings" not in str(before.summary())
    assert "<dt>Settings</dt>" not in before.report(tmp_path).read_text()


@pytest.mark.parametrize("kind", [ObjectDetectionDataFilter, ObjectDetectionLogger])
def test_other_settings_than_those_of_the_result_are_said(kind, older):
    model, _, result = evaluated(score_thresh=0.32)
    name = result.result_name
    with pytest.warns(UserWarning, match=r"score_thresh=0\.32.*has score_thresh=0\.3:"):
        kind(model, "m", "v", name).close()
    with pytest.warns(UserWarning, match=r"with iou_thresh=0\.5, but.*has iou_thresh=0\.4:"):
        kind(model, "m", "v", name, score_thresh=0.32, iou_thresh=0.4).close()
    kind(model, "m", "v", name, score_thresh=0.32).close()  # a warning would be an error here
    older(result)
    kind(model, "m", "v", name).close()


def test_results_of_other_settings_are_not_compared_without_a_word(older):
    _, _, first = evaluated(score_thresh=0.3)
    _, _, second = evaluated("w", score_thresh=0.31)
    for compare in (first.flow, first.compare):
        with pytest.warns(UserWarning, match=r"score_thresh=0\.3 and .*score_thresh=0\.31:"):
            compare(second)
    first.compare(first)
    first.flow(first)
    older(first).flow(second)


def test_runs_of_other_settings_in_one_result_are_noted():
    trace(score_thresh=0.3)
    with Store() as store:
        repository = store.open(ModelVersion("m", "v"))
    model = small.faster_rcnn()
    given = small.images(2, seed=9)
    with ObjectDetectionTracer(model, "m", "v", score_thresh=0.31) as tracer, torch.no_grad():
        tracer(given, small.truths(model, given), ["x", "y"], "val", n_epoch=0)
    with (
        pytest.warns(UserWarning, match="mixes records of 2 runs"),
        pytest.warns(UserWarning, match=r"different score_thresh \(0\.3, 0\.31\)"),
    ):
        result = Evaluator("m", "v").request_evaluation()
    assert result.settings["score_thresh"] is None
    assert result.settings["iou_thresh"] == 0.5
    assert any("score_thresh" in note for note in result.notes)
    repository.close()


def test_wrong_boxes_are_chosen_by_their_kind():
    _, _, result = evaluated()
    wrong = result.errors()
    assert wrong.kind.nunique() > 1
    for kind in KINDS:
        assert result.errors(kind=kind).index.size == (wrong.kind == kind).sum()
    for other in ("misclassified", "class"):
        said = f"no kind '{other}'; the kinds are: {', '.join(KINDS)}, suspect_label$"
        with pytest.raises(InputError, match=said):
            result.errors(kind=other)


def test_a_reason_says_of_how_many_boxes_a_value_is():
    model, _, result = evaluated()
    with ObjectDetectionDataFilter(model, "m", "v", result.result_name) as filtered:
        with torch.no_grad():
            found = filtered(small.images(8, seed=5), range(8))[0]
        said = filtered.query(8, {"top_n": 500}, type_cast=int, explain=True)
    sizes = [len(one["boxes"]) for one in found]
    for row in said.itertuples():
        n = sizes[row.input_id]
        assert f"of its {n} box{'es' if n > 1 else ''}, place" in row.reason


def test_drift_of_a_dense_detector_is_stated_in_the_default_window():
    model, _, result = evaluated(score_thresh=0.2)
    name = result.result_name
    logger = ObjectDetectionLogger(model, "m", "v", name, score_thresh=0.2)
    with logger, torch.no_grad():
        for at in range(15):
            found = logger([*small.images(4, seed=at), small.blank()])
            boxes = len(found[0]["boxes"])
        health = logger.health()
        halves = logger.health(window=30)
    assert boxes > 1
    (row,) = health.itertuples()
    assert row.inputs == 75
    assert row.n > row.inputs
    assert row.drift in (True, False)
    assert halves.inputs.tolist() == [30, 30, 15]
    assert halves.n.sum() == row.n
    assert halves.drift.notna().tolist() == [True, True, False]  # of 12 images with a box
    assert (halves.start <= halves.end).all()
    assert (halves.start[1:].to_numpy() >= halves.end[:-1].to_numpy()).all()
    assert row.low <= row.estimated_accuracy <= row.high
