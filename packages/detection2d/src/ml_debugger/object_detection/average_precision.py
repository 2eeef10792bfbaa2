"""COCO's figures of average precision, by faster-coco-eval."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_debugger.core.detection.pairs import Array
from ml_debugger.core.detection.result_boxes import Boxes, ResultBoxes
from ml_debugger.object_detection.boxes import GEOMETRY, areas

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's figures, each in [0, 1]; None where no true box is of that kind.

    AP without a number is the mean over IoU thresholds from 0.5 to 0.95, AP50 and AP75 are at one.
    Small boxes are below 32 x 32 square pixels, large ones above 96 x 96. AR1, AR10 and AR100 are
    mean recalls with so many boxes an image and class.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None


@dataclass(frozen=True)
class MeanAveragePrecision(AveragePrecision):
    """The means of COCO's figures over the classes that have a true box.

    Attributes:
        per_class: The figures of each of these classes.
    """

    per_class: Mapping[int, AveragePrecision]


def mean_average_precision(result: "Result") -> MeanAveragePrecision:
    """Return COCO's figures for a result, by faster-coco-eval.

    Crowd and ignore regions are COCO's `iscrowd`. The size of a true box is that of the box.
    Memory grows with the boxes of the most frequent class, at about a kilobyte each.

    Raises:
        ImportError: faster-coco-eval is not installed.
        InputError: The result is no detector's.
    """
    boxes = ResultBoxes.of(result, GEOMETRY)
    return coco_figures(boxes.predicted, boxes.true)


def coco_figures(predicted: Boxes, true: Boxes) -> MeanAveragePrecision:
    """Return COCO's figures for some boxes; see `mean_average_precision`."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise ImportError(
            "mean average precision needs faster-coco-eval: "
            "pip install 'ml-debugger-detection2d[map]'"
        ) from error
    rows: dict[int, Array] = {}
    for label in np.unique(true.label[~true.ignored & (true.label >= 0)]).tolist():
        # COCO's means are means over classes, so one class at a time gives the same in less memory
        some, real = predicted[predicted.label == label], true[true.label == label]
        images = [{"id": one} for one in np.union1d(some.image, real.image).tolist()]
        kinds = [{"id": label, "name": str(label)}]
        data = [
            {"images": images, "categories": kinds, "annotations": list(_annotations(one))}
            for one in (real, some)
        ]
        judge = COCOeval_faster(*(COCO(one, use_deepcopy=False) for one in data), iouType="bbox")
        judge.run()
        stats = np.asarray(judge.stats, np.float64)
        rows[label] = np.where(stats < 0, np.nan, stats)
    table = np.stack(list(rows.values())) if rows else np.full((1, 12), np.nan)
    per_class = {label: AveragePrecision(**_known(row)) for label, row in rows.items()}
    known = ~np.isnan(table)
    mean = np.where(known, table, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
    return MeanAveragePrecision(**_known(mean), per_class=per_class)


def _annotations(boxes: Boxes) -> Iterator[dict[str, Any]]:
    corners, size = boxes.places, areas(boxes.places)
    sides = corners[:, 2:] - corners[:, :2]
    columns = (boxes.image, boxes.label, size, boxes.score, boxes.ignored.astype(np.int64))
    places = np.hstack([corners[:, :2], sides]).tolist()
    rows = zip(*(one.tolist() for one in columns), places, strict=True)
    for number, (image, label, area, score, crowd, place) in enumerate(rows, 1):
        yield {
            "id": number,  # 0 would mean "none"
            "image_id": image,
            "category_id": label,
            "bbox": place,
            "area": area,
            "score": score,
            "iscrowd": crowd,
        }


def _known(figures: Array) -> dict[str, float | None]:
    names = [one.name for one in fields(AveragePrecision)]  # in the order of COCO's statistics
    values = (None if np.isnan(one) else one for one in figures.tolist())
    return dict(zip(names, values, strict=True))
