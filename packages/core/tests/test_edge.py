"""Scoring where only NumPy is: the same numbers to the last bit, and nothing else imported."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from ml_debugger.core.errors import InputError, SchemaError, StoreError
from ml_debugger.core.evaluation.edge import ARRAYS, SETTINGS, Scorer
from ml_debugger.core.evaluation.estimator import NOT_FINITE, Observations
from ml_debugger.core.evaluation.folder import AS_NEW
from ml_debugger.core.evaluation.zones import ZONES

ALONE = """
import sys, types
import numpy as np

class OnlyNumPy:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "ml_debugger"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, OnlyNumPy())
from ml_debugger.core.evaluation.edge import Scorer

given = np.load(sys.argv[2])
scorer = Scorer.load(sys.argv[1])
layers = {name[8:]: given[name] for name in given.files if name.startswith("feature.")}
logits = given["logits"] if "logits" in given.files else None
found = scorer(layers, logits, prediction=given["prediction"], score=given["score"])
np.savez(sys.argv[3], **{k: v for k, v in found._asdict().items() if k != "aspects"})
"""


@pytest.fixture
def scorer(evaluated, tmp_path):
    first, _ = evaluated
    return Scorer.load(first.export_scorer(tmp_path / "scorer"))


def observed(result, n, seed):
    """Units that look like those of the made-up evaluation, but for the noise."""
    rng = np.random.default_rng(seed)
    widths = result.manifest.error_model["widths"]
    k = result.manifest.n_class
    logits = rng.normal(0, 2, (n, k)).astype(np.float32)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return Observations(
        features={
            alias: rng.normal(0, 2, (n, width)).astype(np.float32)
            for alias, width in zip(result.layers, widths, strict=True)
        },
        prediction=logits.argmax(1),
        score=(shares.max(1) / shares.sum(1)).astype(np.float32),
        logits=logits,
    )


def test_numbers_are_those_of_the_result_to_the_last_bit(evaluated, tmp_path):
    result, _ = evaluated
    given = observed(result, 300, seed=3)
    result.export_scorer(tmp_path / "scorer")
    named = {f"feature.{alias}": values for alias, values in given.features.items()}
    np.savez(
        tmp_path / "given.npz",
        logits=given.logits,
        prediction=given.prediction,
        score=given.score,
        **named,
    )
    arguments = [tmp_path / "scorer", tmp_path / "given.npz", tmp_path / "found.npz"]
    command = [sys.executable, "-c", ALONE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    wanted = result.estimator.estimate(given)
    for name in ("error_proba", "outlier", "unstable"):
        assert found[name].tobytes() == getattr(wanted, name).tobytes(), name
    zones = result.rules.assign(wanted, given.score, given.prediction)
    assert found["zone"].tolist() == [str(ZONES[z]) for z in zones]
    assert len(set(found["zone"].tolist())) > 1
    assert AS_NEW not in load_file(tmp_path / "scorer" / ARRAYS)  # that is of evaluated units


def test_a_row_alone_gets_what_it_gets_in_a_batch(evaluated, scorer):
    given = observed(evaluated[0], 20, seed=4)
    whole = scorer(given.features, given.logits)
    for row in range(20):
        part = given.take(np.array([row]))
        alone = scorer(part.features, part.logits)
        assert alone.error_proba.tobytes() == whole.error_proba[row : row + 1].tobytes()
        assert alone.zone[0] == whole.zone[row]


def test_a_classifier_has_no_aspects_and_its_logits_say_the_rest(evaluated, scorer):
    given = observed(evaluated[0], 20, seed=6)
    found = scorer(given.features, given.logits)
    said = scorer(given.features, given.logits, prediction=given.prediction, score=given.score)
    assert found.aspects == {}
    np.testing.assert_allclose(found.error_proba, said.error_proba, atol=1e-6)


def test_what_was_not_recorded_as_finite_is_marked(evaluated, scorer):
    given = observed(evaluated[0], 20, seed=7)
    finite = np.arange(20) != 4
    whole, found = (
        scorer(given.features, given.logits),
        scorer(given.features, given.logits, finite=finite),
    )
    assert found.outlier[4] == np.float32(NOT_FINITE)
    assert found.unstable[4]
    assert found.error_proba[4] >= evaluated[0].estimator.settings()["error_rate"] - 1e-6
    for name in ("error_proba", "outlier", "unstable", "zone"):
        assert getattr(found, name)[finite].tolist() == getattr(whole, name)[finite].tolist()
    with pytest.raises(InputError, match="one row a unit"):
        scorer(given.features, given.logits, finite=finite[:3])


def test_what_does_not_fit_is_refused(evaluated, scorer):
    given = observed(evaluated[0], 5, seed=5)
    with pytest.raises(InputError, match="give logits, or both"):
        scorer(given.features, prediction=given.prediction)
    with pytest.raises(InputError, match="missing"):
        scorer({}, given.logits)
    few = {alias: values[:4] for alias, values in given.features.items()}
    for features, more in ((few, {}), (given.features, {"score": given.score[:3]})):
        with pytest.raises(InputError, match="one row a unit"):
            scorer(features, given.logits, **more)
    with pytest.raises(InputError, match=r"logits: expected 2 dimensions"):
        scorer(given.features, given.logits[0])
    wide = {alias: np.tile(values, 2) for alias, values in given.features.items()}
    with pytest.raises(InputError, match="features, the estimator was fitted with"):
        scorer(wide, given.logits)


def test_files_that_cannot_be_read_are_named(evaluated, tmp_path):
    with pytest.raises(SchemaError, match="no readable scorer"):
        Scorer.load(tmp_path)
    place = evaluated[0].export_scorer(tmp_path / "scorer")
    settings = json.loads((place / SETTINGS).read_text())
    (place / SETTINGS).write_text(json.dumps({**settings, "version": 99}))
    with pytest.raises(SchemaError, match="version 99"):
        Scorer.load(place)
    (place / SETTINGS).write_text(json.dumps(settings))
    (place / ARRAYS).write_bytes((place / ARRAYS).read_bytes()[:100])
    with pytest.raises(SchemaError, match="damaged or of another scorer"):
        Scorer.load(place)
    with pytest.raises(StoreError, match="cannot write a scorer"):
        evaluated[0].export_scorer(place / SETTINGS)
