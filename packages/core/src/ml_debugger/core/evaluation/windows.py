"""How a model in use is probably doing, window by window and without labels."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.drift import OUTLIER, Drift, Evaluated, one_each
from ml_debugger.core.evaluation.zones import ZONES, Zone
from ml_debugger.core.records import Array
from ml_debugger.core.store.columns import RECORDED_AT

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result
    from ml_debugger.core.pool import StoredPool

_CRITICAL = ZONES.index(Zone.CRITICAL_HOTSPOT)


def health(pool: "StoredPool", *, window: int, confidence: float) -> Any:
    """Return one row a window of consecutive inputs; see `MonitoringLogger.health`."""
    import pandas as pd

    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise InputError(f"window must be an int of at least 1, got {window!r}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1, got {confidence!r}")
    if not pool.records.inputs:
        names = ["start", "end", "inputs", "n", "mean_score", "not_finite"]
        return pd.DataFrame(columns=names)
    # a window is of inputs, so that those with many units make no statement about fewer inputs
    time = np.asarray(pool.records.column(RECORDED_AT))
    place = np.empty(len(time), np.int64)
    place[np.argsort(time, kind="stable")] = np.arange(len(time))
    time = np.sort(time)
    owner = place if pool.owner is None else place[pool.owner]
    order = np.argsort(owner, kind="stable")
    owner = owner[order]
    starts = np.arange(0, len(time), window)
    ends = np.minimum(starts + window, len(time))
    cuts = [
        slice(*np.searchsorted(owner, ends_at).tolist())
        for ends_at in zip(starts, ends, strict=True)
    ]
    score = np.asarray(pool.column("score"), np.float64)[order]
    finite = np.asarray(pool.column("finite"), bool)[order]
    frame = pd.DataFrame(
        {
            "start": pd.to_datetime(time[starts], utc=True),
            "end": pd.to_datetime(time[ends - 1], utc=True),
            "inputs": ends - starts,
            "n": [cut.stop - cut.start for cut in cuts],
            "mean_score": [_mean(score[cut][finite[cut]]) for cut in cuts],
            "not_finite": [int((~finite[cut]).sum()) for cut in cuts],
        }
    )
    if pool.result is None:
        return frame
    columns = _estimated(pool, pool.result, order, owner, cuts, confidence)
    columns["drift"] = pd.array(columns["drift"], dtype="boolean")
    return frame.assign(**columns)


def _estimated(
    pool: "StoredPool",
    result: "Result",
    order: Array,
    owner: Array,
    cuts: list[slice],
    confidence: float,
) -> dict[str, Any]:
    """Return the columns that need a result, one value a window."""
    proba, zone, outlier = (
        np.asarray(pool.records.estimates(result.result_name, column))[order]
        for column in ("error_proba", "zone", "outlier")
    )
    evaluated = Evaluated.of(result)
    some = [cut.start + one_each(owner[cut]) for cut in cuts]
    drifts = [evaluated.drift(proba[rows], outlier[rows], zone[rows]) for rows in some]
    bounds = [
        evaluated.accuracy(proba[cut], confidence, drift, owner[cut])
        for cut, drift in zip(cuts, drifts, strict=True)
    ]
    return {
        "estimated_accuracy": [1 - _mean(proba[cut]) for cut in cuts],
        "low": [low for low, _ in bounds],
        "high": [high for _, high in bounds],
        "estimated_errors": [float(proba[cut].sum()) for cut in cuts],
        "estimated_critical_errors": [
            float(proba[cut][zone[cut] == _CRITICAL].sum()) for cut in cuts
        ],
        "outlier_share": [_mean(outlier[cut] <= OUTLIER) for cut in cuts],
        "drift": [None if drift is None else drift.raised for drift in drifts],
        "drift_p": _p_values(drifts, "p_value"),
        "feature_drift_p": _p_values(drifts, "features"),
        "error_proba_drift_p": _p_values(drifts, "error_proba"),
        "zone_drift_p": _p_values(drifts, "zones"),
        **{
            str(name): [_mean(zone[cut] == number) for cut in cuts]
            for number, name in enumerate(ZONES)
        },
    }


def _p_values(drifts: list[Drift | None], which: str) -> list[float]:
    return [float("nan") if drift is None else getattr(drift, which) for drift in drifts]


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")
