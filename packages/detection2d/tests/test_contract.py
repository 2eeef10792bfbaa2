"""Detection keeps what core asks of a task, as any other package would show it."""

from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import override

from ml_debugger.object_detection.task import ObjectDetectionTask
from ml_debugger.testing import TaskContract

from . import small


class TestObjectDetection(TaskContract):
    task = ObjectDetectionTask
    modes: ClassVar[tuple[bool, ...]] = (
        False,
    )  # torchvision's detectors return losses in training

    @override
    def model(self) -> nn.Module:
        return small.faster_rcnn()

    @override
    def batch(self) -> tuple[Any, Any]:
        given = small.images()
        return given, small.truths(small.faster_rcnn(), given)

    @override
    def empty_batch(self) -> tuple[Any, Any]:
        return [small.blank()] * 2, [
            {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        ] * 2
