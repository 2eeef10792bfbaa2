"""From a detector's output and ground truth to units: one a visible box."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ml_debugger.core.capture import Activations
from ml_debugger.core.detection.surroundings import Candidates
from ml_debugger.core.detection.tracer import DetectionTracer
from ml_debugger.core.detection.units import checked, predicted_units
from ml_debugger.core.layers import unwrap
from ml_debugger.core.records import Units
from ml_debugger.object_detection.adapters import FAMILIES
from ml_debugger.object_detection.boxes import CORNERS
from ml_debugger.object_detection.ground_truth import Truth, read_ground_truth
from ml_debugger.object_detection.linking import link
from ml_debugger.object_detection.output import (
    DetectionOutput,
    Detections,
    Frame,
    ImageOutput,
    NMSConfig,
)
from ml_debugger.object_detection.pooling import pool_boxes
from ml_debugger.object_detection.schema import SCHEMA
from ml_debugger.object_detection.statistics import HIDDEN, hidden, statistics


class ObjectDetectionTorchTracer(DetectionTracer[ImageOutput, NMSConfig]):
    """How a 2D detector is recorded; shared by every purpose.

    For a detector that no adapter knows, derive from a public class (`ObjectDetectionTracer`,
    ...), and override `detect`, `_get_n_class`, `_register_model_hooks` and
    `_parse_model_output`; if it has such settings, `_apply_nms_config` to give them and
    `_get_nms_config` to read them, so that the model gets its own back.
    """

    schema = SCHEMA
    families = FAMILIES
    config = NMSConfig

    @staticmethod
    @override
    def detect(model: nn.Module) -> bool:
        return FAMILIES.of(unwrap(model)) is not None

    def _parse_model_output(
        self, model_output: Any, img_sizes: Sequence[tuple[int, int]] | None
    ) -> Sequence[DetectionOutput]:
        """Read what the model returned, an output for each image.

        Args:
            model_output: What it returned; not to be changed.
            img_sizes: Height and width of each image of the call; None where the model input
                does not tell.

        Raises:
            UnsupportedModelError: It is not the output of a detector.
        """
        return [_recorded(one) for one in self._said(model_output)]

    @override
    def read_outputs(self, output: Any, activations: Activations) -> Sequence[DetectionOutput]:
        found = self._parse_model_output(output, _sizes(activations.model_input))
        images = checked(found, DetectionOutput, CORNERS, statistics=len(SCHEMA.statistics))
        return [_described(one) for one in images]

    @override
    def units_of(
        self, outputs: Sequence[DetectionOutput], features: Mapping[str, Sequence[Tensor]]
    ) -> Units[Tensor]:
        return _predicted(outputs, features)

    @override
    def pool(self, values: Tensor, output: DetectionOutput, number: int) -> Tensor:
        if values.ndim == 4 and output.size is not None:
            return pool_boxes(values[number], output.boxes.float(), output.size, output.placement)
        one = values[number].float()
        if one.ndim > 1:  # a map of an image whose size is not known, or a row for each part of it
            one = one.flatten(1).mean(1) if one.ndim > 2 else one.mean(0)
        return one.expand(len(output), -1)

    @override
    def count_images(self, model_input: Any) -> int | None:
        sizes = _sizes(model_input)
        return None if sizes is None else len(sizes)

    @override
    def parse_ground_truth(self, ground_truth: Any, inputs: int | None) -> Units[Tensor]:
        frame: Frame = "original" if self._adapter is None else self._adapter.frame
        units = _actual(read_ground_truth(ground_truth, inputs, frame=frame))
        self.warn_of_labels(units["label"])
        return units


def _recorded(image: ImageOutput) -> DetectionOutput:
    """Link the visible boxes of an image to the head's rows, and take what is recorded of them."""
    seen, rows = image.seen, image.rows
    made_by = None if rows is None else link(seen, rows)
    candidates = None if rows is None else Candidates.of(rows)
    return DetectionOutput(
        boxes=seen.boxes,
        scores=seen.scores,
        labels=seen.labels,
        logits=None if rows is None or made_by is None else rows.logits[made_by],
        features=None if rows is None or made_by is None else rows.features(made_by),
        statistics=statistics(seen, candidates, made_by, image.size),
        size=image.size,
        placement=image.placement,
        hidden=hidden(seen, candidates),
    )


def _described(one: DetectionOutput) -> DetectionOutput:
    """Say what boxes tell by themselves, where the user's own class says nothing of them."""
    if one.statistics is not None:
        return one
    seen = Detections(one.boxes.float(), one.scores, one.labels)
    return replace(one, statistics=statistics(seen, None, None, one.size))


def _predicted(
    outputs: Sequence[DetectionOutput], features: Mapping[str, Sequence[Tensor]]
) -> Units[Tensor]:
    corners = torch.cat([one.boxes.float() for one in outputs] or [torch.zeros((0, 4))])
    boxes = dict(zip(CORNERS, corners.unbind(1), strict=True))
    boxes["pred_size"] = (corners[:, 2:] - corners[:, :2]).clamp(min=0).prod(1)
    return predicted_units(outputs, boxes, features, _of_images(outputs))


def _of_images(images: Sequence[DetectionOutput]) -> dict[str, Tensor]:
    nothing = (float("nan"),) * len(HIDDEN)
    about = torch.tensor([one.hidden or nothing for one in images]).reshape(-1, len(HIDDEN))
    found = dict(zip(HIDDEN, about.unbind(1), strict=True))
    if all(one.size is not None for one in images):
        sizes = torch.tensor([one.size for one in images], dtype=torch.int64).reshape(-1, 2)
        found |= {"image_height": sizes[:, 0], "image_width": sizes[:, 1]}
    return found


def _actual(truths: Sequence[Truth]) -> Units[Tensor]:
    boxes = torch.cat([one.boxes for one in truths]) if truths else torch.zeros((0, 4))
    labels = [one.labels for one in truths] or [torch.zeros(0, dtype=torch.int64)]
    ignored = [one.ignored for one in truths] or [torch.zeros(0, dtype=torch.bool)]
    columns = {
        "label": torch.cat(labels),
        **dict(zip(CORNERS, boxes.unbind(1), strict=True)),
        "ignored": torch.cat(ignored),
    }
    return Units(columns, torch.tensor([len(one) for one in truths], dtype=torch.int32))


def _sizes(model_input: Any) -> list[tuple[int, int]] | None:
    """Return height and width of each image of a model input, where it tells."""
    if isinstance(model_input, Mapping):
        first = next(iter(model_input.values()), None)
        model_input = model_input.get("pixel_values", first)
    if isinstance(model_input, Tensor):
        model_input = list(model_input) if model_input.ndim == 4 else None
    if not isinstance(model_input, Sequence) or isinstance(model_input, str):
        return None
    if not all(isinstance(one, Tensor) and one.ndim in (2, 3) for one in model_input):
        return None
    return [(int(one.shape[-2]), int(one.shape[-1])) for one in model_input]
