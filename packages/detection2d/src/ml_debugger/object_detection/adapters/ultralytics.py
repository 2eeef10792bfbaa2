"""Detectors of Ultralytics: YOLO and RT-DETR."""

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any

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
from ml_debugger.object_detection.pooling import pick_cells

_KINDS = ("Detect", "v10Detect", "RTDETRDecoder")
#: What `predict` takes for `conf` where a call names none, whatever `model.overrides` says.
_CONFIDENCE = 0.25
_IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Ultralytics(DetectionAdapter):
    """`ultralytics.YOLO` and `ultralytics.RTDETR` for detection, called as `model(source)`.

    A row is an anchor (YOLO) or a query (RT-DETR). The feature vector of an anchor is what the
    last convolution of its level's class branch gets, which is equally wide on all levels; that
    of a query is what the class head gets.

    The network that runs is not `model.model` but a copy with batch normalisation fused, which
    Ultralytics makes when it first predicts; `running` returns what holds it, and makes it at
    need. Another copy is made when the model is moved, or called with another `device`,
    `quantize`, `nms` or `compile`: put those in `model.overrides` before it is traced.

    Of the settings, `iou_thresh` and `max_detections_per_image` are kept in `model.overrides`.
    Calls of the model do not look there for a confidence, so `score_thresh` is kept in a callback
    of `on_predict_start`, which takes the place of 0.25; a call with another `conf` of its own has
    that.
    """

    family = "Ultralytics"

    silence = (
        "Ultralytics has made itself another copy of the network. Put device, quantize, nms and "
        "compile in model.overrides, not in the call, and make the tracer after that and after "
        "moving the model"
    )

    @override
    def detect(self, model: nn.Module) -> bool:
        if not is_a(model, "ultralytics.engine.model.Model"):
            return False
        # descendants of these heads have other tasks, or class branches of other forms
        layers = getattr(model.model, "model", None)
        return isinstance(layers, nn.Sequential) and type(layers[-1]).__name__ in _KINDS

    def running(self, model: nn.Module) -> nn.Module:
        """Return the module whose parts run when the model is called; paths fit both."""
        yolo: Any = model
        if yolo.predictor is None:
            predictor = yolo.task_map[yolo.task]["predictor"](
                overrides={**yolo.overrides, "mode": "predict", "save": False},
                _callbacks=yolo.callbacks,
            )
            predictor.setup_model(model=yolo.model, verbose=False)
            yolo.predictor = predictor
        backend: nn.Module = yolo.predictor.model
        return backend

    @override
    def n_class(self, model: nn.Module) -> int:
        return int(_last(model)[1].nc)

    @override
    def layers(self, model: nn.Module) -> dict[str, str]:
        path, head = _last(self.running(model))
        if _is_query(head):
            return {"query": f"{path}.dec_score_head.{head.decoder.eval_idx}"}
        return {"class": f"{path}.{_branch(head)}"}

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        path, head = _last(self.running(model))
        taps = {"network": "model", "head": path}
        if _is_query(head):
            return {**taps, "class0": f"{path}.dec_score_head.{head.decoder.eval_idx}"}
        name = _branch(head)
        for level, branch in enumerate(getattr(head, name)):
            taps[f"class{level}"] = f"{path}.{name}.{level}.{len(branch) - 1}"
        return taps

    @override
    def parse(
        self, model: nn.Module, output: Any, calls: Calls, config: NMSConfig
    ) -> list[ImageOutput]:
        if not isinstance(output, list) or not all(
            is_a(one, "ultralytics.engine.results.Results") and one.boxes is not None
            for one in output
        ):
            raise UnsupportedModelError(
                f"expected a list of Results with boxes, got {type(output).__name__}; call the "
                "model as model(source), without stream=True or embed="
            )
        head = _last(self.running(model))[1]
        n_pass = _count_passes(calls, len(output))
        names = [name for name in self.taps(model) if name.startswith("class")]
        images: list[ImageOutput] = []
        for at in range(-n_pass, 0):
            given = calls["network"][at].args[0]
            levels = [calls[name][at].args[0].detach() for name in names]
            read = _read_queries if _is_query(head) else _read_anchors
            results = output[len(images) : len(images) + len(given)]
            images += read(head, calls["head"][at], levels, tuple(given.shape[2:]), results)
        return images

    @override
    def nms(self, model: nn.Module) -> NMSConfig:
        from ultralytics.utils import DEFAULT_CFG_DICT

        settings: Any = {**DEFAULT_CFG_DICT, **model.overrides}  # type: ignore[dict-item]
        wished = [one.value for one in _before_predict(model) if isinstance(one, _Confidence)]
        return NMSConfig(
            score_thresh=wished[0] if wished else _CONFIDENCE,
            iou_thresh=settings["iou"] if self._suppresses(model) else None,
            max_detections_per_image=settings["max_det"],
        )

    @override
    def apply_nms(self, model: nn.Module, config: NMSConfig) -> None:
        from ultralytics.utils import DEFAULT_CFG_DICT

        if config.iou_thresh is not None and not self._suppresses(model):
            raise UnsupportedModelError(
                "this model suppresses no overlapping boxes, so it has no iou_thresh; leave it "
                "None and set score_thresh or max_detections_per_image"
            )
        overrides: Any = model.overrides
        wishes = {"iou": config.iou_thresh, "max_det": config.max_detections_per_image}
        for name, value in wishes.items():
            if value == DEFAULT_CFG_DICT[name]:
                overrides.pop(name, None)
            elif value is not None:
                overrides[name] = value
        if config.score_thresh is not None:
            callbacks = _before_predict(model)
            callbacks[:] = [one for one in callbacks if not isinstance(one, _Confidence)]
            if config.score_thresh != _CONFIDENCE:
                callbacks.append(_Confidence(config.score_thresh))

    @override
    def images(self, model_input: Any) -> int | None:
        source = model_input.get("source") if isinstance(model_input, Mapping) else model_input
        if isinstance(source, Tensor):
            return len(source) if source.ndim == 4 else 1
        if isinstance(source, str | PathLike):
            # a folder, a pattern or a video may hold any number
            path = fspath(source)
            return 1 if path.lower().endswith(_IMAGES) and "*" not in path else None
        if isinstance(source, list | tuple):
            return len(source)
        # an array is one image, whatever its shape
        return 1 if is_a(source, "numpy.ndarray", "PIL.Image.Image") else None

    def _suppresses(self, model: nn.Module) -> bool:
        head = _last(self.running(model))[1]
        return not _is_query(head) and not head.end2end


class _Confidence:
    """A callback that takes the place of the confidence that `predict` begins with."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, predictor: Any) -> None:
        if predictor.args.conf == _CONFIDENCE:
            predictor.args.conf = self.value


def _before_predict(model: Any) -> list[Any]:
    found: list[Any] = model.callbacks.setdefault("on_predict_start", [])
    return found


def _last(model: Any) -> tuple[str, Any]:
    """Return path and module of the head."""
    at = len(model.model.model) - 1
    return f"model.model.{at}", model.model.model[at]


def _is_query(head: nn.Module) -> bool:
    return is_a(head, "ultralytics.nn.modules.head.RTDETRDecoder")


def _branch(head: Any) -> str:
    return "one2one_cv3" if head.end2end else "cv3"


def _count_passes(calls: Calls, images: int) -> int:
    """Count the last passes of the network that make up so many images: a warm-up comes first."""
    passes, left = 0, images
    for call in reversed(calls["network"]):
        if left <= 0:
            break
        passes, left = passes + 1, left - len(call.args[0])
    if left != 0:
        raise UnsupportedModelError(
            f"the traced network saw {images - left} images but the model returned {images} "
            f"results: {Ultralytics.silence}"
        )
    if len(calls["head"]) != len(calls["network"]):
        raise UnsupportedModelError(
            "the head ran several times an image, as with augment=True, which mixes boxes of "
            "several passes; call the model without it"
        )
    return passes


def _read_anchors(
    head: Any, call: Call, levels: list[Tensor], shape: tuple[int, int], results: list[Any]
) -> list[ImageOutput]:
    from ultralytics.utils.ops import scale_boxes, xywh2xyxy

    decoded, raw = call.output
    raw = raw.get("one2one" if head.end2end else "one2many", raw)
    logits = raw["scores"].detach().transpose(1, 2)
    if head.end2end:  # what it decoded is cut down to the best already
        boxes, scores = _decode(head, raw).transpose(1, 2).float(), logits.sigmoid()
    else:
        decoded = decoded.detach().transpose(1, 2)
        boxes, scores = xywh2xyxy(decoded[..., :4]).float(), decoded[..., 4 : 4 + head.nc]
    maps = zip(*levels, strict=True)
    parts = zip(results, boxes, scores.float(), logits, maps, strict=True)
    return [
        ImageOutput(
            _seen(result),
            HeadRows(
                score,
                torch.as_tensor(scale_boxes(shape, box, result.orig_shape)),
                logit,
                _features_at(features),
            ),
            result.orig_shape,
            _placement(shape, result.orig_shape),
        )
        for result, box, score, logit, features in parts
    ]


def _decode(head: Any, raw: Mapping[str, Any]) -> Tensor:
    """Decode the boxes (b, 4, a) of all anchors as the head itself does."""
    from ultralytics.utils.tal import make_anchors

    if head.shape == raw["feats"][0].shape:  # kept from the first pass, in that pass's precision
        anchors, strides = head.anchors, head.strides
    else:
        anchors, strides = (one.T for one in make_anchors(raw["feats"], head.stride, 0.5))
    distances = head.dfl(raw["boxes"].detach())
    boxes: Tensor = head.decode_bboxes(distances, anchors.unsqueeze(0)) * strides
    return boxes


def _read_queries(
    head: Any, call: Call, levels: list[Tensor], shape: tuple[int, int], results: list[Any]
) -> list[ImageOutput]:
    from ultralytics.utils.ops import xywh2xyxy

    _, (relative, logits, *_) = call.output
    boxes, logits = xywh2xyxy(relative[-1].detach().float()), logits[-1].detach()
    parts = zip(results, boxes, logits.sigmoid(), logits, levels[0], strict=True)
    images = []
    for result, box, score, logit, queries in parts:
        height, width = result.orig_shape
        scaled = box * torch.tensor([width, height, width, height], device=box.device)
        rows = HeadRows(score.float(), scaled, logit, _features_of(queries))
        scale = (shape[1] / width, shape[0] / height)
        placement = Placement(scale, (0.0, 0.0), shape)
        images.append(ImageOutput(_seen(result), rows, (height, width), placement))
    return images


def _placement(shape: tuple[int, int], size: tuple[int, int]) -> Placement:
    """Tell where an image lies in what the network saw: see to where a unit square there goes."""
    from ultralytics.utils.ops import scale_boxes

    unit = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    x, y, width, height = scale_boxes(shape, unit, size, xywh=True).tolist()
    return Placement((1 / width, 1 / height), (-x / width, -y / height), shape)


def _seen(result: Any) -> Detections:
    boxes = result.boxes
    return Detections(boxes.xyxy, boxes.conf, boxes.cls.long())


def _features_at(maps: Sequence[Tensor]) -> Any:
    return lambda rows: {"class": pick_cells(maps, rows, [1] * len(maps))}


def _features_of(queries: Tensor) -> Any:
    return lambda rows: {"query": queries[rows]}
