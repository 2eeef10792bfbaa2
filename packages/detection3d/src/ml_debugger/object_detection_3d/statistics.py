"""What is known of each box beside its class: its shape and place, and what the head said there."""

import torch
from torch import Tensor

from ml_debugger.core.detection import surroundings as shared
from ml_debugger.core.detection.output import Detections
from ml_debugger.core.detection.surroundings import HIDDEN as HIDDEN
from ml_debugger.core.detection.surroundings import Candidates, Comparison
from ml_debugger.object_detection_3d.frames import Frame
from ml_debugger.object_detection_3d.geometry import iou

#: The statistics, in their order: logarithms of sides, of the distance and of the points; `side_on`
#: is 0 for a box that shows the sensor its front or back, and 1 for one that shows it a side.
NAMES = (
    "log_length",
    "log_width",
    "log_height",
    "log_distance",
    "z",
    "side_on",
    "log_speed",
    "log_points",
    "boxes_in_frame",
    *shared.NAMES,
)

#: Where the origin is a sensor, or the vehicle that bears it.
SENSORS: tuple[Frame, ...] = ("lidar", "camera", "depth", "ego")


def statistics(
    seen: Detections,
    candidates: Candidates | None,
    made_by: Tensor | None,
    points: Tensor | None,
    frame: Frame,
) -> Tensor:
    """Return the statistics of the visible boxes of a frame, shape (n, 23), float32, on the CPU.

    NaN where something is not known.

    Args:
        seen: The visible boxes, n of them, as `frames` defines them, on the CPU.
        candidates: What the head proposed, likewise, or None.
        made_by: The row of each box, shape (n,), int64, or None.
        points: How many points lie in each box, shape (n,), or None.
        frame: Where the boxes are.
    """
    boxes = seen.boxes.float()
    unknown = torch.full_like(boxes[:, 0], torch.nan)
    from_sensor = distance(boxes, frame)
    ray = boxes[:, 6] - torch.atan2(boxes[:, 1], boxes[:, 0])
    columns = [
        *boxes[:, 3:6].clamp(min=1e-3).log().unbind(1),
        from_sensor.clamp(min=1.0).log(),
        boxes[:, 2],
        ray.sin().abs() if frame in SENSORS else unknown,
        boxes[:, 7:].norm(dim=1).log1p() if boxes.shape[1] > 7 else unknown,
        unknown if points is None else points.float().log1p(),
        torch.full_like(unknown, len(seen)).log1p(),
    ]
    around = shared.surroundings(COMPARISON, seen, candidates, made_by)
    return torch.cat([torch.stack(columns, 1), around], 1)


def hidden(seen: Detections, candidates: Candidates | None) -> tuple[float, ...]:
    """Return what the head said where the user sees no box: the values of `HIDDEN`, or NaN."""
    return shared.hidden(COMPARISON, seen, candidates)


def distance(boxes: Tensor, frame: Frame) -> Tensor:
    """Return how far boxes are from the sensor, seen from above, in metres; NaN on a map."""
    found = boxes[:, :2].norm(dim=1)
    return found if frame in SENSORS else torch.full_like(found, torch.nan)


def corners_above(boxes: Tensor) -> Tensor:
    """Return the corners of boxes (n, 7 or more) seen from above, shape (n, 8): x, then y.

    The first is left of the front, the others follow counter-clockwise: a box that heads the other
    way has them in another order.
    """
    ahead = torch.tensor([0.5, -0.5, -0.5, 0.5], device=boxes.device) * boxes[:, 3:4]
    left = torch.tensor([0.5, 0.5, -0.5, -0.5], device=boxes.device) * boxes[:, 4:5]
    cos, sin = boxes[:, 6:7].cos(), boxes[:, 6:7].sin()
    return torch.cat(
        [boxes[:, 0:1] + ahead * cos - left * sin, boxes[:, 1:2] + ahead * sin + left * cos], 1
    )


def _iou(a: Tensor, b: Tensor) -> Tensor:
    return torch.from_numpy(iou(a, b)).float()


def _side(boxes: Tensor) -> Tensor:
    return boxes[:, 3:5].clamp(min=1e-3).prod(1).sqrt()


#: Seen from above, where boxes overlap less than in an image.
COMPARISON = Comparison(_iou, corners_above, _side, 0.3)
