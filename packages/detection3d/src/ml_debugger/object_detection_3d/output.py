"""What a 3D detector said of one frame, in the terms that every family shares."""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from ml_debugger.core.detection import output
from ml_debugger.core.detection.output import Detections as Detections
from ml_debugger.core.detection.output import NMSSettings
from ml_debugger.core.detection.units import BoxOutput
from ml_debugger.object_detection_3d.frames import Convention as Convention


class NMSConfig(NMSSettings):
    """What decides which boxes the user sees; None leaves a setting as the model has it.

    Attributes:
        score_thresh: Least score of a box, in [0, 1].
        iou_thresh: Two boxes of a class that overlap by more than this IoU, seen from above, in
            [0, 1], are one.
        max_detections_per_frame: Most boxes a frame.
    """

    max_detections_per_frame: int | None = Field(default=None, ge=1)


@dataclass(frozen=True, slots=True)
class HeadRows(output.HeadRows):
    """What a detector's head said of one frame, before any box was suppressed.

    A row is one place where the head looks: an anchor, a cell of the map, a query. Boxes are in the
    model's own convention, shape (r, 7) or (r, 9), or (r, K, 7) or (r, K, 9) where a row has a box
    for each label.

    Attributes:
        cells: Level (0 where there is one), row and column of the head's map that each row looks
            at, shape (r, 3), int64; None for a head without a map.
    """

    cells: Tensor | None = None


@dataclass(frozen=True, slots=True)
class FrameOutput:
    """What a detector said of one frame.

    Attributes:
        seen: The boxes that the user sees.
        rows: All that the head said; None where it cannot be known.
        convention: Whose axes the boxes are in.
    """

    seen: Detections
    rows: HeadRows | None
    convention: Convention


@dataclass(frozen=True, slots=True)
class Detection3DOutput(BoxOutput):
    """The boxes of one frame, as they are recorded.

    Attributes:
        boxes: x, y, z, dx, dy, dz, yaw and perhaps vx, vy, as
            `ml_debugger.object_detection_3d.frames` defines them: centres of gravity, in metres
            and radians, in the frame that the tracer names. Shape (n, 7) or (n, 9), float32.
        scores: In [0, 1], shape (n,), float32.
        labels: Classes as the model numbers them, shape (n,), int64.
        logits: Class vector of the head's row that made each box, shape (n, C), or None.
        features: Feature vectors of each box by alias, shape (n, d).
        statistics: What is known of each box beside its class, shape (n, 23); see
            `ml_debugger.object_detection_3d.statistics`. None has said of it what boxes tell by
            themselves.
        points: How many points lie in each box, shape (n,), int64; None has them counted where
            boxes are in the frame `"lidar"` and the model input has clouds.
        cells: Level, row and column of the head's map that made each box, shape (n, 3), int64;
            None where that is not known.
        hidden: What the head said where the user sees no box; see
            `ml_debugger.core.detection.surroundings.HIDDEN`. None where that is not known.
    """

    points: Tensor | None = None
    cells: Tensor | None = None
    hidden: tuple[float, ...] | None = None

    @classmethod
    def empty(cls, device: torch.device | None = None) -> "Detection3DOutput":
        """Return the output for a frame in which nothing was found."""
        return cls(
            torch.zeros((0, 7), device=device),
            torch.zeros(0, device=device),
            torch.zeros(0, dtype=torch.int64, device=device),
        )
