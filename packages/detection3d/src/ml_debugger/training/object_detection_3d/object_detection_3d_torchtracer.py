"""Tracing a 3D object detector, under its documented path."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from torch import nn

from ml_debugger.object_detection_3d.tracer import ObjectDetection3DTorchTracer
from ml_debugger.training.tracer import TrainingTracer


class ObjectDetection3DTrainingTorchTracer(TrainingTracer, ObjectDetection3DTorchTracer):
    """Records a 3D detector's calls with the true boxes.

    Example:
        `tracer = ObjectDetection3DTracer(model, "centerpoint", "v1")`, then
        `boxes = tracer(clouds, truths, input_ids=ids, dataset_type="val", n_epoch=3)` in place
        of `boxes = model(clouds)`.
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
        max_detections_per_frame: int | None = None,
        pc_range: Sequence[float] | None = None,
        ground_truth_provider: Any | None = None,
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
            iou_thresh: Boxes of a class that overlap by more than this IoU, seen from above, are
                one; None leaves the model's own.
            max_detections_per_frame: Most boxes a frame; None leaves the model's own.
            pc_range: x_min, y_min, z_min, x_max, y_max, z_max of the part of the cloud that is
                looked at, in metres, where the boxes are. A true box whose centre is outside is
                ignored: it is neither missed nor found. Predicted boxes are recorded anywhere.
            ground_truth_provider: Gives the ground truth of calls that have None: an object with
                `get(input_id)`, a dict by ids, or a callable. Ids are asked for as text.
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
            max_detections_per_frame=max_detections_per_frame,
        )
        self.look(pc_range, ground_truth_provider)
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
