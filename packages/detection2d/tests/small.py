"""A small Faster R-CNN of torchvision, with random weights that see something."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

CLASSES = 4  # the first is background


class Backbone(nn.Sequential):
    """A few convolutions with a stride of 4."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, self.out_channels, 3, 2, 1),
            nn.ReLU(),
        )


def faster_rcnn(seed: int = 0, extra: nn.Module | None = None, **settings: Any) -> FasterRCNN:
    """Return the same detector each time, in evaluation mode; `extra` makes it another."""
    torch.manual_seed(seed)
    size = 3
    model = FasterRCNN(
        Backbone(),
        min_size=64,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((12, 24),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], size, 1),
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(16 * size * size, 12), extra or nn.ReLU()),
        box_predictor=FastRCNNPredictor(12, CLASSES),
        rpn_post_nms_top_n_test=40,
        **{"box_score_thresh": 0.3, "box_detections_per_img": 8, **settings},
    )
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(15)
        model.roi_heads.box_predictor.cls_score.bias[0] = 1.0
    return model.eval()


def images(n: int = 2, seed: int = 1) -> list[Tensor]:
    """Return images of two sizes in turn."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(64, 80), (72, 64)]
    return [torch.rand(3, *sizes[at % 2], generator=generator) for at in range(n)]


def blank() -> Tensor:
    """Return an image in which the detector sees nothing: grey, as its normalisation has it."""
    return torch.tensor([0.485, 0.456, 0.406])[:, None, None].expand(3, 64, 64).clone()


def truths(model: nn.Module, given: list[Tensor]) -> list[dict[str, Tensor]]:
    """Return ground truth that the model gets partly right: every other box that it sees."""
    with torch.no_grad():
        found = model(given)
    return [
        {"boxes": one["boxes"][::2].clone(), "labels": one["labels"][::2].clone()} for one in found
    ]
