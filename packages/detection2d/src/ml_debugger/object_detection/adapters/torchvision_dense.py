"""One-stage detectors of torchvision: RetinaNet, FCOS, SSD and SSDlite."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from ml_debugger.core.detection.families import is_a
from ml_debugger.core.detection.precision import as_computed
from ml_debugger.object_detection.adapters.base import Calls, DetectionAdapter
from ml_debugger.object_detection.adapters.torchvision_rcnn import (
    images_of,
    nms_of,
    resized,
    seen_by_torchvision,
    set_nms,
    sizes_of,
)
from ml_debugger.object_detection.output import HeadRows, ImageOutput, NMSConfig
from ml_debugger.object_detection.pooling import pick_cells

_CLASSIFIER = "head.classification_head"


class _TorchvisionDense(DetectionAdapter):
    """What torchvision's one-stage detectors share: a head that looks at maps of several levels.

    Rows are in the order of the model: level by level, cell by cell, anchor by anchor. The
    feature vector of a row is what the head's last classification convolution reads at the row's
    cell; the anchors of a cell share it.
    """

    _name: ClassVar[str]  # of the model's class, with its module

    @override
    def detect(self, model: nn.Module) -> bool:
        return is_a(model, self._name)

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        return {"model": "", "head": "head", "anchors": "anchor_generator"}

    @override
    def parse(
        self, model: nn.Module, output: Any, calls: Calls, config: NMSConfig
    ) -> list[ImageOutput]:
        seen = seen_by_torchvision(output)
        sizes = sizes_of(calls["model"][-1])
        said = calls["head"][-1].output
        (batch, grids), anchors = calls["anchors"][-1].args, calls["anchors"][-1].output
        generator: Any = model.anchor_generator
        a_cell = generator.num_anchors_per_location()
        rows = [n * grid.shape[-2:].numel() for n, grid in zip(a_cell, grids, strict=True)]
        maps = self._maps(model, calls)
        logits = said["cls_logits"]
        with as_computed(model, logits):
            scores = self._scores(said, rows)
            return [
                ImageOutput(
                    one,
                    HeadRows(
                        scores[i].float(),
                        resized(
                            self._decode(model, said["bbox_regression"][i], anchors[i]),
                            batch.image_sizes[i],
                            sizes[i],
                        ).float(),
                        logits[i],
                        _features([level[i] for level in maps], a_cell),
                    ),
                    sizes[i],
                )
                for i, one in enumerate(seen)
            ]

    @override
    def nms(self, model: nn.Module) -> NMSConfig:
        return nms_of(model)

    @override
    def apply_nms(self, model: nn.Module, config: NMSConfig) -> None:
        set_nms(model, config)

    @override
    def images(self, model_input: Any) -> int | None:
        return images_of(model_input)

    @abstractmethod
    def _maps(self, model: nn.Module, calls: Calls) -> list[Tensor]:
        """Return the maps (N, channel, height, width) of each level that features come from."""

    @abstractmethod
    def _scores(self, said: Mapping[str, Tensor], rows: Sequence[int]) -> Sequence[Tensor]:
        """Return the scores (r, K) of each image, given the number of rows of each level."""

    def _decode(self, model: Any, codes: Tensor, anchors: Tensor) -> Tensor:
        decoded: Tensor = model.box_coder.decode_single(codes, anchors)
        return decoded


class _TorchvisionTower(_TorchvisionDense):
    """RetinaNet and FCOS: one tower of convolutions, which looks at each level in turn."""

    @override
    def n_class(self, model: nn.Module) -> int:
        return int(model.head.classification_head.num_classes)  # type: ignore[union-attr,arg-type]

    @override
    def layers(self, model: nn.Module) -> dict[str, str]:
        return {"cls": f"{_CLASSIFIER}.conv"}

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        return super().taps(model) | self.layers(model)

    @override
    def _maps(self, model: nn.Module, calls: Calls) -> list[Tensor]:
        return [call.output for call in calls["cls"]]


class TorchvisionRetinaNet(_TorchvisionTower):
    """RetinaNet: a row is an anchor, and may give a box for each of several labels."""

    family = "torchvision RetinaNet"
    _name = "torchvision.models.detection.retinanet.RetinaNet"

    @override
    def _scores(self, said: Mapping[str, Tensor], rows: Sequence[int]) -> Sequence[Tensor]:
        return _by_level(torch.sigmoid, rows, said["cls_logits"])


class TorchvisionFCOS(_TorchvisionTower):
    """FCOS: a row is a cell of a level's grid, and may give a box for each of several labels.

    Its scores come from the class vector and how central the cell finds itself in its object:
    score = sqrt(sigmoid(logit) * sigmoid(centreness)).
    """

    family = "torchvision FCOS"
    _name = "torchvision.models.detection.fcos.FCOS"

    @override
    def _scores(self, said: Mapping[str, Tensor], rows: Sequence[int]) -> Sequence[Tensor]:
        return _by_level(
            lambda logits, centreness: torch.sqrt(logits.sigmoid() * centreness.sigmoid()),
            rows,
            said["cls_logits"],
            said["bbox_ctrness"],
        )

    @override
    def _decode(self, model: Any, codes: Tensor, anchors: Tensor) -> Tensor:
        decoded: Tensor = model.box_coder.decode(codes, anchors)
        return decoded


class TorchvisionSSD(_TorchvisionDense):
    """SSD and SSDlite: a row is an anchor, and may give a box for each of several labels.

    Each level has a classification head of its own, and maps of a width of its own: 256 to 1024
    channels in SSD300, 128 to 672 in SSDlite320. Feature vectors have the width of the widest, and
    those of narrower levels end in zeros. The levels share no channels, so vectors of different
    levels lie apart whatever they show; distances mean something within a level.
    """

    family = "torchvision SSD"
    background = 0
    _name = "torchvision.models.detection.ssd.SSD"

    @override
    def n_class(self, model: nn.Module) -> int:
        return int(model.head.classification_head.num_columns)  # type: ignore[union-attr,arg-type]

    @override
    def layers(self, model: nn.Module) -> dict[str, str]:
        return {"cls": f"{_CLASSIFIER}.module_list"}

    @override
    def taps(self, model: nn.Module) -> dict[str, str]:
        levels: Any = model.get_submodule(f"{_CLASSIFIER}.module_list")
        last = {
            f"level{i}": f"{_CLASSIFIER}.module_list.{i}" + _last_of(level)
            for i, level in enumerate(levels)
        }
        return super().taps(model) | last

    @override
    def _maps(self, model: nn.Module, calls: Calls) -> list[Tensor]:
        levels: Any = model.get_submodule(f"{_CLASSIFIER}.module_list")
        return [calls[f"level{i}"][-1].args[0] for i in range(len(levels))]

    @override
    def _scores(self, said: Mapping[str, Tensor], rows: Sequence[int]) -> Sequence[Tensor]:
        scores = said["cls_logits"].softmax(-1)
        scores[..., self.background] = 0  # background is no label that a box could have
        return scores.unbind()


def _last_of(level: nn.Module) -> str:
    """Return the path from a level's head to its last convolution; in SSDlite it has two."""
    return f".{len(level) - 1}" if isinstance(level, nn.Sequential) else ""


def _by_level(
    score: Callable[..., Tensor], rows: Sequence[int], *values: Tensor
) -> Sequence[Tensor]:
    """Score each level of each image by itself, as the model does.

    On a CPU the last few numbers of a tensor, too few for a vector instruction, are computed by
    other code than the rest, so the last bit of a score depends on where its tensor ends.
    """
    return [
        torch.cat(
            [score(*level) for level in zip(*(v.split(list(rows)) for v in image), strict=True)]
        )
        for image in zip(*values, strict=True)
    ]


def _features(
    maps: Sequence[Tensor], a_cell: Sequence[int]
) -> Callable[[Tensor], Mapping[str, Tensor]]:
    return lambda rows: {"cls": pick_cells(maps, rows, a_cell)}
