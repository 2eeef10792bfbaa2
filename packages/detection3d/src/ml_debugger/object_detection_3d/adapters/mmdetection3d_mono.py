"""Detectors of MMDetection3D that see one image: SMOKE, FCOS3D and PGD."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from ml_debugger.object_detection_3d.adapters.base import Calls
from ml_debugger.object_detection_3d.adapters.mmdetection3d import (
    ALIAS,
    MMDetection3DBase,
    features_at,
    flat,
    grid,
    head_of,
    without_direction,
)
from ml_debugger.object_detection_3d.families import changed
from ml_debugger.object_detection_3d.output import HeadRows

#: Where boxes are taken from: these heads give the middle of a box, and the user gets its bottom.
_MIDDLE = (0.5, 0.5, 0.5)


class MMDetection3DMono(MMDetection3DBase):
    """What detectors of one image share.

    A row is a cell of a level's map. Its feature vector is what the last classification layer
    reads there.
    """

    frame = "camera"

    @override
    def n_class(self, model: nn.Module) -> int:
        return int(head_of(model).num_classes)

    @override
    def layers(self, model: nn.Module) -> dict[str, str]:
        return {ALIAS: "bbox_head.conv_cls"}

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        return super().taps(model) | {"class": "bbox_head.conv_cls"}


class MMDetection3DSMOKE(MMDetection3DMono):
    """SMOKE: a row gives a score only for the labels that are highest among its neighbours.

    Its head returns of the 100 best those with a score above 0.25, whatever its `test_cfg` says,
    and suppresses nothing: it has no settings.
    """

    family = "MMDetection3D SMOKE"
    _heads = ("SMOKEMono3DHead",)

    @override
    def _instead(self) -> str:
        return ": it returns of the 100 best those with a score above 0.25, and reads no test_cfg"

    @override
    def _differences(self, head: Any, owner: str) -> list[str]:
        return [
            *changed(head, "BaseMono3DDenseHead", "predict"),
            *changed(
                head, owner, "predict_by_feat", "_decode_heatmap", "forward", "forward_single"
            ),
        ]

    @override
    def _rows(self, head: Any, calls: Calls, metas: Sequence[Any]) -> list[HeadRows]:
        from mmdet.models.utils.gaussian_target import get_local_maximum

        heat, codes = (part[0].detach() for part in calls["head"][-1].output)
        layer = calls["class"][-1]
        scores = get_local_maximum(heat, kernel=3)
        cells = grid([heat.shape[-2:]], heat.device)
        labels = torch.arange(head.num_classes, device=heat.device)
        each, width = head.num_classes, head.bbox_code_size
        points = cells[:, [2, 1]].to(heat.dtype).repeat_interleave(each, 0)
        found = []
        for i, meta in enumerate(metas):
            parts = head.bbox_coder.decode(
                flat(codes[i], codes.shape[1]).repeat_interleave(each, 0),
                points,
                labels.repeat(len(cells)),
                heat.new_tensor(np.array(meta["cam2img"]))[None],
                heat.new_tensor(np.array(meta["trans_mat"]))[None],
            )
            boxes = meta["box_type_3d"](torch.cat(parts, 1), box_dim=width, origin=_MIDDLE).tensor
            found.append(
                HeadRows(
                    flat(scores[i], each).float(),
                    boxes.reshape(-1, each, width),
                    flat(layer.output[i].detach(), each),
                    features_at([layer.args[0][i].detach()], cells),
                    cells,
                )
            )
        return found


class MMDetection3DFCOS(MMDetection3DMono):
    """FCOS3D and PGD: a row may give a box for each of several labels.

    A score is that of the class times how central the row finds itself in its object, and in PGD
    times how sure it is of the depth.
    """

    family = "MMDetection3D FCOS3D and PGD"
    _heads = ("PGDHead", "FCOSMono3DHead")
    _settings: ClassVar[Mapping[str, str]] = {
        "score_thr": "score_thresh",
        "nms_thr": "iou_thresh",
        "max_per_img": "max_detections_per_frame",
    }

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        # the head changes what it says of boxes while it reads it
        parts = range(len(head_of(model).conv_regs))
        return super().taps(model) | {f"box{i}": f"bbox_head.conv_regs.{i}" for i in parts}

    @override
    def _differences(self, head: Any, owner: str) -> list[str]:
        methods = ("predict_by_feat", "_predict_by_feat_single", "forward", "forward_single")
        return [
            *changed(head, "BaseMono3DDenseHead", "predict"),
            *changed(head, owner, *methods),
            *without_direction(head),
        ]

    @override
    def _rows(self, head: Any, calls: Calls, metas: Sequence[Any]) -> list[HeadRows]:
        from mmdet3d.structures import points_img2cam

        said = calls["head"][-1].output
        logits, ways = ([one.detach() for one in said[at]] for at in (0, 2))
        shapes = [one.shape[-2:] for one in logits]
        maps = [call.args[0].detach() for call in calls["class"]]
        codes, cells = _codes(head, calls, logits), grid(shapes, logits[0].device)
        places = torch.cat(head.get_points(shapes, logits[0].dtype, logits[0].device))
        width = head.bbox_coder.bbox_code_size
        found = []
        for i, meta in enumerate(metas):
            view = np.array(meta["cam2img"])
            boxes = torch.cat([flat(one[i], one.shape[1])[:, :width] for one in codes])
            boxes[:, :2] = places - boxes[:, :2]
            if _depth_said(head):
                depth = torch.cat([flat(one[i].detach(), one.shape[1]) for one in said[3]])
                boxes[:, 2] = _fused(head, boxes[:, 2], depth)
            centres = boxes[:, :3].clone()
            boxes[:, :3] = points_img2cam(boxes[:, :3], view)
            way = torch.cat([flat(one[i], 2) for one in ways]).max(-1)[1]
            boxes = head.bbox_coder.decode_yaw(
                boxes, centres, way, head.dir_offset, centres.new_tensor(view)
            )
            found.append(
                HeadRows(
                    _scores(head, said, i).float(),
                    meta["box_type_3d"](boxes, box_dim=width, origin=_MIDDLE).tensor,
                    torch.cat([flat(one[i], head.cls_out_channels) for one in logits]),
                    features_at([one[i] for one in maps], cells),
                    cells,
                )
            )
        return found


def _depth_said(head: Any) -> bool:
    """Tell whether a head says which of several depths an object has, as PGD's may."""
    return bool(getattr(head, "use_depth_classifier", False))


def _codes(head: Any, calls: Calls, logits: Sequence[Tensor]) -> list[Tensor]:
    """Return what the head said of boxes, decoded as far as it goes without the camera.

    A map (frame, code, height, width) for each level.
    """
    parts = [calls[f"box{i}"] for i in range(len(head.conv_regs))]
    found = []
    for level, (stride, scales) in enumerate(zip(head.strides, head.scales, strict=True)):
        codes = torch.cat([calls_of[level].output.detach() for calls_of in parts], 1)
        # the factors alone: to call the modules would run what the user hooked to them
        factors = [partial(torch.mul, one.scale.detach()) for one in scales]
        found.append(head.bbox_coder.decode(codes, factors, stride, False, logits[level]))
    return found


def _fused(head: Any, depth: Tensor, said: Tensor) -> Tensor:
    """Return PGD's depths (r,): what was regressed, and the mean of what was classified (r, d)."""
    mean = head.bbox_coder.decode_prob_depth(
        said, head.depth_range, head.depth_unit, head.division, head.num_depth_cls
    )
    share = head.fuse_lambda.detach().sigmoid()
    fused: Tensor = share * depth + (1 - share) * mean
    return fused


def _scores(head: Any, said: Sequence[Sequence[Tensor]], frame: int) -> Tensor:
    """Return the scores (r, K) of a frame.

    Level by level, as the model does: on a CPU the last bit of a score may depend on where its
    tensor ends.
    """
    found = []
    for level, logits in enumerate(said[0]):
        score = flat(logits[frame].detach(), head.cls_out_channels).sigmoid()
        score = score * flat(said[-1][level][frame].detach(), 1).reshape(-1).sigmoid()[:, None]
        if _depth_said(head):
            depths = flat(said[3][level][frame].detach(), head.num_depth_cls).softmax(-1)
            score *= depths.topk(k=2, dim=-1)[0].mean(dim=-1)[:, None]
            if head.weight_dim != -1:
                weight = flat(said[4][level][frame].detach(), head.weight_dim)
                score *= torch.exp(-weight[:, -1])[:, None]
        found.append(score)
    return torch.cat(found)
