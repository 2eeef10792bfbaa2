"""Detectors of MMDetection3D that need a GPU are refused on a CPU, with the operator's name."""

from typing import Any

import pytest
import torch

from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.object_detection_3d.adapters.mmdetection3d_ops import require_ops
from ml_debugger.training import ObjectDetection3DTracer

from .mmdetection3d_models import FAMILIES, Family, built, configuration, raw
from .mmdetection3d_runs import QUIET, each_family, traced

pytest.importorskip("mmcv.ops", exc_type=ImportError)
pytest.importorskip("mmdet3d.models")

pytestmark = QUIET

NEEDS_GPU = {
    "second/second_hv_secfpn_8xb6-80e_kitti-3d-3class": "get_indice_pairs",
    "centerpoint/centerpoint_voxel01_second_secfpn_8xb4-cyclic-20e_nus-3d": "get_indice_pairs",
    "parta2/parta2_hv_secfpn_8xb2-cyclic-80e_kitti-3d-3class": "get_indice_pairs",
    "pv_rcnn/pv_rcnn_8xb2-80e_kitti-3d-3class": "get_indice_pairs",
    "dynamic_voxelization/pointpillars_dv_secfpn_8xb6-160e_kitti-3d-car": (
        "dynamic_point_to_voxel_forward"
    ),
    "mvxnet/mvxnet_fpn_dv_second_secfpn_8xb2-80e_kitti-3d-3class": (
        "dynamic_point_to_voxel_forward"
    ),
    "point_rcnn/point-rcnn_8xb2_kitti-3d-3class": "furthest_point_sample",
    "3dssd/3dssd_4xb4_kitti-3d-car": "furthest_point_sample",
    "votenet/votenet_8xb8_scannet-3d": "furthest_point_sample",
}


@pytest.mark.parametrize("config", NEEDS_GPU)
def test_names_the_operator(config: str) -> None:
    model = built(configuration(config, pretrained(config)))
    with pytest.raises(UnsupportedModelError, match=f"on a CPU: .* calls {NEEDS_GPU[config]}"):
        ObjectDetection3DTracer(model, "m", "v")
    # wherever else its weights are, the model may have it
    require_ops(model.to("meta"))


def pretrained(config: str) -> dict[str, Any]:
    return {"img_backbone.init_cfg": None} if "mvxnet" in config else {}


@pytest.mark.parametrize(
    "config",
    [
        "second/second_hv_secfpn_8xb6-80e_kitti-3d-3class",
        "dynamic_voxelization/pointpillars_dv_secfpn_8xb6-160e_kitti-3d-car",
    ],
)
def test_what_is_refused_does_not_run(config: str) -> None:
    model = built(configuration(config)).eval()
    with pytest.raises(RuntimeError, match=NEEDS_GPU[config]), torch.no_grad():
        model.test_step(raw(Family(config, {})))


@each_family
def test_what_runs_is_not_refused(name: str) -> None:
    assert FAMILIES[name].config not in NEEDS_GPU
    require_ops(traced(name).model)
