"""One-stage detectors of MMDetection 3: RetinaNet, FCOS, ATSS, RTMDet and YOLOX."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from ml_debugger.core.detection.families import is_a
from ml_debugger.core.detection.precision import as_computed
from ml_debugger.object_detection.adapters.base import Calls
from ml_debugger.object_detection.adapters.mmdetection import (
    MMDetectionBase,
    brought_back,
    keeps,
    upright,
)
from ml_debugger.object_detection.output import HeadRows
from ml_debugger.object_detection.pooling import pick_cells

#: Where a one-stage head keeps its last classification layer, and whether its boxes have another
#: score than the one that its threshold goes by. Of several that fit, the first.
_DENSE = {
    "rtmdet_head.RTMDetHead": ("rtm_cls", False),
    "atss_head.ATSSHead": ("atss_cls", True),
    "fcos_head.FCOSHead": ("conv_cls", True),
    "retina_head.RetinaHead": ("retina_cls", False),
    "yolox_head.YOLOXHead": ("multi_level_conv_cls", False),
}


class MMDetectionDense(MMDetectionBase):
    """RetinaNet, FCOS, ATSS and RTMDet: a row is an anchor or a point of a level's grid.

    Rows are in the order of the model: level by level, cell by cell, anchor by anchor. A row may
    give a box for each of several labels. Its feature vector is what the last classification
    layer reads at its cell; the anchors of a cell share it.

    In FCOS and ATSS a score is that of the class times how central the row finds itself in its
    object, but the model's threshold is one of the former alone. So they have no `score_thresh`;
    `bbox_head.test_cfg.score_thr` is left as it is.
    """

    family = "MMDetection RetinaNet, FCOS, ATSS and RTMDet"
    _divides: ClassVar[bool] = False  # boxes by the image's scale, or multiplies by its inverse
    _owner: ClassVar[str] = "BaseDenseHead"
    _methods: ClassVar[Sequence[str]] = (
        "predict",
        "predict_by_feat",
        "_predict_by_feat_single",
        "_bbox_post_process",
    )

    @override
    def layers(self, model: nn.Module) -> dict[str, str]:
        return {"class": f"bbox_head.{_dense(model)[0]}"}

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        path = self.layers(model)["class"]
        layer = model.get_submodule(path)
        levels = range(len(layer)) if isinstance(layer, nn.ModuleList) else ()
        each = {f"class{i}": f"{path}.{i}" for i in levels}
        return {"backbone": "backbone", "head": "bbox_head"} | (each or {"class0": path})

    @override
    def _ignored(self, model: nn.Module) -> Sequence[str]:
        return ("score_thresh",) if _dense(model)[1] else ()

    @override
    def _knows(self, model: Any) -> bool:
        head = getattr(model, "bbox_head", None)
        return (
            keeps(head, self._owner, *self._methods)
            and hasattr(head, _dense(model)[0])
            and upright(head)
        )

    @override
    def _rows(self, model: Any, calls: Calls, metas: Sequence[Any]) -> list[HeadRows]:
        head, network = model.bbox_head, calls["head"][-1]
        said = [[level.detach() for level in part] for part in network.output]
        levels = [name for name in self.taps(model) if name.startswith("class")]
        # a layer that the levels share runs once for each of them
        maps = [call.args[0].detach() for name in levels for call in calls[name]]
        a_cell = said[0][0].shape[1] // head.cls_out_channels
        with as_computed(model, said[0][0]):
            parts = zip(self._scores(head, said), self._boxes(head, said, metas), strict=True)
            return [
                HeadRows(
                    score.float(),
                    brought_back(box, meta, divide=self._divides),
                    torch.cat([_flat(level[i], head.cls_out_channels) for level in said[0]]),
                    _features_at([level[i] for level in maps], a_cell),
                )
                for i, ((score, box), meta) in enumerate(zip(parts, metas, strict=True))
            ]

    def _scores(self, head: Any, said: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """Return the scores (r, K) of each image.

        Each level of each image by itself, as the model does: on a CPU the last bit of a score
        may depend on where its tensor ends.
        """
        found = []
        for i in range(len(said[0][0])):
            levels = []
            for logits, _, *factor in zip(*said, strict=True):
                score = _probabilities(head, _flat(logits[i], head.cls_out_channels))
                for one in factor:
                    score = score * _flat(one[i], 1).reshape(-1).sigmoid()[:, None]
                levels.append(score)
            found.append(torch.cat(levels))
        return found

    def _boxes(
        self, head: Any, said: Sequence[Sequence[Tensor]], metas: Sequence[Any]
    ) -> Sequence[Tensor]:
        """Return the boxes (r, 4) of each image, in pixels of what the network saw."""
        priors = torch.cat(_priors(head, said[0]))
        return [
            head.bbox_coder.decode(
                priors,
                torch.cat([_flat(level[i], 4) for level in said[1]]),
                max_shape=meta["img_shape"],
            )
            for i, meta in enumerate(metas)
        ]


class MMDetectionYOLOX(MMDetectionDense):
    """YOLOX: a row is a point of a level's grid, and gives a box for its best label only.

    A score is that of the class times how sure the row is of any object. The model returns all
    boxes that are not suppressed, however many, so it has no `max_detections_per_image`.
    """

    family = "MMDetection YOLOX"
    _divides = True
    _owner = "YOLOXHead"
    _methods = ("predict_by_feat", "_bbox_decode", "_bbox_post_process")

    @override
    def _ignored(self, model: nn.Module) -> Sequence[str]:
        return ("max_detections_per_image",)

    @override
    def _scores(self, head: Any, said: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        logits, _, objectness = said
        # of all images and levels at once, as the model does
        score = _batch(logits, head.cls_out_channels).sigmoid()
        return (score * _batch(objectness, 1).squeeze(2).sigmoid()[..., None]).unbind()

    @override
    def _boxes(
        self, head: Any, said: Sequence[Sequence[Tensor]], metas: Sequence[Any]
    ) -> Sequence[Tensor]:
        priors = torch.cat(_priors(head, said[0], with_stride=True))
        boxes: Tensor = head._bbox_decode(priors, _batch(said[1], 4))  # noqa: SLF001 - it has no public name
        return boxes.unbind()


def _dense(model: Any) -> tuple[str, bool]:
    for name, about in _DENSE.items():
        if is_a(model.bbox_head, f"mmdet.models.dense_heads.{name}"):
            return about
    return "", False


def _flat(values: Tensor, width: int) -> Tensor:
    """Bring the map (channel, height, width) of a level to rows."""
    return values.permute(1, 2, 0).reshape(-1, width)


def _batch(levels: Sequence[Tensor], width: int) -> Tensor:
    """Bring the maps (n, channel, height, width) of all levels to rows, shape (n, r, width)."""
    return torch.cat(
        [one.permute(0, 2, 3, 1).reshape(len(one), -1, width) for one in levels], dim=1
    )


def _priors(head: Any, logits: Sequence[Tensor], **how: Any) -> list[Tensor]:
    """Return the anchors or points of each level, in the precision in which the model has them."""
    found: list[Tensor] = head.prior_generator.grid_priors(
        [one.shape[-2:] for one in logits],
        dtype=logits[0].dtype,
        device=logits[0].device,
        **how,
    )
    return found


def _probabilities(head: Any, logits: Tensor) -> Tensor:
    if getattr(head.loss_cls, "custom_cls_channels", False):
        found: Tensor = head.loss_cls.get_activation(logits)
        return found
    return logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]


def _features_at(maps: Sequence[Tensor], a_cell: int) -> Any:
    return lambda rows: {"class": pick_cells(maps, rows, [a_cell] * len(maps))}
