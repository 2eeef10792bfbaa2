"""What a result says of units it was not fitted on."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import ThreadpoolController

from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.estimator import Estimates, Observations
from ml_debugger.core.records import Array, aspect_column
from ml_debugger.core.task import task_named

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result
    from ml_debugger.core.store import Records


def observed(column: Callable[[str], Array | None], layers: Mapping[str, str]) -> Observations:
    """Gather what an error model looks at.

    Args:
        column: Gives a predicted column by name; None where there is no such column.
        layers: The layers to take features of, by alias.
    """
    features = {}
    for alias in layers:
        values = column(f"feature.{alias}")
        if values is None:
            raise InputError(
                f"layer {alias!r}, which the result was fitted on, was not recorded here"
            )
        features[alias] = values
    prediction, score, statistics = column("prediction"), column("score"), column("statistics")
    assert prediction is not None  # every task records both
    assert score is not None
    return Observations(
        features=features,
        prediction=np.asarray(prediction, np.int64),
        score=np.asarray(score, np.float32),
        logits=column("logits"),
        statistics=statistics,
    ).recorded_as(column("finite"))


def judge(column: Callable[[str], Array | None], result: "Result") -> dict[str, Array]:
    """Return what a result says of some units: one value a unit for each estimated column."""
    observations = observed(column, result.layers)
    estimates = result.estimator.estimate(observations)
    return {
        "error_proba": estimates.error_proba,
        "outlier": estimates.outlier,
        "unstable": estimates.unstable,
        "zone": result.rules.assign(estimates, observations.score, observations.prediction),
        **_aspects(estimates),
    }


def _aspects(estimates: Estimates) -> dict[str, Array]:
    answers = estimates.answers
    found = {} if answers is None else answers.aspects
    return {aspect_column(name): values for name, values in found.items()}


def estimated_codes(column: Callable[[str], Array | None], result: "Result") -> list[str]:
    """Return the error codes of units without labels: what they seem to be, and were taken for."""
    observations = observed(column, result.layers)
    estimates = result.estimator.estimate(observations)
    zones = result.rules.assign(estimates, observations.score, observations.prediction)
    task = task_named(result.manifest.task)
    thresh = result.options["error_proba_thresh"]
    return list(task.codes(observations.prediction, None, zones, estimates, thresh))


def score_missing(records: "Records", result: "Result") -> None:
    """Estimate the units that this result has not judged yet, and keep that with the records."""
    missing = records.missing_estimates(result.result_name)
    if missing is None:
        return
    names = set(missing.names())
    for part in missing.parts():

        def column(name: str, part: "Records" = part) -> Array | None:
            full = f"predicted/{name}"
            return part.column(full) if full in names else None

        part.write_estimates(result.result_name, judge(column, result))


def of_batch(columns: Mapping[str, Any], result: "Result") -> dict[str, Array]:
    """Return what a result says of the units of one batch, while the model is in use."""
    # a few rows are too little work to share, and more threads would fight with the model's
    with _threads().limit(limits=1, user_api="blas"):
        return judge(columns.get, result)


@cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()
