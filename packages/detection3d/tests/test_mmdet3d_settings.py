"""Settings of MMDetection3D's detectors are read, lent and given back."""

import pytest
import torch
from torch import nn

from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.object_detection_3d.link import link
from ml_debugger.object_detection_3d.output import NMSConfig

from .mmdetection3d_runs import (
    QUIET,
    assert_same,
    class_layers,
    each_family,
    head_of,
    predicted,
    read,
    rows_of,
    smaller,
    traced,
)

pytest.importorskip("mmcv.ops", exc_type=ImportError)
pytest.importorskip("mmdet3d.models")

pytestmark = QUIET

#: Settings of which each by itself changes which boxes are seen, and leaves some.
STRICTER = {
    "PointPillars": {"score_thresh": 0.97, "iou_thresh": 0.0, "max_detections_per_frame": 5},
    "PointPillars, levels": {
        "score_thresh": 0.997,
        "iou_thresh": 0.0,
        "max_detections_per_frame": 5,
    },
    "PointPillars and camera": {
        "score_thresh": 0.985,
        "iou_thresh": 0.0,
        "max_detections_per_frame": 5,
    },
    "FreeAnchor": {"score_thresh": 0.997, "iou_thresh": 0.0, "max_detections_per_frame": 5},
    "SSN": {"score_thresh": 0.995, "iou_thresh": 0.0, "max_detections_per_frame": 5},
    "CenterPoint": {"score_thresh": 0.8, "iou_thresh": 0.0},
    "CenterPoint, circles": {"score_thresh": 0.8},
    "SMOKE": {},
    "FCOS3D": {"score_thresh": 0.45, "iou_thresh": 0.1, "max_detections_per_frame": 5},
    "PGD": {"score_thresh": 0.2, "iou_thresh": 0.0, "max_detections_per_frame": 5},
}


@each_family
def test_settings_have_an_effect_and_are_restored(name: str) -> None:
    run = traced(name)
    model, adapter = run.model, run.adapter
    head, old = head_of(model), adapter.nms(model)
    own = dict(head.test_cfg), str(model.test_cfg), getattr(head.bbox_coder, "score_threshold", 0)
    assert STRICTER[name].keys() == old.model_dump(exclude_none=True).keys()
    for setting, value in STRICTER[name].items():
        adapter.apply_nms(model, NMSConfig(**{setting: value}))
        assert adapter.nms(model) == old.model_copy(update={setting: value})
        assert str(model.test_cfg) == own[1]  # other models may share it
        try:
            _, _, frames = read(model, adapter, name)
        finally:
            adapter.apply_nms(model, old)
        assert any(len(frame.seen) for frame in frames)
        for frame in frames:
            link(frame.seen, rows_of(frame))
        before = [len(frame.seen) for frame in run.frames]
        after = [frame.seen for frame in frames]
        assert any(
            len(seen) != count or not torch.equal(seen.boxes, frame.seen.boxes)
            for seen, count, frame in zip(after, before, run.frames, strict=True)
        )
        if setting == "score_thresh":
            assert all((seen.scores >= value).all() for seen in after)
        if setting == "max_detections_per_frame":
            assert [len(seen) for seen in after] == [value, value]
        now = dict(head.test_cfg), str(model.test_cfg)
        assert (*now, getattr(head.bbox_coder, "score_threshold", 0)) == own
        assert_same(run.bare, predicted(model, name))


@each_family
def test_refuses_a_setting_that_the_model_lacks(name: str) -> None:
    model, adapter = traced(name).model, traced(name).adapter
    old = adapter.nms(model)
    given = {"score_thresh": 0.5, "iou_thresh": 0.5, "max_detections_per_frame": 5}
    for setting in given.keys() - STRICTER[name].keys():
        with pytest.raises(UnsupportedModelError, match=setting):
            adapter.apply_nms(model, NMSConfig(**{setting: given[setting]}))
    assert adapter.nms(model) == old


@each_family
def test_nothing_seen(name: str) -> None:
    model, adapter = smaller(name), traced(name).adapter
    with torch.no_grad():
        for layer in class_layers(model):
            last = layer[-1] if isinstance(layer, nn.Sequential) else layer
            last.bias -= 100
    _, _, frames = read(model, adapter, name)
    for frame in frames:
        assert frame.seen.boxes.shape == (0, traced(name).frames[0].seen.boxes.shape[1])
        assert link(frame.seen, rows_of(frame)).shape == (0,)
        assert frame.points is None or frame.points.shape == (0,)


def test_a_score_below_that_of_the_configuration() -> None:
    model = smaller("CenterPoint")
    adapter = traced("CenterPoint").adapter
    with torch.no_grad():
        for layer in class_layers(model):
            layer[-1].bias -= 4
    _, _, before = read(model, adapter, "CenterPoint")
    adapter.apply_nms(model, NMSConfig(score_thresh=0.02))
    _, _, after = read(model, adapter, "CenterPoint")
    assert min(float(frame.seen.scores.min()) for frame in after) < 0.1
    assert len(after[0].seen) > len(before[0].seen)


def test_two_thresholds_that_differ() -> None:
    model = smaller("CenterPoint")
    adapter = traced("CenterPoint").adapter
    model.pts_bbox_head.test_cfg.score_threshold = 0.3
    old = adapter.nms(model)
    assert old.score_thresh == 0.3
    with pytest.raises(UnsupportedModelError, match="make them equal"):
        adapter.apply_nms(model, NMSConfig(score_thresh=0.5))
    adapter.apply_nms(model, NMSConfig(iou_thresh=0.5))
    adapter.apply_nms(model, old)
    assert adapter.nms(model) == old
    assert model.pts_bbox_head.bbox_coder.score_threshold == 0.1
