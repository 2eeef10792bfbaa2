"""Two results side by side: which figures moved, and which units changed.

Both read from a result *to* another one: call them on the older result with the newer one.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.frames import FrameKind, as_frame, numbers, texts

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result

#: What makes units of two results the same: their input, and their position within it.
INPUT = ("dataset_type", "input_id")
KEY = (*INPUT, "position")

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
    """Return the figures of two results and of their zones, with the difference.

    Returns:
        A frame with the columns `figure`, `this`, `other`, `difference` (other minus this) and
        `better` (true where the other result is better, null where neither is).
    """
    rows: list[tuple[str, float | None, float | None, bool | None]] = []
    ours, theirs = first.manifest.metrics.model_dump(), second.manifest.metrics.model_dump()
    rows += [(name, ours[name], theirs[name], up) for name, up in COMPARED.items()]
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


def _zone_shares(result: "Result") -> list[tuple[str, float | None, float | None]]:
    table = result.zones(as_="arrow").to_pylist()
    return [(row["zone"], row["share"], row["error_rate"]) for row in table]


@dataclass(frozen=True)
class Flow:
    """What became of the units that two results share.

    Frames are pandas. A class is its number; a missing label stands for none of the model's
    classes. Both models are judged by the labels of `other`, so that none is to blame for an
    annotation that changed.

    Attributes:
        this: Name of the result they come from.
        other: Name of the result they go to.
        counts: Zones of `this` as rows and of `other` as columns.
        moved: The units whose zone or correctness changed, the largest rise of `error_proba`
            first: `dataset_type`, `input_id`, `position` (of the unit within its input, from 0),
            then for `this` and, with the prefix `other_`, for `other`: `label`, `prediction`,
            `wrong`, `zone`, `code`, `error_proba`. All but `wrong` are as each result holds them.
        confusion: How often each class was taken for which: `label`, `prediction`, `this`,
            `other`, `difference` (other minus this), the largest changes for the worse first:
            confusions that rose, and right predictions that fell.
        classes: How often each class was right: `label`, `n`, `accuracy`, `other_accuracy`,
            `difference`, the largest fall first.
        relabelled: How many units have another label in `other`.
        only_this: How many units are in `this` alone.
        only_other: How many units are in `other` alone.
    """

    this: str
    other: str
    counts: Any
    moved: Any
    confusion: Any
    classes: Any
    relabelled: int
    only_this: int
    only_other: int

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
        """How likely chance alone makes regressed and fixed units differ as much, in [0, 1].

        The exact test of McNemar (1947): were the models equally good, each unit that changed
        sides would be as likely a regression as a fix (two-sided, binomial). It takes units to
        be independent, which several units of one input are not quite.
        """
        from scipy.stats import binomtest

        broke, fixed = len(self.regressions), len(self.fixed)
        return float(binomtest(broke, broke + fixed).pvalue) if broke + fixed else 1.0

    def __str__(self) -> str:
        kept = int(np.trace(self.counts.to_numpy()))
        total = int(self.counts.to_numpy().sum())
        return (
            f"{self.this} -> {self.other}: {kept:,} of {total:,} units kept their zone, "
            f"{len(self.fixed):,} were fixed, {len(self.regressions):,} broke "
            f"(McNemar p = {self.p_value:.2g})"
            + (f", {self.relabelled:,} have another label" if self.relabelled else "")
            + f"\n{self.counts}"
        )


def flow(first: "Result", second: "Result") -> Flow:
    """Follow the units that two results share from one to the other.

    Units are the same where `dataset_type`, `input_id` and their position within the input are;
    where one result holds an input in several epochs, its latest epoch counts.

    Raises:
        InputError: The results share no input, or an input has several units: boxes of two
            versions have no place in common that would tell which belongs to which.
    """
    import pandas as pd

    from ml_debugger.core.evaluation.zones import ZONES

    for result in (first, second):
        if result.manifest.omissions is not None:
            raise InputError(
                f"{result.result_name} is of the task {result.manifest.task}, whose inputs have "
                "several units: nothing tells which of them are the same in two versions; compare "
                "figures with result.compare(other)"
            )
    mine, theirs = _latest_units(first), _latest_units(second)
    renamed = theirs.rename(columns={name: f"other_{name}" for name in _FOLLOWED})
    both = mine.merge(renamed, on=list(KEY), how="inner")
    if both.empty:
        raise InputError(
            f"{first.result_name} and {second.result_name} share no input: compare results of the "
            "same data set, traced with the same ids"
        )
    relabelled = _differing(both["label"], both["other_label"])
    by_newer = (both["prediction"] != both["other_label"]).fillna(True).astype(bool)
    both["wrong"] = both["wrong"].mask(relabelled, by_newer)
    names = [str(zone) for zone in ZONES]
    counts = pd.crosstab(both["zone"], both["other_zone"]).reindex(
        index=names, columns=names, fill_value=0
    )
    changed = (both["zone"] != both["other_zone"]) | (both["wrong"] != both["other_wrong"])
    rise = both["other_error_proba"] - both["error_proba"]
    moved = both.assign(_rise=rise)[changed].sort_values(
        ["_rise", *KEY], ascending=[False, True, True, True]
    )
    return Flow(
        this=first.result_name,
        other=second.result_name,
        counts=counts,
        moved=moved.drop(columns="_rise").reset_index(drop=True),
        confusion=_confusion(both),
        classes=_classes(both),
        relabelled=int(relabelled.sum()),
        only_this=len(mine) - len(both),
        only_other=len(theirs) - len(both),
    )


_FOLLOWED = ("label", "prediction", "wrong", "zone", "code", "error_proba")


def _latest_units(result: "Result") -> Any:
    import pandas as pd

    units = result.to_arrow()
    columns: dict[str, Any] = {name: texts(units, name) for name in (*INPUT, "zone", "code")}
    columns["label"] = pd.array(numbers(units, "label"), dtype="Int64")
    columns["prediction"] = numbers(units, "prediction").astype(np.int64)
    columns["wrong"] = numbers(units, "wrong").astype(bool)
    columns["error_proba"] = numbers(units, "error_proba")
    columns["n_epoch"] = np.nan_to_num(numbers(units, "n_epoch").astype(np.float64), nan=-np.inf)
    frame = pd.DataFrame(columns)
    latest = frame.groupby(list(INPUT), sort=False)["n_epoch"].transform("max")
    frame = frame[frame["n_epoch"] == latest]
    frame = frame.assign(position=frame.groupby(list(INPUT), sort=False).cumcount())
    return frame[[*KEY, *_FOLLOWED]]


def _confusion(both: Any) -> Any:
    import pandas as pd

    cell = ["label", "prediction"]
    this = both.groupby(["other_label", "prediction"], dropna=False).size().rename_axis(cell)
    other = both.groupby(["other_label", "other_prediction"], dropna=False).size()
    frame = pd.concat([this, other.rename_axis(cell)], axis=1, keys=["this", "other"])
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


def _differing(ours: Any, theirs: Any) -> Any:
    """Say which labels differ; two missing ones do not."""
    return (ours != theirs).fillna(ours.isna() != theirs.isna()).astype(bool)
