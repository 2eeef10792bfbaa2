"""Settings of MMDetection3D's detectors are read, lent and given back."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from ml_debugger.core.detection.settings import lend
from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.object_detection_3d.adapters.base import DetectionAdapter
from ml_debugger.object_detection_3d.link import link
from ml_debugger.object_detection_3d.output import NMSConfig
from ml_debugger.training import ObjectDetection3DTracer

from .mmdetection3d_models import FAMILIES, built, configuration
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


def lent(model: Any, adapter: DetectionAdapter, **wishes: float) -> Callable[[], None]:
    """Lend a model settings as a tracer does; return what takes them back."""
    own = adapter.nms(model)
    return lend(model, own, NMSConfig(**wishes), adapter.apply_nms, adapter.shared(model))


@each_family
def test_settings_have_an_effect_and_are_restored(name: str) -> None:
    run = traced(name)
    model, adapter = run.model, run.adapter
    head, old = head_of(model), adapter.nms(model)
    own = dict(head.test_cfg), str(model.test_cfg), getattr(head.bbox_coder, "score_threshold", 0)
    assert STRICTER[name].keys() == old.model_dump(exclude_none=True).keys()
    for setting, value in STRICTER[name].items():
        give_back = lent(model, adapter, **{setting: value})
        assert adapter.nms(model) == old.model_copy(update={setting: value})
        assert str(model.test_cfg) == own[1]  # other models may share it
        try:
            _, _, frames = read(model, adapter, name)
        finally:
            give_back()
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


@pytest.mark.parametrize("name", [name for name, some in STRICTER.items() if some])
def test_the_very_settings_come_back(name: str) -> None:
    model = smaller(name)
    head = head_of(model)
    own = head.test_cfg
    # as they are built, the head reads what the model has
    assert own is (model.test_cfg.pts if hasattr(model, "pts_bbox_head") else model.test_cfg)
    before = deepcopy(own)
    first = ObjectDetection3DTracer(model, "m", "v", score_thresh=0.99)
    second = ObjectDetection3DTracer(model, "m", "v", **STRICTER[name])
    assert head.test_cfg is not own
    assert own == before
    first.close()
    assert second.nms_config.score_thresh == STRICTER[name]["score_thresh"]
    second.close()
    assert head.test_cfg is own
    assert own == before


def test_settings_of_a_model_that_was_traced_can_be_changed() -> None:
    model = smaller("PointPillars")
    with ObjectDetection3DTracer(model, "m", "v", score_thresh=0.9):
        pass
    model.test_cfg.max_num = 2
    assert [len(one.pred_instances_3d) for one in predicted(model, "PointPillars")] == [2, 2]


def test_what_was_not_lent_stays_as_the_user_sets_it_meanwhile() -> None:
    model = smaller("PointPillars")
    head, own = model.bbox_head, model.bbox_head.test_cfg
    first = ObjectDetection3DTracer(model, "m", "v", score_thresh=0.9)
    head.test_cfg.max_num = 9
    head.test_cfg.mine = 1
    del head.test_cfg.min_bbox_size
    model.test_cfg.nms_pre = 50  # the user's own, which the head does not read now
    second = ObjectDetection3DTracer(model, "m", "v", max_detections_per_frame=3)
    second.close()
    assert head.test_cfg.max_num == 9
    first.close()
    assert head.test_cfg is own
    assert (own.score_thr, own.max_num, own.nms_pre, own.mine) == (0.85, 9, 50, 1)
    assert "min_bbox_size" not in own


def test_settings_that_the_user_puts_in_place_of_ours_stay() -> None:
    model = smaller("PointPillars")
    mine = deepcopy(model.bbox_head.test_cfg)
    with ObjectDetection3DTracer(model, "m", "v", score_thresh=0.9):
        model.bbox_head.test_cfg = mine
    assert model.bbox_head.test_cfg is mine


def test_models_of_one_configuration_do_not_share_what_is_lent() -> None:
    family = FAMILIES["PointPillars"]
    config = configuration(family.config, family.changes)
    one, other = built(config), built(config)
    with ObjectDetection3DTracer(one, "m", "v", score_thresh=0.9, max_detections_per_frame=3):
        assert one.bbox_head.test_cfg.max_num == 3
        assert other.bbox_head.test_cfg.max_num == config.test_cfg.max_num == 40
