"""One form for 3D boxes, to and from the forms in use.

In ours a box is x, y, z, dx, dy, dz, yaw and perhaps vx, vy: the centre of gravity, length, width
and height in metres, the yaw in radians in [-pi, pi), counter-clockwise about z, and the velocity
in metres a second. z is up in every frame; in the frames of a sensor x is to its front and y to its
left. Only nuScenes' LiDAR is mounted otherwise: its own x is to the right of the car, and boxes
stay in that sensor's axes, as MMDetection3D's models have them.

All functions take and return arrays as well as tensors, on their device and of their type. They
compute in double precision, since a frame may be kilometres from its map's origin.
"""

from math import pi
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from ml_debugger.core.errors import InputError

#: A sensor's frame (axes of ours, at its place), that of the vehicle, and that of the map.
Frame = Literal["lidar", "camera", "depth", "ego", "global"]
#: MMDetection3D's classes of boxes.
Convention = Literal["lidar", "camera", "depth"]
Rows = TypeVar("Rows", NDArray[Any], Tensor)


class _Form(NamedTuple):
    """Our axes in theirs, the order of the sides, and our yaw: sign * theirs + offset."""

    axes: tuple[tuple[float, float, float], ...]
    sides: list[int]
    sign: int
    offset: float


_FORMS: dict[str, _Form] = {
    "lidar": _Form(((1, 0, 0), (0, 1, 0), (0, 0, 1)), [0, 1, 2], 1, 0),
    "camera": _Form(((0, 0, 1), (-1, 0, 0), (0, -1, 0)), [0, 2, 1], -1, -pi / 2),
    "depth": _Form(((0, 1, 0), (-1, 0, 0), (0, 0, 1)), [0, 1, 2], 1, -pi / 2),
}
#: Records are float32, whose steps are a millimetre up to here, in metres.
_FAR = 2.0**14
#: A box has no pitch and no roll, so z may lean by 60 degrees between two frames at most.
_UPRIGHT = 0.5


def from_mmdet3d(boxes: Rows, convention: Convention) -> Rows:
    """Return boxes of MMDetection3D 1.0 or later in our form, in the frame of the same name.

    Theirs have the centre of the bottom instead of that of gravity. In `"camera"` x is right, y
    down and z to the front, the sides are length, height, width, the yaw turns about y, and the
    velocity is along x and z; in `"depth"` x is right, y to the front and z up.

    Args:
        boxes: Shape (n, 7) or (n, 9).
        convention: Whose they are.

    Returns:
        Shape (n, 7) or (n, 9).

    Raises:
        InputError: They have another shape, or there is no such convention.
    """
    form = _form(convention)
    given = _double(boxes)
    centre, sides, yaw, velocity = _parts(given)
    centre, sides = centre @ given.new_tensor(form.axes).T, sides[:, form.sides]
    centre[:, 2:] += sides[:, 2:] / 2
    if form.offset:  # x and y, or x and z, of theirs are to the right and to the front
        velocity = velocity.flip(1) * velocity.new_tensor([1, -1])[: velocity.shape[1]]
    return _like(_joined(centre, sides, form.sign * yaw + form.offset, velocity), boxes)


def to_mmdet3d(boxes: Rows, convention: Convention) -> Rows:
    """Undo `from_mmdet3d`."""
    form = _form(convention)
    given = _double(boxes)
    centre, sides, yaw, velocity = _parts(given)
    centre = torch.cat([centre[:, :2], centre[:, 2:] - sides[:, 2:] / 2], 1)
    centre, sides = centre @ given.new_tensor(form.axes), sides[:, form.sides]
    if form.offset:
        velocity = velocity.flip(1) * velocity.new_tensor([-1, 1])[: velocity.shape[1]]
    return _like(_joined(centre, sides, form.sign * (yaw - form.offset), velocity), boxes)


def from_kitti(labels: Rows, lidar_to_camera: Any) -> Rows:
    """Return KITTI's labels in our form, in the LiDAR's frame.

    Args:
        labels: Of each line height, width, length, x, y, z of the bottom's centre, and the rotation
            about y, in the rectified camera's frame, shape (n, 7).
        lidar_to_camera: `R0_rect @ Tr_velo_to_cam` of the frame's calibration, shape (4, 4).

    Returns:
        Shape (n, 7).

    Raises:
        InputError: The shapes are others, or the calibration turns boxes over.
    """
    given = _double(labels, 7)
    camera = from_mmdet3d(given[:, [3, 4, 5, 2, 0, 1, 6]], "camera")
    return _like(moved(camera, camera_to_lidar(lidar_to_camera)), labels)


def to_kitti(boxes: Rows, lidar_to_camera: Any) -> Rows:
    """Undo `from_kitti`; velocities are left out."""
    given = moved_back(_double(boxes)[:, :7], camera_to_lidar(lidar_to_camera))
    return _like(to_mmdet3d(given, "camera")[:, [4, 5, 3, 0, 1, 2, 6]], boxes)


def camera_to_lidar(lidar_to_camera: Any) -> Tensor:
    """Return what moves boxes in our form from a camera's frame to the LiDAR's, shape (4, 4).

    Args:
        lidar_to_camera: What moves points to the camera's own axes, x right, y down, z front,
            shape (4, 4): mmdet3d's `lidar2cam`.
    """
    found: Tensor = torch.linalg.inv(_matrix(lidar_to_camera)) @ camera_axes()
    return found


def camera_axes() -> Tensor:
    """Return what turns a camera's frame of ours to its own axes: x right, y down, z front.

    Shape (4, 4), float64. `pose` of a nuScenes camera `@ camera_axes()` is that of its frame here.
    """
    found = torch.eye(4, dtype=torch.float64)
    found[:3, :3] = found.new_tensor(_FORMS["camera"].axes).T
    return found


def from_nuscenes(
    translation: Rows,
    size: Rows,
    rotation: Rows,
    velocity: Rows | None = None,
    sensor_to_global: Any = None,
) -> Rows:
    """Return nuScenes' annotations in our form, in a sensor's frame.

    Args:
        translation: Centres of gravity in the global frame, shape (n, 3).
        size: Width, length, height, shape (n, 3).
        rotation: Quaternions w, x, y, z, shape (n, 4).
        velocity: In the global frame, shape (n, 2) or (n, 3); nan where it is not known.
        sensor_to_global: `pose` of the ego vehicle `@ pose` of the calibrated sensor, and for a
            camera `@ camera_axes()`, shape (4, 4); None leaves boxes in the global frame.

    Returns:
        Shape (n, 7), or (n, 9) with velocities.

    Raises:
        InputError: The shapes are others, or the pose turns boxes over.
    """
    ahead = _rotations(_double(rotation, 4))[:, :2, 0]
    centre, sides = _double(translation, 3), _double(size, 3)[:, [1, 0, 2]]
    speed = centre[:, :0] if velocity is None else _double(velocity, 2, 3)[:, :2]
    boxes = _joined(centre, sides, torch.atan2(ahead[:, 1:], ahead[:, :1]), speed)
    if sensor_to_global is not None:
        boxes = moved(boxes, torch.linalg.inv(_matrix(sensor_to_global)))
    return _like(boxes, translation)


def to_nuscenes(boxes: Rows, sensor_to_global: Any = None) -> tuple[Rows, Rows, Rows, Rows]:
    """Undo `from_nuscenes`.

    Returns:
        Translation (n, 3), size (n, 3), rotation (n, 4), and velocity (n, 2), or (n, 0) where
        boxes have none.
    """
    found = _double(boxes)
    if sensor_to_global is not None:
        found = moved_back(found, torch.linalg.inv(_matrix(sensor_to_global)))
    centre, sides, yaw, velocity = _parts(found)
    none = torch.zeros_like(yaw)
    rotation = torch.cat([torch.cos(yaw / 2), none, none, torch.sin(yaw / 2)], 1)
    return (
        _like(centre, boxes),
        _like(sides[:, [1, 0, 2]], boxes),
        _like(rotation, boxes),
        _like(velocity, boxes),
    )


def pose(rotation: Any, translation: Any) -> Tensor:
    """Return the matrix (4, 4), float64, of a quaternion w, x, y, z and a translation x, y, z."""
    found = torch.eye(4, dtype=torch.float64)
    found[:3, :3] = _rotations(torch.as_tensor(rotation, dtype=torch.float64)[None])[0]
    found[:3, 3] = torch.as_tensor(translation, dtype=torch.float64)
    return found


def moved(boxes: Rows, to: Any) -> Rows:
    """Return boxes of ours in another frame of ours.

    Headings and velocities are turned along and seen from above. Where z leans between the
    frames that is not the whole turn, since a box has neither pitch nor roll.

    Args:
        boxes: Shape (n, 7) or (n, 9).
        to: Rotation and translation from their frame to the other, shape (4, 4).

    Raises:
        InputError: z leans by more than 60 degrees, as it does between a LiDAR and a camera whose
            y is down.
    """
    given = _double(boxes)
    matrix = _upright(to).to(given.device)
    centre, sides, yaw, velocity = _parts(given)
    centre = centre @ matrix[:3, :3].T + matrix[:3, 3]
    return _like(_joined(centre, sides, *_turned(yaw, velocity, matrix[:2, :2])), boxes)


def moved_back(boxes: Rows, to: Any) -> Rows:
    """Undo `moved` with the same matrix, also where z leans."""
    given = _double(boxes)
    matrix = _upright(to).to(given.device)
    centre, sides, yaw, velocity = _parts(given)
    centre = (centre - matrix[:3, 3]) @ torch.linalg.inv(matrix[:3, :3]).T
    level = torch.linalg.inv(matrix[:2, :2])
    return _like(_joined(centre, sides, *_turned(yaw, velocity, level)), boxes)


def refuse_far(boxes: Tensor) -> None:
    """Refuse boxes that float32, in which they are recorded, resolves to no millimetre.

    Args:
        boxes: In our form, shape (n, 7) or (n, 9). What is not finite is let through.

    Raises:
        InputError: A centre is 16384 m from the origin of its frame, or farther.
    """
    centre = boxes[:, :3]
    far = (centre.isfinite() & (centre.abs() >= _FAR)).any(1)
    if far.any():
        shown = ", ".join(f"{value:.10g}" for value in centre[far][0].tolist())
        raise InputError(
            f"box {int(far.nonzero()[0])} has its centre at ({shown}) m; boxes are recorded in "
            f"float32, which is exact to a millimetre up to {_FAR:g} m. Subtract the origin of the "
            "map, or of the scene, from all boxes, predicted and true"
        )


def _turned(yaw: Tensor, velocity: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    ahead = torch.cat([torch.cos(yaw), torch.sin(yaw)], 1) @ level.T
    speed = velocity @ level.T if velocity.shape[1] else velocity
    return torch.atan2(ahead[:, 1:], ahead[:, :1]), speed


def _parts(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return centres (n, 3), sides (n, 3), yaws (n, 1), and velocities (n, 0 or 2)."""
    return boxes[:, :3], boxes[:, 3:6], boxes[:, 6:7], boxes[:, 7:]


def _joined(centre: Tensor, sides: Tensor, yaw: Tensor, velocity: Tensor) -> Tensor:
    yaw = yaw - 2 * pi * torch.floor(yaw / (2 * pi) + 0.5)
    return torch.cat([centre, sides, yaw, velocity], 1)


def _rotations(quaternions: Tensor) -> Tensor:
    """Return matrices (n, 3, 3) of quaternions w, x, y, z (n, 4), of any length but 0."""
    length = quaternions.norm(dim=1, keepdim=True)
    if not (length > 0).all():
        raise InputError("a rotation is no quaternion: w, x, y, z must be finite and not all 0")
    w, x, y, z = (quaternions / length).unbind(1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def _matrix(given: Any) -> Tensor:
    found = torch.as_tensor(given, dtype=torch.float64, device="cpu")
    if found.shape != (4, 4) or not torch.isfinite(found).all():
        raise InputError(
            f"a rotation with its translation has shape {tuple(found.shape)}; expected (4, 4), "
            "finite, with [0, 0, 0, 1] as its last row"
        )
    return found


def _upright(to: Any) -> Tensor:
    matrix = _matrix(to)
    if not matrix[2, 2] >= _UPRIGHT:
        raise InputError(
            f"z of one frame is ({', '.join(f'{value:.3g}' for value in matrix[:3, 2])}) in the "
            "other; boxes have only a yaw, so that it may lean by 60 degrees at most. Give the "
            "calibration in the direction asked for; for a camera, with x right, y down, z front"
        )
    return matrix


def _form(convention: str) -> _Form:
    if convention not in _FORMS:
        raise InputError(f"boxes are of {convention!r}; expected one of {', '.join(_FORMS)}")
    return _FORMS[convention]


def _double(rows: Any, *columns: int) -> Tensor:
    columns = columns or (7, 9)
    found: Tensor = torch.as_tensor(rows)
    if found.ndim != 2 or found.shape[1] not in columns:
        expected = " or ".join(f"(n, {number})" for number in columns)
        raise InputError(f"got an array of shape {tuple(found.shape)}; expected {expected}")
    return found.double()


def _like(found: Tensor, given: Rows) -> Rows:
    """Return it as what was given is: array or tensor, of its type if that has fractions."""
    kind = torch.as_tensor(given).dtype
    found = found.to(kind) if kind.is_floating_point else found
    return found if isinstance(given, Tensor) else found.numpy()
