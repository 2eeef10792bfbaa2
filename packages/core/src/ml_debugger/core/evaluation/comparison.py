"""Two results side by side: which figures moved, and which units changed.

Both read from a result *to* another one: call them on the older result with the newer one.
"""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ml_debugger.core.evaluation.following import INPUT, KEY, followed
from ml_debugger.core.evaluation.frames import FrameKind, as_frame
from ml_debugger.core.records import differing
from ml_debugger.core.task import NOTHING, task_named

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result

#: Figures of a comparison, and whether a larger value is better (None: neither).
COMPARED: dict[str, bool | None] = {
    "n": None,
    "errors": False,
    "accuracy": True,
    "auroc": True,
    "aurc": False,
    "augrc": False,
    "brier": False,
    "ece": False,
    "nll": False,
}


def compare(first: "Result", second: "Result", as_: FrameKind = "pandas") -> Any:
    """Return the figures of two results, their task's own, and those of their zones.

    Returns:
        A frame with the columns `figure`, `this`, `other`, `difference` (other minus this) and
        `better` (true where the other result is better, null where neither is).
    """
    _warn_of_settings(first, second)
    rows: list[tuple[str, float | None, float | None, bool | None]] = []
    ours, theirs = first.manifest.metrics.model_dump(), second.manifest.metrics.model_dump()
    rows += [(name, ours[name], theirs[name], up) for name, up in COMPARED.items()]
    one_task = first.manifest.task == second.manifest.task
    if one_task and first.manifest.omissions is not None:
        task = task_named(first.manifest.task)
        own, other_own = task.figures(first), task.figures(second)
        rows += [(name, value, other_own[name][0], up) for name, (value, up) in own.items()]
    for row, other in zip(_zone_shares(first), _zone_shares(second), strict=True):
        zone, n, errors = row
        _, other_n, other_errors = other
        rows.append((f"share of {zone}", n, other_n, None))
        rows.append((f"error rate of {zone}", errors, other_errors, False))
    difference = [None if a is None or b is None else float(b) - float(a) for _, a, b, _ in rows]
    better = [
        None if up is None or gap is None or gap == 0 else (gap > 0) == up
        for gap, (_, _, _, up) in zip(difference, rows, strict=True)
    ]
    return as_frame(
        pa.table(
            {
                "figure": [row[0] for row in rows],
                "this": pa.array([row[1] for row in rows], pa.float64()),
                "other": pa.array([row[2] for row in rows], pa.float64()),
                "difference": pa.array(difference, pa.float64()),
                "better": pa.array(better, pa.bool_()),
            }
        ),
        as_,
    )


def _warn_of_settings(first: "Result", second: "Result") -> None:
    """Say so if the results see different units of the same output."""
    found = differing(first.settings, second.settings)
    if found is not None:
        warnings.warn(
            f"{first.result_name} was recorded with {found[0]} and {second.result_name} with "
            f"{found[1]}: what differs may come from that and not from the model. Record both "
            "with the same settings to compare the models",
            stacklevel=4,
        )


def _zone_shares(result: "Result") -> list[tuple[str, float | None, float | None]]:
    table = result.zones(as_="arrow").to_pylist()
    return [(row["zone"], row["share"], row["error_rate"]) for row in table]


@dataclass(frozen=True)
class Flow:
    """What became of the units that two results share.

    A unit is what can be right or wrong in either result: an input, in classification. Where
    inputs have several units, in detection, it is a true object together with the box that found it
    best, or a box beside them, which is a false alarm; then `zone` and `code` are "nothing" where
    nothing was predicted (`code` names what was missed), and `prediction` and `error_proba` are
    missing.

    Frames are pandas. A class is its number; a missing label stands for none of the model's
    classes. Both models are judged by the labels of `other`, so that none is to blame for an
    annotation that changed.

    Attributes:
        this: Name of the result they come from.
        other: Name of the result they go to.
        counts: Zones of `this` as rows and of `other` as columns.
        outcomes: What became of units in `this` as rows and in `other` as columns: right or wrong,
            or the words of the task.
        moved: The units whose zone or outcome changed, the largest rise of `error_proba`
            first (nothing counts as 1 where it is wrong and as 0 where it is right):
            `dataset_type`, `input_id`, `position` (of the unit within its input, from 0), what the
            task knows of it, such as a box's corners, then for `this` and, with the prefix
            `other_`, for `other`: `label`, `prediction`, `wrong`, `outcome`, `zone`, `code`,
            `error_proba`. All but `wrong` and `outcome` are as each result holds them; where
            inputs have several units, so is the label not, but that of `other`.
        inputs: The inputs of which more or fewer units are wrong than before, the largest rise
            first: `dataset_type`, `input_id`, `wrong`, `other_wrong` (how many), `difference`.
        confusion: How often each class was taken for which: `label`, `prediction`, `this`,
            `other`, `difference` (other minus this), the largest changes for the worse first:
            confusions that rose, and right predictions that fell. A missing prediction stands for
            nothing, or for the right class in the wrong place.
        classes: How often each class was right: `label`, `n`, `accuracy`, `other_accuracy`,
            `difference`, the largest fall first. False alarms are of no class here.
        relabelled: How many units have another label in `other`.
        only_this: How many units are in `this` alone.
        only_other: How many units are in `other` alone.
        tests: Whether the change is more than chance: `n` (units), `fixed`, `broke`, `better` and
            `worse` (inputs with fewer and with more wrong units than before) and `p_value`; a row
            for "all" units and, where inputs have several, for those that are "true" and for the
            "false alarms".
        test: The test behind `p_value`: "McNemar" where every input is one unit, else "sign test by
            input".
    """

    this: str
    other: str
    counts: Any
    outcomes: Any
    moved: Any
    inputs: Any
    confusion: Any
    classes: Any
    relabelled: int
    only_this: int
    only_other: int
    tests: Any
    test: str

    @property
    def regressions(self) -> Any:
        """The units that were right and are wrong in the other result, as in `moved`."""
        return self.moved[~self.moved["wrong"] & self.moved["other_wrong"]]

    @property
    def broken(self) -> Any:
        """The same as `regressions`."""
        return self.regressions

    @property
    def fixed(self) -> Any:
        """The units that were wrong and are right in the other result, as in `moved`."""
        return self.moved[self.moved["wrong"] & ~self.moved["other_wrong"]]

    @property
    def p_value(self) -> float:
        """How likely chance alone makes worse and better inputs differ as much, in [0, 1].

        The exact sign test (Dixon and Mood 1946) on `inputs`: were the models equally good, each
        input whose number of wrong units changed would be as likely to be worse as to be better
        (two-sided, binomial). Where every input is one unit that is the test of McNemar (1947).
        Units of one input are no independent evidence, so an input counts once, however many of
        its units changed.
        """
        return float(self.tests.loc["all", "p_value"])

    def __str__(self) -> str:
        end = f", {self.relabelled:,} have another label" if self.relabelled else ""
        if NOTHING in self.outcomes.index:
            tests = self.tests.to_dict("index")
            every, true, alarms = tests["all"], tests["true"], tests["false alarms"]
            return (
                f"{self.this} -> {self.other}\n"
                f"  true objects  {true['fixed']:,} fixed, {true['broke']:,} broke, of "
                f"{true['n']:,}{end}\n"
                f"  false alarms  {alarms['fixed']:,} gone, {alarms['broke']:,} new, of "
                f"{alarms['n']:,}\n"
                f"  inputs        {every['better']:,} better, {every['worse']:,} worse "
                f"({self.test} p = {self.p_value:.2g})\n{self.outcomes.to_string()}"
            )
        kept, total = int(np.trace(self.counts)), int(self.counts.to_numpy().sum())
        return (
            f"{self.this} -> {self.other}: {kept:,} of {total:,} units kept their zone, "
            f"{len(self.fixed):,} were fixed, {len(self.regressions):,} broke "
            f"({self.test} p = {self.p_value:.2g}){end}\n{self.counts.to_string()}"
        )


def flow(first: "Result", second: "Result") -> Flow:
    """Follow the units that two results share from one to the other.

    Units are the same where `dataset_type`, `input_id` and their position within the input are; of
    inputs with several units, the task tells. Where one result holds an input in several epochs,
    its latest epoch counts.

    Raises:
        InputError: The results share no input, or are of two tasks.
    """
    both, relabelled, only_this, only_other = followed(first, second)
    _warn_of_settings(first, second)
    changed = np.zeros(len(both), np.bool_)
    for name in ("zone", "outcome"):
        here, there = (both[f"{prefix}{name}"].cat.codes for prefix in ("", "other_"))
        changed |= (here != there).to_numpy()
    rise = _error_proba(both, "other_") - _error_proba(both, "")
    moved = both.assign(_rise=rise)[changed].sort_values(
        ["_rise", *KEY], ascending=[False, True, True, True]
    )
    groups = {"all": both}
    if NOTHING in both["outcome"].cat.categories:
        false_alarm = both["other_label"].isna()
        groups |= {"true": both[~false_alarm], "false alarms": both[false_alarm]}
    return Flow(
        this=first.result_name,
        other=second.result_name,
        counts=_crossed(both["zone"], both["other_zone"]),
        outcomes=_crossed(both["outcome"], both["other_outcome"]),
        moved=moved.drop(columns="_rise").reset_index(drop=True),
        inputs=_inputs(both),
        confusion=_confusion(both),
        classes=_classes(groups.get("true", both)),
        relabelled=relabelled,
        only_this=only_this,
        only_other=only_other,
        tests=_tests(groups),
        test="sign test by input" if both["position"].any() else "McNemar",
    )


def _error_proba(both: Any, prefix: str) -> Any:
    """Return error probabilities; where nothing was predicted, what is known to be true."""
    return both[f"{prefix}error_proba"].fillna(both[f"{prefix}wrong"].astype(np.float64))


def _crossed(here: Any, there: Any) -> Any:
    """Count the pairs of two categorical columns, also those that do not occur."""
    import pandas as pd

    names = here.cat.categories
    cell = here.cat.codes.to_numpy().astype(np.int64) * len(names) + there.cat.codes.to_numpy()
    cells = np.bincount(cell, minlength=len(names) ** 2).reshape(len(names), len(names))
    return pd.DataFrame(cells, pd.Index(names, name=here.name), pd.Index(names, name=there.name))


def _tests(groups: dict[str, Any]) -> Any:
    import pandas as pd
    from scipy.stats import binomtest

    rows = {}
    for name, units in groups.items():
        change = _inputs(units)["difference"]
        worse, better = int((change > 0).sum()), int((change < 0).sum())
        rows[name] = {
            "n": len(units),
            "fixed": int((units["wrong"] & ~units["other_wrong"]).sum()),
            "broke": int((~units["wrong"] & units["other_wrong"]).sum()),
            "better": better,
            "worse": worse,
            "p_value": binomtest(worse, worse + better).pvalue if len(change) else 1.0,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _inputs(both: Any) -> Any:
    wrong = both[[*INPUT, "wrong", "other_wrong"]].groupby(list(INPUT), as_index=False).sum()
    wrong["difference"] = wrong["other_wrong"] - wrong["wrong"]
    changed = wrong[wrong["difference"] != 0]
    order = changed.sort_values(["difference", *INPUT], ascending=[False, True, True])
    return order.reset_index(drop=True)


def _confusion(both: Any) -> Any:
    import pandas as pd

    cell = ["label", "prediction"]
    sides = []
    for prefix in ("", "other_"):
        label, said = both["other_label"], both[f"{prefix}prediction"].astype("Int64")
        misplaced = (label == said).fillna(False).astype(bool) & both[f"{prefix}wrong"]
        pairs = pd.DataFrame({"label": label, "prediction": said.mask(misplaced)})
        pairs = pairs[pairs.notna().any(axis=1) | both[f"{prefix}wrong"]]
        sides.append(pairs.groupby(cell, dropna=False).size())
    frame = pd.concat(sides, axis=1, keys=["this", "other"])
    frame = frame.fillna(0).astype(np.int64).reset_index()
    frame["difference"] = frame["other"] - frame["this"]
    right = (frame["label"] == frame["prediction"]).fillna(False).astype(bool)
    worse = frame["difference"].where(~right, -frame["difference"])
    order = frame.assign(_worse=worse).sort_values(["_worse", *cell], ascending=[False, True, True])
    return order.drop(columns="_worse").reset_index(drop=True)


def _classes(both: Any) -> Any:
    by_class = both.groupby("other_label", dropna=False)
    frame = by_class.size().rename_axis("label").to_frame("n")
    frame["accuracy"] = 1 - by_class["wrong"].mean()
    frame["other_accuracy"] = 1 - by_class["other_wrong"].mean()
    frame["difference"] = frame["other_accuracy"] - frame["accuracy"]
    return frame.reset_index().sort_values(["difference", "label"]).reset_index(drop=True)
