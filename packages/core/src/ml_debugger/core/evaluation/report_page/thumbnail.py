"""Small pictures of inputs, as PNG data URIs.

Pictures come from users in many shapes. One that cannot be read must not cost them the report,
so every failure here ends in "no picture", with the reason.
"""

import base64
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.report_page.section import View

SIZE = 96
_LARGEST = 100_000_000
_KEYS = ("image", "img", "pixel_values")
_ON_ITS_SIDE = (5, 6, 7, 8)  # values of EXIF's orientation, whose tag this is:
_ORIENTATION = 0x0112

#: Left, upper, right and lower edge, in pixels.
Window = tuple[float, float, float, float]
#: Width and height, in pixels.
Extent = tuple[float, float]
#: A picture of another shape is one whose width by height differs by more than this share.
_UNLIKE = 0.03


class Thumbnails:
    """Gives the picture of an input by its id.

    Attributes:
        problem: Why the first picture that could not be shown was not; None so far.
        failed: How many could not be shown.
    """

    def __init__(self, images: Any, size: int = SIZE) -> None:
        """Take where pictures come from: a mapping, a callable or a data set, by id; or None.

        Raises:
            InputError: None of these.
        """
        self._get = _source(images)
        self._size = size
        self.problem: str | None = None
        self.failed = 0

    def __bool__(self) -> bool:
        return self._get is not None

    def __getitem__(self, input_id: str) -> str | None:
        view = self.view(input_id, self._size)
        return None if view is None else view.uri

    def view(
        self,
        input_id: str,
        size: int,
        window: Window | None = None,
        extent: Extent | None = None,
    ) -> View | None:
        """Return the picture of an input, or a part of it; None where it cannot be shown.

        Args:
            input_id: Whose.
            size: Of the square that it fits, in pixels; a larger one is made smaller.
            window: The part to show; what lies outside the picture is left away.
            extent: Width and height of the picture in the pixels that the window and the view are
                in, where that is another size than it is stored in.
        """
        if self._get is None:
            return None
        try:
            return picture_view(self._get(input_id), size, window, extent)
        except Exception as error:  # noqa: BLE001  # user code and user data: anything may happen
            self.failed += 1
            self.problem = self.problem or f"{input_id}: {type(error).__name__}: {error}"
            return None


def _source(images: Any) -> Callable[[str], Any] | None:
    if images is None:
        return None
    if isinstance(images, Mapping):
        return lambda input_id: _look_up(images, input_id)
    if hasattr(images, "__getitem__"):
        return lambda input_id: images[int(input_id)]
    if callable(images):
        return images  # type: ignore[no-any-return]
    raise InputError(
        f"images must be a mapping, a callable or a data set, got {type(images).__name__}"
    )


def _look_up(images: Mapping[Any, Any], input_id: str) -> Any:
    if input_id in images:
        return images[input_id]
    return images[int(input_id)] if input_id.lstrip("-").isdigit() else images[input_id]


def data_uri(image: Any, size: int = SIZE) -> str:
    """Return a picture as a PNG data URI that fits a square of `size` pixels.

    Raises:
        TypeError, ValueError, OSError, ImportError: It is not a picture, or cannot be read.
    """
    return str(picture_view(image, size).uri)


def picture_view(
    image: Any, size: int, window: Window | None = None, extent: Extent | None = None
) -> View:
    """Return a picture or a part of it, and where that lies; see `Thumbnails.view`.

    Raises:
        TypeError, ValueError, OSError, ImportError: It is not a picture, or cannot be read.
    """
    # a part is cut out of the whole, which must not have been made smaller before
    pixels, (height, width) = _as_pixels(image, size if window is None else None)
    across, down = extent or (width, height)
    x, y = across / width, down / height
    left, top, right, bottom = 0, 0, width, height
    if window is not None:
        stored = window[0] / x, window[1] / y, window[2] / x, window[3] / y
        left, top, right, bottom = _inside(stored, width, height)
        pixels = pixels[top:bottom, left:right]
    png = base64.b64encode(_png(_fit(pixels, size))).decode("ascii")
    return View(
        "data:image/png;base64," + png,
        left * x,
        top * y,
        (right - left) * x,
        (bottom - top) * y,
        distorted=abs(x / y - 1) > _UNLIKE,
    )


def _inside(window: Window, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the whole pixels of a window that lie in a picture; all of it if none do."""
    low = np.floor(np.clip(window[:2], 0, (width, height))).astype(int)
    high = np.ceil(np.clip(window[2:], 0, (width, height))).astype(int)
    if not (high > low).all():
        return 0, 0, width, height
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _as_pixels(image: Any, size: int | None) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return a picture's pixels, perhaps of fewer than it has, and its true height and width.

    Args:
        image: Any kind of picture.
        size: Side of the square that it will have to fit, if it need not be whole.
    """
    if isinstance(image, Mapping):  # an item of a data set, by name
        image = next(image[key] for key in _KEYS if key in image)
    if isinstance(image, tuple) and image:
        image = image[0]  # an item of a data set: the picture, then its label
    if isinstance(image, str | os.PathLike):
        return _opened(image, size)
    if hasattr(image, "convert"):  # PIL, without importing it
        pixels = np.asarray(image.convert("RGB"), dtype=np.uint8)
        return pixels, (pixels.shape[0], pixels.shape[1])
    if hasattr(image, "detach"):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    array = np.asarray(image)
    if array.dtype == object or array.size == 0 or array.size > _LARGEST:
        raise ValueError(f"not a picture: {type(image).__name__} of shape {array.shape}")
    pixels = _as_bytes(_channels_last(array))
    return pixels, (pixels.shape[0], pixels.shape[1])


def _opened(
    path: "str | os.PathLike[str]", size: int | None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("pictures from files need Pillow: pip install pillow") from error
    with Image.open(path) as image:
        width, height = image.size
        if image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE:
            width, height = height, width
        if size is not None:
            image.draft("RGB", (4 * size, 4 * size))
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.uint8)
        return pixels, (height, width)


def _channels_last(array: NDArray[Any]) -> NDArray[Any]:
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim != 3:
        raise ValueError(f"a picture has 2 or 3 dimensions, got shape {array.shape}")
    if array.shape[-1] not in (1, 2, 3, 4) or (array.shape[0] == 3 and array.shape[1] > 4):
        if array.shape[0] > 4 and array.shape[-1] > 4:
            raise ValueError(f"a picture has 1 to 4 channels, got shape {array.shape}")
        array = np.moveaxis(array, 0, -1)
    return array[:, :, :1] if array.shape[-1] == 2 else array[:, :, :3]


def _as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    values = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1 and array.dtype.kind == "f":
        values = values * 255
    elif low < 0 or high > 255:  # a normalised tensor: stretch it over the range
        values = (values - low) * (255 / max(high - low, 1e-12))
    return np.rint(values).astype(np.uint8)


def _fit(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    scale = size / max(height, width)
    if scale >= 1:  # small pictures stay as they are; the page enlarges them without blur
        return pixels
    import torch
    from torch.nn.functional import interpolate

    shape = (max(1, round(height * scale)), max(1, round(width * scale)))
    planes = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0))).float()[None]
    small = interpolate(planes, shape, mode="area")[0].round().to(torch.uint8)
    return np.moveaxis(small.numpy(), 0, -1)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row starts with "no filter"
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )
