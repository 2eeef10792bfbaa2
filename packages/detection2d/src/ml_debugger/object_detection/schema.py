"""The columns of a detector's records."""

from ml_debugger.core.detection.matching import KINDS
from ml_debugger.core.records import Column, TaskSchema
from ml_debugger.object_detection.boxes import CORNERS
from ml_debugger.object_detection.statistics import HIDDEN, NAMES

SCHEMA = TaskSchema(
    name="object_detection",
    extracted_feature=(
        Column("prediction", int),
        Column("score", float),
        Column("finite", bool),
        *(Column(name, float) for name in CORNERS),
        Column("pred_size", float),
    ),
    ground_truth=(
        Column("label", int),
        *(Column(name, float) for name in CORNERS),
        Column("ignored", bool),
    ),
    inputs=(
        Column("image_height", int),
        Column("image_width", int),
        *(Column(name, float) for name in HIDDEN),
    ),
    statistics=NAMES,
    aspects=("det", "cls"),
    kinds=KINDS,
)
