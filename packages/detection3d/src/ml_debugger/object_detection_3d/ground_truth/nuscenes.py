"""Annotations of nuScenes, as its tables and its development kit have them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ml_debugger.core.errors import InputError
from ml_debugger.core.given import as_tensor, require
from ml_debugger.object_detection_3d.frames import Frame, camera_axes, from_nuscenes, pose
from ml_debugger.object_detection_3d.ground_truth.truth import (
    Truth,
    class_lookup,
    speeds_of,
    truth_of,
)

#: nuScenes' ten classes of detection.
_CLASSES = {
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
#: Its categories that are none of these.
_OTHERS = (
    "animal",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "static_object.bicycle_rack",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
)
#: How much of a camera's z is up: it points to the front, where a LiDAR's points up.
_LEVEL = 0.5
CATEGORIES = (*_CLASSES, *_OTHERS)


def fits(frames: Sequence[Any]) -> bool:
    """Tell whether these are dicts, and annotations are in one of them."""
    return all(isinstance(one, Mapping) for one in frames) and any(
        "annotations" in one for one in frames
    )


def known_classes(categories: Iterable[str]) -> set[str]:
    """Return the names that a model's classes may have where annotations have these."""
    return {*categories, *_CLASSES.values()}


def unhit(lidar: int, radar: int) -> bool:
    """Tell whether no point hit an object, as nuScenes' own evaluation does; -1 is not known."""
    return lidar == 0 and radar <= 0


def read(one: Mapping[str, Any]) -> Truth:
    """Read one frame: `annotations` and `classes`, in the order of their numbers.

    Each annotation has `translation`, `size` (width, length, height), `rotation` (w, x, y, z) and
    `category_name`, and if there `velocity`, `num_lidar_pts` and `num_radar_pts`. Classes are
    categories of nuScenes or its classes of detection; annotations of others are left out.
    `categories` names those that annotations may have, where they are not nuScenes' own. An object
    that no point hit is ignored, as in nuScenes' own evaluation.

    With `ego_pose` and `calibrated_sensor`, dicts of `rotation` and `translation`, boxes are put in
    that sensor's frame, and else they stay on the map. A sensor whose z is level is a camera: what
    is behind it is left out, and what is not in its image, if `camera_intrinsic` is in the former
    and `image_size`, (width, height), beside it.
    """
    require(one, "annotations", "classes")
    categories = one.get("categories", CATEGORIES)
    owner = "nuScenes" if categories is CATEGORIES else "the list of 'categories'"
    number = class_lookup(one["classes"], known_classes(categories), owner)
    kept, labels = [], []
    for each in one["annotations"]:
        require(each, "translation", "size", "rotation", "category_name")
        name = each["category_name"]
        name = name if name in number else _CLASSES.get(name)
        if name in number:
            kept.append(each)
            labels.append(number[name])
    frame, sensor = _sensor(one)
    boxes = from_nuscenes(
        _rows([each["translation"] for each in kept], 3),
        _rows([each["size"] for each in kept], 3),
        _rows([each["rotation"] for each in kept], 4),
        speeds_of([each.get("velocity") for each in kept]),
        sensor,
    )
    points = torch.tensor([each.get("num_lidar_pts", -1) for each in kept], dtype=torch.int64)
    radar = [each.get("num_radar_pts", 0) for each in kept]
    ignored = torch.tensor([*map(unhit, points.tolist(), radar)], dtype=torch.bool)
    seen = torch.ones(len(kept), dtype=torch.bool)
    if frame == "camera":
        seen = _in_view(boxes, _intrinsic(one), one.get("image_size"))
    return truth_of(
        boxes[seen],
        torch.tensor(labels, dtype=torch.int64)[seen],
        ignored=ignored[seen],
        num_points=points[seen],
        frame=frame,
    )


def _sensor(one: Mapping[str, Any]) -> tuple[Frame, Tensor | None]:
    """Return where boxes are to be, and what moves that frame to the map's, if they move."""
    if not {"ego_pose", "calibrated_sensor"} & set(one):
        return "global", None
    require(one, "ego_pose", "calibrated_sensor")
    mounted = _pose(one["calibrated_sensor"])
    found = _pose(one["ego_pose"]) @ mounted
    if abs(float(mounted[2, 2])) < _LEVEL:
        return "camera", found @ camera_axes()
    return "lidar", found


def _intrinsic(one: Mapping[str, Any]) -> Tensor | None:
    given = one["calibrated_sensor"].get("camera_intrinsic")
    found = None if given is None else as_tensor(given, "camera_intrinsic").double()
    if found is None or found.numel() == 0:  # as a LiDAR has it
        return None
    if found.shape != (3, 3):
        raise InputError(f"camera_intrinsic has shape {tuple(found.shape)}; expected (3, 3)")
    return found


def _in_view(boxes: Tensor, intrinsic: Tensor | None, size: Any) -> Tensor:
    """Tell which boxes a camera has in front of it and, if that is known, in its image, (n,).

    A box is in the image if the upright rectangle around those corners that are in front is.
    """
    seen = boxes[:, 0] > 0
    if intrinsic is None or size is None:
        return seen
    sides = torch.cartesian_prod(*[boxes.new_tensor([-0.5, 0.5])] * 3) * boxes[:, None, 3:6]
    cos, sin = boxes[:, 6:7].cos(), boxes[:, 6:7].sin()
    x, y, z = sides.unbind(2)
    at = torch.stack([x * cos - y * sin, x * sin + y * cos, z], 2) + boxes[:, None, :3]
    own = at @ camera_axes()[:3, :3].T  # x right, y down, z front
    ahead = own[..., 2] > 0
    pixel = (own @ intrinsic.T)[..., :2] / own[..., 2:]
    low = torch.where(ahead[..., None], pixel, torch.inf).amin(1)
    high = torch.where(ahead[..., None], pixel, -torch.inf).amax(1)
    return seen & ((high > 0) & (low < low.new_tensor(size))).all(1)


def _pose(given: Mapping[str, Any]) -> Tensor:
    require(given, "rotation", "translation")
    return pose(given["rotation"], given["translation"])


def _rows(values: list[Any], width: int) -> Tensor:
    found = as_tensor(values, "annotations").double()
    return found.reshape(0, width) if not values else found
