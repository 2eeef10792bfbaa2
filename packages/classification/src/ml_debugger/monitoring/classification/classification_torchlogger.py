"""Watching a classifier in use, under its documented path."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from torch import nn

from ml_debugger.classification.tracer import ClassificationTorchTracer
from ml_debugger.monitoring.logger import MonitoringLogger


class ClassificationTorchLogger(MonitoringLogger, ClassificationTorchTracer):
    """Records a deployed classifier's calls; with a result, how well it is probably doing.

    Example:
        `logger = ClassificationLogger(model, "resnet18", "v1", result_name=name)`, then
        `logits = logger(images)` in place of `logits = model(images)`.
    """

    def __init__(
        self,
        model: nn.Module,
        model_name: str,
        version_name: str,
        result_name: str | None = None,
        n_epoch: str | int | None = "latest",
        target_layers: Mapping[str, Any] | None = None,
        additional_fields: Sequence[Mapping[str, Any]] | None = None,
        auto_sync: bool = True,
        force_table_recreate: bool = False,
        api_endpoint: str | None = None,
        api_key: str | None = None,
        *,
        home: str | PathLike[str] | None = None,
    ) -> None:
        """Attach to a model; see `ml_debugger.core.inference.InferenceTracer`."""
        super().__init__(
            model,
            model_name,
            version_name,
            result_name,
            n_epoch,
            target_layers,
            additional_fields,
            auto_sync,
            force_table_recreate,
            api_endpoint,
            api_key,
            home=home,
        )
