"""What recording a 3D detector costs: traced beside bare, in turns, all of it durable.

`uv run --group openmmlab pytest tests/benchmarks/test_detection3d_benchmark.py -s` prints the
ratios. Models are those of the configurations that MMDetection3D ships, at full size, but for
deformable convolutions and for the size of images. Weights are random, but scaled so that scores
differ as a trained detector's do; where the model has a threshold, it is the score of the 50th best
box of a frame.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ml_debugger.core import Scope
from ml_debugger.object_detection_3d.scenes import make_scenes
from ml_debugger.training import ObjectDetection3DTracer

pytest.importorskip("mmcv.ops", exc_type=ImportError)
mmdet3d: Any = pytest.importorskip("mmdet3d")
pytest.importorskip("mmdet3d.models")

BATCH, IMAGE, ROUNDS = 2, (320, 512), 7
CAMERA = [[400.0, 0, 256, 0], [0, 400.0, 160, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]
PLAIN = {"backbone.init_cfg": None}


class Family(NamedTuple):
    """A shipped configuration, what is changed of it, and the numbers of a point; 0: an image."""

    config: str
    features: int
    changes: Mapping[str, Any] = {}


FAMILIES = {
    "PointPillars": Family("pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class", 4),
    "PointPillars, levels": Family(
        "pointpillars/pointpillars_hv_fpn_sbn-all_8xb4-2x_nus-3d",
        4,
        {
            "pts_voxel_encoder.norm_cfg.type": "BN1d",
            "pts_backbone.norm_cfg.type": "BN",
            "pts_neck.norm_cfg.type": "BN",
        },
    ),
    "CenterPoint": Family(
        "centerpoint/centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d", 5
    ),
    "FCOS3D, resnet101": Family(
        "fcos3d/fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d",
        0,
        {**PLAIN, "backbone.dcn": None, "backbone.stage_with_dcn": (False,) * 4},
    ),
}


def built(family: Family) -> Any:
    from mmdet3d.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet3d")
    folder = Path(mmdet3d.__file__).parent / ".mim" / "configs"
    config = Config.fromfile(folder / f"{family.config}.py")
    config.merge_from_dict({f"model.{key}": value for key, value in family.changes.items()})
    return MODELS.build(config.model).eval()


def raw(family: Family) -> dict[str, Any]:
    """Return what a data loader gives."""
    from mmdet3d.structures import CameraInstance3DBoxes, Det3DDataSample, LiDARInstance3DBoxes

    cloud = family.features > 0
    inputs: dict[str, Any] = {}
    if cloud:
        scenes = [torch.from_numpy(one.points) for one in make_scenes(BATCH, reach=50.0)]
        more = family.features - 4
        inputs["points"] = [torch.cat([one, torch.zeros(len(one), more)], 1) for one in scenes]
    else:
        inputs["img"] = [torch.randint(0, 256, (3, *IMAGE)).byte() for _ in range(BATCH)]
    known = {
        "box_type_3d": LiDARInstance3DBoxes if cloud else CameraInstance3DBoxes,
        "box_mode_3d": 0 if cloud else 1,
        "cam2img": CAMERA,
        "scale_factor": (1.0, 1.0),
        "img_shape": IMAGE,
        "ori_shape": IMAGE,
    }
    samples = [Det3DDataSample(metainfo=dict(known)) for _ in range(BATCH)]
    return {"inputs": inputs, "data_samples": samples}


@torch.no_grad()
def enliven(model: Any, family: Family) -> None:
    """Scale every layer to outputs of deviation 1: untrained, they all but vanish on the way."""
    small = {part for name, part in model.named_modules() if "reg" in name}
    done = set()

    def scale(layer: Any, args: Any, output: Tensor) -> Tensor | None:
        if layer in done or not output.std() > 0:
            return None
        done.add(layer)
        deviation = output.std() * (4 if layer in small else 1)  # boxes of a few metres
        layer.weight /= deviation
        return output / deviation

    handles = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            if layer.bias is not None:
                layer.bias.zero_()
            handles.append(layer.register_forward_hook(scale))
    model.test_step(raw(family))
    for handle in handles:
        handle.remove()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Leave a core to the writer, as a model on a GPU does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


@pytest.mark.filterwarnings("ignore")  # of libraries with a torch that is newer than they
@pytest.mark.parametrize("name", FAMILIES)
def test_traced_over_bare(name: str, tmp_path: Path, benchmark: Any) -> None:
    torch.manual_seed(0)
    family = FAMILIES[name]
    model = built(family)
    enliven(model, family)
    frame = "lidar" if family.features else "camera"
    boxes = torch.tensor([[10.0, 2, -1, 4, 2, 1.5, 0.3]] * 5)
    truths = [{"boxes": boxes, "labels": torch.zeros(5).long(), "frame": frame}] * BATCH
    model_input = {**model.data_preprocessor(raw(family), False), "mode": "predict"}
    with torch.inference_mode():
        with ObjectDetection3DTracer(model, "m", "v", home=tmp_path) as tracer:
            tracer(model_input, None, range(BATCH), "all", 0)
            tracer.flush()
            scores = tracer._repository.records().column("predicted/score")
        thresh = float(np.sort(scores)[-min(50 * BATCH, len(scores))])
    with (
        ObjectDetection3DTracer(model, "m", "v", home=tmp_path, score_thresh=thresh) as tracer,
        torch.inference_mode(),
    ):

        def bare() -> Any:
            return tracer.run_model(model_input)

        def traced() -> None:
            tracer(model_input, truths, range(BATCH), "val", 0)
            tracer.flush()

        bare()
        traced()
        ratios = [1 / (seconds(bare) / seconds(traced)) for _ in range(ROUNDS)]
        benchmark.pedantic(traced, rounds=1)
        one = statistics.median(seconds(bare) for _ in range(3))
        found = tracer._repository.records(Scope(("val",))).units / BATCH
    print(
        f"\n{name}: {1e3 * one:.0f} ms a batch of {BATCH}, {found:.0f} boxes a frame; traced / "
        f"bare {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )
