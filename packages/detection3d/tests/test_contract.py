"""3D detection keeps what core asks of a task, as any other package would show it."""

from typing import Any

import pytest
import torch
from torch import nn
from typing_extensions import override

from ml_debugger.object_detection_3d.task import ObjectDetection3DTask
from ml_debugger.testing import TaskContract

from . import small


@pytest.mark.usefixtures("known")
class TestObjectDetection3D(TaskContract):
    task = ObjectDetection3DTask

    @override
    def model(self) -> nn.Module:
        return small.pillars()

    @override
    def batch(self) -> tuple[Any, Any]:
        given = small.clouds()
        return given, small.truths(small.pillars(), given)

    @override
    def empty_batch(self) -> tuple[Any, Any]:
        return [small.blank()] * 2, [
            {"boxes": torch.zeros(0, 7), "labels": torch.zeros(0, dtype=torch.int64)}
        ] * 2
