"""The hook of MMEngine's runners, with a real runner that trains a detector of MMDetection."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml_debugger.core import ModelVersion, Store
from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.core.store import Scope
from ml_debugger.evaluator import Evaluator
from ml_debugger.testing.model_state import hooks_of
from ml_debugger.training import ObjectDetectionTracer

from . import test_mmdetection as detectors

pytest.importorskip("mmcv.ops", exc_type=ImportError)
pytest.importorskip("mmdet.models")

pytestmark = detectors.pytestmark

CONFIG = """
custom_imports = dict(imports=["ml_debugger.training.mmengine"])
custom_hooks = [
    dict(
        type="MLDebuggerHook", model_name="m", version_name="hook", force_table_recreate=True
    )
]
"""


def small() -> Any:
    model = detectors.TestRetinaNet().model()
    model.data_preprocessor = detectors.preprocessor()
    return model


def samples(labelled: bool = True, train: bool = False) -> list[dict[str, Any]]:
    """Return four images as a data set gives them."""
    from mmengine.structures import InstanceData

    found = []
    for seed in (0, 1):
        batch = detectors.raw(seed)
        for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
            sample.set_metainfo({"img_path": f"data/{len(found)}.jpg", "img_id": 10 + len(found)})
            sample.gt_instances.pop("masks")
            if train:  # boxes as the network sees them
                sample.set_metainfo({"flip": False})
            if not labelled:
                sample.gt_instances = InstanceData()
            found.append({"inputs": image, "data_samples": sample})
    return found


def runner(folder: Path, model: Any, images: Any, **arguments: Any) -> Any:
    """Make a runner whose hook comes from a config file."""
    from mmengine.config import Config
    from mmengine.evaluator import BaseMetric
    from mmengine.evaluator import Evaluator as Metrics
    from mmengine.runner import Runner

    class Keep(BaseMetric):
        default_prefix = ""

        def process(self, data_batch: Any, data_samples: Any) -> None:
            self.results += data_samples

        def compute_metrics(self, results: Any) -> dict[str, Any]:
            kept.append(deepcopy(results))
            return {"images": len(results)}

    file = folder / "config.py"
    file.write_text(CONFIG)
    kept: list[Any] = []
    found = Runner(
        model,
        str(folder),
        val_dataloader=loader(images),
        val_cfg={},
        val_evaluator=Metrics([Keep()]),
        custom_hooks=Config.fromfile(file).custom_hooks,
        log_level="ERROR",
        experiment_name=folder.name,
        **arguments,
    )
    found.kept = kept
    return found


def loader(images: Any) -> Any:
    from mmengine.dataset import pseudo_collate
    from torch.utils.data import DataLoader

    return DataLoader(images, batch_size=2, collate_fn=pseudo_collate)


def records(version: str, epoch: int | None) -> dict[str, Any]:
    with Store() as store:
        found = store.open(ModelVersion("m", version)).records(Scope(n_epoch=epoch))
        columns = {name: np.asarray(found.column(name)) for name in found.names()}
        columns["id"] = np.asarray(found.ids())
        for side in ("predicted", "actual"):
            columns[f"{side}/counts"] = np.asarray(found.counts(side))
        return columns


def by_hand(model: Any, labelled: bool, epoch: int | None) -> list[Any]:
    outputs: list[Any] = []
    with ObjectDetectionTracer(model, "m", "hand") as tracer, torch.no_grad():
        for at, batch in enumerate(loader(samples(labelled))):
            given = {**model.data_preprocessor(batch, False), "mode": "predict"}
            truths = given["data_samples"] if labelled else None
            ids = [f"data/{2 * at}.jpg", f"data/{2 * at + 1}.jpg"]
            outputs += tracer(given, truths, ids, "val", epoch)
    return outputs


def assert_same_records(one: dict[str, Any], other: dict[str, Any]) -> None:
    apart = {"input/recorded_at", "input/run"}
    assert one.keys() == other.keys()
    for name in one.keys() - apart:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def assert_same(one: list[Any], other: list[Any]) -> None:
    """Compare what metrics were given, dicts, with data samples."""
    for mine, theirs in zip(one, other, strict=True):
        for name in ("bboxes", "scores", "labels"):
            assert torch.equal(mine["pred_instances"][name], theirs.pred_instances[name])


@pytest.mark.parametrize("labelled", [True, False])
def test_a_loop_is_recorded_as_by_hand(tmp_path: Path, labelled: bool) -> None:
    model = small()
    before = hooks_of(model)
    made = runner(tmp_path, model, samples(labelled))
    assert made.val() == {"images": 4}
    assert hooks_of(model) == before
    assert_same(made.kept[0], by_hand(small(), labelled, None))
    found = records("hook", None)
    assert found["predicted/counts"].sum() > 4
    assert found["actual/counts"].sum() == 4 * labelled
    assert_same_records(found, records("hand", None))


@pytest.mark.parametrize("by_epoch", [True, False])
def test_each_epoch_of_a_training(tmp_path: Path, by_epoch: bool) -> None:
    every = {"max_epochs": 2} if by_epoch else {"max_iters": 6, "val_interval": 3}
    model = small()
    before = hooks_of(model)
    weights = tmp_path / "weights.pth"  # or the runner would make others
    torch.save(model.state_dict(), weights)
    made = runner(
        tmp_path,
        model,
        samples(),
        load_from=str(weights),
        train_dataloader=loader(samples(train=True)),
        train_cfg={"by_epoch": by_epoch, **every},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 1e-6}},
        default_hooks={"checkpoint": None, "logger": None},
    )
    made.train()
    assert hooks_of(model) == before
    first, last = (1, 2) if by_epoch else (3, 6)
    assert records("hook", first)["id"].tolist() == [f"data/{n}.jpg" for n in range(4)]
    assert (
        made.kept[0][0]["pred_instances"]["scores"][0]
        != made.kept[1][0]["pred_instances"]["scores"][0]
    )
    assert_same(made.kept[-1], by_hand(model.eval(), True, last))
    assert_same_records(records("hook", last), records("hand", last))
    assert Evaluator("m", "hook").request_evaluation().manifest.n_epoch == last


def views(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a data set gives for test-time augmentation: each image, and it mirrored."""
    from mmdet.registry import TRANSFORMS

    known = ("img_path", "img_id", "ori_shape", "img_shape", "scale_factor")
    packing = {"type": "PackDetInputs", "meta_keys": (*known, "flip", "flip_direction")}
    flips = [{"type": "RandomFlip", "prob": 0.0}, {"type": "RandomFlip", "prob": 1.0}]
    augmented = TRANSFORMS.build({"type": "TestTimeAug", "transforms": [flips, [packing]]})
    return [
        augmented({"img": one["inputs"].permute(1, 2, 0).numpy(), **one["data_samples"].metainfo})
        for one in samples
    ]


def test_test_time_augmentation_is_refused(tmp_path: Path) -> None:
    """Its boxes are merged of those of several passes; no row of one pass has them."""
    from mmdet.models import DetTTAModel
    from mmengine.config import ConfigDict

    model = small()
    merging = ConfigDict(nms={"type": "nms", "iou_threshold": 0.5}, max_per_img=30)
    augmented = DetTTAModel(tta_cfg=merging, module=model)
    images = views(samples())
    for batch in loader(images):  # it runs, and sees more than one view
        with torch.no_grad():
            merged = augmented.test_step(batch)
            alone = model.test_step({name: of_views[0] for name, of_views in batch.items()})
        for mine, other in zip(merged, alone, strict=True):
            assert not torch.equal(mine.pred_instances.bboxes, other.pred_instances.bboxes)
    before = hooks_of(augmented)
    with pytest.raises(UnsupportedModelError, match="DetTTAModel is no detector that is known"):
        ObjectDetectionTracer(augmented, "m", "hand")
    made = runner(tmp_path, augmented, images)
    with pytest.raises(TypeError, match="no installed task knows DetTTAModel"):
        made.val()  # which the runner makes again
    assert not made.kept
    assert hooks_of(augmented) == before
    with Store() as store:
        assert not store.versions()
