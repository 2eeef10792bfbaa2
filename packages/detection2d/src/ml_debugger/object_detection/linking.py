"""Which row of the head made each box that the user sees."""

from torch import Tensor

from ml_debugger.core.detection import linking
from ml_debugger.object_detection.output import Detections, HeadRows


def link(seen: Detections, rows: HeadRows) -> Tensor:
    """Find the head's row that each visible box came from, by its score and its corners.

    Args:
        seen: The boxes that the user sees, n of them.
        rows: What the head said of the same image.

    Returns:
        Row numbers, shape (n,), int64.

    Raises:
        UnsupportedModelError: A box came from no row, so what the adapter believes of this model
            is not true.
    """
    return linking.link(seen, rows, _apart, _longer_side)


def _apart(boxes: Tensor, others: Tensor) -> Tensor:
    return (boxes - others).abs().amax(1)


def _longer_side(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).amax(1).clamp(min=1.0)
