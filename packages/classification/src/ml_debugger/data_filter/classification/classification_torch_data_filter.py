"""Picking data for a classifier, under its documented path."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from torch import nn

from ml_debugger.classification.tracer import ClassificationTorchTracer
from ml_debugger.core.query import FilterConfig
from ml_debugger.data_filter.common_data_filter import CommonDataFilter


class ClassificationTorchDataFilter(CommonDataFilter, ClassificationTorchTracer):
    """Runs a classifier on unlabelled data and picks what is worth labelling.

    Example:
        `data_filter = ClassificationDataFilter(model, "resnet18", "v1", result_name=name)`, then
        `logits, flags = data_filter(images, input_ids=ids)` for each batch, and
        `ids = data_filter.query(50, "high_error_proba")`.
    """

    def __init__(
        self,
        model: nn.Module,
        model_name: str,
        version_name: str,
        result_name: str | None = None,
        n_epoch: str | int | None = "latest",
        filter_config: FilterConfig | dict[str, Any] | None = None,
        target_layers: Mapping[str, Any] | None = None,
        additional_fields: Sequence[Mapping[str, Any]] | None = None,
        auto_sync: bool = False,
        force_table_recreate: bool = False,
        api_endpoint: str | None = None,
        api_key: str | None = None,
        *,
        home: str | PathLike[str] | None = None,
    ) -> None:
        """Attach to a model; see `ml_debugger.data_filter.CommonDataFilter`."""
        super().__init__(
            model,
            model_name,
            version_name,
            result_name,
            n_epoch,
            filter_config,
            target_layers,
            additional_fields,
            auto_sync,
            force_table_recreate,
            api_endpoint,
            api_key,
            home=home,
        )
