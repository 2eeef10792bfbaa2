"""Results of a 3D detector whose every box is given, so that what they say can be known."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ml_debugger.core.evaluation import method
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.inputs import own_fields
from ml_debugger.core.records import Batch, ModelVersion
from ml_debugger.core.store import Store
from ml_debugger.object_detection_3d.frames import Frame as Where
from ml_debugger.object_detection_3d.ground_truth import read_ground_truth
from ml_debugger.object_detection_3d.output import Detection3DOutput
from ml_debugger.object_detection_3d.schema import SCHEMA
from ml_debugger.object_detection_3d.tracer import _actual, _predicted

VERSION = ModelVersion("boxes", "v1")


class Frame(NamedTuple):
    """A frame: predicted boxes (box, label, score), true ones (box, label), and ignored ones."""

    predicted: Sequence[tuple[Sequence[float], int, float]]
    true: Sequence[tuple[Sequence[float], int]]
    ignored: Sequence[tuple[Sequence[float], int]] = ()
    points: Sequence[int] | None = None  # of the predicted boxes
    truth_points: Sequence[int] | None = None  # of the true ones, then the ignored ones


def car(x: float, y: float, yaw: float = 0.0, length: float = 4.0) -> tuple[float, ...]:
    """Return a box 2 m wide and high on the ground of the sensor's height."""
    return (x, y, 0.0, length, 2.0, 2.0, yaw)


def make_result(
    home: Path, frames: Mapping[str, Frame], where: Where = "lidar", **options: Any
) -> Result:
    """Record frames, given by their ids, and evaluate them.

    Args:
        home: Where the store is made.
        frames: The frames.
        where: What the boxes' frame is.
        **options: Of the evaluation.
    """
    generator = torch.Generator().manual_seed(0)
    outputs, truths, features = [], [], []
    for one in frames.values():
        boxes = torch.tensor([box for box, _, _ in one.predicted]).reshape(-1, 7)
        outputs.append(
            Detection3DOutput(
                boxes,
                torch.tensor([score for _, _, score in one.predicted]),
                torch.tensor([label for _, label, _ in one.predicted], dtype=torch.int64),
                points=None if one.points is None else torch.tensor(one.points),
            )
        )
        features.append(torch.randn(len(boxes), 4, generator=generator))
        given = [*one.true, *one.ignored]
        truth = {
            "boxes": torch.tensor([box for box, _ in given]).reshape(-1, 7).float(),
            "labels": torch.tensor([label for _, label in given], dtype=torch.int64),
            "ignored": torch.arange(len(given)) >= len(one.true),
            "frame": where,
        }
        if one.truth_points is not None:
            truth["num_points"] = torch.tensor(one.truth_points)
        truths.append(truth)
    predicted = _predicted(outputs, {"head": features}, where)
    own = {
        name: one if isinstance(one, list) else one.tolist()
        for name, one in predicted.inputs.items()
    }
    batch = Batch(
        input_ids=list(frames),
        dataset_type="val",
        n_epoch=0,
        recorded_at=1,
        predicted=predicted,
        actual=_actual(read_ground_truth(truths, len(truths)), None),
        fields=own,
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
