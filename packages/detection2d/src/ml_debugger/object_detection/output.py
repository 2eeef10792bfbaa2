"""What a detector says of an image, in one form for all families of detectors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ml_debugger.core.errors import InputError

#: Pixels of the image as it was loaded, or of the tensor that the network gets: resized, padded.
Frame = Literal["original", "network"]


class NMSConfig(BaseModel):
    """What decides which boxes the user sees; None leaves a setting as the model has it.

    Attributes:
        score_thresh: Least score of a box, in [0, 1].
        iou_thresh: Two boxes of a class that overlap by more than this IoU, in [0, 1], are one.
        max_detections_per_image: Most boxes an image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    score_thresh: float | None = Field(default=None, ge=0, le=1)
    iou_thresh: float | None = Field(default=None, ge=0, le=1)
    max_detections_per_image: int | None = Field(default=None, ge=1)

    @classmethod
    def of(cls, score_thresh: Any, iou_thresh: Any, max_detections_per_image: Any) -> Self:
        """Return the settings that a caller gave.

        Raises:
            InputError: A value is out of its range.
        """
        given = {
            "score_thresh": score_thresh,
            "iou_thresh": iou_thresh,
            "max_detections_per_image": max_detections_per_image,
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
    """The boxes of one image that the user sees.

    Attributes:
        boxes: Corners x1, y1, x2, y2 in pixels of the image that the model was given, shape
            (n, 4), float32.
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
    """What a detector's head said of one image, before any box was suppressed.

    A row is one place where the head looks: a proposal, an anchor, a grid cell, a query.

    Attributes:
        scores: The score that each label would have, as the model itself computes it, shape
            (r, K), float32; column k is label k, 0 for a label that the model never gives
            (background).
        boxes: Corners x1, y1, x2, y2 in pixels of the image that the model was given, shape
            (r, 4), or (r, K, 4) where a row has a box for each label; float32.
        logits: The class vectors that the scores come from, shape (r, C); C is K, or more where
            the head has an answer that is no label.
        features: Gives the feature vectors of some rows (n,), int64, by alias, shape (n, d).
    """

    scores: Tensor
    boxes: Tensor
    logits: Tensor
    features: Callable[[Tensor], Mapping[str, Tensor]]

    def boxes_of(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Return the boxes of some rows (n,) for some labels (n,), shape (n, 4)."""
        return self.boxes[rows] if self.boxes.ndim == 2 else self.boxes[rows, labels]


class Placement(NamedTuple):
    """Where an image lies in what the network saw.

    Attributes:
        scale: Network pixels an image pixel, in x and in y.
        offset: Where the image's left upper corner lies, x and y, in network pixels.
        size: Height and width of what the network saw, in pixels.
    """

    scale: tuple[float, float]
    offset: tuple[float, float]
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ImageOutput:
    """What a detector said of one image.

    Attributes:
        seen: The boxes that the user sees.
        rows: All that the head said; None where it cannot be known.
        size: Height and width of the image that the model was given, in pixels.
        placement: Where the image lies in what the network saw; None where it is all of it.
    """

    seen: Detections
    rows: HeadRows | None
    size: tuple[int, int]
    placement: Placement | None = None


@dataclass(frozen=True, slots=True)
class DetectionOutput:
    """The boxes of one image, as they are recorded.

    Attributes:
        boxes: Corners x1, y1, x2, y2 in pixels of the image that the model was given, shape
            (n, 4), float32.
        scores: In [0, 1], shape (n,), float32.
        labels: Classes as the model numbers them, shape (n,), int64.
        logits: Class vector of the head's row that made each box, shape (n, C), or None.
        features: Feature vectors of each box by alias, shape (n, d).
        statistics: What the head said around each box, shape (n, s); see
            `ml_debugger.object_detection.statistics`. None where that is not known.
        size: Height and width of the image, in pixels; None where that is not known.
        placement: Where the image lies in what the network saw; None where it is all of it.
        hidden: What the head said where the user sees no box; see
            `ml_debugger.object_detection.statistics.HIDDEN`. None where that is not known.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    logits: Tensor | None = None
    features: Mapping[str, Tensor] | None = None
    statistics: Tensor | None = None
    size: tuple[int, int] | None = None
    placement: Placement | None = None
    hidden: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls, device: torch.device | None = None) -> "DetectionOutput":
        """Return the output for an image in which nothing was found."""
        return cls(
            torch.zeros((0, 4), device=device),
            torch.zeros(0, device=device),
            torch.zeros(0, dtype=torch.int64, device=device),
        )
