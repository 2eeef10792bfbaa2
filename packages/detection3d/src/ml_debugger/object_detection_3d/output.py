"""What a 3D detector said of one frame, in the terms that every family shares."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ml_debugger.core.errors import InputError

#: Whose axes boxes are in, as OpenMMLab defines them: x forward, y left, z up; x right, y down, z
#: forward; x right, y forward, z up.
Convention = Literal["lidar", "camera", "depth"]


class NMSConfig(BaseModel):
    """What decides which boxes the user sees; None leaves a setting as the model has it.

    Attributes:
        score_thresh: Least score of a box, in [0, 1].
        iou_thresh: Two boxes of a class that overlap by more than this IoU, seen from above, in
            [0, 1], are one.
        max_detections_per_frame: Most boxes a frame.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    score_thresh: float | None = Field(default=None, ge=0, le=1)
    iou_thresh: float | None = Field(default=None, ge=0, le=1)
    max_detections_per_frame: int | None = Field(default=None, ge=1)

    @classmethod
    def of(cls, score_thresh: Any, iou_thresh: Any, max_detections_per_frame: Any) -> Self:
        """Return the settings that a caller gave.

        Raises:
            InputError: A value is out of its range.
        """
        given = {
            "score_thresh": score_thresh,
            "iou_thresh": iou_thresh,
            "max_detections_per_frame": max_detections_per_frame,
        }
        try:
            return cls.model_validate(given, strict=True)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise InputError(
                f"{problem['loc'][0]}: {problem['msg']}, got {problem['input']!r}"
            ) from None


@dataclass(frozen=True, slots=True)
class Detections:
    """The boxes of one frame that the user sees, as the model gives them.

    Attributes:
        boxes: In the model's own convention, shape (n, 7) or (n, 9), float32.
        scores: In [0, 1], shape (n,), float32.
        labels: Classes as the model numbers them, shape (n,), int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True)
class HeadRows:
    """What a detector's head said of one frame, before any box was suppressed.

    A row is one place where the head looks: an anchor, a cell of the map, a query.

    Attributes:
        scores: The score that each label would have, as the model itself computes it, shape
            (r, K), float32; column k is label k.
        boxes: In the model's own convention, shape (r, 7) or (r, 9), or (r, K, 7) or (r, K, 9)
            where a row has a box for each label; float32.
        logits: The class vectors that the scores come from, shape (r, C); C is K, or more where
            the head has an answer that is no label.
        cells: Row and column of the head's map that each row looks at, and its level (0 where
            there is one), shape (r, 3), int64: level, row, column.
        features: Gives the feature vectors of some rows (n,), int64, by alias, shape (n, d).
    """

    scores: Tensor
    boxes: Tensor
    logits: Tensor
    cells: Tensor
    features: Callable[[Tensor], Mapping[str, Tensor]]

    def boxes_of(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Return the boxes of some rows (n,) for some labels (n,), shape (n, 7) or (n, 9)."""
        return self.boxes[rows] if self.boxes.ndim == 2 else self.boxes[rows, labels]


@dataclass(frozen=True, slots=True)
class FrameOutput:
    """What a detector said of one frame.

    Attributes:
        seen: The boxes that the user sees.
        rows: All that the head said; None where it cannot be known.
        convention: Whose axes the boxes are in.
        points: How many points of the frame's cloud lie in each visible box, shape (n,), int64;
            None where the frame has no cloud in the axes of its boxes.
    """

    seen: Detections
    rows: HeadRows | None
    convention: Convention
    points: Tensor | None = None
