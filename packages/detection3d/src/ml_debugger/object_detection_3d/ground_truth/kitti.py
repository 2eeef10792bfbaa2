"""Labels of KITTI, with the calibration that places them in the LiDAR's frame."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ml_debugger.core.errors import InputError
from ml_debugger.core.given import require
from ml_debugger.object_detection_3d.frames import from_kitti, from_mmdet3d
from ml_debugger.object_detection_3d.ground_truth.truth import Truth, class_lookup, truth_of

CLASSES = ("Pedestrian", "Cyclist", "Car", "Van", "Truck", "Person_sitting", "Tram", "Misc")
#: KITTI neither counts it as right nor as wrong to take one for the other.
_LIKE = {"Van": "Car", "Person_sitting": "Pedestrian"}
#: As the object benchmark names them, and that of tracking.
_MATRICES = {"R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
_ALSO = {"R_rect": "R0_rect", "Tr_velo_cam": "Tr_velo_to_cam"}


def fits(frames: Sequence[Any]) -> bool:
    """Tell whether these are dicts, and one has a calibration, or a label with its classes."""
    return all(isinstance(one, Mapping) for one in frames) and any(
        "calibration" in one or {"label", "classes"} <= set(one) for one in frames
    )


def class_of(name: str, number: Mapping[str, int]) -> tuple[int, bool] | None:
    """Return an object's class number and whether it is ignored; None where it is left out."""
    known = name if name in number else _LIKE.get(name, "")
    return (number[known], known != name) if known in number else None


def read(one: Mapping[str, Any]) -> Truth:
    """Read one frame: `label`, `calibration`, and `classes`, in the order of their numbers.

    The label is the text of a label file, or its lines; the calibration the text of its file, a
    dict of `R0_rect` and `Tr_velo_to_cam`, or their product, shape (4, 4). With `frame` "camera"
    boxes stay with the camera, for a model of images, and there needs to be no calibration.

    Objects of other classes are left out, but for a `Van` and a `Person_sitting`: as in KITTI's
    own evaluation these are ignored, as a car and a pedestrian. `DontCare` is left out, too: it is
    a region of the image, at no distance, so that there is no box of it; a detector that finds
    something there is said to see ghosts, as in mmdet3d's own data set.
    """
    frame = one.get("frame", "lidar")
    if frame not in ("lidar", "camera"):
        raise InputError(f"frame is {frame!r}; expected 'lidar' or 'camera' of KITTI's labels")
    require(one, "label", "classes", *["calibration"] * (frame == "lidar"))
    number = class_lookup(one["classes"], CLASSES, "KITTI")
    text = one["label"]
    lines = text.splitlines() if isinstance(text, str) else text
    rows, labels, ignored = [], [], []
    for at, line in enumerate(lines):
        parts = line.split() if isinstance(line, str) else line
        found = class_of(parts[0], number) if parts else None
        if found is None:
            continue
        values = parts[1:]
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
        labels.append(found[0])
        ignored.append(found[1])
    boxes = torch.tensor(rows, dtype=torch.float64).reshape(-1, 7)
    if frame == "camera":
        boxes = from_mmdet3d(boxes[:, [3, 4, 5, 2, 0, 1, 6]], "camera")
    else:
        boxes = from_kitti(boxes, calibration(one["calibration"]))
    return truth_of(boxes, labels, ignored=ignored, frame=frame)


def calibration(given: Any) -> Tensor:
    """Return `R0_rect @ Tr_velo_to_cam`, shape (4, 4), float64.

    KITTI's tracking benchmark names them `R_rect` and `Tr_velo_cam`; these are read too.

    Raises:
        InputError: One is missing, or has another shape.
    """
    if isinstance(given, str):
        given = dict(_lines(given))
    if not isinstance(given, Mapping):
        return torch.as_tensor(given, dtype=torch.float64)
    given = {_ALSO.get(name, name): value for name, value in given.items()}
    require(given, *_MATRICES)
    found = torch.eye(4, dtype=torch.float64)
    for name, size in _MATRICES.items():
        matrix = torch.as_tensor(given[name], dtype=torch.float64)
        if matrix.numel() == 16:  # as mmdet3d has them, with the last row
            matrix = matrix.reshape(4, 4)[: size[0], : size[1]]
        if matrix.numel() != size[0] * size[1]:
            raise InputError(f"{name} has shape {tuple(matrix.shape)}; expected {size}")
        step = torch.eye(4, dtype=torch.float64)
        step[: size[0], : size[1]] = matrix.reshape(size)
        found = found @ step
    return found


def _lines(text: str) -> Iterator[tuple[str, list[float]]]:
    """Return the names and values of a calibration's matrices; of other lines only the names."""
    for line in text.splitlines():
        name, *values = line.replace(":", " ", 1).split() or [""]
        try:
            yield name, [float(value) for value in values]
        except ValueError:
            if _ALSO.get(name, name) in _MATRICES:
                raise InputError(
                    f"the calibration has the line {line!r}; expected numbers after {name}"
                ) from None
            yield name, []
