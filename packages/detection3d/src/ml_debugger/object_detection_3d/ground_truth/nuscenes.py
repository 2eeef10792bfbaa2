"""Annotations of nuScenes, as its tables and its development kit have them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ml_debugger.core.given import as_tensor, require
from ml_debugger.object_detection_3d.frames import from_nuscenes, pose
from ml_debugger.object_detection_3d.ground_truth.truth import Truth, class_lookup, truth_of

#: nuScenes' ten classes of detection; its other categories are none.
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


def fits(frames: Sequence[Any]) -> bool:
    """Tell whether these are dicts, and annotations are in one of them."""
    return all(isinstance(one, Mapping) for one in frames) and any(
        "annotations" in one for one in frames
    )


def read(one: Mapping[str, Any]) -> Truth:
    """Read one frame: `annotations` and `classes`, in the order of their numbers.

    Each annotation has `translation`, `size` (width, length, height), `rotation` (w, x, y, z) and
    `category_name`, and if there `velocity` and `num_lidar_pts`. With `ego_pose` and
    `calibrated_sensor`, dicts of `rotation` and `translation`, boxes are put in that sensor's
    frame, and else they stay on the map. Categories are those of nuScenes or its classes of
    detection; those that `classes` lacks are left out. An object that no point hit is ignored, as
    in nuScenes' own evaluation.
    """
    require(one, "annotations", "classes")
    number = class_lookup(one["classes"])
    kept, labels = [], []
    for each in one["annotations"]:
        require(each, "translation", "size", "rotation", "category_name")
        name = each["category_name"]
        name = name if name in number else _CLASSES.get(name)
        if name in number:
            kept.append(each)
            labels.append(number[name])
    sensor = None
    if "ego_pose" in one or "calibrated_sensor" in one:
        require(one, "ego_pose", "calibrated_sensor")
        sensor = _pose(one["ego_pose"]) @ _pose(one["calibrated_sensor"])
    unknown = [float("nan")] * 2
    speeds = [each.get("velocity") for each in kept]
    points = [each.get("num_lidar_pts", -1) for each in kept]
    radar = [each.get("num_radar_pts", 0) for each in kept]
    boxes = from_nuscenes(
        _rows([each["translation"] for each in kept], 3),
        _rows([each["size"] for each in kept], 3),
        _rows([each["rotation"] for each in kept], 4),
        _rows([list(each or unknown)[:2] for each in speeds], 2) if any(speeds) else None,
        sensor,
    )
    return truth_of(
        boxes,
        labels,
        ignored=[hit + more == 0 for hit, more in zip(points, radar, strict=True)],
        num_points=points,
        frame="global" if sensor is None else "lidar",
    )


def _pose(given: Mapping[str, Any]) -> Tensor:
    require(given, "rotation", "translation")
    return pose(given["rotation"], given["translation"])


def _rows(values: list[Any], width: int) -> Tensor:
    found = as_tensor(values, "annotations").double()
    return found.reshape(0, width) if not values else found
