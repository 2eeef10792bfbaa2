"""Two results side by side: which figures moved, and which inputs changed zone.

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

KEY = ("dataset_type", "input_id")

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
    """Where inputs went between two results.

    Attributes:
        this: Name of the result they come from.
        other: Name of the result they go to.
        counts: A pandas frame, zones of `this` as rows and of `other` as columns.
        moved: A pandas frame of the inputs whose zone or correctness changed, the largest rise of
            `error_proba` first: `dataset_type`, `input_id`, `zone`, `other_zone`, `wrong`,
            `other_wrong`, `error_proba`, `other_error_proba`.
        only_this: How many inputs are in `this` alone.
        only_other: How many inputs are in `other` alone.
    """

    this: str
    other: str
    counts: Any
    moved: Any
    only_this: int
    only_other: int

    @property
    def broken(self) -> Any:
        """The inputs that were right and are wrong in the other result."""
        return self.moved[~self.moved["wrong"] & self.moved["other_wrong"]]

    @property
    def fixed(self) -> Any:
        """The inputs that were wrong and are right in the other result."""
        return self.moved[self.moved["wrong"] & ~self.moved["other_wrong"]]

    def __str__(self) -> str:
        kept = int(np.trace(self.counts.to_numpy()))
        total = int(self.counts.to_numpy().sum())
        return (
            f"{self.this} -> {self.other}: {kept:,} of {total:,} inputs kept their zone, "
            f"{len(self.fixed):,} were fixed, {len(self.broken):,} broke\n{self.counts}"
        )


def flow(first: "Result", second: "Result") -> Flow:
    """Follow the inputs that two results share from zone to zone.

    Inputs are the same where `dataset_type` and `input_id` are; where one result holds an input
    several times (several epochs), its last row counts.

    Raises:
        InputError: The results share no input.
    """
    import pandas as pd

    from ml_debugger.core.evaluation.zones import ZONES

    mine, theirs = _last_rows(first), _last_rows(second)
    both = mine.merge(theirs, on=list(KEY), how="inner", suffixes=("", "_other"))
    if both.empty:
        raise InputError(
            f"{first.result_name} and {second.result_name} share no input: compare results of the "
            "same data set, traced with the same ids"
        )
    both = both.rename(columns={f"{c}_other": f"other_{c}" for c in ("zone", "wrong")})
    both = both.rename(columns={"error_proba_other": "other_error_proba"})
    names = [str(zone) for zone in ZONES]
    counts = pd.crosstab(both["zone"], both["other_zone"]).reindex(
        index=names, columns=names, fill_value=0
    )
    changed = (both["zone"] != both["other_zone"]) | (both["wrong"] != both["other_wrong"])
    rise = both["other_error_proba"] - both["error_proba"]
    moved = both.assign(_rise=rise)[changed].sort_values(
        ["_rise", *KEY], ascending=[False, True, True]
    )
    columns = [*KEY, "zone", "other_zone", "wrong", "other_wrong", "error_proba"]
    return Flow(
        this=first.result_name,
        other=second.result_name,
        counts=counts,
        moved=moved[[*columns, "other_error_proba"]].reset_index(drop=True),
        only_this=len(mine) - len(both),
        only_other=len(theirs) - len(both),
    )


def _last_rows(result: "Result") -> Any:
    import pandas as pd

    units = result.to_arrow()
    frame = pd.DataFrame(
        {
            "dataset_type": texts(units, "dataset_type"),
            "input_id": texts(units, "input_id"),
            "zone": texts(units, "zone"),
            "wrong": numbers(units, "wrong").astype(bool),
            "error_proba": numbers(units, "error_proba"),
        }
    )
    return frame.drop_duplicates(list(KEY), keep="last")
