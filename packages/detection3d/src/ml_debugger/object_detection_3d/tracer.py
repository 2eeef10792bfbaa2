"""From a 3D detector's output and ground truth to units: one a visible box."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from ml_debugger.core.capture import Activations
from ml_debugger.core.detection.surroundings import Candidates
from ml_debugger.core.detection.tracer import DetectionTracer
from ml_debugger.core.detection.units import checked, predicted_units
from ml_debugger.core.errors import InputError, UnsupportedModelError
from ml_debugger.core.layers import unwrap
from ml_debugger.core.records import Units
from ml_debugger.object_detection_3d.adapters import FAMILIES
from ml_debugger.object_detection_3d.clouds import Range, as_range, clouds_of, count_frames, inside
from ml_debugger.object_detection_3d.frames import Frame, from_mmdet3d, refuse_far
from ml_debugger.object_detection_3d.geometry import BOX
from ml_debugger.object_detection_3d.ground_truth import Truth, read_ground_truth
from ml_debugger.object_detection_3d.link import link
from ml_debugger.object_detection_3d.output import (
    Detection3DOutput,
    Detections,
    FrameOutput,
    NMSConfig,
)
from ml_debugger.object_detection_3d.points import count_points
from ml_debugger.object_detection_3d.providers import GroundTruthProvider, as_provider
from ml_debugger.object_detection_3d.schema import CELL, SCHEMA, SPEED
from ml_debugger.object_detection_3d.statistics import HIDDEN, distance, hidden, statistics


class ObjectDetection3DTorchTracer(DetectionTracer[FrameOutput, NMSConfig]):
    """How a 3D detector is recorded; shared by every purpose.

    For a detector that no adapter knows, derive from a public class (`ObjectDetection3DTracer`,
    ...), and override `detect`, `_get_n_class`, `_register_model_hooks` and
    `_parse_model_output`; if it has such settings, `_apply_nms_config` to give them and
    `_get_nms_config` to read them, so that the model gets its own back.

    Attributes:
        frame: Where the boxes are of a detector that no adapter knows; `frames.Frame` lists what
            there is. True boxes must be in the same.
        pc_range: The part of the cloud that is looked at, or None for all of it.
    """

    schema = SCHEMA
    families = FAMILIES
    config = NMSConfig
    frame: ClassVar[Frame] = "lidar"

    pc_range: Range | None = None
    _provider: GroundTruthProvider | None = None

    @staticmethod
    @override
    def detect(model: nn.Module) -> bool:
        return FAMILIES.of(unwrap(model)) is not None

    def look(self, pc_range: Any, ground_truth_provider: Any) -> None:
        """Take what only tracers of 3D detectors have; before the rest of the constructor.

        Raises:
            InputError: The range is none, or the provider gives nothing.
        """
        self.pc_range = as_range(pc_range)
        if ground_truth_provider is not None:
            self._provider = as_provider(ground_truth_provider)

    def _parse_model_output(self, model_output: Any) -> Sequence[Detection3DOutput]:
        """Read what the model returned, an output for each frame.

        Args:
            model_output: What it returned; not to be changed.

        Raises:
            UnsupportedModelError: It is not the output of a detector.
        """
        said = self._said(model_output)
        clouds = self._clouds(self._capture.latest.model_input, len(said))
        frame = self._frame()
        return [_recorded(*one, frame) for one in zip(said, clouds, strict=True)]

    @override
    def read_outputs(self, output: Any, activations: Activations) -> Sequence[Detection3DOutput]:
        found = checked(
            self._parse_model_output(output),
            Detection3DOutput,
            BOX,
            SPEED,
            statistics=len(SCHEMA.statistics),
        )
        if self._frame() == "global":  # elsewhere only a diverged model sees anything so far away
            for one in found:
                refuse_far(one.boxes)
        clouds, frame = self._clouds(activations.model_input, len(found)), self._frame()
        return [_described(*one, frame) for one in zip(found, clouds, strict=True)]

    @override
    def units_of(
        self, outputs: Sequence[Detection3DOutput], features: Mapping[str, Sequence[Tensor]]
    ) -> Units[Tensor]:
        return _predicted(outputs, features, self._frame())

    @override
    def pool(self, values: Tensor, output: Detection3DOutput, number: int) -> Tensor:
        # where a layer's map lies in the scene only the model knows: its mean is all that is sure
        one = values[number].float()
        one = one.flatten(1).T if one.ndim > 2 else one  # a map's places below each other
        vector = one.mean(0) if one.ndim > 1 else one
        return vector.expand(len(output), -1)

    @override
    def count_images(self, model_input: Any) -> int | None:
        return count_frames(model_input)

    @override
    def ground_truth_of(self, input_ids: Sequence[str]) -> Any:
        if self._provider is None:
            return None
        found = [self._provider.get(one) for one in input_ids]
        missing = [repr(name) for name, one in zip(input_ids, found, strict=True) if one is None]
        if missing:
            raise InputError(
                f"ground_truth_provider has nothing for {len(missing)} of {len(found)} ids: "
                f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Ids are asked for "
                "as text; give a frame without objects an empty entry"
            )
        return found

    @override
    def parse_ground_truth(self, ground_truth: Any, inputs: int | None) -> Units[Tensor]:
        truths = read_ground_truth(ground_truth, inputs)
        for number, one in enumerate(truths):
            if len(one) and one.frame != self._frame():
                raise InputError(
                    f"ground truth of frame {number} is in the frame {one.frame!r}, but the boxes "
                    f"of {type(unwrap(self.model)).__name__} are in {self._frame()!r}; bring one "
                    "to the other, see ml_debugger.object_detection_3d.frames"
                )
        units = _actual(truths, self.pc_range)
        self.warn_of_labels(units["label"])
        return units

    @override
    def complete_ground_truth(self, actual: Units[Tensor], model_input: Any) -> Units[Tensor]:
        """Count the points in true boxes as in predicted ones, however many sweeps a cloud has."""
        clouds = self._clouds(model_input, actual.n_inputs)
        counts = [] if actual.counts is None else actual.counts.tolist()
        boxes = torch.stack([actual[name] for name in BOX], 1).split(counts)
        points = actual["points"].split(counts)
        counted = [
            given if cloud is None else count_points(some, cloud).float()
            for some, given, cloud in zip(boxes, points, clouds, strict=True)
        ]
        return replace(actual, columns={**actual.columns, "points": torch.cat([*counted, _NONE])})

    def _clouds(self, model_input: Any, frames: int) -> Sequence[Tensor | None]:
        """Return the cloud of each frame, where boxes are in its axes."""
        found = clouds_of(model_input) if self._frame() == "lidar" else None
        return found if found is not None and len(found) == frames else [None] * frames

    def _frame(self) -> Frame:
        return self.frame if self._adapter is None else self._adapter.frame


def _recorded(one: FrameOutput, cloud: Tensor | None, frame: Frame) -> Detection3DOutput:
    """Link the visible boxes of a frame to the head's rows, and take what is recorded of them."""
    if one.convention != frame:
        raise UnsupportedModelError(
            f"the model gave boxes in the frame {one.convention!r}, but its family has them in "
            f"{frame!r}; subclass the tracer, and override frame and _parse_model_output"
        )
    seen, rows = one.seen, one.rows
    made_by = None if rows is None else link(seen, rows)
    boxes = from_mmdet3d(seen.boxes.float(), one.convention)
    # boxes are compared on the CPU; there are few
    ours = Detections(*(part.cpu() for part in (boxes, seen.scores, seen.labels)))
    candidates = None
    if rows is not None:
        best = Candidates.of(rows)
        best = best._replace(boxes=from_mmdet3d(best.boxes, one.convention))
        candidates = Candidates(*(part.cpu() for part in best))
    points = None if cloud is None else count_points(boxes, cloud)
    row = None if made_by is None else made_by.cpu()
    return Detection3DOutput(
        boxes=boxes,
        scores=seen.scores,
        labels=seen.labels,
        logits=None if rows is None or made_by is None else rows.logits[made_by],
        features=None if rows is None or made_by is None else rows.features(made_by),
        statistics=statistics(ours, candidates, row, points, frame),
        points=points,
        cells=None if rows is None or rows.cells is None else rows.cells[made_by],
        hidden=hidden(ours, candidates),
    )


def _described(one: Detection3DOutput, cloud: Tensor | None, frame: Frame) -> Detection3DOutput:
    """Say what boxes tell by themselves, where the user's own class says nothing of them."""
    points = one.points
    if points is None and cloud is not None:
        points = count_points(one.boxes.float(), cloud)
    points = None if points is None else points.cpu()
    found = one.statistics
    if found is None:
        parts = (one.boxes.float(), one.scores, one.labels)
        found = statistics(Detections(*(part.cpu() for part in parts)), None, None, points, frame)
    return replace(one, points=points, statistics=found)


def _predicted(
    outputs: Sequence[Detection3DOutput], features: Mapping[str, Sequence[Tensor]], frame: Frame
) -> Units[Tensor]:
    boxes = torch.cat([_with_speed(one.boxes.float()) for one in outputs] or [_NOTHING])
    sides = boxes[:, 3:5].clamp(min=0)
    own = {**dict(zip(BOX, boxes.unbind(1), strict=False)), "pred_size": sides.prod(1)}
    nothing = (float("nan"),) * len(HIDDEN)
    about = torch.tensor([one.hidden or nothing for one in outputs]).reshape(-1, len(HIDDEN))
    inputs: dict[str, Any] = dict(zip(HIDDEN, about.unbind(1), strict=True))
    units = predicted_units(outputs, own, features, {"frame": [frame] * len(outputs), **inputs})
    if not outputs:
        return units
    points = [_counted(one.points, len(one)) for one in outputs]
    cells = torch.cat([_whole(one.cells, len(one), len(CELL)) for one in outputs])
    more = {
        **dict(zip(SPEED, boxes[:, len(BOX) :].unbind(1), strict=True)),
        "distance": distance(boxes, frame),
        "points": torch.cat(points),
        **dict(zip(CELL, cells.unbind(1), strict=True)),
    }
    # what may be unknown does not decide whether a box is finite
    return replace(units, columns={**units.columns, **more})


def _actual(truths: Sequence[Truth], pc_range: Range | None) -> Units[Tensor]:
    boxes = torch.cat([_with_speed(one.boxes) for one in truths] or [_NOTHING])
    none = torch.zeros(0, dtype=torch.int64)
    ignored = torch.cat([one.ignored for one in truths] or [none.bool()])
    if pc_range is not None:  # what the detector is not shown, it need not find
        ignored = ignored | ~inside(boxes, pc_range)
    columns = {
        "label": torch.cat([one.labels for one in truths] or [none]),
        **dict(zip((*BOX, *SPEED), boxes.unbind(1), strict=True)),
        "ignored": ignored,
        "points": torch.cat([_counted(one.points, len(one)) for one in truths] or [_NONE]),
    }
    return Units(columns, torch.tensor([len(one) for one in truths], dtype=torch.int32))


_NOTHING = torch.zeros((0, len(BOX) + len(SPEED)))
_NONE = torch.zeros(0)


def _with_speed(boxes: Tensor) -> Tensor:
    """Return boxes (n, 7) or (n, 9) as (n, 9); NaN where the velocity is not known."""
    unknown = boxes.new_full((len(boxes), len(BOX) + len(SPEED) - boxes.shape[1]), torch.nan)
    return torch.cat([boxes, unknown], 1)


def _counted(values: Tensor | None, length: int) -> Tensor:
    """Return numbers of points, NaN where they are not known: None, or -1."""
    if values is None:
        return torch.full((length,), torch.nan)
    found = values.float().cpu()
    return torch.where(found < 0, torch.nan, found)


def _whole(values: Tensor | None, *shape: int) -> Tensor:
    """Return whole numbers of boxes, -1 where they are not known."""
    return torch.full(shape, -1, dtype=torch.int32) if values is None else values.int().cpu()
