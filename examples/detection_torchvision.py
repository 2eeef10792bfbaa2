"""Train a small Faster R-CNN on generated scenes, and find out where it fails (about 40 s)."""

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

from ml_debugger.data_filter import ObjectDetectionDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.object_detection.analysis import error_types
from ml_debugger.object_detection.scenes import CLASSES, make_scenes
from ml_debugger.training import ObjectDetectionTracer


def block(before, after, stride):
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU())


def batches(scenes, size=8):
    """Give ids, images and targets, as any data loader does."""
    for at in range(0, len(scenes), size):
        some = scenes[at : at + size]
        images = [torch.from_numpy(one.image) for one in some]
        pairs = [(torch.from_numpy(one.boxes), torch.from_numpy(one.labels)) for one in some]
        targets = [{"boxes": boxes, "labels": labels} for boxes, labels in pairs]
        yield list(range(at, at + len(some))), images, targets


torch.manual_seed(0)
train, val, pool = (make_scenes(n, seed, size=64) for seed, n in enumerate((400, 200, 200)))
backbone = nn.Sequential(block(3, 32, 2), block(32, 48, 2), block(48, 48, 1))
backbone.out_channels = 48
model = FasterRCNN(
    backbone,
    min_size=64,
    max_size=64,
    rpn_anchor_generator=AnchorGenerator(((10, 18, 32),), ((1.0,),)),
    box_head=nn.Sequential(nn.Flatten(), nn.Linear(48 * 7 * 7, 64), nn.ReLU()),
    box_predictor=FastRCNNPredictor(64, len(CLASSES)),
    rpn_post_nms_top_n_train=60,
    rpn_post_nms_top_n_test=40,
    rpn_batch_size_per_image=48,
    box_batch_size_per_image=32,
)
optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
settings = {"score_thresh": 0.2, "iou_thresh": 0.3}  # stricter than the model's own
with ObjectDetectionTracer(model, "shapes", "v1", **settings) as tracer:
    for epoch in range(6):
        model.train()
        for _, images, targets in batches(train):
            loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for ids, images, targets in batches(val):
                tracer(images, targets, ids, "val", epoch)  # not model(images)

result = Evaluator("shapes", "v1").request_evaluation(options={"class_names": CLASSES})
print(result.summary(), error_types(result).to_string(), sep="\n")
print(result.report("detection.html", images=lambda name: val[int(name)].image))

with ObjectDetectionDataFilter(model, "shapes", "v1", result.result_name, **settings) as chosen:
    with torch.no_grad():
        for ids, images, _ in batches(pool):
            chosen(images, ids)
    print(chosen.query(10, {"top_n": 3}, type_cast=int, explain=True).to_string())
