"""Data samples of MMDetection3D, and the dicts that its data sets keep for evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_debugger.core.errors import InputError
from ml_debugger.core.given import as_tensor
from ml_debugger.object_detection_3d.ground_truth.truth import Truth, rows_of, truth_of

_NAMES = ("gt_bboxes_3d", "gt_labels_3d")


def fits(frames: Sequence[Any]) -> bool:
    """Tell whether these are data samples, or dicts as `eval_ann_info` is one."""
    return any(
        type(one).__name__ == "Det3DDataSample"
        or getattr(one, "gt_instances_3d", None) is not None
        or (isinstance(one, Mapping) and not set(_NAMES).isdisjoint(one))
        for one in frames
    )


def read(one: Any) -> Truth:
    """Read one frame: `gt_instances_3d` of a sample, or else its `eval_ann_info`, or such a dict.

    Pipelines for training pack instances, those for testing leave the dict of the data set.
    Objects of label -1, which are of no class that the data set was made with, are left out.
    """
    boxes, labels, info = _parts(one)
    numbers = as_tensor(labels, "labels")
    known = numbers >= 0
    rows, frame = rows_of(boxes)
    if numbers.shape != (len(rows),):
        raise InputError(
            f"{len(rows)} boxes but labels of shape {tuple(numbers.shape)}; give each box one label"
        )
    points = info.get("num_lidar_pts")
    if points is not None:
        points = as_tensor(points, "num_lidar_pts")
        points = points[known] if points.shape == known.shape else None
    return truth_of(rows[known], numbers[known], num_points=points, frame=frame)


def _parts(one: Any) -> tuple[Any, Any, Mapping[str, Any]]:
    instances = getattr(one, "gt_instances_3d", None)
    if instances is not None and "bboxes_3d" in instances and "labels_3d" in instances:
        return instances.bboxes_3d, instances.labels_3d, {}
    info = one if isinstance(one, Mapping) else getattr(one, "eval_ann_info", None)
    if not isinstance(info, Mapping) or not set(_NAMES) <= set(info):
        raise InputError(
            f"{type(one).__name__} has no ground truth; expected bboxes_3d and labels_3d in "
            "gt_instances_3d, or gt_bboxes_3d and gt_labels_3d in eval_ann_info. Add "
            "LoadAnnotations3D to the pipeline and name both in Pack3DDetInputs, or test with a "
            "data set whose annotations are loaded"
        )
    return info["gt_bboxes_3d"], info["gt_labels_3d"], info
