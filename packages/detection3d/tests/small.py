"""A small detector of pillars in plain torch, with random weights that see something."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ml_debugger.object_detection_3d.adapters.base import Calls, DetectionAdapter
from ml_debugger.object_detection_3d.clouds import count_frames
from ml_debugger.object_detection_3d.frames import from_mmdet3d
from ml_debugger.object_detection_3d.output import (
    Detection3DOutput,
    Detections,
    FrameOutput,
    HeadRows,
    NMSConfig,
)

CLASSES = 3
CELLS, REACH = 16, 8.0  # of a metre each
NAMES = ("x", "y", "z", "dx", "dy", "dz", "yaw")


class Pillars(nn.Module):
    """A map of points, a convolution, and a box for each cell with the centre of its bottom."""

    def __init__(self, extra: nn.Module | None = None) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(4, 12, 3, 1, 1), extra or nn.ReLU())
        self.classes = nn.Conv2d(12, CLASSES, 1)
        self.boxes = nn.Conv2d(12, 7, 1)
        self.score_thresh, self.iou_thresh, self.most = 0.3, 0.2, 12

    def forward(self, clouds: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        scattered = torch.stack([scatter(one) for one in clouds])
        found = self.features(scattered)
        pairs = zip(self.classes(found), self.boxes(found), strict=True)
        return [self.visible(*self.decoded(*pair)) for pair in pairs]

    def decoded(self, said: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return class vectors (r, K), scores (r, K) and boxes (r, 7), a row a cell."""
        logits, rows = said.flatten(1).T, codes.flatten(1).T
        y, x = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
        middle = torch.stack([x, y], 2).reshape(-1, 2).to(rows) - REACH + 0.5
        sides = rows.new_tensor([3.0, 1.6, 1.5]) * rows[:, 3:6].clamp(-1, 1).exp()
        boxes = torch.cat([middle + rows[:, :2].tanh(), rows[:, 2:3] - 1, sides, rows[:, 6:]], 1)
        return logits, logits.sigmoid(), boxes

    def visible(self, logits: Tensor, scores: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Keep the best of those boxes of a class whose upright bounds overlap."""
        row, label = (scores >= self.score_thresh).nonzero(as_tuple=True)
        order = scores[row, label].argsort(descending=True, stable=True)
        kept: list[int] = []
        plain = boxes.detach()
        for at in order.tolist():
            rivals = [other for other in kept if label[other] == label[at]]
            if len(kept) < self.most and not any(
                bounds_iou(plain[row[at]], plain[row[other]]) > self.iou_thresh for other in rivals
            ):
                kept.append(at)
        row, label = row[kept], label[kept]
        return {"boxes": boxes[row], "scores": scores[row, label], "labels": label}


def bounds_iou(a: Tensor, b: Tensor) -> float:
    low = torch.maximum(a[:2] - a[3:5] / 2, b[:2] - b[3:5] / 2)
    high = torch.minimum(a[:2] + a[3:5] / 2, b[:2] + b[3:5] / 2)
    shared = float((high - low).clamp(min=0).prod())
    return shared / (float(a[3] * a[4] + b[3] * b[4]) - shared)


def scatter(cloud: Tensor) -> Tensor:
    """Return what is known of each cell's points (p, 4): their number, and means of z and more."""
    at = ((cloud[:, :2] + REACH).clamp(0, 2 * REACH - 1e-3)).long()
    cell = at[:, 1] * CELLS + at[:, 0]
    values = torch.cat([torch.ones_like(cloud[:, :1]), cloud[:, 2:4], cloud[:, 2:3] ** 2], 1)
    sums = cloud.new_zeros(CELLS * CELLS, 4).index_add(0, cell, values)
    mean = sums[:, 1:] / sums[:, :1].clamp(min=1)
    return torch.cat([sums[:, :1].log1p(), mean], 1).T.reshape(4, CELLS, CELLS)


def pillars(seed: int = 0, extra: nn.Module | None = None, **settings: Any) -> Pillars:
    """Return the same detector each time, in evaluation mode; `extra` makes it another."""
    torch.manual_seed(seed)
    model = Pillars(extra)
    with torch.no_grad():
        for layer in (model.features[0], model.boxes):
            layer.bias.zero_()
        model.features[0].weight.mul_(2)
        model.classes.weight.mul_(8)
        model.classes.bias.fill_(-2.0)
    for name, value in settings.items():
        assert hasattr(model, name)
        setattr(model, name, value)
    return model.eval()


def clouds(n: int = 2, seed: int = 1) -> list[Tensor]:
    """Return clouds of a few heaps of points, of different numbers of points."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for at in range(n):
        middle = (torch.rand(6, 1, 4, generator=generator) - 0.5) * 14
        heaps = middle + torch.randn(6, 30 + at % 7, 4, generator=generator) * 0.7
        found.append(torch.cat([heaps[..., :2], heaps[..., 2:] * 0.1], 2).reshape(-1, 4))
    return found


def blank() -> Tensor:
    """Return a cloud in which the detector sees nothing."""
    return torch.zeros(0, 4)


def truths(model: nn.Module, given: list[Tensor]) -> list[dict[str, Tensor]]:
    """Return ground truth that the model gets partly right: every other box that it sees."""
    with torch.no_grad():
        found = model(given)
    return [
        {
            "boxes": from_mmdet3d(one["boxes"][::2], "lidar"),
            "labels": one["labels"][::2].clone(),
        }
        for one in found
    ]


class PillarAdapter(DetectionAdapter):
    """Knows the small detector, as an adapter of another package would."""

    family = "small pillars"

    @override
    def detect(self, model: nn.Module) -> bool:
        return isinstance(model, Pillars)

    @override
    def n_class(self, model: nn.Module) -> int:
        return CLASSES

    @override
    def layers(self, model: nn.Module) -> dict[str, str]:
        return {"cell": "features"}

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        return {"model": "", "classes": "classes", "boxes": "boxes"}

    @override
    def parse(self, model: Any, output: Any, calls: Calls, config: NMSConfig) -> list[FrameOutput]:
        said, codes = (calls[name][-1].output.detach() for name in ("classes", "boxes"))
        maps = calls["classes"][-1].args[0].detach()
        found = []
        for number, one in enumerate(output):
            logits, scores, boxes = model.decoded(said[number], codes[number])
            vectors = maps[number].flatten(1).T
            at = torch.arange(len(boxes), device=boxes.device)
            cells = torch.stack([torch.zeros_like(at), at // CELLS, at % CELLS], 1)
            rows = HeadRows(
                scores=scores, boxes=boxes, logits=logits, cells=cells,
                features=lambda rows, vectors=vectors: {"cell": vectors[rows]},
            )  # fmt: skip
            seen = Detections(one["boxes"].detach(), one["scores"].detach(), one["labels"].detach())
            found.append(FrameOutput(seen, rows, "lidar"))
        return found

    @override
    def nms(self, model: Any) -> NMSConfig:
        return NMSConfig(
            score_thresh=model.score_thresh,
            iou_thresh=model.iou_thresh,
            max_detections_per_frame=model.most,
        )

    @override
    def apply_nms(self, model: Any, config: NMSConfig) -> None:
        names = ("score_thresh", "iou_thresh", "most")
        wishes = (config.score_thresh, config.iou_thresh, config.max_detections_per_frame)
        for name, wish in zip(names, wishes, strict=True):
            if wish is not None:
                setattr(model, name, wish)

    @override
    def images(self, model_input: Any) -> int | None:
        return count_frames(model_input)


class Own:
    """What a user writes for the same detector without an adapter: a mixin of the public names."""

    @staticmethod
    def detect(model: nn.Module) -> bool:
        return isinstance(model, Pillars)

    def _get_n_class(self, model: nn.Module) -> int:
        return CLASSES

    def _parse_model_output(self, model_output: Any) -> list[Detection3DOutput]:
        return [
            Detection3DOutput(from_mmdet3d(one["boxes"], "lidar"), one["scores"], one["labels"])
            for one in model_output
        ]
