"""Detectors of Hugging Face transformers that answer with queries: DETR and its descendants."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from ml_debugger.core.detection.families import is_a
from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.object_detection.adapters.base import Call, Calls, DetectionAdapter
from ml_debugger.object_detection.output import (
    Detections,
    HeadRows,
    ImageOutput,
    NMSConfig,
    Placement,
)

#: The threshold that the library's own post-processing takes where the user names none.
_THRESHOLD = 0.5


class _Reading(NamedTuple):
    """How the image processor of a model reads its output.

    Attributes:
        head: Path of the class head; `{}` stands for the number of the last decoder layer.
        softmax: Whether a query has one class, or none of them as the last logit says. If not,
            each class of a query is a box of its own.
        top: How many boxes are looked at before the threshold; None for one a query.
    """

    head: str
    softmax: bool
    top: int | None = None


_READINGS = {
    "detr.modeling_detr.Detr": _Reading("class_labels_classifier", softmax=True),
    "yolos.modeling_yolos.Yolos": _Reading("class_labels_classifier", softmax=True),
    "conditional_detr.modeling_conditional_detr.ConditionalDetr": _Reading(
        "class_labels_classifier", softmax=False, top=100
    ),
    "deformable_detr.modeling_deformable_detr.DeformableDetr": _Reading(
        "class_embed.{}", softmax=False, top=100
    ),
    "rt_detr.modeling_rt_detr.RTDetr": _Reading("model.decoder.class_embed.{}", softmax=False),
    "rt_detr_v2.modeling_rt_detr_v2.RTDetrV2": _Reading(
        "model.decoder.class_embed.{}", softmax=False
    ),
}


class HuggingFaceDETR(DetectionAdapter):
    """DETR, Conditional and Deformable DETR, RT-DETR (v1 and v2) and YOLOS: a row is a query.

    The feature vector of a row is the query as the class head gets it, after the last decoder
    layer.

    These models suppress nothing, and return every query. What the user sees of them is what
    `post_process_object_detection` of their image processor makes of that, with its defaults; it
    is done here in the same operations, so that scores are equal to the last bit.

    Boxes are in pixels of `pixel_values`. Of an image that was padded to the size of its batch,
    `pixel_mask` tells the valid part, to which the model's boxes relate (the processors scale
    them by the size of the image before padding). Without a mask the whole counts.
    """

    frame = "network"
    family = "Hugging Face DETR"

    @override
    def detect(self, model: nn.Module) -> bool:
        return is_a(model, *map(_qualified, _READINGS))

    @override
    def n_class(self, model: nn.Module) -> int:
        return int(model.config.num_labels)  # type: ignore[union-attr,arg-type]

    @override
    def layers(self, model: nn.Module) -> dict[str, str]:
        return {"query": _head(model)}

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        return {"model": "", "head": _head(model)}

    @override
    def parse(
        self, model: nn.Module, output: Any, calls: Calls, config: NMSConfig
    ) -> list[ImageOutput]:
        logits, relative = (_tensor(output, name) for name in ("logits", "pred_boxes"))
        # an auxiliary loss calls the head once more, for the queries of all layers
        queries = calls["head"][0].args[0].detach()
        sizes, whole = _sizes(calls["model"][-1])
        scale = torch.tensor([(w, h, w, h) for h, w in sizes], device=logits.device).float()
        boxes = (_corners(relative) * scale[:, None, :]).float()
        reading = _reading(model)
        probabilities = logits.softmax(-1)[..., :-1] if reading.softmax else logits.sigmoid()
        best = zip(*_best(probabilities, reading), strict=True)
        parts = zip(best, probabilities, boxes, logits, queries, sizes, strict=True)
        return [
            ImageOutput(
                _seen(score, row, label, box, config),
                HeadRows(probability.float(), box, logit, _features(query)),
                size,
                None if size == whole else Placement((1.0, 1.0), (0.0, 0.0), whole),
            )
            for (score, row, label), probability, box, logit, query, size in parts
        ]

    @override
    def nms(self, model: nn.Module) -> NMSConfig:
        return NMSConfig(score_thresh=_THRESHOLD)

    @override
    def apply_nms(self, model: nn.Module, config: NMSConfig) -> None:
        # the other settings are no model's: `parse` goes by them
        if config.iou_thresh is not None:
            raise UnsupportedModelError(
                f"{type(model).__name__} suppresses no overlapping boxes, so it has no iou_thresh; "
                "leave it None and set score_thresh or max_detections_per_image"
            )

    @override
    def images(self, model_input: Any) -> int | None:
        if isinstance(model_input, Mapping):
            model_input = model_input.get("pixel_values")
        return len(model_input) if isinstance(model_input, Tensor) else None


def _reading(model: nn.Module) -> _Reading:
    for name, reading in _READINGS.items():
        if is_a(model, _qualified(name)):
            return reading
    raise UnsupportedModelError(f"{type(model).__name__} is no model of {HuggingFaceDETR.family}")


def _qualified(name: str) -> str:
    return f"transformers.models.{name}ForObjectDetection"


def _head(model: nn.Module) -> str:
    head = _reading(model).head
    return head.format(model.config.decoder_layers - 1) if "{}" in head else head  # type: ignore[union-attr,operator]


def _tensor(output: Any, name: str) -> Tensor:
    found = getattr(output, name, None)
    if not isinstance(found, Tensor):
        raise UnsupportedModelError(
            f"expected an output with {name}, got {type(output).__name__}; call the model with "
            "return_dict=True, and pass its own output on"
        )
    return found.detach()


def _sizes(call: Call) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Return height and width of the valid part of each image, and of the padded images."""
    given = {**dict(zip(("pixel_values", "pixel_mask"), call.args, strict=False)), **call.kwargs}
    pixels, mask = given.get("pixel_values"), given.get("pixel_mask")
    if not isinstance(pixels, Tensor):
        raise UnsupportedModelError(
            "the model was called without pixel_values, so the size of its images is not known; "
            "pass pixel_values, not inputs_embeds or encoder_outputs"
        )
    whole = (pixels.shape[-2], pixels.shape[-1])
    if not isinstance(mask, Tensor):
        return [whole] * len(pixels), whole
    valid = mask.bool()
    lengths = torch.stack([valid.any(2).sum(1), valid.any(1).sum(1)], 1)
    return [(height, width) for height, width in lengths.tolist()], whole


def _corners(boxes: Tensor) -> Tensor:
    from transformers.image_transforms import center_to_corners_format

    convert: Any = center_to_corners_format  # its annotation knows no torch.Tensor
    corners: Tensor = convert(boxes)
    return corners


def _best(probabilities: Tensor, reading: _Reading) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, queries and labels of the boxes that stand for the threshold, (b, n) each."""
    images, queries, labels = probabilities.shape
    if reading.softmax:
        scores, best = probabilities.max(-1)
        return scores, torch.arange(queries, device=best.device).expand(images, -1), best
    n = queries if reading.top is None else min(reading.top, queries * labels)
    scores, index = probabilities.flatten(1).topk(n, dim=1)
    return scores, index // labels, index % labels


def _seen(
    scores: Tensor, queries: Tensor, labels: Tensor, boxes: Tensor, config: NMSConfig
) -> Detections:
    """Keep the boxes of an image that pass the threshold, and the best of them, in their order."""
    threshold = _THRESHOLD if config.score_thresh is None else config.score_thresh
    kept = (scores > threshold).nonzero().squeeze(1)
    if config.max_detections_per_image is not None:
        best = scores[kept].argsort(descending=True, stable=True)
        kept = kept[best[: config.max_detections_per_image].sort().values]
    return Detections(boxes[queries[kept]], scores[kept].float(), labels[kept])


def _features(values: Tensor) -> Any:
    return lambda rows: {"query": values[rows]}
