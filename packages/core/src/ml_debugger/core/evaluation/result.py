"""A saved evaluation, and everything that can be asked of it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation import frames
from ml_debugger.core.evaluation.check import CheckLine, CheckReport, against
from ml_debugger.core.evaluation.frames import Equal, FrameKind, as_frame
from ml_debugger.core.evaluation.saved import SavedResult
from ml_debugger.core.evaluation.summary import Summary

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.comparison import Flow

ErrorKind = Literal["misclassified", "unknown_class", "confirmed", "suspect_label"]

OURS = "error_proba"
SUSPECT = "suspect_label"

_INTERVALS = ("auroc", "aurc", "augrc", "brier", "ece", "auroc_gain")
_JUDGED = [f"{name}{end}" for name in _INTERVALS for end in ("", "_low", "_high")] + ["nll"]


class Result(SavedResult):
    """A named evaluation of one model version: how often, where and why it is wrong.

    Read only, and complete in itself: everything below comes from the result's folder, so it
    reads the same after the records it was made from are gone. Frames are pandas unless `as_`
    asks for "polars" or "arrow". A unit is the smallest thing that can be wrong, in
    classification an input.

    Its columns: `input_id`, `dataset_type`, `n_epoch`, `run`, `prediction`, `label` (the true
    class; null where it is none of the model's), `wrong`, `score` (the model's confidence, in
    [0, 1]), `error_proba` (probability that the prediction is wrong, in [0, 1]; of a labelled
    unit, by a fit to the other folds), `outlier` (p-value in (0, 1]; small: unlike
    the evaluated data), `unstable` (its features are torn between classes), `plausible` (the
    class that its features suggest), `zone`, `code`, `finite`, then the additional fields. A
    unit whose outputs are not finite is judged by what is finite about it, and never safer than
    the average; its `outlier` is 1e-6.
    """

    def summary(self) -> Summary:
        """Return the headline figures; printing it gives a short readable account."""
        return Summary.of(self)

    def zones(self, as_: FrameKind = "pandas") -> Any:
        """Return the six zones: how large, how often wrong, and by which rule.

        Returns:
            A frame with the columns `zone`, `n`, `share`, `errors`, `error_rate`, `low` and `high`
            (95 % interval of the error rate), `mean_score`, `rule`; one row a zone, in their order.
            Rates and means of an empty zone are null.
        """
        return as_frame(frames.zones_table(self._units, self.rules), as_)

    def heatmap(
        self,
        rows: int | Sequence[float] = 10,
        cols: int | Sequence[float] = 10,
        as_: FrameKind = "pandas",
    ) -> Any:
        """Return how many units lie where on score x error probability, and how many are wrong.

        Args:
            rows: How many equal bins of error probability, or their edges from 0 to 1.
            cols: The same for the score.
            as_: The kind of frame.

        Returns:
            A frame with a row a cell: `error_proba_low`, `error_proba_high`, `score_low`,
            `score_high`, `n`, `errors`, `error_rate` (null where a cell is empty).

        Raises:
            InputError: Edges that do not ascend from 0 to 1.
        """
        edges = frames.bin_edges(rows, "rows"), frames.bin_edges(cols, "cols")
        return as_frame(frames.heatmap_table(self._units, *edges), as_)

    def error_codes(self, as_: FrameKind = "pandas") -> Any:
        """Return how often each error code occurs, those with the most wrong units first.

        Returns:
            A frame with the columns `code`, `label`, `n`, `share` (of all units), `errors`,
            `mean_score`, `mean_error_proba`. What was missed has codes of its own, whose `share`
            and means are null.
        """
        table = frames.codes_table(self._units)
        if self._truths is not None:
            from ml_debugger.core.task import task_named

            missed = self._truths.filter(self._truths.column("missed"))
            names = task_named(self.manifest.task).missed_codes(missed.column("label").to_numpy())
            table = frames.with_missed(table, missed, names)
        return as_frame(table, as_)

    def errors(
        self,
        kind: ErrorKind | str | None = None,
        code: str | None = None,
        zone: str | None = None,
        as_: FrameKind = "pandas",
    ) -> Any:
        """Return the wrong units, the highest error probability first.

        Args:
            kind: "misclassified" (the truth is another class of the model), "unknown_class" (it
                is none of them), "confirmed" (the features side with the annotation: code ends in
                `**`), "suspect_label" (the features side with the prediction: look at the
                annotation first). Where units have a column `kind`, one of its values instead of
                the first three: of boxes, "D" for example. None: all of them.
            code: Only units with this error code.
            zone: Only units of this zone.
            as_: The kind of frame.

        Raises:
            InputError: Not a kind of this task, or not a zone.
        """
        wrong = self._units.filter(self._units.column("wrong"))
        if kind is not None:
            wrong = wrong.filter(_of_kind(wrong, kind, self.manifest.task))
        return as_frame(self._ordered(wrong, code=code, zone=zone), as_)

    def samples(
        self, code: str | None = None, zone: str | None = None, as_: FrameKind = "pandas"
    ) -> Any:
        """Return all units, right or wrong, the highest error probability first.

        Args:
            code: Only units with this error code.
            zone: Only units of this zone.
            as_: The kind of frame.

        Raises:
            InputError: Not a zone that exists.
        """
        return as_frame(self._ordered(self._units, code=code, zone=zone), as_)

    def inputs(self, as_: FrameKind = "pandas") -> Any:
        """Return the evaluated inputs, in a task whose inputs have several units or none.

        Returns:
            A frame with a row an input: `input_id`, `dataset_type`, `n_epoch`, `run`, `units`,
            `wrong`, `missed`, the task's columns of inputs, the additional fields,
            `expected_wrong` (the sum of its units' error probabilities) and `expected_missed` (by
            a fit to the other folds).

        Raises:
            InputError: In this task every input is one unit.
        """
        if self._inputs is None:
            raise InputError(
                f"in the task {self.manifest.task} every input is one unit: see samples()"
            )
        return as_frame(self._inputs, as_)

    def truths(self, missed: bool | None = None, as_: FrameKind = "pandas") -> Any:
        """Return what was true of the evaluated inputs, in a task that can miss something.

        Args:
            missed: Only what nothing was predicted for, or only the rest; None for all.
            as_: The kind of frame.

        Returns:
            A frame with a row an actual unit: `input_id`, `dataset_type`, `n_epoch`, `run`, the
            columns of the task's ground truth (`label` and the box, for example) and `missed`.

        Raises:
            InputError: In this task every input has one prediction.
        """
        if self._truths is None:
            raise InputError(
                f"in the task {self.manifest.task} nothing can be missed: what was true of each "
                "unit is the column `label` of samples()"
            )
        if missed is None:
            return as_frame(self._truths, as_)
        chosen = pc.equal(self._truths.column("missed"), missed)
        return as_frame(self._truths.filter(chosen), as_)

    def _ordered(self, units: pa.Table, *, code: str | None, zone: str | None) -> pa.Table:
        from ml_debugger.core.evaluation.zones import ZONES

        if code is not None:
            units = units.filter(pc.equal(units.column("code").cast(pa.string()), code))
        if zone is not None:
            names = [str(one) for one in ZONES]
            if zone not in names:
                raise InputError(f"no zone {zone!r}; the zones are: {', '.join(names)}")
            units = units.filter(pc.equal(units.column("zone").cast(pa.string()), zone))
        return units.sort_by([("error_proba", "descending"), ("input_id", "ascending")])

    def reliability(self, bins: int = 15, equal: Equal = "size", as_: FrameKind = "pandas") -> Any:
        """Return, for groups of units with a like error probability, how often they are wrong.

        Args:
            bins: Most bins; empty ones are left out.
            equal: Bins of equal "size", as the calibration error is measured, or "width", which
                shows more where most units are about as safe.
            as_: The kind of frame.

        Returns:
            A frame with the columns `error_proba` (its mean in the bin), `error_rate`, `low` and
            `high` (95 % interval of the error rate), `n`. Where the error probability can be
            trusted, the first two are equal.

        Raises:
            InputError: No number of bins, or bins equal in something else.
        """
        return as_frame(frames.reliability_table(self._units, bins, equal), as_)

    def baselines(self, as_: FrameKind = "pandas") -> Any:
        """Return how well our error probability and the usual scores tell right from wrong.

        All are judged on the same units of the fit, 50,000 at most, each without its own label
        and fold. `error_proba` is ours and comes first, the others by falling AUROC.

        A baseline is used in place of ours only where it ranks errors better (a higher AUROC,
        the interval of the difference excluding 0) and is the better probability (a lower `nll`).

        Returns:
            A frame with the columns `name`; `used` (true of the one that the result's
            `error_proba` is made with); `auroc` (higher is better), `aurc`, `augrc`, `brier`,
            `ece` (lower is better), each followed by the ends of its 95 % bootstrap interval,
            `<figure>_low` and `<figure>_high`; `nll` (lower is better); `auroc_gain` (the AUROC
            of ours minus this one's), `auroc_gain_low`, `auroc_gain_high`. A baseline's `brier`,
            `ece` and `nll` are those of its Platt scaling. What is not defined is null, as are
            intervals in results of earlier versions.
        """
        table = self.manifest.baselines
        names = sorted(table, key=lambda name: (name != OURS, -(table[name].get("auroc") or 0)))
        columns = {m: pa.array([table[n].get(m) for n in names], pa.float64()) for m in _JUDGED}
        used = [name == self.manifest.used for name in names]
        frame = {"name": pa.array(names, pa.string()), "used": pa.array(used, pa.bool_())}
        return as_frame(pa.table({**frame, **columns}), as_)

    def compare(self, other: "Result", as_: FrameKind = "pandas") -> Any:
        """Return this result's figures beside another's, overall and by zone.

        Returns:
            A frame with the columns `figure`, `this`, `other`, `difference` (other minus this) and
            `better` (true where the other result is better). A detector's also tell how many true
            boxes are missed.
        """
        from ml_debugger.core.evaluation.comparison import compare

        return compare(self, other, as_)

    def flow(self, other: "Result") -> "Flow":
        """Follow the units that both results hold from here to another result.

        What comes back tells which zone went where, which units broke (`regressions`) or were
        fixed, which inputs got worse (`inputs`), how the confusions changed (`confusion`,
        `classes`), and whether all of that could be chance (`p_value`). Of a detector, units are
        true boxes with what found them, and false alarms.

        Raises:
            InputError: The results share no input, or are of two tasks.
        """
        from ml_debugger.core.evaluation.comparison import flow

        return flow(self, other)

    def check(
        self,
        *,
        min_accuracy: float | None = None,
        min_auroc: float | None = None,
        max_aurc: float | None = None,
        max_augrc: float | None = None,
        max_brier: float | None = None,
        max_ece: float | None = None,
        max_critical_share: float | None = None,
        min_stable_share: float | None = None,
        max_stable_error_rate: float | None = None,
        beats_max_softmax: bool = False,
        raise_on_failure: bool = False,
    ) -> CheckReport:
        """Hold the result against limits.

        Args:
            min_accuracy: Least share of right units, in [0, 1].
            min_auroc: Least failure AUROC of the error probability, in [0, 1].
            max_aurc: Largest area under the risk-coverage curve.
            max_augrc: Largest area under the generalised risk-coverage curve.
            max_brier: Largest Brier score of the error probability.
            max_ece: Largest calibration error of the error probability.
            max_critical_share: Largest share of units in `critical_hotspot`.
            min_stable_share: Least share of units in `stable_coverage`.
            max_stable_error_rate: Largest error rate in `stable_coverage`.
            beats_max_softmax: Whether the AUROC must be above that of the maximum softmax.
            raise_on_failure: Raise instead of returning a report with failures.

        Returns:
            A report, true where every limit is kept. A figure that is not defined, such as an
            AUROC without a single error, does not keep its limit.

        Raises:
            InputError: No limit is given, or one is not a number.
            CheckFailedError: A limit is not kept and `raise_on_failure` is set.
        """
        limits = {k: v for k, v in locals().items() if k.startswith(("min_", "max_"))}
        lines = against(self.result_name, limits, self._checked_values())
        if beats_max_softmax:
            lines.append(self._beats("max_softmax"))
        if not lines:
            names = ", ".join(limits)
            raise InputError(f"give at least one limit: {names}, beats_max_softmax")
        report = CheckReport(self.result_name, tuple(lines))
        if raise_on_failure:
            report.raise_if_failed()
        return report

    def _checked_values(self) -> dict[str, float | None]:
        zones = {row["zone"]: row for row in self.zones(as_="arrow").to_pylist()}
        critical, stable = zones["critical_hotspot"], zones["stable_coverage"]
        return {
            **self.manifest.metrics.model_dump(),
            "critical_share": critical["share"],
            "stable_share": stable["share"],
            "stable_error_rate": stable["error_rate"],
        }

    def _beats(self, name: str) -> CheckLine:
        ours = self.manifest.baselines.get(self.manifest.used, {}).get("auroc")
        theirs = self.manifest.baselines.get(name, {}).get("auroc")
        if ours is None or theirs is None:
            return CheckLine(
                f"beats_{name}", True, None, False, f"auroc beside {name} is not defined"
            )
        passed = ours > theirs
        sign = ">" if passed else "is not above"
        text = f"auroc {ours:.4f} {sign} {theirs:.4f} of {name}"
        return CheckLine(f"beats_{name}", True, ours - theirs, passed, text)

    def report(
        self,
        path: str | os.PathLike[str],
        images: Any = None,
        title: str | None = None,
    ) -> Path:
        """Write the result as one HTML file that needs nothing else, no network either.

        Args:
            path: The file; for a folder, `<result_name>.html` in it. An old file is replaced.
            images: Where pictures of the inputs come from: a mapping, a callable or a data set
                that gives, for an id, a PIL image, an array (H x W, H x W x C or C x H x W), a
                tensor, a path, or a tuple that starts with one of these. An id without a usable
                picture is shown without one.
            title: The heading; the model's and version's name by default.

        Returns:
            The file.

        Raises:
            StoreError: The file cannot be written.
        """
        from ml_debugger.core.evaluation.report import write_report

        return write_report(self, path, images=images, title=title)

    def __repr__(self) -> str:
        metrics = self.manifest.metrics
        auroc = "" if metrics.auroc is None else f", auroc={metrics.auroc:.3f}"
        return f"<Result {self.result_name}: n={metrics.n}, accuracy={metrics.accuracy:.3f}{auroc}>"

    def _repr_html_(self) -> str:
        return self.summary().to_html()


def _of_kind(units: pa.Table, kind: str, task: str) -> Any:
    own = "kind" in units.column_names
    kinds = get_args(ErrorKind)
    if own:
        from ml_debugger.core.task import task_named

        kinds = (*task_named(task).schema.kinds, SUSPECT)
    if kind not in kinds:
        raise InputError(f"no kind {kind!r}; the kinds are: {', '.join(kinds)}")
    if own and kind != SUSPECT:
        return pc.equal(units.column("kind").cast(pa.string()), kind)
    if kind == "misclassified":
        return pc.is_valid(units.column("label"))
    if kind == "unknown_class":
        return pc.is_null(units.column("label"))
    if kind == "confirmed":
        return pc.ends_with(units.column("code").cast(pa.string()), "**")
    same = pc.equal(units.column("plausible"), units.column("prediction"))
    return pc.and_(same, pc.is_valid(units.column("label")))
