"""Two-stage detectors of torchvision: Faster, Mask and Keypoint R-CNN."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from ml_debugger.core.detection.families import is_a
from ml_debugger.core.detection.precision import as_computed
from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.object_detection.adapters.base import Call, Calls, DetectionAdapter
from ml_debugger.object_detection.output import Detections, HeadRows, ImageOutput, NMSConfig

_GENERALIZED = "torchvision.models.detection.generalized_rcnn.GeneralizedRCNN"


class TorchvisionRCNN(DetectionAdapter):
    """Faster, Mask and Keypoint R-CNN: a row is a proposal of the first stage."""

    family = "torchvision R-CNN"
    background = 0

    @override
    def detect(self, model: nn.Module) -> bool:
        return is_a(model, _GENERALIZED)

    @override
    def n_class(self, model: nn.Module) -> int:
        return int(model.roi_heads.box_predictor.cls_score.out_features)  # type: ignore[union-attr,arg-type]

    @override
    def layers(self, model: nn.Module) -> dict[str, str]:
        return {"box": "roi_heads.box_head"}

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        return {
            "model": "",
            "heads": "roi_heads",
            "predictor": "roi_heads.box_predictor",
            "box": "roi_heads.box_head",
        }

    @override
    def parse(
        self, model: nn.Module, output: Any, calls: Calls, config: NMSConfig
    ) -> list[ImageOutput]:
        seen = seen_by_torchvision(output)
        sizes = sizes_of(calls["model"][-1])
        _, proposals, shapes, *_ = calls["heads"][-1].args
        logits, deltas = calls["predictor"][-1].output
        features = calls["box"][-1].output
        with as_computed(model, logits):
            scores = logits.softmax(-1)
            boxes = model.roi_heads.box_coder.decode(deltas, proposals)  # type: ignore[union-attr,operator]
        boxes = boxes.reshape(*logits.shape, 4)  # without proposals it has another shape
        scores[:, self.background] = 0  # background is no label that a box could have
        counts = [len(one) for one in proposals]
        parts = zip(
            seen,
            scores.split(counts),
            boxes.split(counts),
            logits.split(counts),
            features.split(counts),
            shapes,
            sizes,
            strict=True,
        )
        return [
            ImageOutput(
                one,
                HeadRows(
                    score.float(), resized(box, shape, size).float(), logit, _features(feature)
                ),
                size,
            )
            for one, score, box, logit, feature, shape, size in parts
        ]

    @override
    def nms(self, model: nn.Module) -> NMSConfig:
        return nms_of(model.roi_heads)

    @override
    def apply_nms(self, model: nn.Module, config: NMSConfig) -> None:
        set_nms(model.roi_heads, config)

    @override
    def images(self, model_input: Any) -> int | None:
        return images_of(model_input)


def _features(values: Tensor) -> Any:
    return lambda rows: {"box": values[rows].float()}


def seen_by_torchvision(output: Any) -> list[Detections]:
    """Read what detectors of torchvision return for inference.

    Raises:
        UnsupportedModelError: It is something else, losses for example.
    """
    if not isinstance(output, list) or not all(
        isinstance(one, dict) and {"boxes", "scores", "labels"} <= one.keys() for one in output
    ):
        raise UnsupportedModelError(
            "expected a list with boxes, scores and labels of each image, got "
            f"{type(output).__name__}; torchvision's detectors return losses in training mode: "
            "call model.eval() first"
        )
    return [
        Detections(
            one["boxes"].detach().float(), one["scores"].detach().float(), one["labels"].detach()
        )
        for one in output
    ]


def sizes_of(call: Call) -> list[tuple[int, int]]:
    """Return height and width of each image that a detector of torchvision was called with."""
    images = call.args[0] if call.args else call.kwargs["images"]
    return [(image.shape[-2], image.shape[-1]) for image in images]


def images_of(model_input: Any) -> int | None:
    """Return the number of images in the input of a detector of torchvision."""
    if isinstance(model_input, Mapping):
        model_input = model_input.get("images")
    if isinstance(model_input, Tensor):
        return len(model_input)
    if isinstance(model_input, Sequence) and all(isinstance(one, Tensor) for one in model_input):
        return len(model_input)
    return None


def resized(boxes: Tensor, shape: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Clip boxes (..., 4) to the image that the network saw and bring them to the user's image.

    In the same operations as torchvision, so that the boxes it returns are found to the last bit.
    """
    from torchvision.models.detection.transform import resize_boxes
    from torchvision.ops import clip_boxes_to_image

    flat = clip_boxes_to_image(boxes, shape).reshape(-1, 4)
    back: Tensor = resize_boxes(flat, list(shape), list(size))
    return back.reshape(boxes.shape)


def nms_of(where: Any) -> NMSConfig:
    """Read those attributes that torchvision's detectors keep their settings in."""
    return NMSConfig(
        score_thresh=where.score_thresh,
        iou_thresh=where.nms_thresh,
        max_detections_per_image=where.detections_per_img,
    )


def set_nms(where: Any, config: NMSConfig) -> None:
    """Set those attributes that torchvision's detectors keep their settings in."""
    names = {
        "score_thresh": config.score_thresh,
        "nms_thresh": config.iou_thresh,
        "detections_per_img": config.max_detections_per_image,
    }
    for name, value in names.items():
        if value is not None:
            setattr(where, name, value)
