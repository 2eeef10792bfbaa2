"""Print how well errors are foreseen: ours beside what a user would take instead.

uv run --with cleanlab python tests/benchmarks/failure                 # all of it, 5 seeds
uv run --with cleanlab python tests/benchmarks/failure --seeds 1 --variant digits_clean
"""

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from failure.judging import FIGURES, OURS, OURS_LAST, Judged, judged
from failure.variants import DEVELOPED_ON, VARIANTS

Runs = dict[tuple[str, int], Judged]

CALIBRATED = "max softmax, temperature, Platt"
SHOWN = (CALIBRATED, "relative Mahalanobis (LDA)", "Trust Score", OURS_LAST, OURS)


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |")


def head(title: str, *columns: str) -> None:
    print(f"\n{title}\n")
    row(*columns)
    row(*["---"] * len(columns))


def spread(values: Sequence[float], digits: int = 3) -> str:
    found = np.array(values, np.float64)
    return f"{found.mean():.{digits}f}±{found.std(ddof=int(found.size > 1)):.{digits}f}"


def methods_table(runs: Runs, names: Sequence[str], seeds: int, title: str) -> None:
    """Each figure is the mean over the variants; its deviation is that over the seeds."""
    head(title, "method", *FIGURES)
    for method in runs[names[0], 0].figures:
        cells = []
        for figure in FIGURES:
            by_seed = [
                np.mean([runs[name, seed].figures[method][figure] for name in names])
                for seed in range(seeds)
            ]
            cells.append(spread(by_seed, 1 if figure in ("aurc", "augrc") else 3))
        row(method, *cells)


def variants_table(runs: Runs, names: Sequence[str], seeds: int) -> None:
    title = "By variant: AUROC; then of ours: ECE, |mean error_proba - error rate|, drift flags"
    head(title, "variant", "errors", *SHOWN, "ECE", "level", "drift", "seconds")
    for name in names:
        some = [runs[name, seed] for seed in range(seeds)]
        row(
            name,
            f"{np.mean([one.error_rate for one in some]):.2f}",
            *(spread([one.figures[method]["auroc"] for one in some]) for method in SHOWN),
            f"{np.mean([one.figures[OURS]['ece'] for one in some]):.3f}",
            f"{np.mean([one.level for one in some]):.3f}",
            f"{sum(one.drift for one in some)}/{seeds}",
            f"{np.mean([one.seconds for one in some]):.1f}",
        )


def wins_table(runs: Runs, names: Sequence[str], seeds: int) -> None:
    head("Paired over all runs: ours minus a method, in AUROC", "method", "mean", "worst", "wins")
    for method in runs[names[0], 0].figures:
        if method == OURS:
            continue
        gains = [
            runs[key].figures[OURS]["auroc"] - runs[key].figures[method]["auroc"]
            for key in ((name, seed) for name in names for seed in range(seeds))
        ]
        won = sum(gain > 0 for gain in gains)
        row(method, f"{np.mean(gains):+.3f}", f"{min(gains):+.3f}", f"{won} of {len(gains)}")


def few_errors_table(runs: Runs) -> None:
    title = f"Few errors in the evaluation set, beside {CALIBRATED} (theirs / ours)"
    head(title, "errors", "runs", "AUROC", "gain", "worst", "wins", "NLL", "ECE")
    for errors in sorted({count for one in runs.values() for count in one.few}):
        pairs = [one.few[errors] for one in runs.values() if errors in one.few]
        theirs, ours = ([pair[k] for pair in pairs] for k in (0, 1))
        gains = [b["auroc"] - a["auroc"] for a, b in pairs]
        both = {
            figure: " / ".join(
                f"{np.mean([r[figure] for r in side]):.3f}" for side in (theirs, ours)
            )
            for figure in ("auroc", "nll", "ece")
        }
        won = sum(gain > 0 for gain in gains)
        cells = both["auroc"], spread(gains), f"{min(gains):+.3f}", won, both["nll"], both["ece"]
        row(errors, len(pairs), *cells)


def codes_table(runs: Runs, names: Sequence[str], seeds: int) -> None:
    """How often the class that the features suggest is the true one, where the model is wrong."""
    head("Errors whose true class is known to the model: what the code says", "", "share")
    some = [runs[name, seed].codes for name in names for seed in range(seeds)]
    n = sum(one.n for one in some)
    for title, key in (
        ("suggested class is the true one", "suggested"),
        ("runner-up of the logits is", "runner_up"),
        ("one of the listed classes is", "listed"),
    ):
        row(title, f"{sum(getattr(one, key) for one in some) / n:.3f}")
    row("mean length of the list", f"{sum(one.length for one in some) / n:.2f}")


def zones_table(runs: Runs, names: Sequence[str], seeds: int, title: str) -> None:
    from ml_debugger.core.evaluation.metrics import wilson_interval
    from ml_debugger.core.evaluation.zones import ZONES

    columns = ["share", "error rate", "95 %", "by max softmax", "mean score", "retrained differ"]
    head(title, "zone", *columns)
    some = [runs[name, seed] for name in names for seed in range(seeds)]
    total = sum(one.pool_size for one in some)
    for number, zone in enumerate(ZONES):
        found = [one.zones[number] for one in some]
        n, errors = (sum(getattr(one, key) for one in found) for key in ("n", "errors"))
        if not n:
            row(zone, 0, *["-"] * 5)
            continue
        low, high = wilson_interval(errors, n)
        flips = [one.flips * one.n for one in found if one.flips is not None]
        flipped = sum(one.n for one in found if one.flips is not None)
        row(
            zone,
            f"{n / total:.3f}",
            f"{errors / n:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{sum(one.by_max_softmax for one in found) / n:.3f}",
            f"{sum(one.score * one.n for one in found) / n:.3f}",
            f"{sum(flips) / flipped:.3f}" if flipped else "-",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--variant", action="append", choices=VARIANTS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--retrained", type=int, default=0, help="models to compare zones with")
    given = parser.parse_args()
    names = given.variant or list(VARIANTS)
    jobs = [(name, seed, given.retrained) for name in names for seed in range(given.seeds)]
    with ProcessPoolExecutor(given.jobs) as workers:
        found = workers.map(judged, *zip(*jobs, strict=True))
        runs = {(name, seed): one for (name, seed, _), one in zip(jobs, found, strict=True)}

    developed = [name for name in names if name in DEVELOPED_ON]
    new = [name for name in names if name not in DEVELOPED_ON]
    for title, chosen in (
        ("The variants that the method was developed on", developed),
        ("Variants that it was not developed on", new),
    ):
        if chosen:
            methods_table(runs, chosen, given.seeds, title)
    variants_table(runs, names, given.seeds)
    wins_table(runs, names, given.seeds)
    few_errors_table(runs)
    codes_table(runs, developed or names, given.seeds)
    for title, shifted in (
        ("Zones of pools like the evaluation set", False),
        ("Under shift", True),
    ):
        chosen = [name for name in names if VARIANTS[name].shifted == shifted]
        if chosen:
            zones_table(runs, chosen, given.seeds, title)


if __name__ == "__main__":
    main()
