"""Ground truth from the formats in use, in one form."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_debugger.core.errors import InputError
from ml_debugger.core.given import keys_of
from ml_debugger.object_detection.ground_truth import (
    coco,
    dicts,
    huggingface,
    openmmlab,
    plain,
    ultralytics,
)
from ml_debugger.object_detection.ground_truth.truth import Frame, Truth, of_image

__all__ = ["Frame", "Truth", "read_ground_truth"]


class _Format(NamedTuple):
    fits: Callable[[Sequence[Any]], bool]
    read: Callable[[Any, Frame], Truth]


def _as_given(read: Callable[[Any], Truth]) -> Callable[[Any, Frame], Truth]:
    """Make a reader of a format that knows no second frame."""
    return lambda one, frame: read(one)


#: Formats with an entry for each image. The first that fits is taken: telling keys come first.
_FORMATS = (
    _Format(huggingface.fits, huggingface.read),
    _Format(dicts.fits, _as_given(dicts.read)),
    _Format(openmmlab.fits, openmmlab.read),
    _Format(plain.fits_detections, _as_given(plain.read_detections)),
    _Format(coco.fits, _as_given(coco.read)),
    _Format(plain.fits_pairs, _as_given(plain.read_pair)),
)

_EXPECTED = (
    "Pass a list with an entry for each image, such as {'boxes': [[x1, y1, x2, y2], ...], "
    "'labels': [...]} in pixels, a list of COCO annotations, or a pair (boxes, labels); or an "
    "Ultralytics batch"
)


def read_ground_truth(given: Any, images: int | None, *, frame: Frame = "original") -> list[Truth]:
    """Read the ground truth of a batch, whatever library it was made for.

    Formats are told apart by keys and attributes; no library is imported for it.

    | entry of an image | boxes | frames |
    |---|---|---|
    | torchvision: dict `boxes`, `labels` (`iscrowd`, `ignore`) | xyxy | as given |
    | torchmetrics: the same with `box_format` | xyxy, xywh, cxcywh | as given |
    | COCO: list of dicts `bbox`, `category_id` (`iscrowd`, `ignore`) | xywh | as given |
    | Hugging Face: dict `class_labels`, `boxes`, `orig_size`, `size` | normalised cxcywh | both |
    | OpenMMLab: `DetDataSample` (`ignored_instances`) | xyxy | both |
    | `supervision.Detections` | xyxy | as given |
    | pair (boxes, labels) | xyxy | as given |

    An Ultralytics batch is one dict for all images: `cls`, `batch_idx`, `bboxes` (normalised
    cxcywh), and `img` or the sizes. It has both frames if `ori_shape` and `ratio_pad` are there.

    Args:
        given: The ground truth. Tensors may be on any device and part of a graph. Labels, COCO's
            category ids too, stay as they are: number them as the model does. An image without
            objects has boxes [] or of shape (0,) or (0, 4), or an empty list of annotations.
        images: Number of images in the batch, or None where that is not known.
        frame: Of which image the pixels are, where a format has both frames. It must be the frame
            of the model's boxes: the network's for a model that was given `img` of an Ultralytics
            batch, or `pixel_values`.

    Returns:
        One `Truth` an image, in their order.

    Raises:
        InputError: It is in no known format, or something in it is wrong.
    """
    if ultralytics.fits(given):
        found = ultralytics.read(given, frame)
    elif isinstance(given, (list, tuple)):
        read = next((one.read for one in _FORMATS if one.fits(given)), None)
        if read is None:
            raise InputError(_unknown(given))
        found = [_read(read, number, one, frame) for number, one in enumerate(given)]
    else:
        raise InputError(f"ground_truth is {_describe(given)}, not a list. {_hint(given)}")
    if images is not None and len(found) != images:
        raise InputError(
            f"ground truth of {len(found)} images for {images} images; give each image one entry, "
            "an empty one where there is nothing to find"
        )
    return found


def _read(read: Callable[[Any, Frame], Truth], number: int, one: Any, frame: Frame) -> Truth:
    with of_image(number):
        return read(one, frame)


def _unknown(given: Sequence[Any]) -> str:
    """Say what is wrong with a list that no format fits: with an entry, where one alone is."""
    first = next((one.fits for one in _FORMATS if one.fits(given[:1])), None)
    if first is None:
        return f"ground_truth is {_describe(given)}, no format known. {_hint(given)}"
    odd = next(at for at in range(1, len(given) + 1) if not first(given[: at + 1]))
    return (
        f"entry {odd} of ground_truth is {_describe(given[odd])}, which is not of the same format "
        f"as those before it, such as {_describe(given[0])}. Give every image one of the same "
        "form, an empty one where there is nothing to find"
    )


def _describe(given: Any) -> str:
    if isinstance(given, Mapping):
        return f"a {type(given).__name__} with the keys {keys_of(given)}"
    if isinstance(given, (list, tuple)) and given:
        return f"a {type(given).__name__} that begins with {_describe(given[0])}"
    return f"a {type(given).__name__}"


def _hint(given: Any) -> str:
    inner = given.get("labels") if isinstance(given, Mapping) else None
    if isinstance(inner, (list, tuple)) and any(isinstance(one, Mapping) for one in inner):
        return "Pass its 'labels': ground_truth=batch['labels']"
    if not isinstance(given, (list, tuple)) and any(one.fits([given]) for one in _FORMATS):
        return "For a batch of one image wrap it in a list: [ground_truth]"
    if isinstance(given, (list, tuple)) and ultralytics.fits(given[0]):
        return "Pass an Ultralytics batch itself, not in a list"
    if isinstance(given, (list, tuple)) and coco.fits([given]) and "bbox" in given[0]:
        return "For the annotations of one image wrap them in a list: [ground_truth]"
    return _EXPECTED
