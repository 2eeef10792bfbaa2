"""From labelled units to estimates, zones, codes and figures; the arithmetic of an evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation import metrics
from ml_debugger.core.evaluation.bootstrap import METRICS, Bootstrap, Score
from ml_debugger.core.evaluation.estimator import Asked, ErrorModel, Estimates
from ml_debugger.core.evaluation.folder import Curve, Metrics
from ml_debugger.core.evaluation.labelled import LabelledUnits
from ml_debugger.core.evaluation.omissions import Omissions, predictors_of
from ml_debugger.core.evaluation.options import EvaluationOptions
from ml_debugger.core.evaluation.proof import OURS, Proof
from ml_debugger.core.evaluation.zones import ZoneRules
from ml_debugger.core.records import TaskSchema, owners
from ml_debugger.core.task import Verdict

#: Most units that an error model is fitted on; the others are estimated like unseen ones.
MAX_FITTED = 200_000
#: Memory that the units of a fit may take; wide features or many classes make them fewer.
FIT_BYTES = 1 << 30
#: Most units of the fit that the baselines are judged on.
MAX_COMPARED = 50_000
#: Units estimated at a time.
AT_ONCE = 16_384
#: Baselines with a risk-coverage curve in reports.
DRAWN = ("max_softmax", "margin", "energy", "knn_distance")

_POINTS = 200

#: Names each unit's error; see `Task.codes`.
Coder = Callable[[NDArray[Any], Verdict | None, NDArray[Any], Estimates, float], Sequence[str]]
Advance = Callable[[float], None]


@dataclass(frozen=True)
class Estimated:
    """What an evaluation found, one value a unit where it is an array.

    Attributes:
        model: The fitted error model.
        rules: The rules of its zones.
        fitted: How many units the model was fitted on.
        error_proba: Estimated without the unit's own label, float32.
        as_new: The same as that of a new unit, float32; see `Estimates`.
        outlier: p-values, float32.
        unstable: Whether features are torn between classes, bool.
        plausible: The class that the features suggest, int32.
        zones: Positions in ZONES, int8.
        codes: Error codes, a dictionary array of text.
        aspects: Of each aspect that the task names, the probability that a unit is wrong in it if
            it is right in those before, float32.
        omissions: Tells how many were missed in an input; None where none can be.
        inputs: The inputs, with `expected_wrong` and, where some can be missed,
            `expected_missed`; None for a task in which every input is one unit.
        metrics: Figures over all units.
        baselines: Figures of ours and other scores, over units of the fit; see `Proof.table`.
        curves: Risk-coverage curves of the same.
    """

    model: ErrorModel
    rules: ZoneRules
    fitted: int
    error_proba: NDArray[np.float32]
    as_new: NDArray[np.float32]
    outlier: NDArray[np.float32]
    unstable: NDArray[np.bool_]
    plausible: NDArray[np.int32]
    zones: NDArray[np.int8]
    codes: pa.DictionaryArray
    aspects: dict[str, NDArray[np.float32]]
    omissions: Omissions | None
    inputs: pa.Table | None
    metrics: Metrics
    baselines: dict[str, dict[str, float | None]]
    curves: dict[str, Curve]


def estimate(
    units: LabelledUnits,
    coder: Coder,
    options: EvaluationOptions,
    advance: Advance,
    schema: TaskSchema,
) -> Estimated:
    """Fit an error model and say of each unit how likely it is wrong, and why.

    Memory holds the features of at most `MAX_FITTED` units and `FIT_BYTES`: the model is fitted
    on those, chosen by a hash of their ids, and the rest is estimated in pieces, as units it has
    never seen. Errors are as frequent among the chosen as among all, so that probabilities stay
    calibrated.

    Args:
        units: The labelled units.
        coder: Names errors in the task's grammar.
        options: The options of the evaluation.
        advance: Told how many units more are done; all in all twice as many as there are.
        schema: The task's.

    Raises:
        InputError: There are not as many class names as classes.
    """
    rows = chosen_rows(units, np.flatnonzero(units.judged), most_fitted(units), options.seed)
    groups = units.groups()
    observations = units.observations(rows)
    n_class = None if observations.logits is None else observations.logits.shape[1]
    if options.class_names is not None and n_class not in (None, len(options.class_names)):
        raise InputError(
            f"option 'class_names' has {len(options.class_names)} names, "
            f"the model {n_class} classes"
        )
    settings: dict[str, Any] = {"seed": options.seed, "n_class": n_class}
    told = 0.0

    def fit_progress(share: float) -> None:
        nonlocal told
        advance((share - told) * len(rows))
        told = share

    target, wrong = units.target, units.wrong
    model, found = ErrorModel.fit(
        observations,
        target[rows],
        groups=None if groups is None else groups[rows],
        max_references=options.max_references,
        progress=fit_progress,
        asked=_asked(units.verdict.take(rows), len(schema.kinds)),
        **settings,
    )
    part = np.searchsorted(rows, chosen_rows(units, rows, MAX_COMPARED, options.seed))
    proof = Proof.of(
        observations.take(part),
        target[rows[part]],
        found.error_proba[part],
        groups=None if groups is None else groups[rows[part]],
        **settings,
    )
    if proof.substitute is not None and proof.note is not None:
        model, found = model.substituted(
            proof.substitute,
            observations,
            found,
            rows=part[proof.rows],
            held_out=proof.scores[proof.used],
            note=proof.note,
        )
    # After the substitution, since the borders are error probabilities.
    rules = options.zones or ZoneRules.fit(
        found,
        units.score[rows],
        wrong[rows],
        units.prediction[rows],
        stable_risk=options.stable_risk,
        operational_risk=options.operational_risk,
    )
    advance(len(rows))
    table, curves = proof.table, _curves(proof)
    del observations, proof

    out = _Collected(len(units), units, coder, rules, options.error_proba_thresh)
    out.put(rows, found)
    del found
    rest = np.setdiff1d(np.arange(len(units)), rows, assume_unique=True)
    for start in range(0, len(rest), AT_ONCE):
        piece = rest[start : start + AT_ONCE]
        out.put(piece, model.estimate(units.observations(piece)))
        advance(2 * len(piece))
    omissions, inputs = _inputs(units, out.error_proba, schema)
    return Estimated(
        model=model,
        rules=rules,
        fitted=len(rows),
        error_proba=out.error_proba,
        as_new=out.as_new,
        outlier=out.outlier,
        unstable=out.unstable,
        plausible=out.plausible,
        zones=out.zones,
        codes=pa.DictionaryArray.from_arrays(pa.array(out.code), pa.array(list(out.texts))),
        aspects=out.aspects,
        omissions=omissions,
        inputs=inputs,
        metrics=figures(
            out.error_proba[units.judged],
            wrong[units.judged],
            None if groups is None else groups[units.judged],
        ),
        baselines={
            name: {key: _defined(value) for key, value in row.items()}
            for name, row in table.items()
        },
        curves=curves,
    )


class _Collected:
    """Estimates of all units as they come in, without the wide arrays that codes are made of."""

    def __init__(
        self, n: int, units: LabelledUnits, coder: Coder, rules: ZoneRules, thresh: float
    ) -> None:
        self._units, self._coder, self._rules = units, coder, rules
        self._thresh = thresh
        names = units.verdict.aspects
        self.aspects = {name: np.zeros(n, np.float32) for name in names}
        self.error_proba = np.zeros(n, np.float32)
        self.as_new = np.zeros(n, np.float32)
        self.outlier = np.zeros(n, np.float32)
        self.unstable = np.zeros(n, np.bool_)
        self.plausible = np.zeros(n, np.int32)
        self.zones = np.zeros(n, np.int8)
        self.code = np.zeros(n, np.int32)
        self.texts: dict[str, int] = {}

    def put(self, rows: NDArray[np.int64], found: Estimates) -> None:
        units = self._units
        zones = self._rules.assign(found, units.score[rows], units.prediction[rows])
        verdict = units.verdict.take(rows)
        codes = self._coder(units.prediction[rows], verdict, zones, found, self._thresh)
        if found.answers is not None:
            for name, values in found.answers.aspects.items():
                self.aspects[name][rows] = values
        self.error_proba[rows] = found.error_proba
        self.as_new[rows] = found.as_new
        self.outlier[rows] = found.outlier
        self.unstable[rows] = found.unstable
        self.plausible[rows] = found.plausible
        self.zones[rows] = zones
        self.code[rows] = [self.texts.setdefault(code, len(self.texts)) for code in codes]


def _inputs(
    units: LabelledUnits, error_proba: NDArray[np.float32], schema: TaskSchema
) -> tuple[Omissions | None, pa.Table | None]:
    """Say of each input how many units are probably wrong, and how many were missed."""
    if not schema.inputs:
        return None, None
    table, counts = units.inputs(), units.counts()
    owner = owners(counts, len(counts))
    judged = np.where(units.judged, error_proba, 0)
    expected = np.bincount(owner, judged, len(counts))
    table = table.append_column("expected_wrong", pa.array(expected))
    if "missed" not in table.column_names:
        return None, table
    names = tuple(column.name for column in schema.inputs if column.type is not str)
    known = {name: table.column(name).to_numpy() for name in names}
    predictors = predictors_of(known, counts, error_proba, units.score)
    _, groups = np.unique(table.column("input_id").to_numpy(), return_inverse=True)
    missed = table.column("missed").to_numpy()
    omissions, found = Omissions.fit(names, predictors, missed, groups)
    return omissions, table.append_column("expected_missed", pa.array(found))


def _asked(verdict: Verdict, kinds: int) -> Asked | None:
    return Asked(verdict.aspects, verdict.kind, kinds) if verdict.aspects else None


def most_fitted(units: LabelledUnits) -> int:
    """Return how many units fit into the memory of a fit."""
    one = units.observations(np.zeros(1, np.int64))
    widths = [values.size for values in one.features.values()]
    # statistics are three columns of evidence too, of twice the size
    widths += [] if one.statistics is None else [7 * one.statistics.size]
    n_class = 0 if one.logits is None else one.logits.size
    row = 4 * (sum(widths) + 3 * n_class + 16)  # the classes again as plausibilities and scores
    return max(1000, min(MAX_FITTED, FIT_BYTES // row))


def chosen_rows(
    units: LabelledUnits, rows: NDArray[np.int64], most: int, seed: int
) -> NDArray[np.int64]:
    """Return some units in ascending order: all, or those whose ids hash lowest.

    The choice depends on ids and seed alone, not on the order in which records were written.
    """
    if len(rows) <= most:
        return rows
    from pandas.util import hash_array

    ids = units.of_inputs("input/id").take(pa.array(rows)).to_numpy()
    hashes = hash_array(np.asarray(ids, dtype=object), hash_key=f"{seed:016d}"[-16:])
    return np.sort(rows[np.argpartition(hashes, most)[:most]])


def figures(
    proba: NDArray[np.float32], wrong: NDArray[np.bool_], groups: NDArray[np.int64] | None = None
) -> Metrics:
    """Return the figures of some units with their 95 % intervals.

    Args:
        proba: Error probabilities, shape (n,).
        wrong: Whether each prediction is wrong, shape (n,).
        groups: Units of one input, which are no independent evidence, shape (n,).
    """
    n, errors = len(wrong), int(wrong.sum())
    low, high = metrics.share_interval(~np.asarray(wrong, np.bool_), groups)
    found = {name: _defined(getattr(metrics, name)(proba, wrong)) for name in (*METRICS, "nll")}
    # In an order of their own, so that the resamples do not depend on that of the records.
    order = np.lexsort((wrong, proba))
    score = Score(proba[order], proba[order])
    groups = None if groups is None else groups[order]
    bootstrap = Bootstrap.of({"proba": score}, wrong[order], groups=groups)
    for name in METRICS:
        ends = bootstrap.interval("proba", name)
        found[f"{name}_low"], found[f"{name}_high"] = (_defined(end) for end in ends)
    return Metrics(
        n=n,
        errors=errors,
        accuracy=(n - errors) / max(n, 1),
        accuracy_low=low,
        accuracy_high=high,
        **found,
    )


def _curves(proof: Proof) -> dict[str, Curve]:
    drawn = [name for name in proof.scores if name in (OURS, *DRAWN, proof.used)]
    return {
        name: _thinned(metrics.risk_coverage_curve(proof.scores[name].risk, proof.wrong))
        for name in drawn
    }


def _thinned(curve: metrics.RiskCoverageCurve) -> Curve:
    n = len(curve.coverage)
    at = np.unique(np.linspace(0, n - 1, min(n, _POINTS)).round().astype(int))
    return Curve(coverage=curve.coverage[at].tolist(), risk=curve.risk[at].tolist())


def _defined(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
