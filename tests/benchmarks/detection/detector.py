"""A Faster R-CNN of torchvision on a small backbone, trained for real on generated scenes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from ml_debugger.object_detection.scenes import CLASSES, Scene
from ml_debugger.training import ObjectDetectionTracer

SIZE = 96
CHANNELS = 96
AT_ONCE = 20


def backbone() -> nn.Sequential:
    """Return a convolutional network with a stride of 4."""

    def block(before: int, after: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
        )

    found = nn.Sequential(
        block(3, 32, 2),
        block(32, 48, 1),
        block(48, 64, 2),
        block(64, 64, 1),
        block(64, CHANNELS, 1),
    )
    found.out_channels = CHANNELS  # type: ignore[assignment]
    return found


def faster_rcnn() -> FasterRCNN:
    """Return an untrained detector of the shapes."""
    return FasterRCNN(
        backbone(),
        min_size=SIZE,
        max_size=SIZE,
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
        rpn_anchor_generator=AnchorGenerator(((8, 14, 24, 40),), ((0.6, 1.0, 1.6),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 2),
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * 25, 128), nn.ReLU()),
        box_predictor=FastRCNNPredictor(128, len(CLASSES)),
        rpn_pre_nms_top_n_train=300,
        rpn_post_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=60,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=48,
        box_score_thresh=0.1,
    )


def pair(scene: Scene) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a scene as torchvision's detectors take it."""
    boxes, labels = torch.from_numpy(scene.boxes), torch.from_numpy(scene.labels)
    return torch.from_numpy(scene.image), {"boxes": boxes, "labels": labels}


def train(scenes: Sequence[Scene], steps: int, seed: int = 0, batch: int = 8) -> FasterRCNN:
    """Train a detector and return it in evaluation mode."""
    torch.manual_seed(seed)
    model = faster_rcnn().train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(scenes), (batch,), generator=generator).tolist()
        images, targets = zip(*(pair(scenes[at]) for at in chosen), strict=True)
        loss = sum(model(list(images), [dict(one) for one in targets]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def trace(model: nn.Module, scenes: Sequence[Scene], kind: str, **arguments: Any) -> None:
    """Record a detector's boxes and the truth; ids count from 0."""
    with ObjectDetectionTracer(model, "shapes", "v1", **arguments) as tracer, torch.no_grad():
        for start in range(0, len(scenes), AT_ONCE):
            images, targets = zip(*map(pair, scenes[start : start + AT_ONCE]), strict=True)
            ids = [f"{start + at:05d}" for at in range(len(images))]
            tracer(list(images), list(targets), ids, kind)
