"""Labels of KITTI, with the calibration that places them in the LiDAR's frame."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ml_debugger.core.errors import InputError
from ml_debugger.core.given import require
from ml_debugger.object_detection_3d.frames import from_kitti
from ml_debugger.object_detection_3d.ground_truth.truth import Truth, class_lookup, truth_of

#: KITTI neither counts it as right nor as wrong to take one for the other.
_LIKE = {"Van": "Car", "Person_sitting": "Pedestrian"}


def fits(frames: Sequence[Any]) -> bool:
    """Tell whether these are dicts, and a calibration is in one of them."""
    return all(isinstance(one, Mapping) for one in frames) and any(
        "calibration" in one for one in frames
    )


def read(one: Mapping[str, Any]) -> Truth:
    """Read one frame: `label`, `calibration`, and `classes`, in the order of their numbers.

    The label is the text of a label file, or its lines; the calibration the text of its file, a
    dict of `R0_rect` and `Tr_velo_to_cam`, or their product, shape (4, 4).

    Objects of other classes are left out, but for a `Van` and a `Person_sitting`: as in KITTI's
    own evaluation these are ignored, as a car and a pedestrian. `DontCare` is left out, too: it is
    a region of the image, at no distance, so that there is no box of it; a detector that finds
    something there is said to see ghosts, as in mmdet3d's own data set.
    """
    require(one, "label", "calibration", "classes")
    number = class_lookup(one["classes"])
    text = one["label"]
    lines = text.splitlines() if isinstance(text, str) else text
    rows, labels, ignored = [], [], []
    for at, line in enumerate(lines):
        name, *values = line.split() if isinstance(line, str) else line
        known = name if name in number else _LIKE.get(name)
        if name == "DontCare" or known not in number:
            continue
        try:
            rows.append([float(value) for value in values[7:14]])
        except (TypeError, ValueError):
            rows.append([])
        if len(rows[-1]) != 7:
            raise InputError(
                f"line {at} of the label is {line!r}; expected a class and at least 14 numbers: "
                "truncated, occluded, alpha, 4 of the image's box, height, width, length, x, y, z, "
                "rotation_y"
            )
        labels.append(number[known])
        ignored.append(name not in number)
    boxes = torch.tensor(rows, dtype=torch.float64).reshape(-1, 7)
    return truth_of(from_kitti(boxes, calibration(one["calibration"])), labels, ignored=ignored)


def calibration(given: Any) -> Tensor:
    """Return `R0_rect @ Tr_velo_to_cam`, shape (4, 4), float64.

    Raises:
        InputError: One is missing, or has another shape.
    """
    if isinstance(given, str):
        pairs = (line.split(":", 1) for line in given.splitlines() if ":" in line)
        given = {name.strip(): [float(value) for value in rest.split()] for name, rest in pairs}
    if not isinstance(given, Mapping):
        return torch.as_tensor(given, dtype=torch.float64)
    require(given, "R0_rect", "Tr_velo_to_cam")
    found = torch.eye(4, dtype=torch.float64)
    for name, size in (("R0_rect", (3, 3)), ("Tr_velo_to_cam", (3, 4))):
        matrix = torch.as_tensor(given[name], dtype=torch.float64)
        if matrix.numel() == 16:  # as mmdet3d has them, with the last row
            matrix = matrix.reshape(4, 4)[: size[0], : size[1]]
        if matrix.numel() != size[0] * size[1]:
            raise InputError(f"{name} has shape {tuple(matrix.shape)}; expected {size}")
        step = torch.eye(4, dtype=torch.float64)
        step[: size[0], : size[1]] = matrix.reshape(size)
        found = found @ step
    return found
