"""Where ground truth comes from when a call brings none: by the ids of its frames.

None of the shipped providers reads a pickle, which may run anything: dump what is in one as JSON.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ml_debugger.core.errors import InputError
from ml_debugger.core.given import require
from ml_debugger.object_detection_3d.frames import camera_to_lidar, from_mmdet3d, moved
from ml_debugger.object_detection_3d.ground_truth.truth import class_lookup

Classes = Sequence[str] | Mapping[str, int]

#: Two annotations of an object that are further apart in time tell no velocity, in seconds.
_LONGEST = 1.5


class GroundTruthProvider(Protocol):
    """Gives the ground truth of a frame, an entry as `read_ground_truth` takes it."""

    def get(self, input_id: str, /) -> Mapping[str, Any] | None:
        """Return the ground truth of one frame, or None where there is none."""


class _Called:
    def __init__(self, call: Callable[[str], Mapping[str, Any] | None]) -> None:
        self._call = call

    def get(self, input_id: str, /) -> Mapping[str, Any] | None:
        return self._call(input_id)


def as_provider(given: Any) -> GroundTruthProvider:
    """Return a provider as it is, a dict too, and make one of a callable.

    Raises:
        InputError: It is neither.
    """
    if isinstance(given, type):
        raise InputError(f"ground_truth_provider is the class {given.__name__}; make one of it")
    if callable(getattr(given, "get", None)):
        provider: GroundTruthProvider = given
        return provider
    if callable(given):
        return _Called(given)
    raise InputError(
        f"ground_truth_provider is a {type(given).__name__}; expected an object with "
        "get(input_id), a dict from ids to ground truth, or a callable"
    )


class InfoJSON:
    """MMDetection3D's info file of a data set, as JSON.

    Its frames are known by `sample_idx`, by `token`, and by the stem of the point cloud's file.
    Objects without a class of the data set (label -1) are left out.

    Args:
        path: The file, with `metainfo` and `data_list`.
        classes: The model's classes, where it numbers them otherwise than the file's
            `categories`; objects of other classes are left out.
        form: How boxes are written: as for KITTI (in the camera's frame, with `lidar2cam` of
            `camera`) or for nuScenes (in the LiDAR's, with centres of gravity; an object that no
            point hit is ignored). None takes the `dataset` that the file names.
        camera: Of KITTI's form, whose frame boxes are in.

    Raises:
        InputError: The file is no such JSON.
    """

    def __init__(
        self,
        path: str | Path,
        classes: Classes | None = None,
        *,
        form: Literal["kitti", "nuscenes"] | None = None,
        camera: str = "CAM2",
    ) -> None:
        info = _json(Path(path))
        if not isinstance(info, Mapping):
            raise InputError(f"{path} holds a {type(info).__name__}; expected an info file")
        require(info, "metainfo", "data_list")
        meta = info["metainfo"]
        named = {"kitti": "kitti", "nuscenes": "nuscenes", "lyft": "nuscenes"}
        self._form = form or named.get(str(meta.get("dataset")).lower())
        if self._form not in ("kitti", "nuscenes"):
            raise InputError(
                f"{path} is of the data set {meta.get('dataset')!r} (form {form!r}); expected "
                "form='kitti' or form='nuscenes', whichever its boxes are written as"
            )
        self._camera = camera
        self._numbers: dict[int, int] | None = None
        if classes is not None:
            require(meta, "categories")
            wanted, own = class_lookup(classes), class_lookup(meta["categories"])
            self._numbers = {own[name]: wanted[name] for name in own if name in wanted}
        self._frames: dict[str, Mapping[str, Any]] = {}
        for frame in info["data_list"]:
            for name in _names(frame):
                self._frames[name] = frame

    def get(self, input_id: str, /) -> Mapping[str, Any] | None:
        """Return boxes in the LiDAR's frame, labels, ignored and num_points; None if unknown."""
        frame = self._frames.get(input_id)
        if frame is None:
            return None
        require(frame, "instances")
        rows, speeds, labels, points = [], [], [], []
        for one in frame["instances"]:
            require(one, "bbox_3d", "bbox_label_3d")
            label = int(one["bbox_label_3d"])
            number = label if self._numbers is None else self._numbers.get(label, -1)
            if label >= 0 and number >= 0:
                rows.append(one["bbox_3d"])
                speeds.append(one.get("velocity"))
                labels.append(number)
                points.append(int(one.get("num_lidar_pts", -1)))
        boxes = np.array(rows, float).reshape(len(rows), -1 if rows else 7)
        if any(speeds):  # null, in JSON, is the nan of a velocity that is not known
            unknown = [np.nan, np.nan]
            speed = np.array([one or unknown for one in speeds], float)
            boxes = np.concatenate([boxes, speed], 1)
        if self._form == "kitti":
            sensor = frame.get("images", {}).get(self._camera, {})
            require(sensor, "lidar2cam")
            boxes = moved(from_mmdet3d(boxes, "camera"), camera_to_lidar(sensor["lidar2cam"]))
        ignored = [self._form == "nuscenes" and count == 0 for count in points]
        return {"boxes": boxes, "labels": labels, "ignored": ignored, "num_points": points}


class KITTILabels:
    """KITTI's folders of label files and of calibration files; ids are their names, as `000123`.

    Args:
        labels: The folder, `label_2` in KITTI.
        calibrations: The folder, `calib` in KITTI.
        classes: Names in the order of the model's class numbers.

    Raises:
        InputError: A folder is not there, or classes are no names.
    """

    def __init__(
        self,
        labels: str | Path,
        calibrations: str | Path,
        classes: Classes = ("Pedestrian", "Cyclist", "Car"),
    ) -> None:
        self._labels, self._calibrations = Path(labels), Path(calibrations)
        for folder in (self._labels, self._calibrations):
            if not folder.is_dir():
                raise InputError(f"{folder} is no folder; expected one of KITTI's, of text files")
        self._classes = class_lookup(classes)

    def get(self, input_id: str, /) -> Mapping[str, Any] | None:
        """Return label, calibration and classes, as KITTI's connector takes them."""
        name = f"{input_id}.txt"
        if Path(name).name != name or not (self._labels / name).is_file():
            return None
        if not (self._calibrations / name).is_file():
            raise InputError(
                f"frame {input_id!r} has a label but no {name} in {self._calibrations}; expected "
                "its calibration"
            )
        return {
            "label": (self._labels / name).read_text("utf-8"),
            "calibration": (self._calibrations / name).read_text("utf-8"),
            "classes": self._classes,
        }


class NuScenesTables:
    """A folder of tables as nuScenes has them: `sample_annotation.json` and its relatives.

    Ids are tokens of samples, or of the sensor's `sample_data`. Boxes are put in the sensor's frame
    at that time; velocities are differences to the annotations before and after.

    Args:
        folder: The folder, such as `v1.0-mini`.
        classes: Names in the order of the model's class numbers: categories of nuScenes, or its
            classes of detection, such as `car`.
        channel: The sensor.

    Raises:
        InputError: A table is not there, or is no JSON.
    """

    def __init__(self, folder: str | Path, classes: Classes, *, channel: str = "LIDAR_TOP") -> None:
        self._classes = class_lookup(classes)
        table = {name: _by_token(Path(folder) / f"{name}.json") for name in _TABLES}
        self._annotations = table["sample_annotation"]
        self._times = {key: one["timestamp"] / 1e6 for key, one in table["sample"].items()}
        self._poses, self._sensors = table["ego_pose"], table["calibrated_sensor"]
        categories = {
            key: table["category"][one["category_token"]]["name"]
            for key, one in table["instance"].items()
        }
        self._of_sample: dict[str, list[tuple[Mapping[str, Any], str]]] = defaultdict(list)
        for one in self._annotations.values():
            known = one.get("category_name") or categories[one["instance_token"]]
            self._of_sample[one["sample_token"]].append((one, known))
        self._data: dict[str, Mapping[str, Any]] = {}
        for key, one in table["sample_data"].items():
            sensor = self._sensors[one["calibrated_sensor_token"]]["sensor_token"]
            if one["is_key_frame"] and table["sensor"][sensor]["channel"] == channel:
                self._data[key] = self._data[one["sample_token"]] = one

    def get(self, input_id: str, /) -> Mapping[str, Any] | None:
        """Return annotations, poses and classes, as nuScenes' connector takes them."""
        data = self._data.get(input_id)
        if data is None:
            return None
        return {
            "annotations": [
                {**one, "category_name": name, "velocity": self._velocity(one)}
                for one, name in self._of_sample.get(data["sample_token"], [])
            ],
            "ego_pose": self._poses[data["ego_pose_token"]],
            "calibrated_sensor": self._sensors[data["calibrated_sensor_token"]],
            "classes": self._classes,
        }

    def _velocity(self, one: Mapping[str, Any]) -> list[float] | None:
        before, after = (self._annotations.get(one.get(key) or "", one) for key in ("prev", "next"))
        start, end = (self._times[each["sample_token"]] for each in (before, after))
        sides = (before is not one) + (after is not one)
        if not 0 < end - start <= _LONGEST * sides:
            return None
        apart = np.subtract(after["translation"], before["translation"]) / (end - start)
        return [float(value) for value in apart[:2]]


_TABLES = (
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "sample",
    "sample_annotation",
    "sample_data",
    "sensor",
)


def _json(path: Path) -> Any:
    if path.suffix in (".pkl", ".pickle"):
        raise InputError(
            f"{path} is a pickle, which may run anything when it is read; write it as JSON where "
            "you trust it: json.dump(pickle.load(source), target, default=lambda a: a.tolist())"
        )
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is not there; expected a JSON file") from None
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from None


def _by_token(path: Path) -> dict[str, Mapping[str, Any]]:
    rows = _json(path)
    if not isinstance(rows, list) or not all(isinstance(one, Mapping) for one in rows):
        raise InputError(f"{path} is no table; expected a list of objects, each with a token")
    for one in rows[:1]:
        require(one, "token")
    return {str(one["token"]): one for one in rows}


def _names(frame: Mapping[str, Any]) -> list[str]:
    cloud = frame.get("lidar_points", {}).get("lidar_path")
    found = [str(frame[key]) for key in ("sample_idx", "token") if key in frame]
    return [*found, Path(cloud).stem] if cloud else found
