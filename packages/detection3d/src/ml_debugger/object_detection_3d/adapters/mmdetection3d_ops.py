"""Operators of MMCV without which a detector of MMDetection3D cannot run on a CPU."""

from collections.abc import Mapping

from torch import nn

from ml_debugger.core.detection.families import is_a
from ml_debugger.core.errors import UnsupportedModelError

#: The operator that each module calls and that MMCV has for GPUs only; that which a model calls
#: first comes first.
_GPU_ONLY: Mapping[str, str] = {
    "mmcv.ops.scatter_points.DynamicScatter": "dynamic_point_to_voxel_forward (dynamic voxels)",
    "mmcv.ops.sparse_conv.SparseConvolution": "get_indice_pairs (sparse convolution)",
    "mmcv.ops.sparse_pool.SparseMaxPool": "get_indice_pairs (sparse convolution)",
    "mmcv.ops.points_sampler.PointsSampler": "furthest_point_sample (sampling of points)",
    "mmcv.ops.group_points.QueryAndGroup": "ball_query (grouping of points)",
    "mmcv.ops.roiaware_pool3d.RoIAwarePool3d": "roiaware_pool3d_forward (pooling of points)",
    "mmcv.ops.roipoint_pool3d.RoIPointPool3d": "roipoint_pool3d_forward (pooling of points)",
    "mmdet3d.models.layers.pointnet_modules.point_fp_module.PointFPModule": (
        "three_nn (interpolation of points)"
    ),
}


def require_ops(model: nn.Module) -> None:
    """Check that a model of MMDetection3D can run where its weights are.

    It looks at what the model is made of; the model is not run.

    Raises:
        UnsupportedModelError: The model is on a CPU, and a part of it calls an operator that MMCV
            has for GPUs only.
    """
    if any(one.device.type != "cpu" for one in model.parameters()):
        return
    for name, operator in _GPU_ONLY.items():
        for path, part in model.named_modules():
            if is_a(part, name):
                raise UnsupportedModelError(
                    f"{type(model).__name__} cannot run on a CPU: {path} ({type(part).__name__}) "
                    f"calls {operator}, which MMCV has for GPUs only. Move the model to a GPU, "
                    "where MMCV is built with CUDA, or take a model of pillars and dense "
                    "convolutions"
                )
