"""What MMDetection3D's detectors can be called with under a tracer.

- What says its `mode`: as it is.
- What has been preprocessed (`inputs` with `voxels` or `imgs`): in the mode "predict".
- What a loader gives: `inputs` and `data_samples`. As `model.test_step` does.
- `points` and `img`, with `img_metas` (a dict of metainfo a frame) or `data_samples`.
- Point clouds: one (n, c), a list of them, or a batch (frames, n, c).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ml_debugger.core.errors import InputError
from ml_debugger.object_detection_3d.frames import Frame


def arguments(model: Any, model_input: Any, frame: Frame) -> Mapping[str, Any]:
    """Return what a detector's `forward` is to be called with.

    Args:
        model: The detector, below any wrapper.
        model_input: What the tracer was called with; it is not changed.
        frame: Where the detector's boxes are.

    Raises:
        InputError: The detector cannot be called with it.
    """
    named = isinstance(model_input, Mapping)
    if named and "mode" in model_input:
        return model_input  # type: ignore[no-any-return]
    given = model_input if named else {"points": model_input}
    inputs = given.get("inputs", given)
    if isinstance(inputs, Mapping) and ("voxels" in inputs or "imgs" in inputs):
        return {**given, "mode": "predict"}
    batch = _inputs(model, inputs, frame)
    samples = _samples(given, len(next(iter(batch.values()))), frame)
    data = {"inputs": batch, "data_samples": samples}
    return {**model.data_preprocessor(data, False), "mode": "predict"}


def _inputs(model: Any, given: Any, frame: Frame) -> dict[str, Any]:
    """Return clouds and images, a list of each, or a batch of images."""
    if not isinstance(given, Mapping):
        given = {"points": given}
    found: dict[str, Any] = {}
    if given.get("points") is not None:
        found["points"] = _clouds(given["points"])
    if given.get("img") is not None:
        image = given["img"]
        found["img"] = [image] if isinstance(image, Tensor) and image.ndim == 3 else image
    needed = "img" if frame == "camera" else "points"
    if needed not in found:
        wanted = "images: {'img': [...], 'img_metas': [{'cam2img': ..., ...}]}"
        raise InputError(
            f"{type(model).__name__} was given {sorted(given) or 'nothing'}, but needs "
            f"{wanted if frame == 'camera' else 'point clouds'}; or call the tracer with what the "
            "model's data loader gives: {'inputs': ..., 'data_samples': ...}"
        )
    if not len(found[needed]):
        raise InputError("the batch is empty; give it a frame")
    if len({len(values) for values in found.values()}) != 1:
        counts = ", ".join(f"{len(values)} {name}" for name, values in found.items())
        raise InputError(f"a batch has {counts}; give each frame one of each")
    return found


def _clouds(given: Any) -> list[Tensor]:
    several = given.ndim > 2 if isinstance(given, Tensor) else isinstance(given, Sequence)
    clouds = list(given) if several else [given]
    for one in clouds:
        if not isinstance(one, Tensor) or one.ndim != 2 or one.shape[1] < 3:
            what = f"shape {tuple(one.shape)}" if isinstance(one, Tensor) else type(one).__name__
            raise InputError(
                f"a point cloud is a tensor (n, c) of x, y, z and more, not {what}; give one, a "
                "list of them, or what the model's data loader gives"
            )
    return clouds


def _samples(given: Mapping[str, Any], frames: int, frame: Frame) -> list[Any]:
    """Return what is known of each frame: the samples given, or those made of `img_metas`."""
    from mmdet3d.structures import Det3DDataSample, get_box_type

    samples = given.get("data_samples")
    if samples is None:
        kind, mode = get_box_type("Camera" if frame == "camera" else "LiDAR")
        known = {"box_type_3d": kind, "box_mode_3d": mode}
        metas = given.get("img_metas")
        metas = [{}] * frames if metas is None else metas
        samples = [Det3DDataSample(metainfo={**known, **one}) for one in metas]
    if len(samples) != frames:
        raise InputError(
            f"{len(samples)} data samples or img_metas for {frames} frames; give each frame one"
        )
    return list(samples)
