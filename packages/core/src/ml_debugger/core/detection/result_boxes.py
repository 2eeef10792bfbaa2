"""The boxes of a result as arrays, image by image."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml_debugger.core.detection.pairs import Bools, Floats, Geometry, Integers, Pairs
from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.frames import numbers

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result

_IMAGE = ("dataset_type", "n_epoch", "input_id")


@dataclass(frozen=True, slots=True)
class Boxes:
    """Predicted or true boxes of many images, one image after the other.

    Attributes:
        geometry: What a box is, d numbers.
        image: Number of each box's image, ascending, shape (n,), int64.
        label: Class, shape (n,), int64.
        places: Where the boxes are, shape (n, d); 0 for a box that is not finite or has no extent,
            which overlaps nothing.
        score: Of predicted boxes, shape (n,); one that is not a number is -1, the last. Of true
            ones 0.
        ignored: Which true boxes are ignore regions, shape (n,), bool.
    """

    geometry: Geometry
    image: Integers
    label: Integers
    places: Floats
    score: Floats
    ignored: Bools

    @classmethod
    def of(
        cls,
        geometry: Geometry,
        image: Any,
        label: Any,
        places: Any,
        score: Any = None,
        ignored: Any = None,
    ) -> Self:
        """Take columns, whose images ascend already."""
        given = geometry.array(places).astype(np.float64)
        n = len(given)
        score = np.zeros(n) if score is None else np.asarray(score, np.float64)
        return cls(
            geometry=geometry,
            image=np.asarray(image, np.int64),
            label=np.asarray(label, np.int64),
            places=np.where(geometry.sound(given)[:, None], given, 0.0),
            score=np.where(np.isnan(score), -1.0, score),
            ignored=np.zeros(n, np.bool_) if ignored is None else np.asarray(ignored, np.bool_),
        )

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, which: Bools | Integers | slice) -> "Boxes":
        """Return some of the boxes, by mask or by position."""
        return Boxes(
            self.geometry,
            self.image[which],
            self.label[which],
            self.places[which],
            self.score[which],
            self.ignored[which],
        )

    def overlaps(self, other: "Boxes", least: float = 0.0) -> Pairs:
        """Find which of these boxes overlap which others of their image, from an IoU on."""
        images = int(max(self.image.max(initial=-1), other.image.max(initial=-1))) + 1
        n, m = (np.bincount(one.image, minlength=images) for one in (self, other))
        return self.geometry.overlaps(self.places, n, other.places, m, least=least)


@dataclass(frozen=True, slots=True)
class ResultBoxes:
    """The boxes of a result.

    Attributes:
        images: The rows of `Result.inputs`, one an image, in the order of their numbers; also
            those without any box.
        predicted: The predicted boxes.
        true: The true boxes and ignore regions; those without an extent are left out, as they were
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
    def of(cls, result: "Result", geometry: Geometry) -> Self:
        """Read a result.

        Raises:
            InputError: It is no detector's, or one of other boxes.
        """
        units, truths = result.to_arrow(), result.truths(as_="arrow")
        images = result.inputs(as_="arrow")
        if not set(geometry.columns) <= set(units.column_names):
            raise InputError(
                f"this result is of the task {result.manifest.task!r}, whose boxes are not "
                f"{', '.join(geometry.columns)}; use the analysis of that task"
            )
        truths = truths.filter(pa.array(geometry.sound(_boxes(geometry, truths))))
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
                geometry,
                here[rows],
                numbers(units, "prediction"),
                _boxes(geometry, units),
                numbers(units, "score"),
            ),
            true=Boxes.of(
                geometry,
                there[columns],
                numbers(truths, "label"),
                _boxes(geometry, truths),
                ignored=numbers(truths, "ignored"),
            ),
            units=units,
            truths=truths,
        )


def matched_pairs(predicted: Boxes, true: Boxes, label: Integers, iou: Floats) -> Pairs:
    """Return which true box each predicted one was matched with, at most one.

    It is that of the class with which the box has the IoU that is known of it.

    Args:
        predicted: The predicted boxes.
        true: The true boxes, without ignore regions.
        label: Class of the true box that each predicted one belongs to, shape (n,).
        iou: With that true box, shape (n,).
    """
    pairs = predicted.overlaps(true)
    pairs = pairs[label[pairs.first] == true.label[pairs.second]]
    unlike = np.abs(pairs.iou - iou[pairs.first])
    pairs = pairs[np.lexsort((unlike, pairs.first))]
    return pairs[np.unique(pairs.first, return_index=True)[1]]


def _boxes(geometry: Geometry, table: pa.Table) -> Floats:
    columns = [numbers(table, name).astype(np.float64) for name in geometry.columns]
    return np.stack(columns, axis=1)


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
