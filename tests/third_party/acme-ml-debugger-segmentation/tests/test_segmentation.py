"""The task keeps what ml-debugger asks of one, and says what its package promises."""

import numpy as np
import pytest
import torch
from acme_segmentation import SegmentationTask
from torch import Tensor, nn

from ml_debugger.core.errors import TaskNotInstalledError
from ml_debugger.testing import TaskContract
from ml_debugger.training import SegmentationTracer

CLASSES = 4


class Net(nn.Module):
    """Sees background wherever nothing else speaks."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.norm(self.backbone(images)).relu()))
        return logits


class TestSegmentation(TaskContract):
    task = SegmentationTask

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        model = Net()
        with torch.no_grad():
            model.head.bias.copy_(torch.tensor([0.1, 0.0, 0.0, 0.0]))
        return model

    def batch(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(2, 3, 8, 8, generator=generator)
        masks = torch.zeros(2, 8, 8, dtype=torch.int64)
        masks[0, :4], masks[1, 2:6] = 1, 2
        return images, masks

    def empty_batch(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)


def test_a_unit_is_a_class_seen_in_an_image(tmp_path):
    with SegmentationTracer(
        nn.Conv2d(3, 3, 1), "identity", "v1", target_layers={}, home=tmp_path
    ) as tracer:
        logits = torch.zeros(2, 3, 2, 2)
        logits[0, 1, 0], logits[0, 2, 1] = 9.0, 9.0
        logits[1, 0] = 9.0
        units = tracer.parse_output(logits, {})
    assert units["prediction"].tolist() == [1, 2]
    assert units["area"].tolist() == [0.5, 0.5]
    assert units.counts.tolist() == [2, 0]


def test_the_facade_still_knows_what_is_missing():
    from ml_debugger import training

    with pytest.raises(TaskNotInstalledError, match="pip install ml-debugger-detection2d"):
        training.ObjectDetectionTracer  # noqa: B018
    assert not hasattr(training, "SegmentationThing")
    assert np.isin("SegmentationTracer", dir(training))
