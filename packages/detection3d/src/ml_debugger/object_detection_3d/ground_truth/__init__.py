"""Ground truth from the formats in use, in one form."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_debugger.core.errors import InputError
from ml_debugger.core.given import keys_of
from ml_debugger.object_detection_3d.ground_truth import kitti, nuscenes, openmmlab, plain
from ml_debugger.object_detection_3d.ground_truth.truth import Truth

__all__ = ["Truth", "read_ground_truth"]


class _Format(NamedTuple):
    fits: Callable[[Sequence[Any]], bool]
    read: Callable[[Any], Truth]


#: Formats with an entry for each frame. The first that fits is taken: telling keys come first.
_FORMATS = (
    _Format(kitti.fits, kitti.read),
    _Format(nuscenes.fits, nuscenes.read),
    _Format(openmmlab.fits, openmmlab.read),
    _Format(plain.fits_dicts, plain.read_dict),
    _Format(plain.fits_pairs, plain.read_pair),
)

_EXPECTED = (
    "Pass a list with an entry for each frame, such as {'boxes': [[x, y, z, dx, dy, dz, yaw], "
    "...], 'labels': [...]} or a pair (boxes, labels), with centres of gravity, in metres and "
    "radians; or MMDetection3D's data samples"
)


def read_ground_truth(given: Any, frames: int | None) -> list[Truth]:
    """Read the ground truth of a batch, whatever library it was made for.

    Formats are told apart by keys and attributes; no library is imported for it.

    | entry of a frame | frame of its boxes |
    |---|---|
    | pair (boxes, labels) | `lidar` |
    | dict `boxes`, `labels` (`ignored`, `num_points`, `frame`) | `frame`, or else `lidar` |
    | boxes of these two as MMDetection3D's box classes | that of the class |
    | `Det3DDataSample` (`gt_instances_3d`, `eval_ann_info`), or the latter | the same |
    | KITTI: dict `label`, `calibration`, `classes` | `lidar` |
    | the same with `frame` "camera", calibrated or not | `camera` |
    | nuScenes: dict `annotations`, `classes` | `global` |
    | the same with `ego_pose` and `calibrated_sensor` | `lidar`, or `camera` if that is one |

    Args:
        given: The ground truth. Tensors may be on any device and part of a graph. Boxes are in the
            form that `frames` defines, unless the format has its own. Labels are class numbers as
            the model has them. A frame without objects has boxes [] or of shape (0,) or (0, 7).
        frames: Number of frames in the batch, or None where that is not known.

    Returns:
        One `Truth` a frame, in their order.

    Raises:
        InputError: It is in no known format, or something in it is wrong. Boxes 16384 m from the
            origin or farther are refused: float32, in which they are recorded, is too coarse there.
    """
    if not isinstance(given, (list, tuple)):
        raise InputError(f"ground_truth is {_describe(given)}, not a list. {_hint(given)}")
    read = next((one.read for one in _FORMATS if one.fits(given)), None)
    if read is None:
        raise InputError(f"ground_truth is {_describe(given)}, no format known. {_hint(given)}")
    if frames is not None and len(given) != frames:
        raise InputError(
            f"ground truth of {len(given)} frames for {frames} frames; give each frame one entry, "
            "an empty one where there is nothing to find"
        )
    return [_read(read, number, one) for number, one in enumerate(given)]


def _read(read: Callable[[Any], Truth], number: int, one: Any) -> Truth:
    try:
        return read(one)
    except InputError as error:
        raise InputError(f"ground truth of frame {number}: {error}") from None


def _describe(given: Any) -> str:
    if isinstance(given, Mapping):
        return f"a {type(given).__name__} with the keys {keys_of(given)}"
    if isinstance(given, (list, tuple)) and given:
        return f"a {type(given).__name__} that begins with {_describe(given[0])}"
    return f"a {type(given).__name__}"


def _hint(given: Any) -> str:
    if isinstance(given, Mapping) and "data_samples" in given:
        return "Pass its 'data_samples': ground_truth=batch['data_samples']"
    if not isinstance(given, (list, tuple)) and any(one.fits([given]) for one in _FORMATS):
        return "For a batch of one frame wrap it in a list: [ground_truth]"
    return _EXPECTED
