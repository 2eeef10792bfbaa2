"""The columns of a 3D detector's records."""

from ml_debugger.core.detection.matching import KINDS
from ml_debugger.core.records import Column, TaskSchema
from ml_debugger.object_detection_3d.geometry import BOX
from ml_debugger.object_detection_3d.statistics import HIDDEN, NAMES

#: Of a box, NaN where it is not known.
SPEED = ("vx", "vy")
#: Which cell of the head's maps made a box; -1 where that is not known.
CELL = ("cell_level", "cell_row", "cell_column")

SCHEMA = TaskSchema(
    name="object_detection_3d",
    extracted_feature=(
        Column("prediction", int),
        Column("score", float),
        Column("finite", bool),
        *(Column(name, float) for name in (*BOX, *SPEED)),
        Column("pred_size", float),  # seen from above
        Column("distance", float),  # from the sensor, seen from above; NaN on a map
        Column("points", float),  # a number, or NaN where they were not counted
        *(Column(name, int) for name in CELL),
    ),
    ground_truth=(
        Column("label", int),
        *(Column(name, float) for name in (*BOX, *SPEED)),
        Column("ignored", bool),
        Column("points", float),
    ),
    inputs=(
        Column("frame", str),  # where boxes are, true ones too; see `frames.Frame`
        *(Column(name, float) for name in HIDDEN),
    ),
    statistics=NAMES,
    aspects=("det", "cls"),
    kinds=KINDS,
)
