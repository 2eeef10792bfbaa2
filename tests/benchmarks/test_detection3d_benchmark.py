"""What recording a 3D detector costs: traced beside bare, in turns, all of it durable.

`uv run --group openmmlab pytest tests/benchmarks/test_detection3d_benchmark.py -s` prints the
ratios, and of each model whether the user gets the same boxes, scores and labels to the last bit,
and of how many boxes the recorded cell of the head's map gives score and box again. Models are
those of the configurations that MMDetection3D ships, at full size, but for deformable convolutions,
the size of images, and a quarter of the ground for two. Weights are random, but scaled so that
scores differ as a trained detector's do; where the model has a threshold, it is the score of the
50th best box of a frame.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ml_debugger.core import Scope
from ml_debugger.core.capture import Capture
from ml_debugger.object_detection_3d.adapters import FAMILIES as KNOWN
from ml_debugger.object_detection_3d.link import link
from ml_debugger.object_detection_3d.scenes import make_scenes
from ml_debugger.training import ObjectDetection3DTracer

pytest.importorskip("mmcv.ops", exc_type=ImportError)
mmdet3d: Any = pytest.importorskip("mmdet3d")
pytest.importorskip("mmdet3d.models")

BATCH, IMAGE, ROUNDS = 2, (320, 512), 7
CAMERA = [[400.0, 0, 256, 0], [0, 400.0, 160, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]
PLAIN = {"backbone.init_cfg": None}


class Family(NamedTuple):
    """A shipped configuration, the numbers of a point (0: no cloud), and what is changed of it."""

    config: str
    features: int
    changes: Mapping[str, Any] = {}
    camera: bool = False


#: PointPillars' levels, where no process has a GPU's batch normalisation.
LEVELS = {
    "pts_voxel_encoder.norm_cfg.type": "BN1d",
    "pts_backbone.norm_cfg.type": "BN",
    "pts_neck.norm_cfg.type": "BN",
}
#: A quarter of the ground, so that a round takes seconds.
NEAR = (-25.0, -25.0, -5.0, 25.0, 25.0, 3.0)
QUARTER = {
    **LEVELS,
    "data_preprocessor.voxel_layer.point_cloud_range": list(NEAR),
    "pts_voxel_encoder.point_cloud_range": list(NEAR),
    "pts_middle_encoder.output_shape": [200, 200],
    "pts_bbox_head.anchor_generator.ranges": [[*NEAR[:2], -1.8, *NEAR[3:5], -1.8]],
}
FUSED = {
    **QUARTER,
    "img_backbone": {
        "type": "mmdet.ResNet",
        "depth": 50,
        "out_indices": (0, 1, 2, 3),
        "norm_cfg": {"type": "BN", "requires_grad": False},
        "style": "pytorch",
    },
    "img_neck": {
        "type": "mmdet.FPN",
        "in_channels": [256, 512, 1024, 2048],
        "out_channels": 256,
        "num_outs": 5,
    },
    "pts_voxel_encoder.fusion_layer": {
        "type": "PointFusion",
        "img_channels": 256,
        "pts_channels": 64,
        "mid_channels": 128,
        "out_channels": 64,
        "img_levels": [0, 1, 2, 3, 4],
        "align_corners": False,
        "activate_out": True,
        "fuse_out": False,
    },
    "data_preprocessor.mean": [123.675, 116.28, 103.53],
    "data_preprocessor.std": [58.395, 57.12, 57.375],
    "data_preprocessor.pad_size_divisor": 32,
}


FAMILIES = {
    "PointPillars": Family("pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class", 4),
    "PointPillars, levels": Family(
        "pointpillars/pointpillars_hv_fpn_sbn-all_8xb4-2x_nus-3d", 4, LEVELS
    ),
    "PointPillars and camera": Family(
        "pointpillars/pointpillars_hv_fpn_sbn-all_8xb4-2x_nus-3d", 4, FUSED, camera=True
    ),
    "SSN": Family(
        "ssn/ssn_hv_secfpn_sbn-all_16xb2-2x_nus-3d",
        4,
        {
            **QUARTER,
            "pts_bbox_head.anchor_generator.ranges": [[*NEAR[:2], -1.8, *NEAR[3:5], -1.8]] * 10,
        },
    ),
    "CenterPoint": Family(
        "centerpoint/centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d", 5
    ),
    "FCOS3D, resnet101": Family(
        "fcos3d/fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d",
        0,
        {**PLAIN, "backbone.dcn": None, "backbone.stage_with_dcn": (False,) * 4},
        camera=True,
    ),
    "PGD, resnet101": Family("pgd/pgd_r101-caffe_fpn_head-gn_4xb3-4x_kitti-mono3d", 0, PLAIN, True),
    "SMOKE, dla34": Family("smoke/smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d", 0, PLAIN, True),
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
    if family.camera:
        inputs["img"] = [torch.randint(0, 256, (3, *IMAGE)).byte() for _ in range(BATCH)]
    ahead = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    known = {
        "box_type_3d": LiDARInstance3DBoxes if cloud else CameraInstance3DBoxes,
        "box_mode_3d": 0 if cloud else 1,
        "cam2img": CAMERA,
        "lidar2img": CAMERA @ ahead,
        "trans_mat": np.diag([0.25, 0.25, 1]).astype("float32"),
        "affine_aug": False,
        "flip": False,
        "scale_factor": (1.0, 1.0),
        "img_shape": IMAGE,
        "input_shape": IMAGE,
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
    head = head_of(model)
    if type(head).__name__ == "SMOKEMono3DHead":  # which has no threshold to be set
        head.conv_cls.bias -= 2.2
    if type(head).__name__ == "PGDHead":  # whose scores are else above 1
        head.conv_weights[0].bias += 2


def head_of(model: Any) -> Any:
    return getattr(model, "pts_bbox_head", None) or model.bbox_head


def results(output: Any) -> list[Tensor]:
    found = [one.pred_instances_3d for one in output]
    return [x for one in found for x in (one.bboxes_3d.tensor, one.scores_3d, one.labels_3d)]


@contextmanager
def hooked(*parts: nn.Module) -> Iterator[list[Tensor]]:
    """Note what some modules say, without the adapter."""
    noted: list[Tensor] = []
    handles = [part.register_forward_hook(lambda *call: noted.append(call[2])) for part in parts]
    yield noted
    for handle in handles:
        handle.remove()


def said(model: Any, run: Callable[[], Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Return each level's class map and what its scores are multiplied by, (frames, *, h, w)."""
    head = head_of(model)
    tasks = [one.heatmap for one in getattr(head, "task_heads", ())]
    classes = tasks or [one.conv_cls for one in getattr(head, "heads", [head])]
    parts = [getattr(head, part, None) for part in ("conv_centerness", "conv_depth_cls")]
    parts += getattr(head, "conv_weights", [])
    with hooked(*classes) as maps:
        run()
    factors = [torch.ones_like(one[:, :1]) for one in maps]
    for number, part in enumerate(filter(None, parts)):
        with hooked(part) as noted:
            run()
        for level, one in enumerate(noted):
            if number == 0:
                factors[level] = factors[level] * one.sigmoid()
            elif number == 1:
                top = one.softmax(1).sort(1).values[:, -2:].mean(1, keepdim=True)
                factors[level] = factors[level] * top
            else:
                factors[level] = factors[level] * (-one[:, -1:]).exp()
    return ([torch.cat(maps, 1)], factors[:1]) if tasks else (maps, factors)


def verified(model: Any, fresh: Callable[[], Any], cells: Tensor) -> tuple[int, int]:
    """Count the boxes that their recorded cells (n, 3) give again, and all.

    The score is computed from the class vector in the class layer's own output, and the box is
    decoded from the cell's.
    """
    adapter = KNOWN.of(model)
    assert adapter is not None
    with Capture(model, {}, adapter.taps(model)) as capture, capture.recording() as noted:
        output = model(**fresh())
    frames = adapter.parse(model, output, noted.taps, adapter.nms(model))
    maps, factors = said(model, lambda: model(**fresh()))
    number = again = 0
    for at, frame in enumerate(frames):
        rows = frame.rows
        assert rows is not None
        found = link(frame.seen, rows)
        boxes = rows.boxes_of(found, frame.seen.labels)
        near = torch.isclose(boxes, frame.seen.boxes, rtol=1e-5, atol=1e-4).all(1)
        for row, label, score, decoded in zip(
            found, frame.seen.labels, frame.seen.scores, near, strict=True
        ):
            level, y, x = cells[number].tolist()
            vectors = maps[level][at, :, y, x].reshape(-1, rows.logits.shape[1])  # of the anchors
            mine = (vectors == rows.logits[row]).all(1)
            scores = vectors[mine, label].sigmoid() * factors[level][at, 0, y, x]
            again += bool(decoded and torch.isclose(scores, score, rtol=1e-5, atol=1e-7).any())
            number += 1
    return again, number


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Leave a core to the writer, as a model on a GPU does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seconds(act: Callable[[Any], Any], model_input: Any) -> float:
    start = time.perf_counter()
    act(model_input)
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

    def fresh() -> Any:
        # for each call: PillarFeatureNet (legacy) writes into its voxels, which then grow from one
        # call to the next, and models put their boxes into the data samples
        return deepcopy(model_input)

    with torch.inference_mode():
        theirs = results(model(**fresh()))
        with ObjectDetection3DTracer(model, "m", "v", home=tmp_path) as tracer:
            ours = results(tracer(fresh(), None, range(BATCH), "all", 0))
            tracer.flush()
            settable = tracer.nms_config.score_thresh is not None
            records = tracer._recording.repository.records()
        columns = [records.column(f"predicted/cell_{name}") for name in ("level", "row", "column")]
        scores = records.column("predicted/score")
        again, boxes = verified(model, fresh, torch.from_numpy(np.stack(columns, 1)))
    equal = all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    thresh = float(np.sort(scores)[-min(50 * BATCH, len(scores))]) if settable else None
    with (
        ObjectDetection3DTracer(model, "m", "v", home=tmp_path, score_thresh=thresh) as tracer,
        torch.inference_mode(),
    ):

        def bare(given: Any) -> Any:
            return tracer.run_model(given)

        def traced(given: Any) -> None:
            tracer(given, truths, range(BATCH), "val", 0)
            tracer.flush()

        benchmark.pedantic(traced, setup=lambda: ((fresh(),), {}), rounds=1)
        rounds = max(3, min(ROUNDS, int(12 / seconds(bare, fresh()))))
        pairs = [(seconds(bare, fresh()), seconds(traced, fresh())) for _ in range(rounds)]
        ratios = [slow / fast for fast, slow in pairs]
        found = tracer._recording.repository.records(Scope(("val",))).units / BATCH
    one = statistics.median(fast for fast, _ in pairs)
    print(
        f"\n{name}: {'equal' if equal else 'DIFFERENT'} to the last bit, {again} of {boxes} boxes "
        f"verified; {1e3 * one:.0f} ms a batch of {BATCH}, {found:.0f} boxes a frame; traced / "
        f"bare {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )
    assert equal
    assert again == boxes > 0
