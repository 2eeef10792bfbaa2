"""The boxes of a result as arrays, image by image."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml_debugger.core.detection.pairs import Bools, Floats, Integers
from ml_debugger.core.evaluation.frames import numbers
from ml_debugger.object_detection.boxes import CORNERS, sound

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result

#: COCO's borders of small, medium and large boxes, as the side of a square in pixels.
_SIDES = (32.0, 96.0)
#: Where one size would hold more than this share of the true boxes, thirds of them are taken.
_LOPSIDED = 0.9
_IMAGE = ("dataset_type", "n_epoch", "input_id")


@dataclass(frozen=True, slots=True)
class Boxes:
    """Predicted or true boxes of many images, one image after the other.

    Attributes:
        image: Number of each box's image, ascending, shape (n,), int64.
        label: Class, shape (n,), int64.
        corners: x1, y1, x2, y2 in pixels, shape (n, 4); 0 for a box that is not finite or has no
            area, which overlaps nothing.
        score: Of predicted boxes, shape (n,); one that is not a number is -1, the last. Of true
            ones 0.
        ignored: Which true boxes are ignore regions, shape (n,), bool.
    """

    image: Integers
    label: Integers
    corners: Floats
    score: Floats
    ignored: Bools

    @classmethod
    def of(
        cls,
        image: Any,
        label: Any,
        corners: Any,
        score: Any = None,
        ignored: Any = None,
    ) -> Self:
        """Take columns, whose images ascend already."""
        given = np.asarray(corners, np.float64).reshape(-1, 4)
        n = len(given)
        score = np.zeros(n) if score is None else np.asarray(score, np.float64)
        return cls(
            image=np.asarray(image, np.int64),
            label=np.asarray(label, np.int64),
            corners=np.where(sound(given)[:, None], given, 0.0),
            score=np.where(np.isnan(score), -1.0, score),
            ignored=np.zeros(n, np.bool_) if ignored is None else np.asarray(ignored, np.bool_),
        )

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, which: Bools | Integers | slice) -> "Boxes":
        """Return some of the boxes, by mask or by position."""
        return Boxes(
            self.image[which],
            self.label[which],
            self.corners[which],
            self.score[which],
            self.ignored[which],
        )

    @property
    def size(self) -> Floats:
        """Area of each box in square pixels, shape (n,)."""
        x1, y1, x2, y2 = self.corners.T
        area: Floats = (x2 - x1) * (y2 - y1)
        return area


@dataclass(frozen=True, slots=True)
class ResultBoxes:
    """The boxes of a result.

    Attributes:
        images: The rows of `Result.inputs`, one an image, in the order of their numbers; also
            those without any box.
        predicted: The predicted boxes.
        true: The true boxes and ignore regions; those without an area are left out, as they were
            when the result was made.
        units: The rows of the result, in the order of `predicted`.
        truths: The rows of `Result.truths`, in the order of `true`.
    """

    images: pa.Table
    predicted: Boxes
    true: Boxes
    units: pa.Table
    truths: pa.Table

    @classmethod
    def of(cls, result: "Result") -> Self:
        """Read a result.

        Raises:
            InputError: It is no detector's.
        """
        units, truths = result.to_arrow(), result.truths(as_="arrow")
        images = result.inputs(as_="arrow")
        truths = truths.filter(pa.array(sound(_corners(truths))))
        places = [
            _places(
                pa.chunked_array([c for one in (units, truths, images) for c in _chunks(one, k)])
            )
            for k in _IMAGE
        ]
        image = np.unique(np.stack(places, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
        here, there, each = np.split(image, [len(units), len(units) + len(truths)])
        rows, columns = (np.argsort(one, kind="stable") for one in (here, there))
        units, truths = units.take(pa.array(rows)), truths.take(pa.array(columns))
        return cls(
            images=images.take(pa.array(np.argsort(each, kind="stable"))),
            predicted=Boxes.of(
                here[rows], numbers(units, "prediction"), _corners(units), numbers(units, "score")
            ),
            true=Boxes.of(
                there[columns],
                numbers(truths, "label"),
                _corners(truths),
                ignored=numbers(truths, "ignored"),
            ),
            units=units,
            truths=truths,
        )


def size_borders(sizes: Floats) -> Floats:
    """Return the sides of the squares that part small from medium from large boxes, in pixels.

    COCO's, or those of thirds where one of COCO's sizes would hold almost all boxes.

    Args:
        sizes: Areas of the true boxes in square pixels, shape (m,).
    """
    borders = np.array(_SIDES)
    shares = np.bincount(np.searchsorted(borders**2, sizes, "right"), minlength=3)
    if not len(sizes) or shares.max() <= _LOPSIDED * len(sizes):
        return borders
    return np.sqrt(np.quantile(sizes, (1 / 3, 2 / 3)))


def _corners(table: pa.Table) -> Floats:
    return np.stack([numbers(table, name).astype(np.float64) for name in CORNERS], axis=1)


def _chunks(table: pa.Table, name: str) -> list[pa.Array]:
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    chunks: list[pa.Array] = column.chunks
    return chunks


def _places(column: pa.ChunkedArray) -> Integers:
    """Return the place of each value among the different ones in their order; null is the last."""
    codes = column.combine_chunks().dictionary_encode(null_encoding="encode")
    order = pc.sort_indices(codes.dictionary).to_numpy()
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    found: Integers = place[codes.indices.to_numpy(zero_copy_only=False)]
    return found
