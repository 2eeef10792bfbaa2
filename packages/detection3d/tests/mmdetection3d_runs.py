"""Small models of MMDetection3D as they run, and what their adapters read of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ml_debugger.core.capture import Capture
from ml_debugger.object_detection_3d.adapters import FAMILIES as KNOWN
from ml_debugger.object_detection_3d.adapters.base import DetectionAdapter
from ml_debugger.object_detection_3d.output import FrameOutput, HeadRows

from .mmdetection3d_models import FAMILIES, Family, built, configuration, raw

QUIET = [
    # of mmcv, mmdet and mmdet3d themselves, with a torch and a numpy that are newer than they
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:dir_offset and dir_limit_offset:UserWarning"),
    pytest.mark.filterwarnings("ignore:Unnecessary conv bias:UserWarning"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),
]

each_family = pytest.mark.parametrize("name", FAMILIES)


@torch.no_grad()
def spread(model: Any, family: Family) -> None:
    """Scale every layer to outputs of deviation 1: untrained, they all but vanish on the way."""
    done = set()
    small = [part for name, part in model.named_modules() if "reg" in name]

    def scale(layer: Any, args: Any, output: Tensor) -> Tensor | None:
        if layer in done or not output.std() > 0:
            return None
        done.add(layer)
        # boxes of a few metres, classes that differ
        deviation = output.std() * (4 if layer in small else 1)
        layer.weight /= deviation
        return output / deviation

    handles = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            if layer.bias is not None:
                layer.bias.zero_()
            handles.append(layer.register_forward_hook(scale))
    model.eval().test_step(raw(family, 1))
    for handle in handles:
        handle.remove()
    head: Any = getattr(model, "bbox_head", None)
    if type(head).__name__ == "SMOKEMono3DHead":  # which has no threshold to be set
        head.conv_cls.bias -= 2.2
    if type(head).__name__ == "PGDHead":  # whose scores are else above 1
        head.conv_weights[0].bias += 2


def smaller(name: str) -> Any:
    """Build a model of the family's name; the same each time, in evaluation mode."""
    family = FAMILIES[name]
    model = built(configuration(family.config, family.changes))
    model.load_state_dict(_weights(name))
    return model.eval()


@cache
def _weights(name: str) -> dict[str, Tensor]:
    family = FAMILIES[name]
    torch.manual_seed(0)
    model = built(configuration(family.config, family.changes))
    spread(model, family)
    found: dict[str, Tensor] = model.state_dict()
    return found


class Run(NamedTuple):
    """A model, what it returns to its user, and what its adapter read in another pass."""

    model: Any
    adapter: DetectionAdapter
    bare: Any
    output: Any
    calls: Mapping[str, Any]
    frames: list[FrameOutput]


@cache
def traced(name: str) -> Run:
    model = smaller(name)
    adapter = KNOWN.of(model)
    assert adapter is not None
    bare = predicted(model, name)
    return Run(model, adapter, bare, *read(model, adapter, name))


def predicted(model: Any, name: str) -> Any:
    with torch.no_grad():
        return model.test_step(raw(FAMILIES[name]))


def read(model: Any, adapter: DetectionAdapter, name: str) -> tuple[Any, Any, list[FrameOutput]]:
    """Run a model with the adapter's taps on, and read it."""
    with Capture(model, {}, adapter.taps(model)) as capture, capture.recording() as noted:
        output = model.test_step(raw(FAMILIES[name]))
    return output, noted.taps, adapter.parse(model, output, noted.taps, adapter.nms(model))


def tensors(output: Any) -> list[Tensor]:
    found = [one.pred_instances_3d for one in output]
    return [x for one in found for x in (one.bboxes_3d.tensor, one.scores_3d, one.labels_3d)]


def assert_same(one: Any, other: Any) -> None:
    for mine, theirs in zip(tensors(one), tensors(other), strict=True):
        assert torch.equal(mine, theirs)


def rows_of(frame: FrameOutput) -> HeadRows:
    assert frame.rows is not None
    return frame.rows


def head_of(model: Any) -> Any:
    return getattr(model, "pts_bbox_head", None) or model.bbox_head


@contextmanager
def hooked(*parts: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Note what goes into and comes out of some modules, without the adapter."""
    noted: list[tuple[Tensor, Tensor]] = []
    handles = [
        part.register_forward_hook(lambda _, given, gave: noted.append((given[0], gave)))
        for part in parts
    ]
    yield noted
    for handle in handles:
        handle.remove()


def class_layers(model: Any) -> list[nn.Module]:
    """Return the last layers of the class branches, without the adapter."""
    head = head_of(model)
    if hasattr(head, "task_heads"):
        return [task.heatmap for task in head.task_heads]
    return [one.conv_cls for one in head.heads] if hasattr(head, "heads") else [head.conv_cls]
