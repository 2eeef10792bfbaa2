"""Real models of MMDetection3D, from the configurations that it ships, made small."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

RANGE = (-10.24, -10.24, -3.0, 10.24, 10.24, 1.0)
IMAGE = (64, 96)
CAMERA = [[60.0, 0, 48, 0], [0, 60.0, 32, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]


class Family(NamedTuple):
    """A shipped configuration and what is changed of it."""

    config: str
    changes: Mapping[str, Any]
    camera: bool = False
    cloud: bool = True
    features: int = 4  # of a point


def _voxels(size: float, vertical: float = 4) -> dict[str, Any]:
    return {
        "data_preprocessor.voxel_layer.point_cloud_range": list(RANGE),
        "data_preprocessor.voxel_layer.voxel_size": [size, size, vertical],
        "data_preprocessor.voxel_layer.max_voxels": [2000, 2000],
    }


def _encoder(prefix: str, size: float) -> dict[str, Any]:
    return {
        f"{prefix}voxel_encoder.point_cloud_range": list(RANGE),
        f"{prefix}voxel_encoder.voxel_size": [size, size, 4],
    }


#: Fewer boxes than shipped: to suppress them takes most of the time of so small a model.
FEW = {"nms_pre": 60, "score_thr": 0.85, "max_num": 40}


def _settings(prefix: str) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in FEW.items()}


def _stages(prefix: str) -> dict[str, Any]:
    """One convolution a stage, 16 channels."""
    return {
        f"{prefix}middle_encoder.in_channels": 16,
        f"{prefix}middle_encoder.output_shape": [64, 64],
        f"{prefix}backbone.in_channels": 16,
        f"{prefix}backbone.layer_nums": [0, 0, 0],
        f"{prefix}backbone.out_channels": [16, 16, 16],
        f"{prefix}neck.in_channels": [16, 16, 16],
    }


SIZE = 0.32
PILLARS = {
    **_settings("test_cfg"),
    **_voxels(SIZE),
    **_encoder("", SIZE),
    **_stages(""),
    "voxel_encoder.feat_channels": [16],
    "neck.out_channels": [8, 8, 8],
    "bbox_head.in_channels": 24,
    "bbox_head.feat_channels": 24,
    "bbox_head.anchor_generator.ranges": [
        [*RANGE[:2], -0.6, *RANGE[3:5], -0.6],
        [*RANGE[:2], -0.6, *RANGE[3:5], -0.6],
        [*RANGE[:2], -1.78, *RANGE[3:5], -1.78],
    ],
}
LEVELS = {
    **_settings("test_cfg.pts"),
    **_voxels(SIZE),
    **_encoder("pts_", SIZE),
    **_stages("pts_"),
    "pts_voxel_encoder.feat_channels": [16, 16],
    "pts_voxel_encoder.norm_cfg.type": "BN1d",
    "pts_backbone.norm_cfg.type": "BN",
    "pts_neck.norm_cfg.type": "BN",
    "pts_neck.out_channels": 16,
    "pts_bbox_head.in_channels": 16,
    "pts_bbox_head.feat_channels": 16,
    "pts_bbox_head.anchor_generator.ranges": [[*RANGE[:2], -1.8, *RANGE[3:5], -1.8]],
}
SHAPES = {
    **_settings("test_cfg.pts"),
    **_voxels(SIZE),
    **_encoder("pts_", SIZE),
    **_stages("pts_"),
    "pts_voxel_encoder.feat_channels": [16, 16],
    "pts_voxel_encoder.norm_cfg.type": "BN1d",
    "pts_backbone.norm_cfg.type": "BN",
    "pts_neck.norm_cfg.type": "BN",
    "pts_neck.out_channels": [8, 8, 8],
    "pts_bbox_head.in_channels": 24,
    "pts_bbox_head.feat_channels": 24,
    **{f"pts_bbox_head.tasks.{i}.shared_conv_channels": (16, 16)[:2] for i in range(5)},
    **{f"pts_bbox_head.tasks.{i}.shared_conv_strides": ((2, 1), (1, 1))[i % 2] for i in range(5)},
    "pts_bbox_head.anchor_generator.ranges": [[*RANGE[:2], -1.8, *RANGE[3:5], -1.8]] * 10,
}
FUSED = {
    **LEVELS,
    "img_backbone": {
        "type": "mmdet.ResNet",
        "depth": 18,
        "base_channels": 8,
        "stem_channels": 8,
        "out_indices": (0, 1, 2, 3),
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "norm_eval": True,
        "style": "pytorch",
    },
    "img_neck": {
        "type": "mmdet.FPN",
        "in_channels": [8, 16, 32, 64],
        "out_channels": 16,
        "num_outs": 5,
    },
    "pts_voxel_encoder.fusion_layer": {
        "type": "PointFusion",
        "img_channels": 16,
        "pts_channels": 16,
        "mid_channels": 16,
        "out_channels": 16,
        "img_levels": [0, 1, 2, 3, 4],
        "align_corners": False,
        "activate_out": True,
        "fuse_out": False,
    },
    "data_preprocessor.mean": [123.675, 116.28, 103.53],
    "data_preprocessor.std": [58.395, 57.12, 57.375],
    "data_preprocessor.pad_size_divisor": 32,
}
CENTERS = {
    **_voxels(SIZE),
    **_encoder("pts_", SIZE),
    **_stages("pts_"),
    "pts_voxel_encoder.feat_channels": [16],
    "pts_neck.out_channels": [8, 8, 8],
    "pts_bbox_head.in_channels": 24,
    "pts_bbox_head.share_conv_channel": 16,
    "pts_bbox_head.separate_head.head_conv": 8,
    "pts_bbox_head.bbox_coder.pc_range": list(RANGE[:2]),
    "pts_bbox_head.bbox_coder.voxel_size": [SIZE, SIZE],
    "pts_bbox_head.bbox_coder.max_num": 200,
    "test_cfg.pts.post_max_size": 8,
}
RESNET = {
    "backbone.depth": 18,
    "backbone.base_channels": 8,
    "backbone.stem_channels": 8,
    "backbone.init_cfg": None,
    "backbone.style": "pytorch",
    "neck.in_channels": [8, 16, 32, 64],
    "neck.out_channels": 16,
    "bbox_head.in_channels": 16,
    "bbox_head.feat_channels": 16,
    "bbox_head.norm_cfg": {"type": "GN", "num_groups": 4, "requires_grad": True},
    "bbox_head.cls_branch": (16,),
    "bbox_head.dir_branch": (16,),
    "bbox_head.attr_branch": (16,),
    "bbox_head.centerness_branch": (16,),
}
FAMILIES = {
    "PointPillars": Family(
        "pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class", PILLARS
    ),
    "PointPillars, levels": Family(
        "pointpillars/pointpillars_hv_fpn_sbn-all_8xb4-2x_nus-3d", LEVELS
    ),
    "PointPillars and camera": Family(
        "pointpillars/pointpillars_hv_fpn_sbn-all_8xb4-2x_nus-3d", FUSED, camera=True
    ),
    "FreeAnchor": Family(
        "free_anchor/pointpillars_hv_fpn_head-free-anchor_sbn-all_8xb4-2x_nus-3d", LEVELS
    ),
    "SSN": Family("ssn/ssn_hv_secfpn_sbn-all_16xb2-2x_nus-3d", SHAPES),
    "CenterPoint": Family(
        "centerpoint/centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d",
        CENTERS,
        features=5,
    ),
    "CenterPoint, circles": Family(
        "centerpoint/centerpoint_pillar02_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d",
        CENTERS,
        features=5,
    ),
    "SMOKE": Family(
        "smoke/smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d",
        {
            "backbone": {
                "_delete_": True,
                "type": "mmdet.ResNet",
                "depth": 18,
                "base_channels": 8,
                "stem_channels": 8,
            },
            "neck": {  # of the first stage, a map a quarter of the image
                "_delete_": True,
                "type": "mmdet.FPN",
                "in_channels": [8, 16, 32, 64],
                "out_channels": 16,
                "end_level": 0,
                "num_outs": 1,
            },
            "bbox_head.in_channels": 16,
            "bbox_head.feat_channels": 16,
            "bbox_head.cls_branch": (16,),
            "bbox_head.reg_branch": ((16,),),
            "bbox_head.norm_cfg": {"type": "GN", "num_groups": 4},
        },
        camera=True,
        cloud=False,
    ),
    "FCOS3D": Family(
        "fcos3d/fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d",
        {
            **RESNET,
            "backbone.dcn": None,
            "backbone.stage_with_dcn": (False,) * 4,
            "bbox_head.reg_branch": ((16,), (16,), (16,), (16,), ()),
            "test_cfg.max_per_img": 40,
        },
        camera=True,
        cloud=False,
    ),
    "PGD": Family(
        "pgd/pgd_r101-caffe_fpn_head-gn_4xb3-4x_kitti-mono3d",
        {
            **RESNET,
            "bbox_head.reg_branch": ((16,),) * 6,
            "bbox_head.depth_branch": (16,),
            "test_cfg.max_per_img": 30,
            "test_cfg.nms_thr": 0.3,
        },
        camera=True,
        cloud=False,
    ),
}


def configuration(name: str, changes: Mapping[str, Any] | None = None) -> Any:
    """Read the model of a shipped configuration, with changes."""
    import mmdet3d
    from mmengine.config import Config

    config = Config.fromfile(Path(mmdet3d.__file__).parent / ".mim" / "configs" / f"{name}.py")
    config.merge_from_dict({f"model.{key}": value for key, value in (changes or {}).items()})
    return config.model


def built(config: Any) -> Any:
    import mmdet3d.models  # noqa: F401 - registers them
    from mmdet3d.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet3d")
    return MODELS.build(config)


def raw(family: Family, seed: int = 0) -> dict[str, Any]:
    """Return what a data loader gives of two frames: clouds, images, and what is known of them."""
    from mmdet3d.structures import CameraInstance3DBoxes, Det3DDataSample, LiDARInstance3DBoxes

    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, Any] = {}
    if family.cloud:
        low, high = torch.tensor(RANGE[:3]), torch.tensor(RANGE[3:])
        inputs["points"] = [
            torch.cat(
                [
                    low + (high - low) * torch.rand(count, 3, generator=generator),
                    torch.rand(count, family.features - 3, generator=generator),
                ],
                1,
            )
            for count in (2000, 1500)
        ]
    if family.camera:
        inputs["img"] = [
            torch.randint(0, 256, (3, *IMAGE), generator=generator, dtype=torch.uint8)
            for _ in range(2)
        ]
    scale = torch.tensor([[0.25, 0, 0], [0, 0.25, 0], [0, 0, 1]])
    known = {
        "box_type_3d": LiDARInstance3DBoxes if family.cloud else CameraInstance3DBoxes,
        "box_mode_3d": 0 if family.cloud else 1,
        "cam2img": CAMERA,
        "trans_mat": scale.numpy(),
        "affine_aug": False,
        "scale_factor": (1.0, 1.0),
        "img_shape": IMAGE,
        "ori_shape": IMAGE,
        "input_shape": IMAGE,
        "flip": False,
        "lidar2img": (
            torch.tensor(CAMERA)
            @ torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 12], [0, 0, 0, 1]])
        ).numpy(),
    }
    return {
        "inputs": inputs,
        "data_samples": [Det3DDataSample(metainfo=dict(known)) for _ in range(2)],
    }
