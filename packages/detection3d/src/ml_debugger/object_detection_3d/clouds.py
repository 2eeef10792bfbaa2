"""What a 3D detector is given, and what of it is looked at."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ml_debugger.core.errors import InputError
from ml_debugger.core.given import as_tensor

#: Most numbers of a point: x, y, z, and what is measured or guessed of it.
_WIDEST = 32
#: x, y and z where the part that is looked at begins, then where it ends, in metres.
Range = tuple[float, float, float, float, float, float]


def count_frames(model_input: Any) -> int | None:
    """Return how many frames a model input holds; None where it does not tell.

    A point cloud is one frame, a list has one in each entry, and a batch one in each row. A dict is
    MMDetection3D's: `data_samples`, `inputs`, or `points` or `img` (with `img_metas`).
    """
    if isinstance(model_input, Mapping):
        samples = model_input.get("data_samples")
        if isinstance(samples, Sequence):
            return len(samples)
        model_input = model_input.get("inputs", model_input)
    one = 2  # a cloud (n, c), or an image (c, h, w)
    if isinstance(model_input, Mapping):
        one = 2 if "points" in model_input else 3
        names = ("points", "img", "imgs")
        model_input = next((model_input[name] for name in names if name in model_input), None)
    if isinstance(model_input, Tensor):
        return len(model_input) if model_input.ndim > one else 1
    sequence = isinstance(model_input, Sequence) and not isinstance(model_input, str)
    return len(model_input) if sequence else None


def clouds_of(model_input: Any) -> Sequence[Tensor] | None:
    """Return the point cloud (n, c) of each frame of a model input; None where it has none."""
    if isinstance(model_input, Mapping):
        given = model_input.get("inputs", model_input)
        model_input = given.get("points") if isinstance(given, Mapping) else given
    if isinstance(model_input, Tensor):
        model_input = [model_input] if model_input.ndim < 3 else list(model_input)
    if not isinstance(model_input, Sequence) or not all(map(_is_cloud, model_input)):
        return None
    return model_input


def _is_cloud(one: Any) -> bool:
    """Tell whether it has points in rows: some maps have two dimensions, too, but are wider."""
    return isinstance(one, Tensor) and one.ndim == 2 and 3 <= one.shape[1] <= _WIDEST


def as_range(given: Any) -> Range | None:
    """Read `pc_range`.

    Raises:
        InputError: It is not six finite numbers, each of the last three above one of the first.
    """
    if given is None:
        return None
    found = as_tensor(given, "pc_range").double()
    if found.shape != (6,) or not torch.isfinite(found).all() or (found[:3] >= found[3:]).any():
        raise InputError(
            f"pc_range is {given!r}; expected x_min, y_min, z_min, x_max, y_max, z_max in metres, "
            "each least below its most"
        )
    x0, y0, z0, x1, y1, z1 = found.tolist()
    return x0, y0, z0, x1, y1, z1


def inside(boxes: Tensor, pc_range: Range) -> Tensor:
    """Tell which boxes (n, 7 or more) have their centre in a range, shape (n,), bool."""
    centre, ends = boxes[:, :3].double(), torch.tensor(pc_range, dtype=torch.float64)
    return ((centre >= ends[:3]) & (centre <= ends[3:])).all(1)
