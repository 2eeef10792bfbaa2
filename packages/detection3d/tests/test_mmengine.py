"""The hook of MMEngine's runners, with a real runner and a detector of MMDetection3D."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml_debugger.core import ModelVersion, Store
from ml_debugger.core.errors import InputError
from ml_debugger.testing.model_state import hooks_of
from ml_debugger.training import ObjectDetection3DTracer

from .mmdetection3d_models import FAMILIES, built, configuration, raw
from .mmdetection3d_runs import QUIET, smaller, tensors

pytest.importorskip("mmcv.ops", exc_type=ImportError)
pytest.importorskip("mmdet3d.models")

pytestmark = QUIET

NAME = "PointPillars"
CONFIG = """
custom_imports = dict(imports=["ml_debugger.training.mmengine"])
custom_hooks = [dict(type="MLDebuggerHook", model_name="m", version_name="hook"{})]
"""


def samples(labelled: bool = True) -> list[dict[str, Any]]:
    """Return four frames as a data set for testing gives them."""
    from mmdet3d.structures import LiDARInstance3DBoxes
    from mmengine.structures import InstanceData

    found = []
    for seed in (0, 1):
        batch = raw(FAMILIES[NAME], seed)
        for at, sample in enumerate(batch["data_samples"]):
            number = len(found)
            path = f"data/training/velodyne/{number:06d}.bin"
            sample.set_metainfo({"lidar_path": path, "sample_idx": number})
            sample.gt_instances_3d, sample.eval_ann_info = InstanceData(), None
            if labelled:
                boxes = torch.tensor([[1.0 + number, 2, -1, 4, 2, 1.5, 0.3]])
                sample.eval_ann_info = {
                    "gt_bboxes_3d": LiDARInstance3DBoxes(boxes),
                    "gt_labels_3d": np.array([number % 3]),
                }
            points = batch["inputs"]["points"][at]
            found.append({"inputs": {"points": points}, "data_samples": sample})
    return found


def runner(folder: Path, model: Any, frames: Any, arguments: str = "") -> Any:
    """Make a runner whose hook comes from a config file."""
    from mmengine.config import Config
    from mmengine.dataset import pseudo_collate
    from mmengine.evaluator import BaseMetric, Evaluator
    from mmengine.runner import Runner
    from torch.utils.data import DataLoader

    class Keep(BaseMetric):
        default_prefix = ""

        def process(self, data_batch: Any, data_samples: Any) -> None:
            self.results += data_samples

        def compute_metrics(self, results: Any) -> dict[str, Any]:
            kept.extend(results)
            return {"frames": len(results)}

    folder.mkdir(exist_ok=True)
    file = folder / "config.py"
    file.write_text(CONFIG.format(arguments))
    config = Config.fromfile(file)

    def loader() -> Any:
        return DataLoader(frames, batch_size=2, collate_fn=pseudo_collate)

    kept: list[Any] = []
    found = Runner(
        model,
        str(folder),
        val_dataloader=loader(),
        val_cfg={},
        val_evaluator=Evaluator([Keep()]),
        test_dataloader=loader(),
        test_cfg={},
        test_evaluator=Evaluator([Keep()]),
        custom_hooks=config.custom_hooks,
        log_level="ERROR",
        experiment_name=folder.name,
    )
    found.kept = kept
    return found


def records(version: str) -> dict[str, Any]:
    with Store() as store:
        found = store.open(ModelVersion("m", version)).records()
        columns = {name: np.asarray(found.column(name)) for name in found.names()}
        columns["id"] = np.asarray(found.ids())
        for side in ("predicted", "actual"):
            columns[f"{side}/counts"] = np.asarray(found.counts(side))
        return columns


def assert_same_records(one: dict[str, Any], other: dict[str, Any]) -> None:
    apart = {"input/recorded_at", "input/run"}
    assert one.keys() == other.keys()
    for name in one.keys() - apart:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_loop_is_recorded_as_by_hand(tmp_path: Path, split: str, labelled: bool) -> None:
    model, frames = smaller(NAME), samples(labelled)
    before = hooks_of(model)
    made = runner(tmp_path, model, frames)
    assert getattr(made, split)() == {"frames": 4}
    assert hooks_of(model) == before

    from mmengine.dataset import pseudo_collate

    bare = smaller(NAME)
    outputs: list[Any] = []
    with ObjectDetection3DTracer(bare, "m", "hand") as tracer, torch.no_grad():
        for at in (0, 2):
            batch = pseudo_collate(samples(labelled)[at : at + 2])
            given = {**bare.data_preprocessor(batch, False), "mode": "predict"}
            truths = given["data_samples"] if labelled else None
            ids = [f"data/training/velodyne/{n:06d}.bin" for n in (at, at + 1)]
            outputs += tracer(given, truths, ids, split)
    kept = [one["pred_instances_3d"] for one in made.kept]  # metrics are given dicts
    names = ("bboxes_3d", "scores_3d", "labels_3d")
    seen = [getattr(one[name], "tensor", one[name]) for one in kept for name in names]
    for mine, theirs in zip(seen, tensors(outputs), strict=True):
        assert torch.equal(mine, theirs)
    by_hook, by_hand = records("hook"), records("hand")
    assert by_hook["predicted/counts"].sum() > 4
    assert by_hook["actual/counts"].sum() == 4 * labelled
    assert_same_records(by_hook, by_hand)


def test_arguments_of_hook_and_tracer(tmp_path: Path) -> None:
    arguments = ', dataset_type="night", id_key="sample_idx", max_detections_per_frame=3'
    model = smaller(NAME)
    made = runner(tmp_path, model, samples(), arguments)
    made.val()
    found = records("hook")
    assert found["id"].tolist() == ["0", "1", "2", "3"]
    assert set(found["input/dataset_type"].tolist()) == {"night"}
    assert found["predicted/counts"].tolist() == [3] * 4
    assert model.bbox_head.test_cfg["max_num"] == 40


class Broken(list[Any]):
    """A data set whose last frames cannot be read."""

    def __getitem__(self, at: Any) -> Any:
        if at > 1:
            raise OSError("no such frame")
        return super().__getitem__(at)


def test_hooks_are_off_when_a_loop_raises(tmp_path: Path) -> None:
    model = smaller(NAME)
    before = hooks_of(model)
    made = runner(tmp_path, model, Broken(samples()))
    with pytest.raises(OSError, match="no such frame"):
        made.val()
    assert hooks_of(model) == before
    assert len(records("hook")["id"]) == 2  # what was seen until then


def test_hooks_are_off_when_the_evaluator_raises_within_an_iteration(tmp_path: Path) -> None:
    model = smaller(NAME)
    before = hooks_of(model)
    made = runner(tmp_path, model, samples())
    loop = made.val_loop

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    loop.evaluator.process, process = fail, loop.evaluator.process
    with pytest.raises(ZeroDivisionError):
        made.val()
    assert hooks_of(model) == before
    loop.evaluator.process = process
    assert made.val() == {"frames": 4}  # and once more, as if nothing had been
    assert records("hook")["predicted/counts"].shape == (4,)


def test_two_samples_of_one_id(tmp_path: Path) -> None:
    frames = samples()
    for one in frames:
        one["data_samples"].set_metainfo({"lidar_path": "cloud.bin"})
    model = smaller(NAME)
    before = hooks_of(model)
    with pytest.raises(InputError, match=r"two samples.*cloud\.bin.*id_key"):
        runner(tmp_path, model, frames).val()
    assert hooks_of(model) == before


def test_samples_without_an_id(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="token.*metainfo has.*sample_idx"):
        runner(tmp_path, smaller(NAME), samples(), ', id_key="token"').val()


def test_what_cannot_be_traced_is_refused_before_the_run(tmp_path: Path) -> None:
    frames = samples()
    with pytest.raises(InputError, match="max_boxes.*ObjectDetection3D"):
        runner(tmp_path / "argument", smaller(NAME), frames, ", max_boxes=3").val()
    second = built(configuration("second/second_hv_secfpn_8xb6-80e_kitti-3d-3class"))
    with pytest.raises(TypeError, match="get_indice_pairs"):  # which the runner makes again
        runner(tmp_path / "sparse", second, frames).val()
    with pytest.raises(TypeError, match="no installed task knows Linear"):
        runner(tmp_path / "linear", torch.nn.Linear(2, 2), frames).val()
