"""Classification keeps what core asks of a task, as any other package would show it."""

import torch
from torch import Tensor, nn
from typing_extensions import override

from ml_debugger.classification.task import ClassificationTask
from ml_debugger.testing import TaskContract


class Net(nn.Sequential):
    """A small classifier with everything that tracing could disturb: statistics and chance."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(144, 16),
            nn.ReLU(),
            nn.Linear(16, 3),
        )


class TestClassification(TaskContract):
    task = ClassificationTask

    @override
    def model(self) -> nn.Module:
        return Net()

    @override
    def batch(self) -> tuple[Tensor, Tensor]:
        images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            right = int(Net().eval()(images).argmax(1)[0])
        return images, torch.tensor([right, (right + 1) % 3])
