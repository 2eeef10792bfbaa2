"""Detectors of MMDetection 3: R-CNN, one-stage detectors with a grid, and DETR.

They are read where they return predictions: `model.test_step(data)`, which is also what a `Runner`
and a `DetInferencer` call, or `model(inputs=..., data_samples=..., mode="predict")` with what
`model.data_preprocessor(data)` returned. The mode "tensor", and "loss", give nothing to read.

Which models are known is told by their heads, not by their names. Many a head derives from
another and computes its boxes in its own way; such a one is known only if it has left the methods
alone that an adapter goes by. Cascade R-CNN, SSD, YOLOv3, GFL, PAA, TOOD, VFNet, DDQ and Grounding
DINO are among those that are not.

Labels are 0 to K - 1. Boxes are in pixels of the image as it was loaded, before it was resized.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from ml_debugger.core.errors import InputError, UnsupportedModelError
from ml_debugger.object_detection.adapters.base import Call, Calls, DetectionAdapter, is_a
from ml_debugger.object_detection.adapters.torchvision_rcnn import as_computed, images_of
from ml_debugger.object_detection.output import (
    Detections,
    HeadRows,
    ImageOutput,
    NMSConfig,
    Placement,
)

#: Where a one-stage head keeps its last classification layer, and whether its boxes have another
#: score than the one that its threshold goes by. Of several that fit, the first.
_DENSE = {
    "rtmdet_head.RTMDetHead": ("rtm_cls", False),
    "atss_head.ATSSHead": ("atss_cls", True),
    "fcos_head.FCOSHead": ("conv_cls", True),
    "retina_head.RetinaHead": ("retina_cls", False),
    "yolox_head.YOLOXHead": ("multi_level_conv_cls", False),
}


class _MMDetection(DetectionAdapter):
    """What MMDetection's detectors share.

    Settings are kept in the `test_cfg` of the head, from where the model takes them; the one of
    the model itself is read by nobody. It is replaced by a changed copy, since models that were
    built from one configuration share it.
    """

    @override
    def detect(self, model: nn.Module) -> bool:
        return is_a(model, "mmdet.models.detectors.base.BaseDetector") and self._knows(model)

    @override
    def n_class(self, model: nn.Module) -> int:
        return int(self._predictor(model).num_classes)

    @override
    def parse(
        self, model: nn.Module, output: Any, calls: Calls, config: NMSConfig
    ) -> list[ImageOutput]:
        seen = _seen(output)
        metas = [one.metainfo for one in output]
        network = calls["backbone"][-1].args[0].shape[-2:]
        rows = self._rows(model, calls, metas)
        return [
            ImageOutput(
                one,
                row,
                tuple(meta["ori_shape"][:2]),
                # images are padded on the right and below only
                Placement(tuple(meta["scale_factor"]), (0.0, 0.0), tuple(network)),
            )
            for one, row, meta in zip(seen, rows, metas, strict=True)
        ]

    @override
    def nms(self, model: nn.Module) -> NMSConfig:
        head = self._head(model)
        settings, suppression = head.test_cfg, head.test_cfg.get("nms") or {}
        if suppression.get("type", "nms") != "nms":
            raise UnsupportedModelError(
                f"{type(head).__name__} suppresses boxes by {suppression['type']!r}, which changes "
                "their scores, so no box can be traced back; set test_cfg.nms.type to 'nms'"
            )
        most = settings.get("max_per_img", -1)
        return NMSConfig(
            score_thresh=settings.get("score_thr") if self._has_threshold(model) else None,
            iou_thresh=suppression.get("iou_threshold"),
            max_detections_per_image=most if most > 0 and self._has_most(model) else None,
        )

    @override
    def apply_nms(self, model: nn.Module, config: NMSConfig) -> None:
        head, wishes = self._head(model), config.model_dump(exclude_none=True)
        has = self.nms(model).model_dump(exclude_none=True)
        for name in wishes.keys() - has.keys():
            raise UnsupportedModelError(
                f"{type(head).__name__} has no setting that does what {name} says; leave it None. "
                f"It has {', '.join(has) or 'none'}; others of its own are in its test_cfg"
            )
        settings = deepcopy(head.test_cfg)
        for name, value in wishes.items():
            if name == "iou_thresh":
                settings["nms"]["iou_threshold"] = value
            else:
                settings["score_thr" if name == "score_thresh" else "max_per_img"] = value
        head.test_cfg = settings

    @override
    def images(self, model_input: Any) -> int | None:
        if isinstance(model_input, Mapping):
            model_input = model_input.get("inputs")
        return images_of(model_input)

    def _head(self, model: Any) -> Any:
        """Return the module that holds the settings."""
        return model.bbox_head

    def _predictor(self, model: Any) -> Any:
        """Return the module that says classes and boxes."""
        return model.bbox_head

    def _has_threshold(self, model: nn.Module) -> bool:
        """Tell whether the model's threshold is one of the scores that it returns."""
        return True

    def _has_most(self, model: nn.Module) -> bool:
        """Tell whether the model goes by its largest number of boxes."""
        return True

    @abstractmethod
    def _knows(self, model: Any) -> bool:
        """Tell whether a detector's head is one that this adapter can read."""

    @abstractmethod
    def _rows(self, model: Any, calls: Calls, metas: Sequence[Any]) -> list[HeadRows]:
        """Read what the head said of each image, given what is known of the images."""


class MMDetectionRCNN(_MMDetection):
    """Fast, Faster and Mask R-CNN: a row is a proposal of the first stage.

    The feature vector of a row is what the last classification layer gets: in most models what
    the shared layers of the second stage give.
    """

    family = "MMDetection Faster R-CNN"

    @override
    def layers(self, model: nn.Module) -> dict[str, str]:
        return {"box": "roi_head.bbox_head.fc_cls"}

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        return {
            "backbone": "backbone",
            "extractor": "roi_head.bbox_roi_extractor",
            "head": "roi_head.bbox_head",
            "class": "roi_head.bbox_head.fc_cls",
        }

    @override
    def _head(self, model: Any) -> Any:
        return model.roi_head

    @override
    def _predictor(self, model: Any) -> Any:
        return model.roi_head.bbox_head

    @override
    def _knows(self, model: Any) -> bool:
        stage = getattr(model, "roi_head", None)
        head = getattr(stage, "bbox_head", None)
        return (
            _keeps(stage, "BaseRoIHead", "predict")
            and _keeps(stage, "StandardRoIHead", "predict_bbox")
            and _keeps(head, "BBoxHead", "predict_by_feat", "_predict_by_feat_single")
            and bool(head.with_cls and head.with_reg)  # type: ignore[union-attr]
        )

    @override
    def _rows(self, model: Any, calls: Calls, metas: Sequence[Any]) -> list[HeadRows]:
        head = model.roi_head.bbox_head
        if extracted := _ran(calls, "extractor"):
            rois = extracted[-1].args[1].detach()
            logits, deltas = (one.detach() for one in calls["head"][-1].output)
            features = calls["class"][-1].args[0].detach()
        else:  # no image has a proposal, so that the second stage did not run
            made = calls["backbone"][-1].args[0].new_zeros
            rois, logits = made(0, 5), made(0, head.fc_cls.out_features)
            deltas, features = made(0, head.fc_reg.out_features), made(0, head.fc_cls.in_features)
        counts = torch.bincount(rois[:, 0].long(), minlength=len(metas)).tolist()
        parts = zip(*(one.split(counts) for one in (rois, logits, deltas, features)), strict=True)
        found = []
        for (roi, logit, delta, feature), meta in zip(parts, metas, strict=True):
            with as_computed(model, logit):
                own = head.custom_cls_channels
                score = head.loss_cls.get_activation(logit) if own else logit.softmax(-1)
                each = delta.reshape(len(roi), -1 if len(roi) else deltas.shape[1] // 4, 4)
                box = head.bbox_coder.decode(
                    roi[:, 1:].repeat_interleave(each.shape[1], 0),
                    each.reshape(-1, 4),
                    max_shape=meta["img_shape"],
                )
            box = _back(box, meta).reshape(each.shape)
            if head.reg_class_agnostic:
                box = box.squeeze(1)
            found.append(HeadRows(score[:, :-1].float(), box, logit, _features("box", feature)))
        return found


class MMDetectionDense(_MMDetection):
    """RetinaNet, FCOS, ATSS and RTMDet: a row is an anchor or a point of a level's grid.

    Rows are in the order of the model: level by level, cell by cell, anchor by anchor. A row may
    give a box for each of several labels. Its feature vector is what the last classification
    layer reads at its cell; the anchors of a cell share it.

    In FCOS and ATSS a score is that of the class times how central the row finds itself in its
    object, but the model's threshold is one of the former alone. So they have no `score_thresh`;
    `bbox_head.test_cfg.score_thr` is left as it is.
    """

    family = "MMDetection RetinaNet, FCOS, ATSS and RTMDet"
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
    def _has_threshold(self, model: nn.Module) -> bool:
        return not _dense(model)[1]

    @override
    def _knows(self, model: Any) -> bool:
        head = getattr(model, "bbox_head", None)
        return _keeps(head, self._owner, *self._methods) and hasattr(head, _dense(model)[0])

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
                    _back(box, meta),
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
        width = head.bbox_coder.encode_size
        return [
            head.bbox_coder.decode(
                priors,
                torch.cat([_flat(level[i], width) for level in said[1]]),
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
    _owner = "YOLOXHead"
    _methods = ("predict_by_feat", "_bbox_decode", "_bbox_post_process")

    @override
    def _has_most(self, model: nn.Module) -> bool:
        return False

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
        boxes: Tensor = head._bbox_decode(priors, _batch(said[1], 4))
        return boxes.unbind()


class MMDetectionDETR(_MMDetection):
    """DETR, Conditional, DAB and Deformable DETR, and DINO: a row is a query.

    The feature vector of a row is the query as the class head gets it, after the last decoder
    layer. These models suppress nothing; of the settings they have `max_detections_per_image`
    only, and always return as many boxes as that says.
    """

    family = "MMDetection DETR"

    @override
    def layers(self, model: nn.Module) -> dict[str, str]:
        if hasattr(model.bbox_head, "cls_branches"):
            return {"query": f"bbox_head.cls_branches.{model.decoder.num_layers - 1}"}  # type: ignore[union-attr,operator]
        return {"query": "bbox_head.fc_cls"}

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        return {"backbone": "backbone", "head": "bbox_head"}

    @override
    def apply_nms(self, model: nn.Module, config: NMSConfig) -> None:
        most, can = config.max_detections_per_image, int(model.num_queries)  # type: ignore[arg-type]
        if model.bbox_head.loss_cls.use_sigmoid:  # type: ignore[union-attr]
            can *= self.n_class(model)
        if most is not None and most > can:
            raise InputError(
                f"max_detections_per_image must be at most {can}, the number of boxes that the "
                f"queries of this model can give, got {most}"
            )
        super().apply_nms(model, config)

    @override
    def _has_threshold(self, model: nn.Module) -> bool:
        return False

    @override
    def _knows(self, model: Any) -> bool:
        head = getattr(model, "bbox_head", None)
        return _keeps(head, "DETRHead", "_predict_by_feat_single") and (
            _keeps(head, "DETRHead", "predict_by_feat")
            or _keeps(head, "DeformableDETRHead", "predict_by_feat")
        )

    @override
    def _rows(self, model: Any, calls: Calls, metas: Sequence[Any]) -> list[HeadRows]:
        from mmdet.structures.bbox import bbox_cxcywh_to_xyxy

        (hidden, *_), _, said = calls["head"][-1]
        logits, relative = (one[-1].detach() for one in said)
        sigmoid = model.bbox_head.loss_cls.use_sigmoid
        found = []
        for logit, box, query, meta in zip(logits, relative, hidden[-1], metas, strict=True):
            height, width = meta["img_shape"][:2]
            size = box.new_tensor([width, height, width, height])
            box = (bbox_cxcywh_to_xyxy(box) * size).clamp(box.new_tensor(0), size)
            with as_computed(model, logit):
                score = logit.sigmoid() if sigmoid else logit.softmax(-1)[:, :-1]
            rows = _features("query", query.detach())
            found.append(HeadRows(score.float(), _back(box, meta), logit, rows))
        return found


def _keeps(part: object, owner: str, *methods: str) -> bool:
    """Tell whether a module has methods from the class of that name, and not from a descendant."""
    return all(
        getattr(getattr(type(part), name, None), "__qualname__", "") == f"{owner}.{name}"
        for name in methods
    )


def _ran(calls: Calls, name: str) -> Sequence[Call]:
    """Return the calls of a module that may not have run."""
    try:
        return calls[name]
    except UnsupportedModelError:
        return ()


def _seen(output: Any) -> list[Detections]:
    if not isinstance(output, list) or not all(
        is_a(one, "mmdet.structures.det_data_sample.DetDataSample") and "pred_instances" in one
        for one in output
    ):
        raise UnsupportedModelError(
            f"expected a list of DetDataSample with pred_instances, got {type(output).__name__}; "
            "call model.test_step(data), or the model with mode='predict'"
        )
    found = [one.pred_instances for one in output]
    return [
        Detections(one.bboxes.detach().float(), one.scores.detach().float(), one.labels.detach())
        for one in found
    ]


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


def _back(boxes: Any, meta: Mapping[str, Any]) -> Tensor:
    """Bring boxes (n, 4) from the resized image to the image as it was loaded.

    Some heads multiply by the inverse; that may differ in the last bit.
    """
    from mmdet.structures.bbox import get_box_tensor

    corners: Tensor = get_box_tensor(boxes)
    back = corners / corners.new_tensor(meta["scale_factor"]).repeat(1, 2)
    return back.float()


def _features(alias: str, values: Tensor) -> Any:
    return lambda rows: {alias: values[rows].float()}


def _features_at(maps: Sequence[Tensor], a_cell: int) -> Any:
    """Take the cells of rows from the maps (channel, height, width) of all levels."""
    return lambda rows: {
        "class": torch.cat([one.flatten(1) for one in maps], 1)[:, rows // a_cell].T.float()
    }
