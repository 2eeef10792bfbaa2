"""Tracing a classifier, under its documented path."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from torch import nn

from ml_debugger.classification.tracer import ClassificationTorchTracer
from ml_debugger.training.tracer import TrainingTracer


class ClassificationTrainingTorchTracer(TrainingTracer, ClassificationTorchTracer):
    """Records a classifier's calls with their labels.

    Example:
        `tracer = ClassificationTracer(model, "resnet18", "v1")`, then
        `logits = tracer(images, labels, input_ids=ids, dataset_type="val", n_epoch=3)` in place
        of `logits = model(images)`.
    """

    def __init__(
        self,
        model: nn.Module,
        model_name: str,
        version_name: str,
        target_layers: Mapping[str, Any] | None = None,
        additional_fields: Sequence[Mapping[str, Any]] | None = None,
        additional_label_fields: Sequence[Mapping[str, Any]] | None = None,
        auto_sync: bool = False,
        force_table_recreate: bool = False,
        api_endpoint: str | None = None,
        api_key: str | None = None,
        *,
        home: str | PathLike[str] | None = None,
    ) -> None:
        """Attach to a model; see `ml_debugger.core.tracer.Tracer`."""
        super().__init__(
            model,
            model_name,
            version_name,
            target_layers,
            additional_fields,
            additional_label_fields,
            auto_sync,
            force_table_recreate,
            api_endpoint,
            api_key,
            home=home,
        )
