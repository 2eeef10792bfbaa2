"""Detectors of MMDetection 3 that answer with proposals or queries: R-CNN and DETR.

A model is read where it returns predictions: `model(inputs=..., data_samples=..., mode="predict")`
with what `model.data_preprocessor(data, False)` returned. `model.test_step(data)`, which a `Runner`
and a `DetInferencer` call, comes to the same, and so does a tracer that is called with what the
loader gives, a list of images as `inputs`. The modes "tensor" and "loss" return no boxes. A model
puts its boxes into the data samples that it was given: read its output before it is called with the
same ones again.

Models are known by their heads: those that left alone the methods that an adapter goes by. Not
known are Cascade R-CNN, SSD, YOLOv3, GFL, PAA, TOOD, VFNet, DDQ and Grounding DINO, among others.

Labels are 0 to K - 1. Boxes are in pixels of the image as it was loaded, before it was resized;
so must ground truth be, as it is in test pipelines, which load it after they resized the image.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from ml_debugger.core.detection.families import is_a
from ml_debugger.core.detection.precision import as_computed
from ml_debugger.core.errors import InputError, UnsupportedModelError
from ml_debugger.core.layers import unwrap
from ml_debugger.object_detection.adapters.base import Call, Calls, DetectionAdapter
from ml_debugger.object_detection.adapters.torchvision_rcnn import images_of
from ml_debugger.object_detection.output import (
    Detections,
    HeadRows,
    ImageOutput,
    NMSConfig,
    Placement,
)


class MMDetectionBase(DetectionAdapter):
    """What MMDetection's detectors share.

    Settings are in the `test_cfg` of the head, which models that were built from one configuration
    share; nobody reads that of the model.
    """

    _settings: ClassVar[str] = "bbox_head"  # path of the module that has them
    _head: ClassVar[str] = "bbox_head"  # path of the module that says classes and boxes

    @override
    def detect(self, model: nn.Module) -> bool:
        return is_a(model, "mmdet.models.detectors.base.BaseDetector") and self._knows(model)

    @override
    def n_class(self, model: nn.Module) -> int:
        return int(model.get_submodule(self._head).num_classes)  # type: ignore[arg-type]

    @override
    def parse(
        self, model: nn.Module, output: Any, calls: Calls, config: NMSConfig
    ) -> list[ImageOutput]:
        seen, metas = _seen(output), [one.metainfo for one in output]
        rows = self._rows(model, calls, metas)
        network = calls["backbone"][-1].args[0].shape[-2:]
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
        head: Any = model.get_submodule(self._settings)
        settings, suppression = head.test_cfg, head.test_cfg.get("nms") or {}
        if suppression.get("type", "nms") != "nms":
            raise UnsupportedModelError(
                f"{type(head).__name__} suppresses boxes by {suppression['type']!r}, which changes "
                "their scores, so no box can be traced back; set test_cfg.nms.type to 'nms'"
            )
        most = settings.get("max_per_img", -1)
        found = {
            "score_thresh": settings.get("score_thr"),
            "iou_thresh": suppression.get("iou_threshold"),
            "max_detections_per_image": most if most > 0 else None,
        }
        return NMSConfig(**found | dict.fromkeys(self._ignored(model)))

    @override
    def apply_nms(self, model: nn.Module, config: NMSConfig) -> None:
        head: Any = model.get_submodule(self._settings)
        wishes = config.model_dump(exclude_none=True)
        has = self.nms(model).model_dump(exclude_none=True)
        for name in wishes.keys() - has.keys():
            raise UnsupportedModelError(
                f"{type(head).__name__} has no setting that does what {name} says; leave it None. "
                f"It has {', '.join(has) or 'none'}; others of its own are in its test_cfg"
            )
        for name, value in wishes.items():
            if name == "iou_thresh":
                head.test_cfg["nms"]["iou_threshold"] = value
            else:
                head.test_cfg["score_thr" if name == "score_thresh" else "max_per_img"] = value

    @override
    def shared(self, model: nn.Module) -> Sequence[tuple[Any, str]]:
        return [(model.get_submodule(self._settings), "test_cfg")]

    @override
    def run(self, model: nn.Module, model_input: Any) -> Any:
        raw = isinstance(model_input, Mapping) and "mode" not in model_input
        if raw and isinstance(model_input["inputs"], list | tuple):
            inner: Any = unwrap(model)
            model_input = {**inner.data_preprocessor(model_input, False), "mode": "predict"}
        return super().run(model, model_input)

    @override
    def images(self, model_input: Any) -> int | None:
        named = isinstance(model_input, Mapping)
        return images_of(model_input.get("inputs") if named else model_input)

    def _ignored(self, model: nn.Module) -> Sequence[str]:
        """Return the fields of `NMSConfig` that the model does not go by, whatever it is told."""
        return ()

    @abstractmethod
    def _knows(self, model: Any) -> bool:
        """Tell whether a detector's head is one that this adapter can read."""

    @abstractmethod
    def _rows(self, model: Any, calls: Calls, metas: Sequence[Any]) -> list[HeadRows]:
        """Read what the head said of each image, given what is known of the images."""


class MMDetectionRCNN(MMDetectionBase):
    """Fast, Faster and Mask R-CNN: a row is a proposal of the first stage.

    The feature vector of a row is what the last classification layer gets.
    """

    family = "MMDetection Faster and Mask R-CNN"
    _settings = "roi_head"
    _head = "roi_head.bbox_head"

    @override
    def layers(self, model: nn.Module) -> dict[str, str]:
        return {"box": "roi_head.bbox_head.fc_cls"}

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        return {
            "backbone": "backbone",
            "extractor": "roi_head.bbox_roi_extractor",
            "head": self._head,
            "class": "roi_head.bbox_head.fc_cls",
        }

    @override
    def _knows(self, model: Any) -> bool:
        stage = getattr(model, "roi_head", None)
        head = getattr(stage, "bbox_head", None)
        return (
            keeps(stage, "BaseRoIHead", "predict")
            and keeps(stage, "StandardRoIHead", "predict_bbox")
            and keeps(head, "BBoxHead", "predict_by_feat", "_predict_by_feat_single")
            and bool(head.with_cls and head.with_reg)  # type: ignore[union-attr]
            and upright(head)
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
                box = head.bbox_coder.decode(
                    roi[:, 1:].repeat_interleave(deltas.shape[1] // 4, 0),
                    delta.reshape(-1, 4),
                    max_shape=meta["img_shape"],
                )
            shape = (-1, 4) if head.reg_class_agnostic else (-1, head.num_classes, 4)
            box = brought_back(box, meta, divide=model.with_mask).reshape(shape)
            found.append(HeadRows(score[:, :-1].float(), box, logit, _features("box", feature)))
        return found


class MMDetectionDETR(MMDetectionBase):
    """DETR, Conditional, DAB and Deformable DETR, and DINO: a row is a query.

    The feature vector of a row is the query as the class head gets it, after the last decoder
    layer. These models suppress nothing, and return as many boxes as `max_detections_per_image`
    says, always; they have no other setting.
    """

    family = "MMDetection DETR"

    @override
    def layers(self, model: nn.Module) -> dict[str, str]:
        detr: Any = model
        several = hasattr(detr.bbox_head, "cls_branches")  # one for each decoder layer
        name = f"cls_branches.{detr.decoder.num_layers - 1}" if several else "fc_cls"
        return {"query": f"bbox_head.{name}"}

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        return {"backbone": "backbone", "head": "bbox_head"}

    @override
    def apply_nms(self, model: nn.Module, config: NMSConfig) -> None:
        detr: Any = model
        each = self.n_class(detr) if detr.bbox_head.loss_cls.use_sigmoid else 1
        most, can = config.max_detections_per_image, detr.num_queries * each
        if most is not None and most > can:
            raise InputError(
                f"max_detections_per_image is at most {can}, as the queries give, not {most}"
            )
        super().apply_nms(model, config)

    @override
    def _ignored(self, model: nn.Module) -> Sequence[str]:
        return ("score_thresh", "iou_thresh")

    @override
    def _knows(self, model: Any) -> bool:
        head = getattr(model, "bbox_head", None)
        return keeps(head, "DETRHead", "_predict_by_feat_single") and (
            keeps(head, "DETRHead", "predict_by_feat")
            or keeps(head, "DeformableDETRHead", "predict_by_feat")
        )

    @override
    def _rows(self, model: Any, calls: Calls, metas: Sequence[Any]) -> list[HeadRows]:
        (hidden, *_), _, said = calls["head"][-1]
        logits, relative = (one[-1].detach() for one in said)
        sigmoid = model.bbox_head.loss_cls.use_sigmoid
        found = []
        for logit, place, query, meta in zip(logits, relative, hidden[-1], metas, strict=True):
            centre, half = place[:, :2], 0.5 * place[:, 2:]
            box = torch.cat([centre - half, centre + half], 1)
            height, width = meta["img_shape"][:2]
            for axis, length in enumerate((width, height)):
                box[:, axis::2] = (box[:, axis::2] * length).clamp(0, length)
            with as_computed(model, logit):
                score = logit.sigmoid() if sigmoid else logit.softmax(-1)[:, :-1]
            at = brought_back(box, meta, divide=True)
            found.append(HeadRows(score.float(), at, logit, _features("query", query.detach())))
        return found


def keeps(part: object, owner: str, *methods: str) -> bool:
    """Tell whether a module has methods from the class of that name, and not from a descendant."""
    return all(
        getattr(getattr(type(part), name, None), "__qualname__", "") == f"{owner}.{name}"
        for name in methods
    )


def upright(head: Any) -> bool:
    """Tell whether a head gives boxes of four numbers, which have no angle."""
    return getattr(getattr(head, "bbox_coder", None), "encode_size", 4) == 4


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
    found = [one.pred_instances.detach() for one in output]
    return [Detections(one.bboxes.float(), one.scores.float(), one.labels) for one in found]


def brought_back(boxes: Any, meta: Mapping[str, Any], *, divide: bool) -> Tensor:
    """Bring boxes (n, 4) from the resized image to the image as it was loaded.

    Some heads divide, some multiply by the inverse: not nearly the same in half precision.
    """
    corners: Tensor = getattr(boxes, "tensor", boxes)  # boxes may have a type of their own
    scale = [one if divide else 1 / one for one in meta["scale_factor"]]
    factor = corners.new_tensor(scale).repeat(1, 2)
    return (corners / factor if divide else corners * factor).float()


def _features(alias: str, values: Tensor) -> Any:
    return lambda rows: {alias: values[rows].float()}
