"""Which row of the head made each box that the user sees."""

from torch import Tensor

from ml_debugger.core.detection import linking
from ml_debugger.core.detection.output import Detections, HeadRows

_YAW = 6


def link(seen: Detections, rows: HeadRows) -> Tensor:
    """Find the head's row that each visible box came from, by its score and by where it lies.

    Args:
        seen: The boxes that the user sees, n of them.
        rows: What the head said of the same frame.

    Returns:
        Row numbers, shape (n,), int64.

    Raises:
        UnsupportedModelError: A box came from no row, so what the adapter believes of this model
            is not true.
    """
    return linking.link(seen, rows, distance, _largest)


def distance(boxes: Tensor, others: Tensor) -> Tensor:
    """Return how far boxes (n, 7) or (n, 9) differ, each from its other, shape (n,).

    The largest difference of a coordinate, a side or a velocity, or the sine of that of the
    headings: a heading near the end of its range may be given at the other end, half a turn away.
    """
    apart = (boxes - others).abs()
    apart[:, _YAW] = apart[:, _YAW].sin().abs()
    return apart.amax(1)


def _largest(boxes: Tensor) -> Tensor:
    return boxes[:, :_YAW].abs().amax(1).clamp(min=1.0)
