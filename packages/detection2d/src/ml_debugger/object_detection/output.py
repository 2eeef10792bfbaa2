"""What a detector says of an image, in one form for all families of detectors."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import Field

from ml_debugger.core.detection.output import Detections as Detections
from ml_debugger.core.detection.output import HeadRows as HeadRows
from ml_debugger.core.detection.output import NMSSettings
from ml_debugger.core.detection.units import BoxOutput

#: Pixels of the image as it was loaded, or of the tensor that the network gets: resized, padded.
Frame = Literal["original", "network"]


class NMSConfig(NMSSettings):
    """What decides which boxes the user sees; None leaves a setting as the model has it.

    Attributes:
        score_thresh: Least score of a box, in [0, 1].
        iou_thresh: Two boxes of a class that overlap by more than this IoU, in [0, 1], are one.
        max_detections_per_image: Most boxes an image.
    """

    max_detections_per_image: int | None = Field(default=None, ge=1)


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
class DetectionOutput(BoxOutput):
    """The boxes of one image, as they are recorded.

    Attributes:
        boxes: Corners x1, y1, x2, y2 in pixels of the image that the model was given, shape
            (n, 4), float32.
        scores: In [0, 1], shape (n,), float32.
        labels: Classes as the model numbers them, shape (n,), int64.
        logits: Class vector of the head's row that made each box, shape (n, C), or None.
        features: Feature vectors of each box by alias, shape (n, d).
        statistics: What is known of each box beside its class, shape (n, 19); see
            `ml_debugger.object_detection.statistics`. None has said of it what boxes tell by
            themselves.
        size: Height and width of the image, in pixels; None where that is not known.
        placement: Where the image lies in what the network saw; None where it is all of it.
        hidden: What the head said where the user sees no box; see
            `ml_debugger.object_detection.statistics.HIDDEN`. None where that is not known.
    """

    size: tuple[int, int] | None = None
    placement: Placement | None = None
    hidden: tuple[float, ...] | None = None

    @classmethod
    def empty(cls, device: torch.device | None = None) -> "DetectionOutput":
        """Return the output for an image in which nothing was found."""
        return cls(
            torch.zeros((0, 4), device=device),
            torch.zeros(0, device=device),
            torch.zeros(0, dtype=torch.int64, device=device),
        )
