"""Made records of a classifier, and evaluations of them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from ml_debugger.core.evaluation import method
from ml_debugger.core.evaluation.codes import class_codes
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.records import Batch, Column, ModelVersion, TaskSchema, Units
from ml_debugger.core.store import Store
from ml_debugger.core.task import Task, Verdict

VERSION = ModelVersion("net", "v1")
CLASSES = 4

_CENTRES = np.random.default_rng(7).normal(size=(CLASSES, 8)) * 2.2


class MadeTask(Task):
    """Classification as the task package does it, so that core is tested without that package."""

    schema = TaskSchema(
        name="classification",
        extracted_feature=(Column("prediction", int), Column("score", float)),
        ground_truth=(Column("label", int),),
    )
    method = "classification_v1"

    @staticmethod
    def judge(predicted: Any, actual: Any, options: Any) -> Verdict:
        return Verdict(np.asarray(actual["label"], np.int64))

    @staticmethod
    def codes(
        prediction: Any, verdict: Any, zones: Any, estimates: Any, error_proba_thresh: float
    ) -> Any:
        target = None if verdict is None else verdict.target
        return class_codes(prediction, target, zones, estimates)


class Made(NamedTuple):
    """Made records: what the model saw, said, and what was true."""

    batch: Batch
    wrong: np.ndarray


def make(
    n: int = 300,
    *,
    seed: int = 0,
    ids: Sequence[str] | None = None,
    dataset_type: str = "val",
    n_epoch: int | None = 0,
    labelled: bool = True,
    perfect: bool = False,
    broken: int = 0,
    without: Sequence[str] = (),
) -> Made:
    """Make records of a model that takes a group of inputs for another class, and errs at random.

    Args:
        n: How many.
        seed: Of the values.
        ids: One an input; "0", "1" ... by default.
        dataset_type: The split.
        n_epoch: The epoch.
        labelled: Whether there is ground truth.
        perfect: Whether the model is never wrong.
        broken: How many of the first rows hold NaN.
        without: Columns of the model that are not recorded.
    """
    rng = np.random.default_rng(seed)
    label = rng.integers(CLASSES, size=n)
    hidden = _CENTRES[label] + 0.8 * rng.normal(size=(n, 8))
    odd = rng.random(n) < 0.15
    early = np.column_stack([hidden[:, :4] + rng.normal(size=(n, 4)), 6.0 * odd, 1 - odd])
    said = np.where(odd, (label + 1) % CLASSES, label)
    logits = -((hidden[:, None] - _CENTRES) ** 2).sum(-1) / 6
    logits[np.arange(n), said] += np.where(odd, 9, 1)
    stranger = rng.random(n) < 0.03
    label = np.where(stranger, -1, label)
    prediction = logits.argmax(1)
    if perfect:
        label = prediction.copy()
    share = np.exp(logits - logits.max(1, keepdims=True))
    score = (share / share.sum(1, keepdims=True)).max(1)
    finite = np.ones(n, bool)
    hidden[:broken, 0], finite[:broken] = np.nan, False
    columns = {
        "prediction": torch.from_numpy(prediction).int(),
        "score": torch.from_numpy(score).float(),
        "finite": torch.from_numpy(finite),
        "logits": torch.from_numpy(logits).float(),
        "feature.early": torch.from_numpy(early).float(),
        "feature.hidden": torch.from_numpy(hidden).float(),
    }
    names = list(ids) if ids is not None else [str(k) for k in range(n)]
    batch = Batch(
        input_ids=names,
        dataset_type=dataset_type,
        n_epoch=n_epoch,
        recorded_at=1000 + seed,
        predicted=Units({k: v for k, v in columns.items() if k not in without}),
        actual=Units({"label": torch.from_numpy(label)}) if labelled else None,
        fields={"camera": ["front" if k % 2 else "rear" for k in range(n)]},
    )
    return Made(batch, label != prediction)


class Recorder:
    """Writes made records into a store of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = Store(home)
        self.repository = self.store.register(
            VERSION,
            task="classification",
            architecture=["Linear(8, 4)"],
            layers={"early": "0", "hidden": "1"},
            fields=[{"name": "camera", "type": "str", "nullable": True, "default": None}],
        )

    def run(self, purpose: Any = "training") -> str:
        return self.repository.start_run(purpose)

    def __call__(self, n: int = 300, *, run: str | None = None, **options: Any) -> Made:
        made = make(n, **options)
        self.repository.write(run or self.run(), [made.batch])
        return made

    def evaluate(self, **arguments: Any) -> Result:
        return method.evaluate(self.store, VERSION, **arguments)


@pytest.fixture
def made_task(monkeypatch: pytest.MonkeyPatch) -> type[Task]:
    """Core's tests run without a task package installed."""
    monkeypatch.setattr(method, "task_named", lambda _name: MadeTask)
    return MadeTask


@pytest.fixture
def recorder(tmp_path: Path, made_task: type[Task]) -> Iterator[Recorder]:
    recorder = Recorder(tmp_path / "home")
    yield recorder
    recorder.store.close()


@pytest.fixture(scope="module")
def made() -> Callable[..., Made]:
    """The function that makes records."""
    return make


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Result, Result]]:
    """Results of two epochs of the same inputs: earlier and later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "task_named", lambda _name: MadeTask)
        recorder = Recorder(tmp_path_factory.mktemp("home"))
        run = recorder.run()
        recorder(400, n_epoch=0, seed=0, run=run)
        recorder(400, n_epoch=1, seed=1, run=run)
        names = {"class_names": ["cat", "dog", "<b>cow</b>", "hen"]}
        first = recorder.evaluate(n_epoch=0, result_name="earlier", options=names)
        second = recorder.evaluate(n_epoch=1, result_name="later", options=names)
        yield first, second
        recorder.store.close()
