"""From a classifier's output and labels to units: one an image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ml_debugger.classification.schema import SCHEMA
from ml_debugger.core.capture import Activations
from ml_debugger.core.errors import InputError, UnsupportedModelError
from ml_debugger.core.records import Units
from ml_debugger.core.tracer import Tracer


class ClassificationTorchTracer(Tracer):
    """How a classifier is recorded; shared by every purpose."""

    schema = SCHEMA

    @override
    def parse_output(self, output: Any, activations: Activations) -> Units[Tensor]:
        logits = logits_of(output)
        features = {
            f"feature.{alias}": _matrix(activations[alias], alias, len(logits))
            for alias in activations
        }
        # the softmax of half precision logits is taken in float32
        score, prediction = logits.float().softmax(1).amax(1), logits.argmax(1)
        finite = _finite(logits)
        for values in features.values():
            finite &= _finite(values)
        return Units(
            {
                "prediction": prediction.int(),
                "score": score,
                "finite": finite,
                "logits": logits,
                **features,
            }
        )

    @override
    def parse_ground_truth(self, ground_truth: Any, inputs: int | None) -> Units[Tensor]:
        labels = _labels(ground_truth)
        if labels.ndim != 1:
            raise InputError(
                f"ground_truth must be one class number an input, got shape "
                f"{tuple(labels.shape)}; "
                + (
                    "pass labels[:, 0]"
                    if labels.ndim == 2 and labels.shape[1] == 1
                    else "for one-hot or soft labels pass their argmax"
                )
            )
        if inputs is not None and len(labels) != inputs:
            raise InputError(f"{len(labels)} labels for {inputs} inputs; give one an input")
        return Units({"label": labels.long()})


def logits_of(output: Any) -> Tensor:
    """Find the logits in what a classifier returned.

    Args:
        output: A tensor, a sequence that begins with one, or a mapping or an object with
            `logits`. A single logit an input, shape (n,) or (n, 1), is that of the second of two
            classes, as for binary cross-entropy with logits.

    Returns:
        Shape (n, class), detached.

    Raises:
        UnsupportedModelError: There are none.
    """
    found = output
    if isinstance(found, Mapping):
        found = found.get("logits")
    elif not isinstance(found, Tensor) and hasattr(found, "logits"):
        found = found.logits
    elif isinstance(found, Sequence) and not isinstance(found, str) and found:
        found = found[0]
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise UnsupportedModelError(
            f"the model returned {type(output).__name__}, in which there are no logits; expected "
            "a float tensor, a tuple that begins with one, or a mapping or an object with "
            "'logits'. For anything else override _parse_and_save_io_data"
        )
    found = found.detach()
    if found.ndim == 1:
        found = found[:, None]
    if found.ndim != 2:
        raise UnsupportedModelError(
            f"logits must have shape (n, class), got {tuple(found.shape)}; a dense prediction "
            "needs a task of its own"
        )
    return torch.cat([torch.zeros_like(found), found], 1) if found.shape[1] == 1 else found


def _finite(values: Tensor) -> Tensor:
    # 0 x is NaN where x is NaN or infinite, and costs a third of isfinite().all()
    return (values * 0).sum(1) == 0


def _matrix(features: Tensor, alias: str, inputs: int) -> Tensor:
    if features.ndim == 0 or len(features) != inputs:
        raise UnsupportedModelError(
            f"layer {alias!r} gave shape {tuple(features.shape)} for {inputs} inputs; its first "
            "dimension must be the batch. Choose another layer, or a reducer"
        )
    if features.ndim != 2:
        features = features.reshape(len(features), -1)
    return features if features.is_floating_point() else features.float()


def _labels(ground_truth: Any) -> Tensor:
    if isinstance(ground_truth, Tensor):
        labels = ground_truth.detach()
    else:
        try:
            given = np.atleast_1d(np.asarray(ground_truth))
        except (TypeError, ValueError) as error:  # rows of different lengths, or a CUDA tensor
            raise InputError(
                f"ground_truth must be class numbers, got {type(ground_truth).__name__}: {error}"
            ) from None
        if given.dtype.kind not in "biufc":
            raise InputError(
                f"ground_truth must be class numbers, got {given.dtype} "
                f"{given.ravel()[:4].tolist()}; number your classes from 0 (option class_names "
                "gives them names), and use -1 for none of them"
            )
        labels = torch.from_numpy(given)
    if labels.ndim == 0:
        labels = labels[None]
    if labels.is_complex():
        raise InputError("ground_truth must be class numbers, got complex numbers")
    if labels.is_floating_point() and labels.ndim == 1:
        # compared in double: only there is the range of whole numbers exact
        whole = labels.device.type == "cpu" and bool(
            ((labels.double() == labels.double().floor()) & (labels.double().abs() < 2**53)).all()
        )
        if not whole:
            raise InputError(
                f"ground_truth must be whole class numbers, got {labels.dtype} "
                f"{labels[:4].tolist()}; pass integers"
            )
        labels = labels.long()
    if labels.dtype is torch.uint64:
        raise InputError("ground_truth must be class numbers that fit int64, got uint64")
    return labels
