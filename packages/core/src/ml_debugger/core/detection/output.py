"""What a detector says, and what decides what the user sees of it, in one form for all tasks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ml_debugger.core.errors import InputError


class NMSSettings(BaseModel):
    """What decides which boxes the user sees; None leaves a setting as the model has it.

    Attributes:
        score_thresh: Least score of a box, in [0, 1].
        iou_thresh: Two boxes of a class that overlap by more than this IoU, in [0, 1], are one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    score_thresh: float | None = Field(default=None, ge=0, le=1)
    iou_thresh: float | None = Field(default=None, ge=0, le=1)

    @classmethod
    def of(cls, **given: Any) -> Self:
        """Return the settings that a caller gave.

        Raises:
            InputError: A value is out of its range.
        """
        try:
            return cls.model_validate(given, strict=True)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise InputError(
                f"{problem['loc'][0]}: {problem['msg']}, got {problem['input']!r}"
            ) from None


@dataclass(frozen=True, slots=True)
class Detections:
    """The boxes of one input that the user sees.

    Attributes:
        boxes: Shape (n, d), float32; corners x1, y1, x2, y2 in pixels of the image that the model
            was given for 2D, and for 3D as the model gives them.
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
    """What a detector's head said of one input, before any box was suppressed.

    A row is one place where the head looks: a proposal, an anchor, a grid cell, a query.

    Attributes:
        scores: The score that each label would have, as the model itself computes it, shape
            (r, K), float32; column k is label k, 0 for a label that the model never gives
            (background).
        boxes: As in `Detections`, shape (r, d), or (r, K, d) where a row has a box for each label;
            float32.
        logits: The class vectors that the scores come from, shape (r, C); C is K, or more where
            the head has an answer that is no label.
        features: Gives the feature vectors of some rows (n,), int64, by alias, shape (n, d).
    """

    scores: Tensor
    boxes: Tensor
    logits: Tensor
    features: Callable[[Tensor], Mapping[str, Tensor]]

    def boxes_of(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Return the boxes of some rows (n,) for some labels (n,), shape (n, d)."""
        return self.boxes[rows] if self.boxes.ndim == 2 else self.boxes[rows, labels]
