"""From what a detector said of a batch to columns of units: one a visible box."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from ml_debugger.core.errors import UnsupportedModelError
from ml_debugger.core.records import Units


@dataclass(frozen=True, slots=True)
class BoxOutput:
    """The boxes of one input, as they are recorded.

    Attributes:
        boxes: Shape (n, d), float32.
        scores: In [0, 1], shape (n,), float32.
        labels: Classes as the model numbers them, shape (n,), int64.
        logits: Class vector of the head's row that made each box, shape (n, C), or None.
        features: Feature vectors of each box by alias, shape (n, d).
        statistics: The task's statistics of each box, shape (n, s); None where they are still to be
            taken.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    logits: Tensor | None = None
    features: Mapping[str, Tensor] | None = None
    statistics: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)


Output = TypeVar("Output", bound=BoxOutput)


def checked(
    outputs: object,
    kind: type[Output],
    columns: Sequence[str],
    optional: Sequence[str] = (),
    *,
    statistics: int,
) -> list[Output]:
    """Return the outputs of a batch, if that is what they are.

    Inputs without boxes are given the vectors that the others have, in no rows.

    Args:
        outputs: What `_parse_model_output` returned.
        kind: What it has to be a sequence of.
        columns: What makes a box, d of them.
        optional: What boxes may have beside these, all of it or nothing.
        statistics: How many the task has of a box.

    Raises:
        UnsupportedModelError: They are something else, or do not fit together.
    """
    if isinstance(outputs, kind):
        return [outputs]
    if not isinstance(outputs, Sequence) or not all(isinstance(one, kind) for one in outputs):
        raise UnsupportedModelError(
            f"_parse_model_output must return one {kind.__name__} an input, got "
            f"{type(outputs).__name__}"
            + (
                f" of {type(outputs[0]).__name__}"
                if isinstance(outputs, Sequence) and outputs
                else ""
            )
        )
    widths = {len(columns): None, len(columns) + len(optional): None}
    for number, one in enumerate(outputs):
        for name in ("boxes", "scores", "labels"):
            if not isinstance(getattr(one, name), Tensor):
                raise UnsupportedModelError(
                    f"{name} of {kind.__name__} of input {number} is of type "
                    f"{type(getattr(one, name)).__name__}; expected a tensor"
                )
        if one.statistics is not None and one.statistics.shape[1:] != (statistics,):
            raise UnsupportedModelError(
                f"statistics of {kind.__name__} of input {number} have shape "
                f"{tuple(one.statistics.shape)}; expected (n, {statistics}), or None to have "
                "them taken"
            )
        given = {each.name: getattr(one, each.name) for each in fields(one)} | _vectors(one)
        lengths = {name: len(each) for name, each in given.items() if isinstance(each, Tensor)}
        if len(set(lengths.values())) > 1 or one.boxes.shape[1:] not in [(n,) for n in widths]:
            expected = " or ".join(f"(n, {width})" for width in widths)
            raise UnsupportedModelError(
                f"{kind.__name__} of input {number} does not fit together: {lengths}, boxes "
                f"{tuple(one.boxes.shape)}; expected one of each for every box, boxes {expected}"
            )
    return _alike(outputs)


def _alike(outputs: Sequence[Output]) -> list[Output]:
    some = [number for number, one in enumerate(outputs) if len(one)]
    if not some:
        return list(outputs)
    first = outputs[some[0]]
    vectors = _vectors(first)
    for number in some:
        if (found := _vectors(outputs[number])).keys() != vectors.keys():
            raise UnsupportedModelError(
                f"{type(first).__name__} of input {number} has {_listed(found)}, but that of input "
                f"{some[0]} has {_listed(vectors)}; expected the same of every input with boxes"
            )
    logits = None if first.logits is None else first.logits[:0]
    numbers = None if first.statistics is None else first.statistics[:0]
    features = {alias: values[:0] for alias, values in (first.features or {}).items()}
    return [
        one if len(one) else replace(one, logits=logits, statistics=numbers, features=features)
        for one in outputs
    ]


def _vectors(one: BoxOutput) -> dict[str, Tensor]:
    found = {"logits": one.logits, "statistics": one.statistics}
    found |= {f"feature {alias!r}": values for alias, values in (one.features or {}).items()}
    return {name: values for name, values in found.items() if values is not None}


def _listed(vectors: Mapping[str, Tensor]) -> str:
    return " and ".join(vectors) or "no vectors"


def predicted_units(
    outputs: Sequence[BoxOutput],
    boxes: Mapping[str, Tensor],
    features: Mapping[str, Sequence[Tensor]],
    inputs: Mapping[str, Tensor | Sequence[str]],
) -> Units[Tensor]:
    """Put the boxes of a batch below each other.

    Args:
        outputs: What was said of each input.
        boxes: What a task records of boxes, all n of the batch, shape (n,) by column.
        features: For each layer, the feature vectors of each input's boxes.
        inputs: What a task records of inputs, shape (inputs,) by column.
    """
    if not outputs:
        return Units({}, torch.zeros(0, dtype=torch.int32))
    columns: dict[str, Tensor] = {
        "prediction": torch.cat([one.labels for one in outputs]).int(),
        "score": torch.cat([one.scores for one in outputs]).float(),
        **boxes,
    }
    finite = torch.isfinite(columns["score"])
    for values in boxes.values():
        finite &= torch.isfinite(values)
    vectors = {f"feature.{alias}": _stacked(parts) for alias, parts in features.items()}
    logits = [one.logits for one in outputs if one.logits is not None]
    if len(logits) == len(outputs):
        vectors["logits"] = _stacked(logits)
    for values in vectors.values():
        finite &= (values * 0).sum(1) == 0
    statistics = [one.statistics for one in outputs if one.statistics is not None]
    if len(statistics) == len(outputs):
        vectors["statistics"] = _stacked(statistics).float()
    counts = torch.tensor([len(one) for one in outputs], dtype=torch.int32)
    return Units({**columns, **vectors, "finite": finite}, counts, inputs)


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Put matrices below each other; those without a row may be of any width."""
    some = [one for one in parts if len(one)]
    return torch.cat(some) if some else parts[0]
