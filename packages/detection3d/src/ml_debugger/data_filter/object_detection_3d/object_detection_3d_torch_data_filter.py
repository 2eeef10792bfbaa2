"""Picking data for a 3D object detector, under its documented path."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from torch import nn

from ml_debugger.core.aggregation import BBoxStrategy
from ml_debugger.core.query import FilterConfig
from ml_debugger.data_filter.common_object_detection_data_filter import (
    CommonObjectDetectionDataFilter,
)
from ml_debugger.object_detection_3d.tracer import ObjectDetection3DTorchTracer


class ObjectDetection3DTorchDataFilter(
    CommonObjectDetectionDataFilter, ObjectDetection3DTorchTracer
):
    """Runs a 3D detector on unlabelled frames and picks those worth labelling.

    Example:
        `data_filter = ObjectDetection3DDataFilter(model, "centerpoint", "v1", result_name=name)`,
        then `boxes, flags = data_filter(clouds, input_ids=ids)` for each batch, and
        `ids = data_filter.query(50, {"top_n": 3, "aggregation": "mean"})`.
    """

    def __init__(
        self,
        model: nn.Module,
        model_name: str,
        version_name: str,
        result_name: str | None = None,
        n_epoch: str | int | None = "latest",
        filter_config: BBoxStrategy | FilterConfig | dict[str, Any] | None = None,
        target_layers: Mapping[str, Any] | None = None,
        additional_fields: Sequence[Mapping[str, Any]] | None = None,
        auto_sync: bool = False,
        force_table_recreate: bool = False,
        api_endpoint: str | None = None,
        api_key: str | None = None,
        n_class: int | None = None,
        score_thresh: float | None = None,
        iou_thresh: float | None = None,
        max_detections_per_frame: int | None = None,
        *,
        home: str | PathLike[str] | None = None,
    ) -> None:
        """Attach to a model, and to an evaluation of it.

        Args:
            model: The model to run.
            model_name: As it was traced.
            version_name: As it was traced.
            result_name: An evaluation of this version; needed for whatever depends on error
                probability or zone.
            n_epoch: The epoch that records belong to; 'latest' is the result's, or else the one
                traced last.
            filter_config: What calls flag, as in `{"img_error_threshold": 0.5}`; None flags
                nothing.
            target_layers: Layers to record, by alias; None takes those of the result.
            additional_fields: Columns to add to every record.
            auto_sync: Upload in the background, when a service is configured.
            force_table_recreate: Drop this version's records first, traced ones included.
            api_endpoint: The service; `MLD_API_ENDPOINT` if None, and no service if neither.
            api_key: The service's key; `MLD_API_KEY` if None.
            n_class: The number of classes, background included where the model numbers it; None
                asks the model.
            score_thresh: Least score of a box, in [0, 1]; None leaves the model's own.
            iou_thresh: Boxes of a class that overlap by more than this IoU, seen from above, are
                one; None leaves the model's own.
            max_detections_per_frame: Most boxes a frame; None leaves the model's own.
            home: The local store's folder; `MLD_HOME` or `~/.ml_debugger` if None.

        Raises:
            InputError: An argument does not fit.
            StrategyError: (a ValueError) `filter_config` does not fit.
            ResultNotFoundError: No such result.
            ArchitectureMismatchError: The result belongs to another model.
        """
        self.configure(
            n_class,
            score_thresh=score_thresh,
            iou_thresh=iou_thresh,
            max_detections_per_frame=max_detections_per_frame,
        )
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
