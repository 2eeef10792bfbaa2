"""The columns of a classifier's records."""

from ml_debugger.core.records import Column, TaskSchema

SCHEMA = TaskSchema(
    name="classification",
    extracted_feature=(Column("prediction", int), Column("score", float), Column("finite", bool)),
    ground_truth=(Column("label", int),),
)
