"""A detector trained for real: what is said of its boxes holds against slow and other readings."""

import importlib.util
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from ml_debugger.core.evaluation.metrics import augrc, auroc, ece
from ml_debugger.evaluator import Evaluator
from ml_debugger.object_detection_3d.average_precision import average_precision
from ml_debugger.object_detection_3d.scenes import make_scenes

from .slow_matching import error_codes

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[3] / "examples" / "detection3d_pillars.py"


def imported(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Study:
    """What was recorded and evaluated, and what the bare model says of the same frames."""

    def __init__(self, weights):
        pillars = imported(EXAMPLE)
        model = pillars.Pillars()
        model.load_state_dict(torch.load(weights, weights_only=True))
        model.eval()
        self.known, self.new = (make_scenes(n, 1 + n) for n in (300, 240))
        self.bare = {}
        with torch.no_grad():
            for name, scenes in (("val", self.known), ("test", self.new)):
                layers = {"trunk": "trunk"}
                with pillars.PillarsTracer(model, "pillars", "v1", layers) as tracer:
                    for ids, clouds, truths in pillars.batches(scenes):
                        tracer(clouds, truths, [f"{one:03d}" for one in ids], name)
                bare = [one for _, clouds, _ in pillars.batches(scenes) for one in model(clouds)]
                self.bare[name] = bare
            evaluator = Evaluator("pillars", "v1")
            self.result = evaluator.request_evaluation(options={"dataset_type": "val"})
            self.truth = {
                measure: evaluator.request_evaluation(
                    options={"dataset_type": "test", "overlap": measure}
                )
                for measure in ("bev", "3d", "distance")
            }
            with pillars.PillarsDataFilter(
                model, "pillars", "v1", result_name=self.result.result_name
            ) as data_filter:
                for ids, clouds, _ in pillars.batches(self.new):
                    data_filter(clouds, [f"{one:03d}" for one in ids])
                self.chosen = data_filter.query(24, "high_error_proba")


@pytest.fixture(scope="module")
def study(tmp_path_factory, run_example):
    _, trained = run_example(EXAMPLE.name)
    before = os.environ.get("MLD_HOME")
    os.environ["MLD_HOME"] = str(tmp_path_factory.mktemp("home"))
    try:
        yield Study(trained / "pillars.pt")
    finally:
        if before is None:
            del os.environ["MLD_HOME"]
        else:
            os.environ["MLD_HOME"] = before


def test_the_example_runs(run_example):
    printed, folder = run_example(EXAMPLE.name)
    assert "pillars / v1, epoch 5" in printed
    assert "of its 3 worst boxes, place 10" in printed
    assert "<circle" in (folder / "detection3d.html").read_text()


def test_it_is_an_honest_detector(study):
    """Neither blind nor perfect."""
    found = average_precision(study.truth["bev"])
    assert 0.2 < found.at[0.5] < 0.95
    assert set(found.per_class) == {0, 1, 2}
    assert min(at[0.5] for at in found.per_class.values()) > 0.1


@pytest.mark.parametrize("measure", ["bev", "3d", "distance"])
def test_error_codes_are_those_of_the_slow_matching(study, measure):
    """Box by box, from the bare model's own output."""
    truth = study.truth[measure]
    expected, missed = {}, Counter()
    for at, (scene, said) in enumerate(zip(study.new, study.bare["test"], strict=True)):
        codes, gone = error_codes(measure, said, scene)
        scores = said["scores"].tolist()
        counted = [pair for pair in zip(scores, codes, strict=True) if pair[1] is not None]
        expected |= {f"{at:03d}": sorted(counted)} if counted else {}
        missed += gone
    units = truth.to_pandas()
    units["plain"] = units["code"].str.replace("*", "", regex=False)
    found = {
        name: sorted(zip(some["score"].tolist(), some["plain"], strict=True))
        for name, some in units.groupby("input_id")
    }
    assert found == expected
    gone = truth.truths(missed=True)["label"]
    assert Counter(f"DET:no_prediction:CLS{label}->-" for label in gone) == missed
    counts = truth.error_codes().set_index("code")["n"]
    plain = counts.groupby(counts.index.str.replace("*", "", regex=False)).sum()
    wanted = Counter(code for some in expected.values() for _, code in some) + missed
    assert plain.to_dict() == wanted


def test_boxes_where_nobody_could_find_an_object_are_excused(study):
    assert any(scene.ignored.any() for scene in study.new)
    assert len(study.truth["bev"]) < sum(len(one["scores"]) for one in study.bare["test"])


def test_its_errors_are_told_better_than_by_the_score(study):
    units = study.result.to_pandas()
    wrong, score = units["wrong"].to_numpy(bool), units["score"].to_numpy(np.float64)
    proba = units["error_proba"].to_numpy(np.float64)  # each by boxes of other frames
    assert 0.1 < wrong.mean() < 0.9
    assert auroc(proba, wrong) > auroc(1 - score, wrong)
    assert augrc(proba, wrong) < augrc(1 - score, wrong)
    assert ece(proba, wrong) < min(0.06, ece(1 - score, wrong))
    either = 1 - (1 - units["det_error_proba"]) * (1 - units["cls_error_proba"])
    assert np.corrcoef(either, proba)[0, 1] > 0.9


def test_a_query_finds_the_frames_where_it_fails(study):
    frames = study.truth["bev"].inputs().set_index("input_id")
    share = frames["wrong"] / frames["units"]
    assert share[study.chosen].mean() > share.mean() + 0.02
