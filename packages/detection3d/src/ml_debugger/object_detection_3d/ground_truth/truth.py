"""The ground truth of one frame, and the checks that every format shares."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, cast, get_args

import torch
from torch import Tensor

from ml_debugger.core.errors import InputError
from ml_debugger.core.given import as_tensor, class_numbers, first
from ml_debugger.object_detection_3d.families import convention_of
from ml_debugger.object_detection_3d.frames import Frame, from_mmdet3d, refuse_far


@dataclass(frozen=True, slots=True)
class Truth:
    """What was true of one frame. All tensors are copies, on the CPU.

    Attributes:
        boxes: x, y, z, dx, dy, dz, yaw and perhaps vx, vy, as `frames` defines them, shape (n, 7)
            or (n, 9), float32. Sides may be 0; velocities that are not known are nan.
        labels: Classes as they were given, from 0, shape (n,), int64.
        ignored: Whether a box is none that a detector must find, shape (n,), bool.
        points: How many points lie in each box, -1 where that is not known, shape (n,), int64.
        frame: Where the boxes are.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    points: Tensor
    frame: Frame

    def __len__(self) -> int:
        return len(self.labels)


def truth_of(
    boxes: Any, labels: Any, *, ignored: Any = None, num_points: Any = None, frame: Any = None
) -> Truth:
    """Put one frame together.

    Args:
        boxes: In our form, shape (n, 7) or (n, 9), or a box class of MMDetection3D.
        labels: Whole numbers from 0, shape (n,).
        ignored: Flags, shape (n,); None is none.
        num_points: Points in each box, shape (n,); None or -1 where they were not counted.
        frame: Where the boxes are; None for that of a box class, and else `"lidar"`.

    Raises:
        InputError: Something in it is wrong, or does not fit the boxes.
    """
    rows, own = rows_of(boxes)
    refuse_far(rows)
    if frame is not None and frame not in get_args(Frame):
        raise InputError(f"frame is {frame!r}; expected one of {', '.join(get_args(Frame))}")
    if own is not None and frame not in (None, own):
        raise InputError(
            f"frame is {frame!r}, but the boxes are {type(boxes).__name__}; leave 'frame' out"
        )
    numbers = class_numbers(labels)
    if len(numbers) != len(rows):
        raise InputError(f"{len(rows)} boxes but {len(numbers)} labels; give each box one label")
    flags = _one_a_box(ignored, "'ignored'", "flag", rows)
    points = _one_a_box(num_points, "'num_points'", "number", rows)
    return Truth(
        rows.to(torch.float32),
        numbers,
        torch.zeros(len(rows), dtype=torch.bool) if flags is None else flags != 0,
        torch.full((len(rows),), -1) if points is None else points.to(torch.int64),
        cast(Frame, frame or own or "lidar"),
    )


def rows_of(values: Any) -> tuple[Tensor, Frame | None]:
    """Read boxes, shape (n, 7) or (n, 9), float64, and the frame if their class tells it.

    Raises:
        InputError: They are no boxes.
    """
    own = convention_of(values)
    rows = as_tensor(values if own is None else values.tensor, "boxes").double()
    if rows.shape == (0,):
        rows = rows.reshape(0, 7)
    if rows.ndim != 2 or rows.shape[1] not in (7, 9):
        raise InputError(
            f"boxes have shape {tuple(rows.shape)}; expected (n, 7): x, y, z, dx, dy, dz, yaw, or "
            "(n, 9) with vx, vy, and (0, 7) for a frame without objects"
        )
    wrong = ~torch.isfinite(rows[:, :7].to(torch.float32)).all(1)
    if wrong.any():
        raise InputError(
            f"box {first(wrong)} is {_show(rows[wrong][0])}; all but a velocity must be finite. "
            "Repair it or leave it out"
        )
    turned = (rows[:, 3:6] < 0).any(1)
    if turned.any():
        raise InputError(
            f"box {first(turned)} is {_show(rows[turned][0])}, with a side below 0; expected the "
            "centre x, y, z, then dx, dy, dz, in metres. Corners must be converted first"
        )
    return (rows if own is None else from_mmdet3d(rows, own)), own


def class_lookup(
    classes: Any, known: Collection[str] | None = None, owner: str = "the data"
) -> dict[str, int]:
    """Read the names of classes: a list in the order of their numbers, or a dict of numbers.

    Args:
        classes: The names.
        known: Those that the data has; another would make a ghost of each of its boxes. None does
            not check them.
        owner: What has these, for a message.

    Raises:
        InputError: They are neither, or the data has no such class.
    """
    if isinstance(classes, dict) and all(
        isinstance(name, str) and isinstance(number, int) for name, number in classes.items()
    ):
        found = dict(classes)
    elif isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes):
        found = {name: number for number, name in enumerate(classes)}
    else:
        raise InputError(
            f"classes are {classes!r}; expected their names in the order of the model's class "
            "numbers, such as ['Pedestrian', 'Cyclist', 'Car'], or a dict of names and numbers"
        )
    if known is not None:
        cure = "; a dict of names and numbers can leave out what it lacks"
        refuse_unknown(found, known, "class", owner, cure)
    return found


def refuse_unknown(
    names: Iterable[str], known: Collection[str], kind: str, owner: str, cure: str = ""
) -> None:
    """Check that each name is known.

    Raises:
        InputError: One is not; what there is, and what was probably meant, is named.
    """
    for name in names:
        if name not in known:
            small = {one.lower(): one for one in known}
            meant = get_close_matches(name.lower(), small, 1)
            guess = f" (did you mean {small[meant[0]]!r}?)" if meant else ""
            raise InputError(
                f"{owner} has no {kind} {name!r}{guess}; it has {', '.join(sorted(known))}{cure}"
            )


def speeds_of(velocities: Sequence[Any]) -> Tensor | None:
    """Read vx, vy of each object, shape (n, 2), nan where they are not known.

    Args:
        velocities: Of each object two or three numbers (None among them is nan), or None.

    Returns:
        None where no object has one.

    Raises:
        InputError: One is something else.
    """
    if all(one is None for one in velocities):
        return None
    unknown = float("nan")
    rows = []
    for one in velocities:
        given = (unknown, unknown) if one is None else one
        try:
            row = [unknown if each is None else float(each) for each in given]
        except (TypeError, ValueError):
            row = []
        if len(row) not in (2, 3):
            raise InputError(f"a velocity is {one!r}; expected vx, vy in m/s, or None")
        rows.append(row[:2])
    return torch.tensor(rows, dtype=torch.float64)


def _one_a_box(values: Any, name: str, what: str, rows: Tensor) -> Tensor | None:
    if values is None:
        return None
    found = as_tensor(values, name)
    if found.shape != (len(rows),):
        raise InputError(
            f"{name} has shape {tuple(found.shape)} for {len(rows)} boxes; give each box one "
            f"{what}, or leave it out"
        )
    return found


def _show(box: Tensor) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in box.tolist()) + "]"
