"""Where ground truth comes from when a call brings none: by the ids of its frames.

None of the shipped providers reads a pickle, which may run anything: dump what is in one as JSON.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ml_debugger.core.errors import InputError
from ml_debugger.core.given import as_tensor, require
from ml_debugger.object_detection_3d.frames import camera_to_lidar, from_mmdet3d, moved
from ml_debugger.object_detection_3d.ground_truth import kitti, nuscenes
from ml_debugger.object_detection_3d.ground_truth.index import Index, ends
from ml_debugger.object_detection_3d.ground_truth.tables import Annotations, Rows, read_rows
from ml_debugger.object_detection_3d.ground_truth.truth import (
    class_lookup,
    refuse_unknown,
    speeds_of,
)

Classes = Sequence[str] | Mapping[str, int]
#: The frame of a sensor that a provider brings boxes into.
Sensor = Literal["lidar", "camera"]


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
        InputError: It is neither, or a dict whose keys are no text, as ids are.
    """
    if isinstance(given, type):
        raise InputError(f"ground_truth_provider is the class {given.__name__}; make one of it")
    if isinstance(given, Mapping):
        other = next((key for key in given if not isinstance(key, str)), None)
        if other is not None:
            raise InputError(
                f"ground_truth_provider has the key {other!r}, a {type(other).__name__}, but ids "
                "are asked for as text; make them text: {str(key): truth for key, truth in ...}"
            )
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

    Its frames are known by `sample_idx`, by `token`, and by the point cloud's file: its path, or
    the end of it, its name or its stem. In a camera's frame they are known by the image's file
    instead, with `sample_data_token` and, of KITTI, `sample_idx`; its objects are those that the
    file has of this camera, which are in the image (`cam_instances`). Objects without a class of
    the data set (label -1) are left out.

    Args:
        path: The file, with `metainfo` and `data_list`.
        classes: The model's classes, where it numbers them otherwise than the file's
            `categories`; objects of other classes are left out.
        form: How boxes are written: as for KITTI (in the camera's frame, with `lidar2cam` of
            `camera`; a `Van` and a `Person_sitting` are ignored, as a car and a pedestrian, if
            these alone are in `classes`) or for nuScenes (in the LiDAR's, with centres of gravity;
            an object that no point hit is ignored). None takes the `dataset` that the file names.
        frame: Where boxes are to be: that of the model.
        camera: In the LiDAR's frame, whose `lidar2cam` KITTI's boxes are moved by, `CAM2` if None.
            In the camera's, which one; None is any.

    Raises:
        InputError: The file is no such JSON, or lacks one of the classes or the camera.
    """

    def __init__(
        self,
        path: str | Path,
        classes: Classes | None = None,
        *,
        form: Literal["kitti", "nuscenes"] | None = None,
        frame: Sensor = "lidar",
        camera: str | None = None,
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
        self._path, self._frame, self._camera = path, _sensor(frame), camera or "CAM2"
        self._numbers: dict[int, tuple[int, bool]] | None = None
        if classes is not None:
            require(meta, "categories")
            own = class_lookup(meta["categories"])
            # those of number -1 are there, but their boxes tell no class
            wanted = class_lookup(classes, {one for one in own if own[one] >= 0}, str(path))
            found = {own[name]: self._class_of(name, wanted) for name in own}
            self._numbers = {key: value for key, value in found.items() if value is not None}
        self._index = Index[_Info]()
        for number, one in enumerate(info["data_list"]):
            try:
                self._add(one, camera)
            except (AttributeError, TypeError):
                raise InputError(
                    f"frame {number} of {path} is no frame of an info file; expected an object "
                    "with sample_idx, lidar_points, images and instances"
                ) from None
        if frame == "camera" and not len(self._index):
            raise InputError(
                f"{path} has no cam_instances of {camera or 'a camera'}; expected them in each "
                "frame, as MMDetection3D's create_data.py writes them unless told not to"
            )

    def _class_of(self, name: str, wanted: Mapping[str, int]) -> tuple[int, bool] | None:
        if self._form == "kitti":
            return kitti.class_of(name, wanted)
        return (wanted[name], False) if name in wanted else None

    def _add(self, one: Mapping[str, Any], camera: str | None) -> None:
        ids = {key: str(one[key]) for key in ("sample_idx", "token") if key in one}
        if self._frame == "lidar":
            file = one.get("lidar_points", {}).get("lidar_path")
            self._index.add(_Info(one, self._camera), *ids.values(), file=file)
            return
        for name in one.get("cam_instances", {}):
            if camera in (None, name):
                image = one.get("images", {}).get(name, {})
                # MMDetection3D numbers the images of nuScenes anew
                own = [ids["sample_idx"]] if self._form == "kitti" and "sample_idx" in ids else []
                own += [image["sample_data_token"]] if "sample_data_token" in image else []
                self._index.add(_Info(one, name), *own, file=image.get("img_path"))

    def get(self, input_id: str, /) -> Mapping[str, Any] | None:
        """Return boxes, labels, ignored, num_points and the frame; None if the id is unknown.

        Raises:
            InputError: The id fits several frames, or the file's are not as they should be.
        """
        found = self._index.get(input_id)
        if found is None:
            return None
        try:
            return self._read(*found)
        except (InputError, TypeError, ValueError) as error:
            raise InputError(f"frame {input_id!r} of {self._path}: {error}") from None

    def _read(self, frame: Mapping[str, Any], camera: str) -> Mapping[str, Any]:
        mono = self._frame == "camera"
        require(frame, "cam_instances" if mono else "instances")
        rows, speeds, labels, ignored, points = [], [], [], [], []
        for one in frame["cam_instances"][camera] if mono else frame["instances"]:
            require(one, "bbox_3d", "bbox_label_3d")
            label = int(one["bbox_label_3d"])
            known = (label, False) if self._numbers is None else self._numbers.get(label)
            if label < 0 or known is None:
                continue
            counts = (one.get(f"num_{name}_pts") for name in ("lidar", "radar"))
            lidar, radar = (-1 if number is None else int(number) for number in counts)
            rows.append(one["bbox_3d"])
            speed = one.get("velocity")
            speeds.append(None if speed == -1 else speed)  # what MMDetection3D says of KITTI's
            labels.append(known[0])
            ignored.append(known[1] or (self._form == "nuscenes" and nuscenes.unhit(lidar, radar)))
            points.append(lidar)
        boxes = as_tensor(rows, "bbox_3d").double().reshape(len(rows), -1 if rows else 7)
        if boxes.shape[1] != 7:
            raise InputError(f"a bbox_3d has {boxes.shape[1]} numbers; expected 7")
        boxes = self._moved(boxes, speeds, frame, camera)
        return {
            "boxes": boxes,
            "labels": labels,
            "ignored": ignored,
            "num_points": points,
            "frame": self._frame,
        }

    def _moved(
        self, boxes: Tensor, speeds: list[Any], frame: Mapping[str, Any], camera: str
    ) -> Tensor:
        speed = speeds_of(speeds)
        boxes = boxes if speed is None else torch.cat([boxes, speed], 1)
        if self._form == "nuscenes" and self._frame == "lidar":
            return boxes
        if self._form == "nuscenes":
            boxes[:, 1] += boxes[:, 4] / 2  # from the centre of gravity to that of the bottom
        boxes = from_mmdet3d(boxes, "camera")
        if self._frame == "camera":
            return boxes
        sensor = frame.get("images", {}).get(camera, {})
        require(sensor, "lidar2cam")
        return moved(boxes, camera_to_lidar(sensor["lidar2cam"]))


class _Info(NamedTuple):
    frame: Mapping[str, Any]
    camera: str


class KITTILabels:
    """KITTI's folders of label files and of calibration files.

    Ids are the names of these files, as `000123`, or its number, `123`; or the path, the name or
    the stem of a file that is named as they are, as `training/velodyne/000123.bin`.

    Args:
        labels: The folder, `label_2` in KITTI.
        calibrations: The folder, `calib` in KITTI. Not needed for the frame of the camera.
        classes: Names in the order of the model's class numbers.
        frame: Where boxes are to be: that of the model.

    Raises:
        InputError: A folder is not there, or classes are no names of KITTI's.
    """

    def __init__(
        self,
        labels: str | Path,
        calibrations: str | Path | None = None,
        classes: Classes = ("Pedestrian", "Cyclist", "Car"),
        *,
        frame: Sensor = "lidar",
    ) -> None:
        self._frame = _sensor(frame)
        if calibrations is None and frame == "lidar":
            raise InputError(
                "labels of KITTI are in the camera's frame; give the folder of calibrations too, "
                "or frame='camera' for a model of images"
            )
        self._labels = Path(labels)
        self._calibrations = None if calibrations is None else Path(calibrations)
        for folder in (self._labels, self._calibrations):
            if folder is not None and not folder.is_dir():
                raise InputError(f"{folder} is no folder; expected one of KITTI's, of text files")
        self._classes = class_lookup(classes, kitti.CLASSES, "KITTI")

    def get(self, input_id: str, /) -> Mapping[str, Any] | None:
        """Return boxes, labels, ignored and the frame; None if there is no label file.

        Raises:
            InputError: A file is not KITTI's, or the calibration is not there.
        """
        names = [one for one in ends(input_id) if "/" not in one and one not in ("", ".", "..")]
        names += [input_id.zfill(6)] if input_id.isdecimal() else []
        file = next((f"{one}.txt" for one in names if (self._labels / f"{one}.txt").is_file()), "")
        if not file:
            return None
        entry: dict[str, Any] = {"classes": self._classes, "frame": self._frame}
        entry["label"], where = _text(self._labels / file), f"{self._labels / file}"
        if self._frame == "lidar" and self._calibrations is not None:
            if not (self._calibrations / file).is_file():
                raise InputError(
                    f"frame {input_id!r} has a label but no {file} in {self._calibrations}; "
                    "expected its calibration"
                )
            entry["calibration"] = _text(self._calibrations / file)
            where += f" with {self._calibrations / file}"
        try:
            found = kitti.read(entry)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        return {
            "boxes": found.boxes,
            "labels": found.labels,
            "ignored": found.ignored,
            "frame": found.frame,
        }


class NuScenesTables:
    """A folder of tables as nuScenes has them: `sample_annotation.json` and its relatives.

    Ids are tokens of samples, or of the sensor's `sample_data`, or the sensor's file: its path, or
    the end of it, its name or its stem. Boxes are put in the sensor's frame at that time; of a
    camera, those that are in its image. Velocities are differences to the annotations before and
    after.

    Args:
        folder: The folder, such as `v1.0-mini`.
        classes: Names in the order of the model's class numbers: categories of nuScenes, or its
            classes of detection, such as `car`.
        channel: The sensor, such as `CAM_FRONT`, or several: then the token of a sample fits
            several frames, and is refused.

    Raises:
        InputError: A table is not there, or is none; or lacks one of the classes or the channel.
    """

    def __init__(
        self, folder: str | Path, classes: Classes, *, channel: str | Sequence[str] = "LIDAR_TOP"
    ) -> None:
        folder = Path(folder)
        channels = [channel] if isinstance(channel, str) else list(channel)
        names = Rows[str](folder, "category")
        for row in read_rows(folder, "category", "token", "name"):
            names[row["token"]] = row["name"]
        sensors = Rows[str](folder, "sensor")
        for row in read_rows(folder, "sensor", "token", "channel"):
            sensors[row["token"]] = row["channel"]
        refuse_unknown(channels, set(sensors.values()), "channel", f"{folder / 'sensor.json'}")
        self._categories = set(names.values())
        known = nuscenes.known_classes(self._categories)
        self._classes = class_lookup(classes, known, f"{folder / 'category.json'}")
        mounted = Rows[tuple[str, Mapping[str, Any]]](folder, "calibrated_sensor")
        columns = ("token", "sensor_token", "rotation", "translation")
        for row in read_rows(folder, "calibrated_sensor", *columns):
            mounted[row["token"]] = sensors[row["sensor_token"]], row
        self._index, poses = Index[_Shot](), dict[str, dict[str, Any]]()
        columns = ("token", "sample_token", "ego_pose_token", "calibrated_sensor_token")
        for row in read_rows(folder, "sample_data", *columns, "is_key_frame"):
            name, sensor = mounted[row["calibrated_sensor_token"]]
            if row["is_key_frame"] and name in channels:
                pose = poses.setdefault(row["ego_pose_token"], {})
                sample, size = row["sample_token"], (row.get("width", 0), row.get("height", 0))
                shot = _Shot(sample, sensor, pose, size if all(size) else None)
                self._index.add(shot, row["token"], sample, file=row.get("filename"))
        if not len(self._index):
            raise InputError(
                f"{folder / 'sample_data.json'} has no key frame of {' or '.join(channels)}"
            )
        for row in read_rows(folder, "ego_pose", "token", "rotation", "translation"):
            if row["token"] in poses:
                poses[row["token"]].update(row)
        missing = next((token for token, pose in poses.items() if not pose), None)
        if missing is not None:
            raise InputError(
                f"{folder / 'ego_pose.json'} has no row with the token {missing!r}, which "
                "sample_data.json names; expected all tables of one version of the data set"
            )
        categories = Rows[str](folder, "instance")
        for row in read_rows(folder, "instance", "token", "category_token"):
            categories[row["token"]] = names[row["category_token"]]
        self._annotations = Annotations(folder, categories)

    def get(self, input_id: str, /) -> Mapping[str, Any] | None:
        """Return annotations, poses and classes, as nuScenes' connector takes them.

        Raises:
            InputError: The id fits several frames.
        """
        shot = self._index.get(input_id)
        if shot is None:
            return None
        size = {} if shot.image_size is None else {"image_size": shot.image_size}
        return {
            "annotations": self._annotations.of(shot.sample),
            "ego_pose": shot.ego_pose,
            "calibrated_sensor": shot.sensor,
            "classes": self._classes,
            "categories": self._categories,
            **size,
        }


class _Shot(NamedTuple):
    """What a sensor saw once."""

    sample: str
    sensor: Mapping[str, Any]
    ego_pose: Mapping[str, Any]
    image_size: tuple[int, int] | None


def _sensor(frame: Sensor) -> Sensor:
    if frame not in ("lidar", "camera"):
        raise InputError(f"frame is {frame!r}; expected 'lidar' or 'camera', as the model has it")
    return frame


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text: {error}") from None


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
