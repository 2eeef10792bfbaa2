"""Results of a detector whose every box is given, so that what they say can be known."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ml_debugger.core.evaluation import method
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.inputs import own_fields
from ml_debugger.core.records import Batch, ModelVersion
from ml_debugger.core.store import Store
from ml_debugger.object_detection.ground_truth import read_ground_truth
from ml_debugger.object_detection.output import DetectionOutput
from ml_debugger.object_detection.schema import SCHEMA
from ml_debugger.object_detection.tracer import _actual, _predicted

VERSION = ModelVersion("boxes", "v1")


class Image(NamedTuple):
    """An image: predicted boxes (corners, label, score), and true ones (corners, label)."""

    predicted: Sequence[tuple[Sequence[float], int, float]]
    true: Sequence[tuple[Sequence[float], int]]
    crowd: Sequence[Sequence[float]] = ()


def make_result(
    home: Path,
    images: Mapping[str, Image],
    size: tuple[int, int] | None = (100, 120),
    **options: Any,
) -> Result:
    """Record images, given by their ids, and evaluate them.

    Args:
        home: Where the store is made.
        images: The images.
        size: Height and width of each; None where they are not known.
        **options: Of the evaluation.
    """
    generator = torch.Generator().manual_seed(0)
    outputs, truths, features = [], [], []
    for one in images.values():
        boxes = torch.tensor([box for box, _, _ in one.predicted]).reshape(-1, 4)
        outputs.append(
            DetectionOutput(
                boxes,
                torch.tensor([score for _, _, score in one.predicted]),
                torch.tensor([label for _, label, _ in one.predicted], dtype=torch.int64),
                size=size,
            )
        )
        features.append(torch.randn(len(boxes), 4, generator=generator))
        places = [box for box, _ in one.true] + list(one.crowd)
        labels = [label for _, label in one.true] + [1] * len(one.crowd)
        crowd = [False] * len(one.true) + [True] * len(one.crowd)
        truths.append(
            {
                "boxes": torch.tensor(places).reshape(-1, 4).float(),
                "labels": torch.tensor(labels, dtype=torch.int64),
                "iscrowd": torch.tensor(crowd),
            }
        )
    predicted = _predicted(outputs, {"head": features})
    unknown = {name: [None] * len(images) for name in ("image_height", "image_width")}
    batch = Batch(
        input_ids=list(images),
        dataset_type="val",
        n_epoch=0,
        recorded_at=1,
        predicted=predicted,
        actual=_actual(read_ground_truth(truths, len(truths))),
        fields={**unknown, **{name: one.tolist() for name, one in predicted.inputs.items()}},
    )
    fields = [one.model_dump(mode="json") for one in own_fields(SCHEMA.inputs).values()]
    with Store(home) as store:
        repository = store.register(
            VERSION,
            task=SCHEMA.name,
            architecture=["boxes"],
            layers={"head": "head"},
            fields=fields,
        )
        repository.write(repository.start_run("training"), [batch])
        return method.evaluate(store, VERSION, options=options or None)
