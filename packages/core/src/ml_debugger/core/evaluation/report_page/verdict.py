"""What a result means, in sentences that say no more than its figures do."""

from typing import TYPE_CHECKING, Literal, NamedTuple

from ml_debugger.core.evaluation.report_page.marks import score_name

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.result import Result
    from ml_debugger.core.evaluation.summary import Summary

# Without intervals, a difference in AUROC below this is nothing that a reader should act on.
_ALIKE = 0.005
_CALIBRATED = 0.03

UNKNOWN = "\N{EN DASH}"


class Sentence(NamedTuple):
    """A statement, and whether it is good news."""

    tone: Literal["good", "plain", "bad"]
    text: str


def verdict(result: "Result", summary: "Summary") -> list[Sentence]:
    """Return what a reader should take away, the most important first."""
    sentences = [_ranking(summary), _calibration(summary)]
    zones = {row["zone"]: row for row in result.zones(as_="arrow").to_pylist()}
    stable, critical = zones["stable_coverage"], zones["critical_hotspot"]
    if stable["n"]:
        sentences.append(
            Sentence(
                "good",
                f"{percent(stable['share'])} of the units are highly stable: {stable['errors']:,} "
                f"of these {stable['n']:,} are wrong ({percent(stable['error_rate'])}).",
            )
        )
    else:
        sentences.append(
            Sentence("bad", "No part of the data is safe enough to be called highly stable.")
        )
    if critical["n"]:
        sentences.append(
            Sentence(
                "plain",
                f"{critical['n']:,} units are over-confident (critical_hotspot): "
                f"{critical['errors']:,} of them are wrong, at a mean score of "
                f"{critical['mean_score']:.2f}.",
            )
        )
    return sentences


def _ranking(summary: "Summary") -> Sentence:
    ours, other = summary.auroc, summary.best_baseline_auroc
    if ours is None:
        which = "right" if summary.errors == 0 else "wrong"
        return Sentence(
            "bad",
            f"Every unit is {which}, so nothing can be learnt about what errors look like. "
            "Evaluate more or harder data.",
        )
    if summary.used != "error_proba":
        return Sentence(
            "plain",
            f"{score_name(summary.used)} finds errors better than all evidence together here, so "
            f"the error probability is made of it (AUROC {ours:.3f}{_difference(summary)}). "
            "Record more layers or evaluate more data to do better.",
        )
    if other is None or summary.best_baseline is None:
        return Sentence("plain", f"The error probability finds errors with an AUROC of {ours:.3f}.")
    name = score_name(summary.best_baseline)
    difference = _difference(summary)
    better = _sign(summary)
    if better > 0:
        return Sentence(
            "good",
            f"The error probability finds errors better than every other score here "
            f"(AUROC {ours:.3f}; the best other, {name}, {other:.3f}{difference}).",
        )
    if better == 0:
        return Sentence(
            "plain",
            f"The error probability finds errors about as well as {name} "
            f"(AUROC {ours:.3f} and {other:.3f}{difference}): here it adds calibration, not "
            "ranking. Recording more layers may help.",
        )
    return Sentence(
        "bad",
        f"{name} finds errors better than the error probability (AUROC {other:.3f} against "
        f"{ours:.3f}{difference}). Rank by it here; record more layers or evaluate more data.",
    )


def _sign(summary: "Summary") -> int:
    """Tell whether ours ranks better (1) or worse (-1) than the best other, or neither (0)."""
    low, high = summary.auroc_gain_low, summary.auroc_gain_high
    if low is None or high is None:  # a result of an earlier version
        gain = (summary.auroc or 0.0) - (summary.best_baseline_auroc or 0.0)
        return int(gain > _ALIKE) - int(gain < -_ALIKE)
    return int(low > 0) - int(high < 0)


def _difference(summary: "Summary") -> str:
    gain, low, high = summary.auroc_gain, summary.auroc_gain_low, summary.auroc_gain_high
    if gain is None or low is None or high is None:
        return ""
    name = score_name(summary.best_baseline or "")
    return f"; ours minus {name} {gain:+.3f}, 95% interval {low:+.3f} to {high:+.3f}"


def _calibration(summary: "Summary") -> Sentence:
    if summary.ece is None:
        return Sentence("plain", "Whether the error probability is calibrated cannot be told.")
    points = "less than 0.1" if summary.ece < 0.001 else f"{100 * summary.ece:.1f}"
    text = f"off by {points} points on average"
    if summary.ece <= _CALIBRATED:
        return Sentence("good", f"It can be read as a probability: {text}.")
    return Sentence("bad", f"Read it as a ranking more than as a probability: it is {text}.")


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share in percent; what is rare never reads as nothing, nor almost all as all."""
    if share is None or share != share:  # NaN is the only value unlike itself
        return UNKNOWN
    value = 100 * share
    if 0 < value < 0.1 or 99.9 < value < 100:
        return f"{min(max(value, 0.01), 99.99):.2f}%"
    return f"{value:.{digits}f}%"
