"""CenterPoint of MMDetection3D."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.object_detection_3d.adapters.base import Calls
from ml_debugger.object_detection_3d.adapters.mmdetection3d import (
    ALIAS,
    MMDetection3DBase,
    features_at,
    flat,
    grid,
    head_of,
    head_path,
)
from ml_debugger.object_detection_3d.families import changed
from ml_debugger.object_detection_3d.output import HeadRows, NMSConfig


class MMDetection3DCenter(MMDetection3DBase):
    """CenterHead: a row is a cell of the map, and has a box for each label.

    Its class vector is what the heatmaps of all tasks say of the cell; the box of a label is that
    of the label's task. Its feature vector is what the shared convolution gives for the cell,
    which all tasks read.

    A score is compared twice: with the `score_threshold` of the `bbox_coder`, and, where boxes are
    suppressed by their overlap (`nms_type` "rotate"), with that of `test_cfg`. `score_thresh` is
    both. Where boxes are suppressed by the distance of their centres ("circle"), there is no
    `iou_thresh`. There is no `max_detections_per_frame`: `post_max_size` is one for each task.
    """

    family = "MMDetection3D CenterPoint"
    _heads = ("CenterHead",)

    @override
    def n_class(self, model: nn.Module) -> int:
        return sum(head_of(model).num_classes)

    @override
    def layers(self, model: nn.Module) -> dict[str, str]:
        return {ALIAS: f"{head_path(model)}.shared_conv"}

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        return super().taps(model) | {"shared": self.layers(model)[ALIAS]}

    @override
    def nms(self, model: nn.Module) -> NMSConfig:
        head = head_of(model)
        rotate = head.test_cfg["nms_type"] == "rotate"
        least = [head.bbox_coder.score_threshold]
        least += [head.test_cfg["score_threshold"]] if rotate else []
        return NMSConfig(
            score_thresh=max((one for one in least if one is not None), default=None),
            iou_thresh=head.test_cfg["nms_thr"] if rotate else None,
        )

    @override
    def apply_nms(self, model: nn.Module, config: NMSConfig) -> None:
        head, wishes = head_of(model), self._changes(model, config)
        rotate = head.test_cfg["nms_type"] == "rotate"
        if "score_thresh" in wishes:
            first, second = head.bbox_coder.score_threshold, head.test_cfg["score_threshold"]
            if rotate and first is not None and first != second:
                raise UnsupportedModelError(
                    f"bbox_coder.score_threshold is {first} and test_cfg.score_threshold is "
                    f"{second}, so it is not clear which one score_thresh is; make them equal, or "
                    "leave score_thresh None"
                )
            if first is not None:
                head.bbox_coder.score_threshold = wishes["score_thresh"]
            if rotate:
                head.test_cfg["score_threshold"] = wishes["score_thresh"]
        if "iou_thresh" in wishes:
            head.test_cfg["nms_thr"] = wishes["iou_thresh"]

    @override
    def _instead(self) -> str:
        return "; its test_cfg has min_radius where nms_type is 'circle', and post_max_size a task"

    @override
    def _differences(self, head: Any, owner: str) -> list[str]:
        coded = changed(getattr(head, "bbox_coder", None), "CenterPointBBoxCoder", "decode")
        return [
            *changed(head, owner, "predict", "predict_by_feat", "forward", "forward_single"),
            *(f"bbox_coder.{name}" for name in coded),
        ]

    @override
    def _rows(self, head: Any, calls: Calls, metas: Sequence[Any]) -> list[HeadRows]:
        tasks = [task[0] for task in calls["head"][-1].output]  # there is one level
        maps = calls["shared"][-1].output.detach()
        cells = grid([maps.shape[-2:]], maps.device)
        # of all frames at once, as the model does: on a CPU the last bit of a score may depend on
        # where its tensor ends
        scores = [task["heatmap"].detach().sigmoid() for task in tasks]
        task_of = torch.repeat_interleave(torch.tensor(head.num_classes)).to(maps.device)
        found = []
        for i, meta in enumerate(metas):
            boxes = torch.stack(
                [
                    _boxes(head, {name: one[i].detach() for name, one in task.items()}, cells)
                    for task in tasks
                ],
                1,
            )
            boxes[..., 2] = boxes[..., 2] - boxes[..., 5] * 0.5
            width = head.bbox_coder.code_size
            boxes = meta["box_type_3d"](boxes.reshape(-1, width), width).tensor
            found.append(
                HeadRows(
                    torch.cat([flat(one[i], one.shape[1]) for one in scores], 1).float(),
                    boxes.reshape(len(cells), len(tasks), width)[:, task_of],
                    torch.cat(
                        [
                            flat(task["heatmap"][i].detach(), n)
                            for task, n in zip(tasks, head.num_classes, strict=True)
                        ],
                        1,
                    ),
                    features_at([maps[i]], cells),
                    cells,
                )
            )
        return found


def _boxes(head: Any, said: Mapping[str, Tensor], cells: Tensor) -> Tensor:
    """Return the box of each cell: centre, sides, heading, velocity, shape (r, 7) or (r, 9).

    The coder decodes its best cells only, and has no function for one cell: these are its sums.
    """
    coder = head.bbox_coder
    rows = {name: flat(one, len(one)) for name, one in said.items()}
    places = [
        # cells are float32 to the coder too, whatever the head said
        (cells[:, 2 - axis].float() + rows["reg"][:, axis])
        * coder.out_size_factor
        * coder.voxel_size[axis]
        + coder.pc_range[axis]
        for axis in range(2)
    ]
    sides = rows["dim"].exp() if head.norm_bbox else rows["dim"]
    heading = torch.atan2(rows["rot"][:, 0], rows["rot"][:, 1])
    parts = [torch.stack(places, 1), rows["height"], sides, heading[:, None]]
    return torch.cat(parts + ([rows["vel"]] if "vel" in rows else []), 1)
