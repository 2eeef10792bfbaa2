"""Ground truth by the ids of frames: what is shipped reads what the data sets have."""

import json
import tracemalloc
from math import pi

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ml_debugger.core.errors import InputError
from ml_debugger.object_detection_3d.frames import from_mmdet3d, to_kitti
from ml_debugger.object_detection_3d.ground_truth import read_ground_truth
from ml_debugger.object_detection_3d.ground_truth import tables as tables_module
from ml_debugger.object_detection_3d.ground_truth.tables import read_rows
from ml_debugger.object_detection_3d.providers import (
    InfoJSON,
    KITTILabels,
    NuScenesTables,
    as_provider,
)

STRAIGHT = [[0, -1, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, -0.3], [0, 0, 0, 1.0]]
BOXES = np.array([[10, 2, -0.5, 4, 2, 1.5, 0.3], [20, -3, 0.1, 0.8, 0.6, 1.8, -2]])


def read(provider, input_id):
    entry = provider.get(input_id)
    assert entry is not None
    return read_ground_truth([entry], 1)[0]


def test_dicts_and_callables_are_providers():
    entry = {"boxes": BOXES, "labels": [0, 1]}
    for one in ({"a": entry}, {"a": entry}.get, lambda name: entry if name == "a" else None):
        provider = as_provider(one)
        assert provider.get("b") is None
        assert read(provider, "a").labels.tolist() == [0, 1]
    for wrong, message in (
        (3, "is a int; expected an object"),
        (KITTILabels, "make one of it"),
        ({"a": entry, 1: entry}, "has the key 1, a int, but ids are asked for as text"),
    ):
        with pytest.raises(InputError, match=message):
            as_provider(wrong)


def kitti_info():
    camera = to_kitti(BOXES, np.array(STRAIGHT))[:, [3, 4, 5, 2, 0, 1, 6]].tolist()
    instances = [
        {"bbox_3d": camera[0], "bbox_label_3d": 2, "num_lidar_pts": 31},
        {
            "bbox_3d": [-1000, -1000, -1000, -1, -1, -1, -10],
            "bbox_label_3d": -1,
            "num_lidar_pts": -1,
        },
        {"bbox_3d": camera[1], "bbox_label_3d": 0, "num_lidar_pts": 0},
    ]
    frame = {
        "sample_idx": 7,
        "images": {"CAM2": {"lidar2cam": STRAIGHT}},
        "lidar_points": {"lidar_path": "velodyne/000007.bin"},
        "instances": instances,
    }
    names = ["Pedestrian", "Cyclist", "Car", "Van", "Truck", "Person_sitting", "Tram", "Misc"]
    numbers = {name: number for number, name in enumerate(names)} | {"DontCare": -1}
    meta = {"categories": numbers, "dataset": "kitti"}
    return {"metainfo": meta, "data_list": [frame, {"sample_idx": 8, "instances": []}]}


def test_info_of_kitti(tmp_path):
    path = tmp_path / "infos.json"
    path.write_text(json.dumps(kitti_info()))
    provider = InfoJSON(path)
    assert provider.get("000008") is None
    for name in ("7", "000007", "000007.bin", "velodyne/000007.bin", "data/velodyne/000007.bin"):
        truth = read(provider, name)
        assert truth.labels.tolist() == [2, 0]
        assert truth.points.tolist() == [31, 0]
        assert not truth.ignored.any()
        assert truth.frame == "lidar"
        np.testing.assert_allclose(truth.boxes, BOXES, atol=1e-5)
    own = read(InfoJSON(path, ["Car", "Van"]), "7")
    assert (own.labels.tolist(), own.boxes.shape) == ([0], (1, 7))
    with pytest.raises(InputError, match="missing 'lidar2cam'"):
        provider.get("8")


def test_objects_that_kitti_does_not_count_are_ignored_by_its_info_too(tmp_path):
    info = kitti_info()
    instances = info["data_list"][0]["instances"]
    instances[0]["bbox_label_3d"], instances[2]["bbox_label_3d"] = 3, 5  # van, person sitting
    path = tmp_path / "infos.json"
    path.write_text(json.dumps(info))
    truth = read(InfoJSON(path, ["Pedestrian", "Cyclist", "Car"]), "7")
    assert (truth.labels.tolist(), truth.ignored.tolist()) == ([2, 0], [True, True])
    truth = read(InfoJSON(path, ["Van", "Car"]), "7")
    assert (truth.labels.tolist(), truth.ignored.tolist()) == ([0], [False])
    assert read(InfoJSON(path), "7").labels.tolist() == [3, 5]


def test_velocities_in_an_info_of_kittis_form(tmp_path):
    info, path = kitti_info(), tmp_path / "infos.json"
    info["data_list"][0]["instances"][0]["velocity"] = [0.5, 3]  # to the right, and to the front
    info["data_list"][0]["instances"][2]["velocity"] = -1
    path.write_text(json.dumps(info))
    found = read(InfoJSON(path), "7").boxes[:, 7:]
    torch.testing.assert_close(found[0], torch.tensor([3, -0.5]))
    assert found[1].isnan().all()


def test_info_of_kitti_for_a_camera(tmp_path):
    """Of `cam_instances`, as mmdet3d's own data set has them for models of images."""
    info, path = kitti_info(), tmp_path / "infos.json"
    for frame in info["data_list"]:
        frame["images"] = {"CAM2": {"img_path": f"image_2/{frame['sample_idx']:06}.png"}}
        seen = [{**one, "velocity": -1} for one in frame["instances"][:1]]
        frame["cam_instances"] = {"CAM2": seen}
        frame["images"]["R0_rect"] = [[1]]
    path.write_text(json.dumps(info))
    provider = InfoJSON(path, frame="camera")
    raw = np.array([one["bbox_3d"] for one in info["data_list"][0]["instances"][:1]])
    for name in ("7", "000007", "image_2/000007.png"):
        truth = read(provider, name)
        assert (truth.frame, truth.labels.tolist()) == ("camera", [2])
        np.testing.assert_allclose(truth.boxes, from_mmdet3d(raw, "camera"), atol=1e-5)
    assert len(read(provider, "8")) == 0
    with pytest.raises(InputError, match="no cam_instances of CAM3; expected"):
        InfoJSON(path, frame="camera", camera="CAM3")
    with pytest.raises(InputError, match="'global'; expected 'lidar' or 'camera'"):
        InfoJSON(path, frame="global")


def test_info_of_nuscenes(tmp_path):
    instances = [
        {"bbox_3d": row, "bbox_label_3d": label, "velocity": speed, "num_lidar_pts": points}
        for row, label, speed, points in zip(
            BOXES.tolist(), (0, 8), ([1.0, -2.0], [None, None]), (4, 0), strict=True
        )
    ]
    frames = [{"token": "abc", "instances": instances}, {"token": "none", "instances": []}]
    path = tmp_path / "infos.json"
    info = {"metainfo": {"dataset": "nuscenes"}, "data_list": frames}
    path.write_text(json.dumps(info))
    provider = InfoJSON(path)
    truth = read(provider, "abc")
    np.testing.assert_allclose(truth.boxes[:, :7], BOXES, atol=1e-5)
    assert truth.boxes[0, 7:].tolist() == [1, -2]
    assert truth.boxes[1, 7:].isnan().all()
    assert (truth.labels.tolist(), truth.ignored.tolist()) == ([0, 8], [False, True])
    assert len(read(provider, "none")) == 0
    info["metainfo"]["dataset"] = "ours"
    path.write_text(json.dumps(info))
    with pytest.raises(InputError, match="data set 'ours'.*form='kitti'"):
        InfoJSON(path)
    np.testing.assert_allclose(read(InfoJSON(path, form="nuscenes"), "abc").boxes, truth.boxes)
    with pytest.raises(InputError, match="missing 'categories'"):
        InfoJSON(path, ["car"], form="nuscenes")
    info["metainfo"]["categories"] = {"car": 0, "animal": -1}
    path.write_text(json.dumps(info))
    for name, meant in (("Car", "car"), ("animal", ""), ("cars", "car")):
        with pytest.raises(InputError, match=f"no class '{name}'.*{meant}.*; it has car;"):
            InfoJSON(path, [name], form="nuscenes")


def test_objects_that_only_a_radar_hit_count(tmp_path):
    """In an info file as in tables: nuScenes adds both up, and what is not known is not 0."""
    points = [(0, 3, False), (0, 0, True), (1, 0, False), (-1, 1, False), (0, None, True)]
    box = {"bbox_3d": BOXES[0].tolist(), "bbox_label_3d": 0, "velocity": [1, 2, 0]}
    some = [
        {**box, "num_lidar_pts": a} | ({} if b is None else {"num_radar_pts": b})
        for a, b, _ in points
    ]
    info = {"metainfo": {"dataset": "nuscenes"}, "data_list": [{"token": "a", "instances": some}]}
    path = tmp_path / "infos.json"
    path.write_text(json.dumps(info))
    truth = read(InfoJSON(path), "a")
    assert truth.ignored.tolist() == [ignored for *_, ignored in points]
    assert truth.boxes[:, 7:].tolist() == [[1, 2]] * len(points)


def test_info_that_is_wrong_inside(tmp_path):
    good, path = {"bbox_3d": [1, 2, 0, 4, 2, 1, 0], "bbox_label_3d": 0}, tmp_path / "infos.json"

    def provider(*instances):
        frame = {"token": "a", "instances": [good, *instances]}
        info = {"metainfo": {"dataset": "nuscenes"}, "data_list": [frame]}
        path.write_text(json.dumps(info))
        return InfoJSON(path)

    for wrong, message in (
        ({**good, "bbox_3d": [1, 2, 3]}, "bbox_3d must be numbers"),
        ({**good, "bbox_3d": None}, "bbox_3d must be numbers"),
        ({**good, "bbox_label_3d": "car"}, "invalid literal"),
        ({**good, "velocity": 3}, "a velocity is 3; expected vx, vy"),
        ({"bbox_3d": [1] * 7}, "missing 'bbox_label_3d'"),
    ):
        with pytest.raises(InputError, match=f"frame 'a' of .*infos.json: .*{message}"):
            provider(wrong).get("a")
    for data, message in (
        ([3], "frame 0 of .* is no frame"),
        ([{"lidar_points": 3}], "frame 0 of"),
    ):
        path.write_text(json.dumps({"metainfo": {"dataset": "kitti"}, "data_list": data}))
        with pytest.raises(InputError, match=message):
            InfoJSON(path)


def test_names_that_fit_several_frames_are_refused(tmp_path):
    frames = [
        {"instances": [{"bbox_3d": [at, *BOXES[0][1:]], "bbox_label_3d": 0}],
         "lidar_points": {"lidar_path": f"{at}/frame.1.bin"}}
        for at in (1, 2)
    ]  # fmt: skip
    path = tmp_path / "infos.json"
    path.write_text(json.dumps({"metainfo": {"dataset": "nuscenes"}, "data_list": frames}))
    provider = InfoJSON(path)
    for name in ("2/frame.1.bin", "/data/2/frame.1.bin", "data\\2\\frame.1.bin"):
        assert read(provider, name).boxes[0, 0] == 2
    for name in ("frame.1.bin", "frame.1", "3/frame.1.bin"):
        with pytest.raises(InputError, match=r"fits several frames, by 'frame\.1"):
            provider.get(name)
    assert provider.get("frame.2") is None


def test_info_that_is_none(tmp_path):
    for name, text, message in (
        ("a.pkl", "", "is a pickle.*json.dump"),
        ("a.json", "{", "is no JSON"),
        ("b.json", "[]", "holds a list"),
        ("c.json", "{}", "missing 'metainfo' and 'data_list'"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=message):
            InfoJSON(tmp_path / name)
    with pytest.raises(InputError, match="is not there"):
        InfoJSON(tmp_path / "missing.json")


def test_folders_of_kitti(tmp_path):
    labels, calibrations = tmp_path / "label_2", tmp_path / "calib"
    with pytest.raises(InputError, match="label_2 is no folder"):
        KITTILabels(labels, calibrations)
    labels.mkdir()
    calibrations.mkdir()
    rows = [" ".join(map(str, row)) for row in to_kitti(BOXES, np.array(STRAIGHT)).tolist()]
    (labels / "000001.txt").write_text(
        f"Car 0 0 0 0 0 0 0 {rows[0]}\nVan 0 0 0 0 0 0 0 {rows[1]}\n"
    )
    (labels / "000002.txt").write_text("")
    velodyne = " ".join(str(value) for row in STRAIGHT[:3] for value in row)
    (calibrations / "000001.txt").write_text(
        f"R0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: {velodyne}\n"
    )
    provider = KITTILabels(labels, calibrations)
    truth = read(provider, "000001")
    np.testing.assert_allclose(truth.boxes, BOXES, atol=1e-5)
    assert (truth.labels.tolist(), truth.ignored.tolist()) == ([2, 2], [False, True])
    assert provider.get("000003") is None
    with pytest.raises(InputError, match=r"'000002' has a label but no 000002.txt"):
        provider.get("000002")
    # as hooks and data sets name frames
    for name in (
        "1",
        "000001.bin",
        "data/kitti/training/velodyne/000001.bin",
        "image_2/000001.png",
    ):
        torch.testing.assert_close(read(provider, name).boxes, truth.boxes)
    for name in ("", ".", "..", "/", "0000001", "label_2/"):
        assert provider.get(name) is None
    mono = KITTILabels(labels, frame="camera")
    assert len(read(mono, "000002")) == 0
    camera = read(mono, "1")
    raw = to_kitti(BOXES, np.array(STRAIGHT))[:, [3, 4, 5, 2, 0, 1, 6]]
    assert (camera.frame, camera.ignored.tolist()) == ("camera", [False, True])
    np.testing.assert_allclose(camera.boxes, from_mmdet3d(raw, "camera"), atol=1e-5)


def test_folders_of_kitti_that_are_wrong(tmp_path):
    good = "R0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
    label, calibration = tmp_path / "0.txt", tmp_path / "calib" / "0.txt"
    calibration.parent.mkdir()
    for wrong, other, message in (
        (b"Car 0 0", good, "0.txt.*0.txt: line 0 of the label is 'Car 0 0'; expected a class"),
        (b"\xff\xfe", good, "0.txt is no text"),
        (b"", "R0_rect: 1 2", "calib.0.txt: missing 'Tr_velo_to_cam'"),
        (b"", good.replace("-1", "x"), "calib.0.txt: .*expected numbers after Tr_velo_to_cam"),
        (b"", good[:-3], r"calib.0.txt: Tr_velo_to_cam has shape \(11,\); expected \(3, 4\)"),
    ):
        label.write_bytes(wrong)
        calibration.write_text(other)
        with pytest.raises(InputError, match=message):
            KITTILabels(tmp_path, calibration.parent).get("0")
    with pytest.raises(InputError, match=r"no class 'car' \(did you mean 'Car'\?\)"):
        KITTILabels(tmp_path, calibration.parent, ["car"])
    with pytest.raises(InputError, match="give the folder of calibrations too"):
        KITTILabels(tmp_path)


#: Two metres up, and looks ahead: x is right, y down, z to the front.
CAMERA = {
    "rotation": [0.5, -0.5, 0.5, -0.5],
    "translation": [0, 0, 2],
    "camera_intrinsic": [[1000, 0, 800], [0, 1000, 450], [0, 0, 1]],
}


@pytest.fixture
def tables(tmp_path):
    """Two samples, half a second apart; a car drives 2 m/s to the north of the map, x is east."""
    level = {"rotation": [1, 0, 0, 0], "translation": [0, 0, 2]}
    north = {"rotation": [np.cos(pi / 4), 0, 0, np.sin(pi / 4)], "translation": [100, 50, 0]}
    car = {"instance_token": "car", "size": [2, 4, 1.5], "rotation": north["rotation"]}
    some = {
        "calibrated_sensor": [
            {"token": "c1", "sensor_token": "s1", **level},
            {"token": "c2", "sensor_token": "s2", **CAMERA},
        ],
        "category": [{"token": "k1", "name": "vehicle.car"}, {"token": "k2", "name": "animal"}],
        "ego_pose": [{"token": "e1", **north}, {"token": "e2", **north}],
        "instance": [
            {"token": "car", "category_token": "k1"},
            {"token": "dog", "category_token": "k2"},
        ],
        "sample": [
            {"token": "t1", "timestamp": 1_000_000},
            {"token": "t2", "timestamp": 1_500_000},
            {"token": "t3", "timestamp": 9_000_000},
        ],
        "sample_annotation": [
            {
                **car,
                "token": f"a{at}",
                "sample_token": f"t{at}",
                "translation": [100, 60 + at, 1],
                "prev": f"a{at - 1}" if at > 1 else "",
                "next": f"a{at + 1}" if at < 3 else "",
                "num_lidar_pts": at,
                "num_radar_pts": 0,
            }
            for at in (1, 2, 3)
        ]
        + [
            {
                **car,
                "token": "b",
                "sample_token": "t1",
                "translation": [0, 0, 0],
                "instance_token": "dog",
            }
        ],
        "sample_data": [
            {
                "token": f"d{at}{sensor}",
                "sample_token": f"t{at}",
                "ego_pose_token": "e1",
                "calibrated_sensor_token": sensor,
                "is_key_frame": key,
                "filename": f"samples/{sensor}/n015__{sensor}__{at}.{kind}",
                "width": width,
                "height": height,
            }
            for at, sensor, key, kind, width, height in (
                (1, "c2", True, "jpg", 1600, 900),
                (1, "c1", True, "pcd.bin", 0, 0),
                (2, "c1", True, "pcd.bin", 0, 0),
                (2, "c1", False, "pcd.bin", 0, 0),
                (3, "c1", True, "pcd.bin", 0, 0),
            )
        ],
        "sensor": [
            {"token": "s1", "channel": "LIDAR_TOP"},
            {"token": "s2", "channel": "CAM_FRONT"},
        ],
    }
    # a sweep between the key frames has a token of its own
    some["sample_data"][3]["token"] = "sweep"
    for name, rows in some.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path


def test_tables_of_nuscenes(tables):
    provider = NuScenesTables(tables, ["truck", "car"])
    cloud = "samples/c1/n015__c1__1.pcd.bin"
    names = ("t1", "d1c1", cloud, f"/data/{cloud}", cloud[11:], "n015__c1__1.pcd", "n015__c1__1")
    for name in names:
        truth = read(provider, name)
        assert (truth.labels.tolist(), truth.points.tolist()) == ([1], [1])
        assert truth.frame == "lidar"
        # eleven metres ahead of a vehicle that looks north, and one below its LiDAR
        expected = torch.tensor([[11, 0, -1, 4, 2, 1.5, 0, 2, 0]])
        torch.testing.assert_close(truth.boxes, expected, atol=1e-5, rtol=0)
    for unknown in ("t4", "sweep", "d1c2"):
        assert provider.get(unknown) is None
    (tables / "sensor.json").unlink()
    with pytest.raises(InputError, match="sensor.json is not there"):
        NuScenesTables(tables, ["car"])
    (tables / "sensor.json").write_text("{}")
    with pytest.raises(InputError, match="is no table"):
        NuScenesTables(tables, ["car"])


def test_tables_of_nuscenes_for_a_camera(tables):
    """What mmdet3d's converter writes of the same camera is the same truth."""
    path = tables / "sample_annotation.json"
    rows = json.loads(path.read_text())
    some = [{**rows[0], "token": "side", "translation": [60, 61, 1], "prev": "", "next": ""}]
    some += [{**rows[0], "token": "behind", "translation": [100, 40, 1], "prev": "", "next": ""}]
    path.write_text(json.dumps(rows + some))
    provider = NuScenesTables(tables, ["truck", "car"], channel="CAM_FRONT")
    # the centre, not the bottom's; length, height, width; about the y that points down
    raw = {"bbox_3d": [0, 1, 11, 4, 1.5, 2, -pi / 2], "bbox_label_3d": 1, "velocity": [0, 2]}
    image = {"img_path": "n015__c2__1.jpg", "sample_data_token": "d1c2"}
    frame = {
        "token": "t1",
        "sample_idx": 0,
        "images": {"CAM_FRONT": image, "CAM_BACK": {"img_path": "back.jpg"}},
        "cam_instances": {"CAM_FRONT": [raw], "CAM_BACK": []},
    }
    meta = {"categories": {"truck": 0, "car": 1}, "dataset": "nuscenes"}
    file = tables / "infos.json"
    file.write_text(json.dumps({"metainfo": meta, "data_list": [frame]}))
    info = InfoJSON(file, frame="camera")
    for one in (provider, info, InfoJSON(file, frame="camera", camera="CAM_FRONT")):
        for name in ("d1c2", "samples/c2/n015__c2__1.jpg", "n015__c2__1"):
            truth = read(one, name)
            assert (truth.frame, truth.labels.tolist()) == ("camera", [1])
            expected = torch.tensor([[11, 0, -1, 4, 2, 1.5, 0, 2, 0]])
            torch.testing.assert_close(truth.boxes, expected, atol=1e-5, rtol=0)
        # of an image the place in the data set is another than the frame's
        assert one.get("0") is None
        assert one.get("d1c1") is None
    assert len(read(provider, "t1")) == 1
    assert len(read(info, "back")) == 0
    with pytest.raises(InputError, match="has no cam_instances of CAM_LEFT"):
        InfoJSON(file, frame="camera", camera="CAM_LEFT")


def test_images_are_what_mmdet3d_has(tables):
    """`CameraInstance3DBoxes` of the same objects, as its data set for images makes them."""
    structures = pytest.importorskip("mmdet3d.structures", exc_type=ImportError)
    rows = [[1.0, 1.2, 15, 4.2, 1.6, 1.8, 0.7, 0.3, -4], [-4, 0.9, 30, 0.8, 1.7, 0.6, -2.9, 0, 1]]
    theirs = structures.CameraInstance3DBoxes(torch.tensor(rows), box_dim=9, origin=(0.5, 0.5, 0.5))
    some = [{"bbox_3d": row[:7], "velocity": row[7:], "bbox_label_3d": 0} for row in rows]
    frame = {"images": {"C": {"img_path": "a.jpg"}}, "cam_instances": {"C": some}}
    file = tables / "infos.json"
    file.write_text(json.dumps({"metainfo": {"dataset": "nuscenes"}, "data_list": [frame]}))
    found = read(InfoJSON(file, frame="camera"), "a")
    expected = read_ground_truth([(theirs, [0, 0])], 1)[0]
    assert (found.frame, expected.frame) == ("camera", "camera")
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-5, rtol=0)


def test_several_channels(tables):
    provider = NuScenesTables(tables, ["car"], channel=["CAM_FRONT", "LIDAR_TOP"])
    assert read(provider, "d1c1").frame == "lidar"
    assert read(provider, "n015__c2__1").frame == "camera"
    with pytest.raises(InputError, match="'t1' fits several frames.*a token"):
        provider.get("t1")


def test_classes_and_channels_of_tables_are_checked(tables):
    for classes in (["vehicle.car"], ["animal"], ["truck"], {"car": 3}):
        assert NuScenesTables(tables, classes).get("t1") is not None
    for wrong in ("Car", "vehicle.Car", "vehicle"):
        with pytest.raises(
            InputError, match=rf"category.json has no class '{wrong}'.*it has animal"
        ):
            NuScenesTables(tables, ["car", wrong])
    for channel in ("LIDAR", ["LIDAR_TOP", "lidar_top"]):
        with pytest.raises(
            InputError, match="has no channel .*did you mean 'LIDAR_TOP'.*CAM_FRONT"
        ):
            NuScenesTables(tables, ["car"], channel=channel)
    (tables / "sample_data.json").write_text("[]")
    with pytest.raises(InputError, match="sample_data.json has no key frame of LIDAR_TOP"):
        NuScenesTables(tables, ["car"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("instance", "[]", "instance.json has no row with the token 'car', which another table"),
        ("sample", "[]", "sample.json has no row with the token 't1'"),
        ("ego_pose", "[]", "ego_pose.json has no row with the token 'e1'"),
        ("sensor", '[{"token": "s1"}]', "row 0 of .*sensor.json has no 'channel'; expected"),
        ("category", "[1]", "category.json is no table.* after 0 of them"),
        (
            "category",
            '[{"token": "k1", "name": "vehicle.car"}',
            "category.json is no table.*after 1",
        ),
        ("category", "]", "category.json is no table"),
        ("category", '[{"token": "k1"}{"token": "k2"}]', "row 0 of .*has no 'name'"),
        ("sample_annotation", "[{}]", "row 0 .* has no 'token' and no 'sample_token' and no"),
    ],
)
def test_tables_that_are_incomplete(tables, name, text, message):
    (tables / f"{name}.json").write_text(text)
    with pytest.raises(InputError, match=message):
        NuScenesTables(tables, ["car"])


def test_annotations_without_a_box(tables):
    path = tables / "sample_annotation.json"
    rows = json.loads(path.read_text())
    for wrong in ({"size": [1, 2]}, {"translation": None}, {"num_lidar_pts": "three"}):
        path.write_text(json.dumps([rows[0], {**rows[1], **wrong}]))
        with pytest.raises(InputError, match="row 1 of .*sample_annotation.json has no box"):
            NuScenesTables(tables, ["car"])


@given(st.lists(st.dictionaries(st.text(), st.text(max_size=40)), max_size=20), st.integers(1, 40))
def test_tables_are_read_in_pieces(tmp_path_factory, rows, piece):
    folder = tmp_path_factory.mktemp("table")
    for indent in (None, 0, 2):
        (folder / "a.json").write_text(json.dumps(rows, indent=indent, ensure_ascii=False), "utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tables_module, "_PIECE", piece)
            assert list(read_rows(folder, "a")) == rows


def test_what_other_frames_have_is_not_kept(tables):
    """Of tables with millions of rows only those of the channel's key frames stay in memory."""
    for name in ("ego_pose", "sample_data"):
        path = tables / f"{name}.json"
        rows = json.loads(path.read_text())
        more = [{**rows[-1], "token": f"{at:032}", "is_key_frame": False} for at in range(20_000)]
        path.write_text(json.dumps(more + rows))
    tracemalloc.start()
    provider = NuScenesTables(tables, ["car"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(read(provider, "t1")) == 1
    assert peak < 8 * tables_module._PIECE  # 20,000 rows are 25 MB as dicts


def test_velocity_over_a_long_gap_is_not_known(tables):
    provider = NuScenesTables(tables, ["car"])
    assert read(provider, "t3").boxes.shape == (1, 7)  # 7.5 s after the one before
    assert provider.get("t2")["annotations"][0]["velocity"] is None
    assert provider.get("t1")["annotations"][0]["velocity"] == [0, 2]
