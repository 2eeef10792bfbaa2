"""A detector trained for real: what is said of its boxes holds against slow and other readings."""

import os
from collections import Counter

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from ml_debugger.core.evaluation.metrics import auroc, ece
from ml_debugger.data_filter import ObjectDetectionDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.object_detection.average_precision import mean_average_precision
from ml_debugger.object_detection.scenes import CLASSES, make_scenes
from ml_debugger.training import ObjectDetectionTracer

from . import slow_matching as slow

pytestmark = pytest.mark.slow

SIZE = 64
NOISE = 0.03
STEPS = 480
AT_ONCE = 20


def batches(scenes, size):
    for at in range(0, len(scenes), size):
        some = scenes[at : at + size]
        pairs = [(torch.from_numpy(one.boxes), torch.from_numpy(one.labels)) for one in some]
        yield (
            list(range(at, at + len(some))),
            [torch.from_numpy(one.image) for one in some],
            [{"boxes": boxes, "labels": labels} for boxes, labels in pairs],
        )


def trained():
    def block(before, after, stride):
        convolution = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())

    torch.manual_seed(0)
    backbone = nn.Sequential(block(3, 32, 2), block(32, 64, 2), block(64, 64, 1))
    backbone.out_channels = 64
    model = FasterRCNN(
        backbone,
        min_size=SIZE,
        max_size=SIZE,
        rpn_anchor_generator=AnchorGenerator(((10, 18, 32),), ((0.7, 1.0, 1.4),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 2),
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(64 * 25, 96), nn.ReLU()),
        box_predictor=FastRCNNPredictor(96, len(CLASSES)),
        rpn_pre_nms_top_n_train=300,  # by default 2000, which takes most of the training's time
        rpn_post_nms_top_n_train=80,
        rpn_post_nms_top_n_test=40,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=32,
        box_score_thresh=0.1,
    )
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, STEPS)
    scenes = make_scenes(8 * STEPS // 6, seed=1, size=SIZE, noise=NOISE)
    for _ in range(6):
        for _, images, targets in batches(scenes, 8):
            loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


class Study:
    """What was recorded and evaluated, and what the bare model says of the same scenes."""

    def __init__(self):
        model = trained()
        self.known, self.new = (make_scenes(n, 1 + n, size=SIZE, noise=NOISE) for n in (300, 240))
        self.bare = {}
        with torch.no_grad():
            for name, scenes in (("val", self.known), ("test", self.new)):
                with ObjectDetectionTracer(model, "shapes", "v1") as tracer:
                    for ids, images, targets in batches(scenes, AT_ONCE):
                        tracer(images, targets, [f"{one:03d}" for one in ids], name)
                bare = [one for _, images, _ in batches(scenes, AT_ONCE) for one in model(images)]
                self.bare[name] = [{key: one[key].numpy() for key in one} for one in bare]
            evaluator = Evaluator("shapes", "v1")
            self.result = evaluator.request_evaluation(options={"dataset_type": "val"})
            self.truth = evaluator.request_evaluation(options={"dataset_type": "test"})
            with ObjectDetectionDataFilter(
                model, "shapes", "v1", result_name=self.result.result_name
            ) as data_filter:
                for ids, images, _ in batches(self.new, AT_ONCE):
                    data_filter(images, [f"{one:03d}" for one in ids])
                self.chosen = data_filter.query(24, "high_error_proba")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    before = os.environ.get("MLD_HOME")
    os.environ["MLD_HOME"] = str(tmp_path_factory.mktemp("home"))
    try:
        yield Study()
    finally:
        if before is None:
            del os.environ["MLD_HOME"]
        else:
            os.environ["MLD_HOME"] = before


def test_it_is_an_honest_detector(study):
    """Neither blind nor perfect, and average precision is that of the library on bare output."""
    truths = [
        {"image_id": at, "bbox": corners, "category_id": label, "iscrowd": 0}
        for at, scene in enumerate(study.new)
        for corners, label in zip(scene.boxes, scene.labels.tolist(), strict=True)
    ]
    found = [
        {"image_id": at, "bbox": corners, "category_id": label, "score": score}
        for at, one in enumerate(study.bare["test"])
        for corners, label, score in zip(
            one["boxes"], one["labels"].tolist(), one["scores"].tolist(), strict=True
        )
    ]
    for number, one in enumerate([*truths, *found]):
        x1, y1, x2, y2 = np.asarray(one["bbox"], np.float64).tolist()
        one |= {"id": number + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        one["area"] = (x2 - x1) * (y2 - y1)
    data = {
        "images": [{"id": at} for at in range(len(study.new))],
        "categories": [{"id": at, "name": CLASSES[at]} for at in range(1, len(CLASSES))],
    }
    judge = COCOeval_faster(
        COCO({**data, "annotations": truths}), COCO({**data, "annotations": found}), iouType="bbox"
    )
    judge.run()
    ours = mean_average_precision(study.truth)
    assert (ours.ap, ours.ap50, ours.ar100) == pytest.approx(
        (judge.stats[0], judge.stats[1], judge.stats[8]), abs=1e-9
    )
    assert 0.2 < ours.ap50 < 0.95


def test_error_codes_are_those_of_the_slow_matching(study):
    """Box by box, from the bare model's own output."""
    expected, missed = {}, Counter()
    for at, (scene, one) in enumerate(zip(study.new, study.bare["test"], strict=True)):
        boxes, labels = one["boxes"].astype(float).tolist(), one["labels"].tolist()
        true, classes = scene.boxes.astype(float).tolist(), scene.labels.tolist()
        found = slow.match_image(
            boxes, one["scores"].tolist(), labels, true, classes, [False] * len(true)
        )
        for kind, owner, label in zip(found["kind"], found["truth"], labels, strict=True):
            alone = owner < 0 or kind in ("ON", "N", "U")
            code = f"DET:{kind}:CLS{'-' if alone else classes[owner]}->{label}"
            expected.setdefault(f"{at:03d}", []).append(code)
        missed.update(
            f"DET:no_prediction:CLS{label}->-"
            for label, by in zip(classes, found["by"], strict=True)
            if by < 0
        )
    units = study.truth.to_pandas()
    codes = units["code"].str.replace("*", "", regex=False)
    assert {name: sorted(some) for name, some in codes.groupby(units["input_id"])} == {
        name: sorted(some) for name, some in expected.items()
    }
    gone = study.truth.truths(missed=True)["label"]
    assert Counter(f"DET:no_prediction:CLS{label}->-" for label in gone) == missed
    counts = study.truth.error_codes().set_index("code")["n"]
    plain = counts.groupby(counts.index.str.replace("*", "", regex=False)).sum()
    wanted = Counter(code for some in expected.values() for code in some) + missed
    assert plain.to_dict() == wanted


def test_its_errors_are_told_better_than_by_the_score(study):
    units = study.result.to_pandas()
    wrong, score = units["wrong"].to_numpy(bool), units["score"].to_numpy(np.float64)
    proba = units["error_proba"].to_numpy(np.float64)  # each by boxes of other images
    assert 0.1 < wrong.mean() < 0.9
    assert auroc(proba, wrong) > max(0.7, auroc(1 - score, wrong))
    assert ece(proba, wrong) < min(0.06, ece(1 - score, wrong))
    either = 1 - (1 - units["det_error_proba"]) * (1 - units["cls_error_proba"])
    assert np.corrcoef(either, proba)[0, 1] > 0.9


def test_a_query_finds_the_images_where_it_fails(study):
    images = study.truth.inputs().set_index("input_id")
    share = images["wrong"] / images["units"]
    assert share[study.chosen].mean() > share.mean() + 0.02
