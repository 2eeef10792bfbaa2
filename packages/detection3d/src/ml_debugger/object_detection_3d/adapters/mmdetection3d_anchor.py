"""Detectors of MMDetection3D with anchors: PointPillars, SECOND, FreeAnchor and SSN."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

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
    head_path,
    without_direction,
)
from ml_debugger.object_detection_3d.families import changed
from ml_debugger.object_detection_3d.output import HeadRows


class MMDetection3DAnchor(MMDetection3DBase):
    """Anchor3DHead and FreeAnchor3DHead: a row is an anchor of a level's grid.

    Rows are in the order of the model: level by level, cell by cell, anchor by anchor. A row may
    give a box for each of several labels. Its feature vector is what the last classification
    layer reads at its cell; the anchors of a cell share it.
    """

    family = "MMDetection3D PointPillars, SECOND and FreeAnchor"
    _heads = ("Anchor3DHead",)
    _settings: ClassVar[Mapping[str, str]] = {
        "score_thr": "score_thresh",
        "nms_thr": "iou_thresh",
        "max_num": "max_detections_per_frame",
    }

    @override
    def n_class(self, model: nn.Module) -> int:
        head = head_of(model)
        return int(head.num_classes) - (not head.use_sigmoid_cls)

    @override
    def layers(self, model: nn.Module) -> dict[str, str]:
        return {ALIAS: f"{head_path(model)}.conv_cls"}

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        return super().taps(model) | {"class0": self.layers(model)[ALIAS]}

    @override
    def _differences(self, head: Any, owner: str) -> list[str]:
        return [
            *changed(
                head, "Base3DDenseHead", "predict", "predict_by_feat", "_predict_by_feat_single"
            ),
            *changed(head, owner, "forward", "forward_single"),
            *without_direction(head),
        ]

    @override
    def _rows(self, head: Any, calls: Calls, metas: Sequence[Any]) -> list[HeadRows]:
        said = [[level.detach() for level in part] for part in calls["head"][-1].output]
        maps = [call.args[0].detach() for call in calls["class0"]]
        each = said[0][0].shape[1] // head.num_classes
        cells = grid([one.shape[-2:] for one in maps], maps[0].device)
        cells = cells.repeat_interleave(each, 0)
        priors = head.prior_generator.grid_anchors(
            [one.shape[-2:] for one in said[0]], device=said[0][0].device
        )
        anchors = torch.cat([one.reshape(-1, head.box_code_size) for one in priors])
        widths = (head.num_classes, head.box_code_size, 2)
        return [
            _read(
                head,
                [
                    [flat(level[i], width) for level in part]
                    for part, width in zip(said, widths, strict=True)
                ],
                anchors,
                cells,
                [one[i] for one in maps],
                meta,
            )
            for i, meta in enumerate(metas)
        ]


class MMDetection3DShapeAware(MMDetection3DAnchor):
    """SSN's ShapeAwareHead: a row is an anchor, and a level is a group of classes.

    Each group has a map of its own. Rows are in the order of the model: group by group, anchor by
    anchor, cell by cell.
    """

    family = "MMDetection3D SSN"
    _heads = ("ShapeAwareHead",)

    @override
    def layers(self, model: nn.Module) -> dict[str, str]:
        return {ALIAS: f"{head_path(model)}.heads"}

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        path = head_path(model)
        groups = range(len(head_of(model).heads))
        return {"head": path} | {f"class{i}": f"{path}.heads.{i}.conv_cls" for i in groups}

    @override
    def _differences(self, head: Any, owner: str) -> list[str]:
        found = [
            *changed(head, "Base3DDenseHead", "predict"),
            *changed(head, owner, "forward_single", "predict_by_feat", "_predict_by_feat_single"),
            *without_direction(head),
        ]
        # else the feature vectors of a frame are of different widths
        if len({one.conv_cls.in_channels for one in head.heads}) != 1:
            found.append("shared_conv_channels, whose last differs between its tasks")
        return found

    @override
    def _rows(self, head: Any, calls: Calls, metas: Sequence[Any]) -> list[HeadRows]:
        said = [part[0].detach() for part in calls["head"][-1].output]
        groups = [calls[f"class{i}"][-1] for i in range(len(head.heads))]
        maps = [call.args[0].detach() for call in groups]
        shapes = [one.shape[-2:] for one in maps]
        cells = grid(shapes, maps[0].device).split([height * width for height, width in shapes])
        cells = torch.cat(
            [
                one.repeat(group.num_base_anchors, 1)
                for one, group in zip(cells, head.heads, strict=True)
            ]
        )
        sizes = [
            shape
            for shape, task in zip(shapes, head.tasks, strict=True)
            for _ in range(task["num_class"])
        ]
        (priors,) = head.prior_generator.grid_anchors(sizes, device=said[0].device)
        return [
            _read(
                head,
                [[part[i]] for part in said],
                torch.cat(priors),
                cells,
                [one[i] for one in maps],
                meta,
            )
            for i, meta in enumerate(metas)
        ]


def _read(
    head: Any,
    said: Sequence[Sequence[Tensor]],
    anchors: Tensor,
    cells: Tensor,
    maps: Sequence[Tensor],
    meta: Mapping[str, Any],
) -> HeadRows:
    """Read what a head said of one frame.

    Args:
        head: The head.
        said: Class vectors, box codes and directions of each level, each with a line a row.
        anchors: The anchor of each row.
        cells: Level, row and column of each row.
        maps: What the classification layer reads, by level.
        meta: What is known of the frame.
    """
    from mmdet3d.structures import limit_period

    logits, codes, directions = said
    # level by level, as the model does: on a CPU the last bit of a score may depend on where its
    # tensor ends
    scores = torch.cat(
        [one.sigmoid() if head.use_sigmoid_cls else one.softmax(-1)[:, :-1] for one in logits]
    )
    boxes = head.bbox_coder.decode(anchors, torch.cat(list(codes)))
    turned = limit_period(boxes[:, 6] - head.dir_offset, head.dir_limit_offset, torch.pi)
    way = torch.cat(list(directions)).max(-1)[1].to(boxes.dtype)
    boxes[:, 6] = turned + head.dir_offset + torch.pi * way
    return HeadRows(
        scores.float(),
        meta["box_type_3d"](boxes, box_dim=head.box_code_size).tensor,
        torch.cat(list(logits)),
        features_at(maps, cells),
        cells,
    )
