"""Judging boxes where only NumPy is, and boxes that are not finite."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from ml_debugger.core import ModelVersion, Store
from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.edge import Scorer
from ml_debugger.core.evaluation.estimator import NOT_FINITE
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.evaluation.scoring import judge
from ml_debugger.core.evaluation.zones import ZONES
from ml_debugger.core.pool import StoredPool, open_pool
from ml_debugger.core.store import Scope
from ml_debugger.evaluator import Evaluator
from ml_debugger.object_detection.output import DetectionOutput
from ml_debugger.object_detection.schema import SCHEMA
from ml_debugger.object_detection.tracer import _predicted
from ml_debugger.training import ObjectDetectionTracer

from . import small
from .made_result import Image, make_result

ASPECTS = ["det_error_proba", "cls_error_proba"]


class Recorded(NamedTuple):
    """An evaluated detector, and boxes that it has seen since."""

    result: Result
    pool: StoredPool
    columns: dict[str, np.ndarray]

    def given(self, *names: str) -> dict[str, np.ndarray]:
        """Return some columns of the boxes, as a scorer takes them."""
        return {name: self.columns[name] for name in names}

    @property
    def features(self) -> dict[str, np.ndarray]:
        """What the layers gave of the boxes."""
        return {alias: self.columns[f"feature.{alias}"] for alias in self.result.layers}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    home, model = tmp_path_factory.mktemp("home"), small.faster_rcnn(box_score_thresh=0.1)
    known, new = small.images(40), small.images(10, seed=2)
    truths = small.truths(model, known)
    for one in truths:  # and some classes are wrong too
        one["labels"][::3] = one["labels"][::3] % (small.CLASSES - 1) + 1
    with ObjectDetectionTracer(model, "net", "v1", home=home) as tracer, torch.no_grad():
        tracer(known, truths, range(40), "val")
        tracer(new, None, range(100, 110), "pool")
    result = Evaluator("net", "v1", home=home).request_evaluation()
    with Store(home) as store:
        repository = store.open(ModelVersion("net", "v1"))
        pool = open_pool(repository, Scope(dataset_types=("pool",)), result, SCHEMA)
        names = [n.partition("/")[2] for n in pool.records.names() if n.startswith("predicted/")]
        columns = {name: np.asarray(pool.records.column(f"predicted/{name}")) for name in names}
        yield Recorded(result, pool, columns)


def test_boxes_get_the_numbers_of_their_pool_to_the_last_bit(recorded, tmp_path):
    scorer = Scorer.load(recorded.result.export_scorer(tmp_path))
    rest = recorded.given("prediction", "score", "statistics", "finite")
    found = scorer(recorded.features, recorded.columns["logits"], **rest)
    assert len(found.error_proba) > 20
    assert [f"{name}_error_proba" for name in found.aspects] == ASPECTS
    named = found._asdict() | {f"{k}_error_proba": v for k, v in found.aspects.items()}
    for name in ("error_proba", "outlier", "unstable", *ASPECTS):
        wanted = np.asarray(recorded.pool.column(name))
        assert named[name].dtype == wanted.dtype
        assert named[name].tobytes() == wanted.tobytes(), name
    assert found.zone.tolist() == recorded.pool.column("zone").to_pylist()
    assert not np.array_equal(found.aspects["det"], found.aspects["cls"])


def test_a_box_has_a_label_and_a_score_of_its_own(recorded, tmp_path):
    scorer = Scorer.load(recorded.result.export_scorer(tmp_path))
    for names in (["statistics"], ["statistics", "score"], ["statistics", "prediction"]):
        with pytest.raises(InputError, match="give both prediction and score"):
            scorer(recorded.features, recorded.columns["logits"], **recorded.given(*names))


def boxes(n, seed, infinite=()):
    """Images of one box each, which has a right place and label three times out of four."""
    rng = np.random.default_rng(seed)
    images = {}
    for number in range(n):
        x, y = rng.integers(0, 40, 2).tolist()
        right = number % 4 > 0
        corners = (float(x), float(y), x + (np.inf if number in infinite else 20.0), y + 20.0)
        score = float(rng.uniform(0.6, 0.95) if right else rng.uniform(0.3, 0.7))
        true = (float(x), float(y), x + 20.0, y + 20.0) if right else (70.0, 70.0, 90.0, 90.0)
        images[f"{number}"] = Image([(corners, 1, score)], [(true, 1)])
    return images


@pytest.mark.parametrize("fitted", [80, 60])
def test_a_box_with_infinite_corners_is_never_safe(home, tmp_path, monkeypatch, fitted):
    infinite = [1, 5, 9, 13]  # what is right about them, score and features, looks fine
    # of 60, some of them are estimated as unseen ones
    monkeypatch.setattr("ml_debugger.core.evaluation.estimation.most_fitted", lambda _: fitted)
    result = make_result(home, boxes(80, 0, infinite))
    units = result.to_pandas()
    rate = np.float32(result.estimator.settings()["error_rate"])
    assert units["finite"].sum() == 76
    marked = units[~units["finite"]]
    if fitted == 80:
        assert any("4 of 80 units have non-finite" in note for note in result.notes)

    generator = torch.Generator().manual_seed(5)
    outputs = [
        DetectionOutput(
            torch.tensor([box for box, _, _ in one.predicted]),
            torch.tensor([0.95]),
            torch.tensor([1]),
            size=(100, 120),
        )
        for one in boxes(8, 1, infinite=[3]).values()
    ]
    features = {"head": [torch.randn(1, 4, generator=generator) for _ in outputs]}
    new = {k: v.numpy() for k, v in _predicted(outputs, features).columns.items()}
    found = judge(new.get, result)
    fine = judge((new | {"finite": np.ones(8, bool)}).get, result)
    assert fine["error_proba"][3] < rate  # but for its corners, it looks safe
    scored = Scorer.load(result.export_scorer(tmp_path / "scorer"))(
        {"head": new["feature.head"]},
        prediction=new["prediction"],
        score=new["score"],
        finite=new["finite"],
    )
    assert scored.error_proba.tobytes() == found["error_proba"].tobytes()
    for proba, det, cls, outlier, unstable in (
        (*(marked[name].to_numpy() for name in ("error_proba", *ASPECTS, "outlier", "unstable")),),
        (*(found[name][3:4] for name in ("error_proba", *ASPECTS, "outlier", "unstable")),),
    ):
        assert (proba >= rate).all()
        np.testing.assert_allclose(1 - (1 - det) * (1 - cls), proba, atol=1e-5)
        assert (outlier == np.float32(NOT_FINITE)).all()
        assert unstable.all()
    others = np.arange(8) != 3
    for name, values in found.items():
        assert np.array_equal(values[others], fine[name][others]), name
    assert ZONES[found["zone"][3]] != "stable_coverage"
