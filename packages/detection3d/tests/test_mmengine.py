"""The hook of MMEngine's runners, with real runners of shipped configurations and data on disk."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml_debugger.core import ModelVersion, Store
from ml_debugger.core.errors import InputError
from ml_debugger.testing.model_state import hooks_of
from ml_debugger.training import ObjectDetection3DTracer

from .mmdetection3d_models import FAMILIES, RANGE
from .mmdetection3d_runs import QUIET, smaller, tensors

pytest.importorskip("mmcv.ops", exc_type=ImportError)
pytest.importorskip("mmdet3d.models")

pytestmark = QUIET

NAME = "PointPillars"
SECOND = "second/second_hv_secfpn_8xb6-80e_kitti-3d-3class"
FRAMES = 4
#: What a user writes who only tests: the data for training, which the base names, is not there.
CONFIG = """
_base_ = "mmdet3d::{base}.py"
custom_imports = dict(imports=["ml_debugger.training.mmengine"])
custom_hooks = [dict(type="MLDebuggerHook", model_name="m", version_name="hook"{arguments})]

data = dict(data_root="{folder}/kitti/", load_eval_anns={labelled})
val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=data)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True, type="DumpResults", _scope_="mmengine", out_file_path="{folder}/val.pkl"
)
test_evaluator = dict(
    _delete_=True, type="DumpResults", _scope_="mmengine", out_file_path="{folder}/test.pkl"
)
"""


@pytest.fixture(autouse=True)
def unformatted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runners write their configs as they are: laying them out takes longer than all else."""
    monkeypatch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))


def clouds(folder: Path) -> list[Path]:
    return [
        folder / f"kitti/training/velodyne_reduced/{number:06d}.bin" for number in range(FRAMES)
    ]


def write_kitti(folder: Path, names: list[str]) -> None:
    """Write clouds, and the info file that MMDetection3D's converter makes of KITTI's files."""
    generator = np.random.default_rng(0)
    infos = []
    for number, (file, name) in enumerate(zip(clouds(folder), names, strict=True)):
        file.parent.mkdir(parents=True, exist_ok=True)
        low, high = (*RANGE[:3], 0), (*RANGE[3:], 1)
        generator.uniform(low, high, (2000, 4)).astype("float32").tofile(file)
        camera = {"lidar2cam": [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]}
        camera |= {"img_path": f"{number:06d}.png", "cam2img": np.eye(4), "lidar2img": np.eye(4)}
        instance = {"bbox": [0.0, 0, 1, 1], "bbox_label": number % 3, "bbox_label_3d": number % 3}
        instance |= {"bbox_3d": [-2, 1, 1.0 + number, 4, 1.5, 2, 0.3], "num_lidar_pts": 5}
        infos.append(
            {
                "sample_idx": number,
                "images": {"CAM2": camera},
                "lidar_points": {"num_pts_feats": 4, "lidar_path": name},
                "instances": [instance],
            }
        )
    categories = {"Pedestrian": 0, "Cyclist": 1, "Car": 2}
    written = {"metainfo": {"categories": categories}, "data_list": infos}
    (folder / "kitti" / "kitti_infos_val.pkl").write_bytes(pickle.dumps(written))


def configured(
    folder: Path,
    arguments: str = "",
    labelled: bool = True,
    base: str = FAMILIES[NAME].config,
    names: list[str] | None = None,
) -> Any:
    """Write a data set, weights and a config, and read the config."""
    from mmengine.config import Config

    folder.mkdir(exist_ok=True)
    write_kitti(folder, names or [one.name for one in clouds(folder)])
    file = folder / "config.py"
    file.write_text(CONFIG.format(base=base, arguments=arguments, labelled=labelled, folder=folder))
    config = Config.fromfile(file)
    config.merge_from_dict({"work_dir": str(folder), "log_level": "ERROR"})
    config.experiment_name = config.visualizer.name = folder.name  # which a process makes once
    if base == FAMILIES[NAME].config:
        config.merge_from_dict({f"model.{k}": v for k, v in FAMILIES[NAME].changes.items()})
        config.load_from = str(folder / "weights.pth")
        torch.save(smaller(NAME).state_dict(), config.load_from)
    return config


def runner(folder: Path, arguments: str = "", **settings: Any) -> Any:
    from mmengine.runner import Runner

    return Runner.from_cfg(configured(folder, arguments, **settings))


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
    from mmdet3d.registry import DATASETS
    from mmengine.dataset import pseudo_collate
    from mmengine.runner import Runner

    config = configured(tmp_path, labelled=labelled)
    made = Runner.from_cfg(config)
    assert made.default_scope.scope_name == "mmdet3d"
    before = hooks_of(made.model)
    getattr(made, split)()
    assert hooks_of(made.model) == before
    assert "run" not in vars(getattr(made, f"{split}_loop"))

    frames = DATASETS.build(config.val_dataloader.dataset)
    bare = smaller(NAME)
    outputs: list[Any] = []
    with ObjectDetection3DTracer(bare, "m", "hand") as tracer, torch.no_grad():
        for at in (0, 2):
            batch = pseudo_collate([frames[at], frames[at + 1]])
            given = {**bare.data_preprocessor(batch, False), "mode": "predict"}
            truths = given["data_samples"] if labelled else None
            outputs += tracer(given, truths, clouds(tmp_path)[at : at + 2], split)
    kept = [
        one["pred_instances_3d"] for one in pickle.loads((tmp_path / f"{split}.pkl").read_bytes())
    ]
    fields = ("bboxes_3d", "scores_3d", "labels_3d")
    seen = [getattr(one[name], "tensor", one[name]) for one in kept for name in fields]
    for mine, theirs in zip(seen, tensors(outputs), strict=True):
        assert torch.equal(mine, theirs)
    by_hook, by_hand = records("hook"), records("hand")
    assert by_hook["predicted/counts"].sum() > 4
    assert by_hook["actual/counts"].sum() == FRAMES * labelled
    assert_same_records(by_hook, by_hand)


def test_arguments_of_hook_and_tracer(tmp_path: Path) -> None:
    made = runner(
        tmp_path, ', dataset_type="night", id_key="sample_idx", max_detections_per_frame=3'
    )
    made.val()
    found = records("hook")
    assert found["id"].tolist() == ["0", "1", "2", "3"]
    assert set(found["input/dataset_type"].tolist()) == {"night"}
    assert found["predicted/counts"].tolist() == [3] * FRAMES
    assert made.model.bbox_head.test_cfg["max_num"] == 40


def test_hooks_are_off_when_a_loop_raises(tmp_path: Path) -> None:
    made = runner(tmp_path)
    clouds(tmp_path)[2].unlink()
    before = hooks_of(made.model)
    with pytest.raises(FileNotFoundError, match=r"000002\.bin"):
        made.val()
    assert hooks_of(made.model) == before
    assert len(records("hook")["id"]) == 2  # what was seen until then


def test_hooks_are_off_when_the_evaluator_raises_within_an_iteration(tmp_path: Path) -> None:
    made = runner(tmp_path)
    before = hooks_of(made.model)
    loop = made.val_loop

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    loop.evaluator.process, process = fail, loop.evaluator.process
    with pytest.raises(ZeroDivisionError):
        made.val()
    assert hooks_of(made.model) == before
    loop.evaluator.process = process
    made.val()  # and once more, as if nothing had been
    assert records("hook")["predicted/counts"].shape == (FRAMES,)


def test_two_samples_of_one_id(tmp_path: Path) -> None:
    made = runner(tmp_path, names=["000000.bin"] * FRAMES)
    before = hooks_of(made.model)
    with pytest.raises(InputError, match=r"two samples.*000000\.bin.*id_key"):
        made.val()
    assert hooks_of(made.model) == before


def test_samples_without_an_id(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="token.*metainfo has.*sample_idx"):
        runner(tmp_path, ', id_key="token"').val()


def test_what_cannot_be_traced_is_refused_before_the_run(tmp_path: Path) -> None:
    from mmengine.runner import Runner

    with pytest.raises(InputError, match="max_boxes.*ObjectDetection3D"):
        runner(tmp_path / "argument", ", max_boxes=3").val()
    with pytest.raises(TypeError, match="get_indice_pairs"):  # which the runner makes again
        runner(tmp_path / "sparse", base=SECOND).val()
    linear = {"type": "torch.nn.Linear", "in_features": 2, "out_features": 2}
    # the only one of MMDetection3D's that augments: it merges what a detector does not say
    augmented = {"type": "Seg3DTTAModel", "module": configured(tmp_path / "detector").model}
    for name, model in (("Linear", linear), ("Seg3DTTAModel", augmented)):
        config = configured(tmp_path / name)
        config.model, config.load_from = model, None
        with pytest.raises(TypeError, match=f"no installed task knows {name}"):
            Runner.from_cfg(config).val()


def test_two_hooks_of_one_runner(tmp_path: Path) -> None:
    from mmengine.runner import Runner

    config = configured(tmp_path)
    other = {
        "type": "MLDebuggerHook",
        "model_name": "m",
        "version_name": "two",
        "score_thresh": 0.2,
    }
    config.custom_hooks.append(other)
    made = Runner.from_cfg(config)
    made.val()
    assert "run" not in vars(made.val_loop)
    assert len(records("hook")["id"]) == len(records("two")["id"]) == FRAMES
