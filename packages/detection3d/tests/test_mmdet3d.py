"""The adapters of MMDetection3D's detectors read them to the last bit.

The models are those of the configurations that MMDetection3D ships, made small.
"""

import pytest
import torch
from torch import Tensor, nn

from ml_debugger.core.capture import Capture
from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.object_detection_3d.adapters import FAMILIES as KNOWN
from ml_debugger.object_detection_3d.link import link

from .mmdetection3d_models import FAMILIES, raw
from .mmdetection3d_runs import (
    QUIET,
    assert_same,
    class_layers,
    each_family,
    head_of,
    hooked,
    predicted,
    read,
    rows_of,
    smaller,
    traced,
)

pytest.importorskip("mmcv.ops", exc_type=ImportError)
pytest.importorskip("mmdet3d.models")

pytestmark = QUIET


# What the user sees


@each_family
def test_one_adapter_knows_a_model(name: str) -> None:
    model = traced(name).model
    assert [one for one in KNOWN.known if one.detect(model)] == [traced(name).adapter]
    assert not any(one.detect(nn.Linear(2, 2)) for one in KNOWN.known)


@each_family
def test_reading_changes_nothing(name: str) -> None:
    run = traced(name)
    assert_same(run.bare, run.output)
    assert not any(part._forward_hooks for part in run.model.modules())
    config = run.adapter.nms(run.model)
    for frame in run.adapter.parse(run.model, run.output, run.calls, config):
        rows_of(frame).features(torch.arange(2))
    assert_same(run.bare, run.output)
    assert run.adapter.nms(run.model) == config
    assert_same(run.bare, predicted(run.model, name))


@each_family
def test_keeps_the_boxes_that_the_user_sees(name: str) -> None:
    run = traced(name)
    assert len(run.bare) == len(run.frames) == 2
    for one, frame in zip(run.bare, run.frames, strict=True):
        theirs = one.pred_instances_3d
        assert 20 <= len(theirs.scores_3d) <= 60
        assert torch.equal(frame.seen.boxes, theirs.bboxes_3d.tensor)
        assert torch.equal(frame.seen.scores, theirs.scores_3d)
        assert torch.equal(frame.seen.labels, theirs.labels_3d.long())
        assert frame.convention == ("lidar" if FAMILIES[name].cloud else "camera")


@each_family
def test_has_the_promised_types(name: str) -> None:
    run = traced(name)
    for frame in run.frames:
        rows, width = rows_of(frame), frame.seen.boxes.shape[1]
        for values in (frame.seen.boxes, frame.seen.scores, rows.boxes, rows.scores, rows.logits):
            assert values.dtype is torch.float32
        assert frame.seen.labels.dtype is rows.cells.dtype is torch.int64
        assert rows.scores.shape[1] == run.adapter.n_class(run.model)
        assert rows.boxes.shape[1:] in ((width,), (rows.scores.shape[1], width))
        assert len({*map(len, (rows.scores, rows.boxes, rows.logits, rows.cells))}) == 1
        (some,), (none,) = (rows.features(torch.arange(n)).values() for n in (3, 0))
        assert len(some) == 3
        assert none.shape == (0, some.shape[1])


@each_family
def test_keeps_no_graph(name: str) -> None:
    run = traced(name)
    with torch.enable_grad():
        _, calls, frames = read(run.model, run.adapter, name)
    assert calls["head"]
    for frame, same in zip(frames, run.frames, strict=True):
        rows = rows_of(frame)
        features = rows.features(torch.arange(2)).values()
        seen = frame.seen.boxes, frame.seen.scores
        for values in (*seen, rows.scores, rows.boxes, rows.logits, *features):
            assert not values.requires_grad
        assert torch.equal(frame.seen.scores, same.seen.scores)


# What the head said


@each_family
def test_links_every_box_to_the_last_bit(name: str) -> None:
    for frame in traced(name).frames:
        rows, labels = rows_of(frame), frame.seen.labels
        found = link(frame.seen, rows)
        assert len({*zip(found.tolist(), labels.tolist(), strict=True)}) == len(frame.seen)
        assert torch.equal(rows.scores[found, labels], frame.seen.scores)
        torch.testing.assert_close(
            rows.boxes_of(found, labels), frame.seen.boxes, rtol=1e-5, atol=1e-4
        )


@each_family
def test_features_and_class_vectors_are_those_of_the_cell(name: str) -> None:
    run = traced(name)
    with hooked(*class_layers(run.model)) as noted:
        predicted(run.model, name)
    for i, frame in enumerate(run.frames):
        rows = rows_of(frame)
        wanted = torch.linspace(0, len(rows.scores) - 1, 40).long()
        wanted = torch.cat([wanted, link(frame.seen, rows)])
        (features,) = rows.features(wanted).values()
        for row, feature in zip(wanted.tolist(), features, strict=True):
            level, at, across = rows.cells[row].tolist()
            if "CenterPoint" in name:
                given = noted[0][0]
                said = torch.cat([gave[i, :, at, across] for _, gave in noted])
            else:
                given, gave = noted[level]
                said = gave[i, :, at, across]
            assert torch.equal(feature, given[i, :, at, across])
            # an anchor of the cell says its own
            vectors = said.reshape(-1, rows.logits.shape[1])
            assert (vectors == rows.logits[row]).all(1).any()
        # else another cell would have done as well
        apart = torch.isclose(features, features.roll(1, 0), rtol=1e-3, atol=1e-4).all(1)
        assert apart.float().mean() < 0.5


@each_family
def test_each_row_has_its_own_place(name: str) -> None:
    run = traced(name)
    with hooked(*class_layers(run.model)) as noted:
        predicted(run.model, name)
    cells, counts = rows_of(run.frames[0]).cells.unique(dim=0, return_counts=True)
    maps = noted[:1] if "CenterPoint" in name else noted
    assert len(cells) == sum(gave.shape[2] * gave.shape[3] for _, gave in maps)
    for level, (_, gave) in enumerate(maps):
        each = (
            1 if "CenterPoint" in name else gave.shape[1] // rows_of(run.frames[0]).logits.shape[1]
        )
        assert set(counts[cells[:, 0] == level].tolist()) == {each}


@each_family
def test_scores_follow_from_the_class_vectors(name: str) -> None:
    run = traced(name)
    head = head_of(run.model)
    parts = [getattr(head, part, None) for part in ("conv_centerness", "conv_depth_cls")]
    parts += getattr(head, "conv_weights", [])
    factors: list[list[tuple[Tensor, Tensor]]] = []
    for part in filter(None, parts):
        with hooked(part) as noted:
            predicted(run.model, name)
        factors.append(noted)
    for i, frame in enumerate(run.frames):
        rows = rows_of(frame)
        expected = 1 / (1 + (-rows.logits.double()).exp())
        for number, noted in enumerate(factors):
            levels = [gave[i].double().flatten(1) for _, gave in noted]
            said = torch.cat(levels, 1)
            if number == 0:
                factor = 1 / (1 + (-said[0]).exp())
            elif number == 1:
                factor = said.softmax(0).sort(0).values[-2:].mean(0)
            else:
                factor = (-said[-1]).exp()
            expected = expected * factor[:, None]
        scored = rows.scores.double()
        if name == "SMOKE":  # only where it is highest among its neighbours
            kept = rows.scores > 0
            assert 0 < kept.float().mean() < 0.5
            scored, expected = scored[kept], expected[kept].clamp(1e-4, 1 - 1e-4)
        torch.testing.assert_close(scored, expected, rtol=1e-5, atol=1e-7)


# Input and output


@each_family
def test_refuses_what_is_not_for_inference(name: str) -> None:
    run = traced(name)
    config = run.adapter.nms(run.model)
    lost = {"loss_cls": torch.zeros(())}
    for output in (run.calls["head"][-1].output, lost, raw(FAMILIES[name])["data_samples"]):
        with pytest.raises(UnsupportedModelError, match="mode='predict'"):
            run.adapter.parse(run.model, output, run.calls, config)


@each_family
def test_counts_the_frames_of_an_input(name: str) -> None:
    run = traced(name)
    data = raw(FAMILIES[name])
    assert run.adapter.images(data) == 2
    assert run.adapter.images(run.model.data_preprocessor(data, False)) == 2
    assert run.adapter.images(data["inputs"]) == 2
    assert run.adapter.images({**data["inputs"], "img_metas": []}) == 2
    assert run.adapter.images([torch.zeros(5, 4)] * 3) == 3
    assert run.adapter.images(torch.zeros(5, 4)) == 1
    assert run.adapter.images(None) is None
    assert run.adapter.images(run.model.data_preprocessor(data, False)["inputs"]) == 2
    assert run.adapter.images({"img": torch.zeros(3, 8, 8)}) == 1
    assert run.adapter.images({"img": torch.zeros(4, 3, 8, 8)}) == 4


def test_the_users_own_hooks_run_once() -> None:
    model = smaller("PGD")
    adapter = traced("PGD").adapter
    with Capture(model, {}, adapter.taps(model)) as capture, capture.recording() as noted:
        output = predicted(model, "PGD")
    with hooked(*(one for one in model.modules() if not list(one.children()))) as ran:
        adapter.parse(model, output, noted.taps, adapter.nms(model))
    assert ran == []


@pytest.mark.parametrize("name", ["FCOS3D", "PGD", "PointPillars"])
def test_reads_maps_whose_channels_are_last(name: str) -> None:
    # there the head writes into what it said before
    model = smaller(name).to(memory_format=torch.channels_last)
    _, _, frames = read(model, traced(name).adapter, name)
    for frame in frames:
        rows = rows_of(frame)
        found = link(frame.seen, rows)
        assert torch.equal(rows.scores[found, frame.seen.labels], frame.seen.scores)
