"""Ground truth by the ids of frames: what is shipped reads what the data sets have."""

import json
from math import pi

import numpy as np
import pytest
import torch

from ml_debugger.core.errors import InputError
from ml_debugger.object_detection_3d.frames import to_kitti
from ml_debugger.object_detection_3d.ground_truth import read_ground_truth
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
    for given in ({"a": entry}, {"a": entry}.get, lambda name: entry if name == "a" else None):
        provider = as_provider(given)
        assert provider.get("b") is None
        assert read(provider, "a").labels.tolist() == [0, 1]
    for wrong, message in ((3, "is a int; expected an object"), (KITTILabels, "make one of it")):
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
    meta = {"categories": {"Pedestrian": 0, "Cyclist": 1, "Car": 2}, "dataset": "kitti"}
    return {"metainfo": meta, "data_list": [frame, {"sample_idx": 8, "instances": []}]}


def test_info_of_kitti(tmp_path):
    path = tmp_path / "infos.json"
    path.write_text(json.dumps(kitti_info()))
    provider = InfoJSON(path)
    assert provider.get("000008") is None
    for name in ("7", "000007"):
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
    assert provider.get("../label_2/000001") is None
    with pytest.raises(InputError, match=r"'000002' has a label but no 000002.txt"):
        provider.get("000002")


@pytest.fixture
def tables(tmp_path):
    """Two samples, half a second apart; a car drives 2 m/s to the north of the map, x is east."""
    level = {"rotation": [1, 0, 0, 0], "translation": [0, 0, 2]}
    north = {"rotation": [np.cos(pi / 4), 0, 0, np.sin(pi / 4)], "translation": [100, 50, 0]}
    car = {"instance_token": "car", "size": [2, 4, 1.5], "rotation": north["rotation"]}
    some = {
        "calibrated_sensor": [
            {"token": "c1", "sensor_token": "s1", **level},
            {"token": "c2", "sensor_token": "s2", **level},
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
            }
            for at, sensor, key in (
                (1, "c2", True),
                (1, "c1", True),
                (2, "c1", True),
                (2, "c1", False),
                (3, "c1", True),
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
    for name in ("t1", "d1c1"):
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


def test_velocity_over_a_long_gap_is_not_known(tables):
    provider = NuScenesTables(tables, ["car"])
    assert read(provider, "t3").boxes.shape == (1, 7)  # 7.5 s after the one before
    assert provider.get("t2")["annotations"][0]["velocity"] is None
    assert provider.get("t1")["annotations"][0]["velocity"] == [0, 2]
