"""Tracing an object detector, under its documented path."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from torch import nn

from ml_debugger.object_detection.tracer import ObjectDetectionTorchTracer
from ml_debugger.training.tracer import TrainingTracer


class ObjectDetectionTrainingTorchTracer(TrainingTracer, ObjectDetectionTorchTracer):
    """Records a detector's calls with the true boxes.

    Example:
        `tracer = ObjectDetectionTracer(model, "faster_rcnn", "v1")`, then
        `boxes = tracer(images, targets, input_ids=ids, dataset_type="val", n_epoch=3)` in place
        of `boxes = model(images)`.
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
        n_class: int | None = None,
        score_thresh: float | None = None,
        iou_thresh: float | None = None,
        max_detections_per_image: int | None = None,
        *,
        home: str | PathLike[str] | None = None,
    ) -> None:
        """Attach to a model and open its records.

        Under `torch.distributed`, construct it on every rank: they agree on one run.

        Args:
            model: The model to trace, on any device.
            model_name: Stands for an architecture, which is recorded on first use.
            version_name: Stands for training conditions and data.
            target_layers: Layers to record, by alias; see `ml_debugger.core.layers`. None picks
                what the detector knows of each box, the input of its classifier.
            additional_fields: Columns to add to every record.
            additional_label_fields: Columns to add to the ground truth.
            auto_sync: Upload in the background, when a service is configured.
            force_table_recreate: Drop this version's records first.
            api_endpoint: The service; `MLD_API_ENDPOINT` if None, and no service if neither.
            api_key: The service's key; `MLD_API_KEY` if None.
            n_class: The number of classes, background included where the model numbers it; None
                asks the model.
            score_thresh: Least score of a box, in [0, 1]; None leaves the model's own.
            iou_thresh: Boxes of a class that overlap by more than this IoU are one; None leaves the
                model's own.
            max_detections_per_image: Most boxes an image; None leaves the model's own.
            home: The local store's folder; `MLD_HOME` or `~/.ml_debugger` if None.

        Raises:
            InputError: An argument does not fit.
            LayerNotFoundError: A layer's path leads nowhere.
            ArchitectureMismatchError: The model name belongs to another architecture.
            UnsupportedModelError: The model cannot be traced.
            StoreError: The store cannot be opened.
        """
        self.configure(
            n_class,
            score_thresh=score_thresh,
            iou_thresh=iou_thresh,
            max_detections_per_image=max_detections_per_image,
        )
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
