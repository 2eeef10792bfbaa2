"""What the detectors of MMDetection3D have in common.

A model is read where it returns predictions: `model(inputs=..., data_samples=..., mode="predict")`
with what `model.data_preprocessor(data, False)` returned. `model.test_step(data)`, which a
`Runner` calls, and `inference_detector` come to the same, and so does the tracer with what
`mmdetection3d_input` lists. The modes "tensor" and "loss" return no boxes. A model puts its boxes
into the data samples that it was given: read its output before it is called with the same ones
again.

Models are known by their heads: those that left alone the methods that an adapter goes by.

Labels are 0 to K - 1. Boxes are as `pred_instances_3d.bboxes_3d.tensor` has them: centre of the
bottom, three sides, heading, and velocity where the model gives it.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from ml_debugger.core.detection.families import is_a
from ml_debugger.core.detection.precision import as_computed
from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.core.inputs import tensors_in
from ml_debugger.core.layers import unwrap
from ml_debugger.object_detection_3d.adapters.base import Calls, DetectionAdapter
from ml_debugger.object_detection_3d.adapters.mmdetection3d_input import arguments
from ml_debugger.object_detection_3d.adapters.mmdetection3d_ops import require_ops
from ml_debugger.object_detection_3d.clouds import count_frames
from ml_debugger.object_detection_3d.families import BOXES, convention_of
from ml_debugger.object_detection_3d.output import (
    Convention,
    Detections,
    FrameOutput,
    HeadRows,
    NMSConfig,
)

#: What feature vectors are called: those that the classification layer reads.
ALIAS = "class"

_DETECTORS = (
    "mmdet3d.models.detectors.base.Base3DDetector",
    "mmdet3d.models.detectors.single_stage_mono3d.SingleStageMono3DDetector",
)


class MMDetection3DBase(DetectionAdapter):
    """What MMDetection3D's detectors share.

    Settings are in the `test_cfg` of the head, which models that were built from one configuration
    share; nobody reads that of the model.
    """

    #: Classes of heads that this adapter can read.
    _heads: ClassVar[Sequence[str]]
    #: Which key of the head's `test_cfg` is what field of `NMSConfig`.
    _settings: ClassVar[Mapping[str, str]] = {}

    @override
    def detect(self, model: nn.Module) -> bool:
        return is_a(model, *_DETECTORS) and self._unlike(head_of(model)) == []

    @override
    def accept(self, model: nn.Module) -> None:
        require_ops(model)

    @override
    def refuse(self, model: nn.Module) -> None:
        if not is_a(model, *_DETECTORS):
            return
        require_ops(model)
        head = head_of(model)
        if unlike := self._unlike(head):
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot be read: its head ({type(head).__name__}) differs "
                f"from the {self._class(head)} that is known in {', '.join(unlike)}. Use what "
                "MMDetection3D has there, write a DetectionAdapter, or derive from this class and "
                "override detect, _get_n_class and _parse_model_output"
            )

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        return {"head": head_path(model)}

    @override
    def parse(
        self, model: nn.Module, output: Any, calls: Calls, config: NMSConfig
    ) -> list[FrameOutput]:
        frames = _predictions(output)
        said = min(tensors_in(calls["head"][-1].output), key=lambda one: one.dtype.itemsize)
        with torch.no_grad():
            with as_computed(model, said):
                rows = self._rows(head_of(model), calls, [one.metainfo for one in output])
            return [_read(*one) for one in zip(frames, rows, strict=True)]

    @override
    def nms(self, model: nn.Module) -> NMSConfig:
        settings = head_of(model).test_cfg
        return NMSConfig(**{name: settings.get(key) for key, name in self._settings.items()})

    @override
    def apply_nms(self, model: nn.Module, config: NMSConfig) -> None:
        wishes = self._changes(model, config)
        for key, name in self._settings.items():
            if name in wishes:
                head_of(model).test_cfg[key] = wishes[name]

    @override
    def shared(self, model: nn.Module) -> Sequence[tuple[Any, str]]:
        return [(head_of(model), "test_cfg")]

    @override
    def run(self, model: nn.Module, model_input: Any) -> Any:
        return model(**arguments(unwrap(model), model_input, self.frame))

    @override
    def images(self, model_input: Any) -> int | None:
        return count_frames(model_input)

    def _changes(self, model: nn.Module, config: NMSConfig) -> dict[str, Any]:
        """Return which settings are wished to be other than they are.

        Raises:
            UnsupportedModelError: The model has no such setting.
        """
        wishes = config.model_dump(exclude_none=True)
        has = self.nms(model).model_dump(exclude_none=True)
        for name in wishes.keys() - has.keys():
            raise UnsupportedModelError(
                f"{type(head_of(model)).__name__} has no setting that does what {name} says; leave "
                f"it None. It has {', '.join(has) or 'none'}{self._instead()}"
            )
        return {name: value for name, value in wishes.items() if value != has[name]}

    def _instead(self) -> str:
        """Return what to say of the settings that the head has of its own."""
        return "; others of its own are in its test_cfg"

    def _class(self, head: Any) -> str | None:
        """Return the class of heads that a head is read as, or None."""
        return next(
            (one.__name__ for one in type(head).__mro__ if one.__name__ in self._heads), None
        )

    def _unlike(self, head: Any) -> list[str] | None:
        """Return how a head differs from those that can be read; None if it is no such head."""
        owner = self._class(head)
        return None if owner is None else self._differences(head, owner)

    @abstractmethod
    def _differences(self, head: Any, owner: str) -> list[str]:
        """Return what a head does otherwise than the class that it is read as: names of methods."""

    @abstractmethod
    def _rows(self, head: Any, calls: Calls, metas: Sequence[Any]) -> list[HeadRows]:
        """Read what the head said of each frame, given what is known of the frames."""


def head_path(model: nn.Module) -> str:
    """Return where a detector has its head."""
    return "pts_bbox_head" if hasattr(model, "pts_bbox_head") else "bbox_head"


def head_of(model: nn.Module) -> Any:
    """Return a detector's head, or None."""
    return getattr(model, head_path(model), None)


def without_direction(head: Any) -> list[str]:
    """Return how a head without a classifier of directions differs from those that are read."""
    return [] if head.use_direction_classifier else ["use_direction_classifier, which is False"]


def flat(values: Tensor, width: int) -> Tensor:
    """Bring the map (channel, height, width) of a level to rows, as the heads themselves do."""
    return values.permute(1, 2, 0).reshape(-1, width)


def grid(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Return level, row and column of each cell of the levels' maps, shape (cells, 3), int64.

    Args:
        shapes: Height and width of each level's map.
        device: Where to make it.
    """
    found = []
    for level, (height, width) in enumerate(shapes):
        at = torch.arange(height * width, device=device)
        found.append(torch.stack([torch.full_like(at, level), at // width, at % width], 1))
    return torch.cat(found)


def features_at(maps: Sequence[Tensor], cells: Tensor) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return what takes the feature vectors of rows from the maps (channel, height, width).

    Args:
        maps: The map of each level.
        cells: Level, row and column of each row, shape (r, 3).
    """

    def take(rows: Tensor) -> dict[str, Tensor]:
        level, row, column = cells[rows].unbind(1)
        found = torch.empty((len(rows), len(maps[0])), device=cells.device)
        for number, one in enumerate(maps):
            here = level == number
            found[here] = one[:, row[here], column[here]].T.float()
        return {ALIAS: found}

    return take


def _predictions(output: Any) -> list[Any]:
    if not isinstance(output, list) or not all(
        is_a(one, "mmdet3d.structures.det3d_data_sample.Det3DDataSample")
        and "bboxes_3d" in one.get("pred_instances_3d", ())
        for one in output
    ):
        raise UnsupportedModelError(
            f"expected a list of Det3DDataSample with pred_instances_3d, got "
            f"{type(output).__name__}; call model.test_step(data), or the model with "
            "mode='predict'"
        )
    return [one.pred_instances_3d for one in output]


def _read(frame: Any, rows: HeadRows) -> FrameOutput:
    """Read the visible boxes of a frame."""
    boxes = frame.bboxes_3d.tensor.detach().float()
    seen = Detections(boxes, frame.scores_3d.detach().float(), frame.labels_3d.long())
    return FrameOutput(seen, rows, _convention(frame.bboxes_3d))


def _convention(boxes: Any) -> Convention:
    convention = convention_of(boxes)
    if convention is None:
        raise UnsupportedModelError(
            f"boxes of type {type(boxes).__name__} are not known; known are "
            f"{', '.join(name.rpartition('.')[2] for name in BOXES)}"
        )
    return convention
