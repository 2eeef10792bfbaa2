"""How a model in use is probably doing, window by window and without labels."""

from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.zones import ZONES, Zone
from ml_debugger.core.records import Array

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result
    from ml_debugger.core.pool import StoredPool


def health(pool: "StoredPool", *, window: int, confidence: float) -> Any:
    """Return one row a window of consecutive inputs; see `MonitoringLogger.health`."""
    import pandas as pd

    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise InputError(f"window must be an int of at least 1, got {window!r}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1, got {confidence!r}")
    if not pool.records.inputs:
        return pd.DataFrame(columns=["start", "end", "n", "mean_score", "not_finite"])
    time = np.asarray(pool.column("recorded_at"))
    order = np.argsort(time, kind="stable")
    score = np.asarray(pool.column("score"), np.float64)[order]
    finite = np.asarray(pool.column("finite"), bool)[order]
    time = time[order]
    cuts = [slice(at, at + window) for at in range(0, len(order), window)]
    frame = pd.DataFrame(
        {
            "start": pd.to_datetime([time[cut][0] for cut in cuts], utc=True),
            "end": pd.to_datetime([time[cut][-1] for cut in cuts], utc=True),
            "n": [len(time[cut]) for cut in cuts],
            "mean_score": [_mean(score[cut][finite[cut]]) for cut in cuts],
            "not_finite": [int((~finite[cut]).sum()) for cut in cuts],
        }
    )
    if pool.result is None:
        return frame
    name = pool.result.result_name
    proba, zone, outlier = (
        np.asarray(pool.records.estimates(name, column))[order]
        for column in ("error_proba", "zone", "outlier")
    )
    critical = zone == ZONES.index(Zone.CRITICAL_HOTSPOT)
    bounds = [accuracy_interval(proba[cut], pool.result, confidence) for cut in cuts]
    return frame.assign(
        estimated_accuracy=[1 - _mean(proba[cut]) for cut in cuts],
        low=[low for low, _ in bounds],
        high=[high for _, high in bounds],
        estimated_errors=[float(proba[cut].sum()) for cut in cuts],
        estimated_critical_errors=[float(proba[cut][critical[cut]].sum()) for cut in cuts],
        outlier_share=[_mean(outlier[cut] <= OUTLIER) for cut in cuts],
        drift=[drifted(pool.result, outlier[cut]) for cut in cuts],
    )


#: The p-value up to which a sample counts as an outlier in shares and in the drift test.
OUTLIER = 0.05


def accuracy_interval(
    error_proba: Array, result: "Result", confidence: float
) -> tuple[float, float]:
    """Return an interval for the accuracy on some unlabelled units.

    Two things are uncertain: which units are wrong, given their probabilities (the variance of a
    Poisson binomial count), and the level of the probabilities, which the evaluated units fix no
    better than their own error rate. Both are taken as normal; half a unit is added for the
    count's being whole. It holds for units like the evaluated ones: look at `drift` too.

    Args:
        error_proba: Shape (units,), in [0, 1].
        result: The evaluation that they come from.
        confidence: How often the interval should hold the accuracy, in (0, 1).
    """
    n = len(error_proba)
    if n == 0:
        return 0.0, 1.0
    proba = np.asarray(error_proba, np.float64)
    counting = float((proba * (1 - proba)).sum()) / n**2
    evaluated = np.asarray(result.to_arrow().column("wrong").drop_null(), bool)
    rate = (evaluated.sum() + 0.5) / (len(evaluated) + 1)
    level = rate * (1 - rate) / max(len(evaluated), 1)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * np.sqrt(counting + level) + 0.5 / n
    centre = 1 - float(proba.mean())
    return max(0.0, centre - reach), min(1.0, centre + reach)


def drifted(result: "Result", outlier: Array) -> bool:
    """Tell whether units are less like the evaluated ones than chance explains."""
    from ml_debugger.core.evaluation.estimator import drift

    evaluated = np.asarray(result.to_arrow().column("outlier").drop_null(), np.float64)
    return bool(drift(evaluated, np.asarray(outlier, np.float64)))


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")
