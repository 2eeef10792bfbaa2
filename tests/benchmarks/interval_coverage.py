"""Print how often the interval of the estimated accuracy holds it, and when drift is stated.

    uv run python tests/benchmarks/interval_coverage.py             # 20 variants x 5 seeds

Windows are drawn from each variant's pool, without replacement and with one of the three jitters
of an image at most, so that the inputs of a window are independent. A digits pool has 747
originals, the breast-cancer pool 339: a window of 1,000 is as large as these allow.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from failure.variants import VARIANTS, Traced, run
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ml_debugger.core.evaluation.drift import Evaluated
from ml_debugger.core.evaluation.estimator import ErrorModel, Observations
from ml_debugger.core.evaluation.zones import ZoneRules

SIZES = (50, 200, 1000)
LEVELS = (0.90, 0.95)
WINDOWS = 4  # of each size, from each fit


class Window(NamedTuple):
    """What was found in one window; the arrays have one value for each of LEVELS."""

    shifted: bool
    size: int
    raised: bool
    held: NDArray[np.bool_]
    width: NDArray[np.float64]
    held_without_widening: NDArray[np.bool_]


def windows(name: str, seed: int) -> tuple[list[Window], bool]:
    """Return some windows of a variant, and whether drift is stated of the whole pool."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    evaluation, pool, _ = run(name, seed)
    model, own = ErrorModel.fit(
        _observed(evaluation), evaluation.labels, n_class=pool.logits.shape[1]
    )
    rules = ZoneRules.fit(own, evaluation.score, evaluation.wrong, evaluation.prediction)
    own = replace(own, error_proba=own.as_new)
    evaluated = Evaluated.of_units(
        evaluation.wrong,
        own.error_proba,
        own.outlier,
        rules.assign(own, evaluation.score, evaluation.prediction),
    )
    found = model.estimate(_observed(pool))
    zone, wrong = rules.assign(found, pool.score, pool.prediction), pool.wrong
    rng = np.random.default_rng(seed)
    copies = 3 if name.startswith("digits") else 1
    originals = len(wrong) // copies
    drawn = []
    for size, _ in product(SIZES, range(WINDOWS)):
        rows = rng.permutation(originals)[:size]
        rows = rows + originals * rng.integers(0, copies, len(rows))
        proba = found.error_proba[rows]
        drift = evaluated.drift(proba, found.outlier[rows], zone[rows])
        truth = 1 - wrong[rows].mean()
        low, high = np.array([evaluated.accuracy(proba, level, drift) for level in LEVELS]).T
        bare = np.array([evaluated.accuracy(proba, level) for level in LEVELS]).T
        drawn.append(
            Window(
                VARIANTS[name].shifted,
                size,
                drift is not None and drift.raised,
                (low <= truth) & (truth <= high),
                high - low,
                (bare[0] <= truth) & (truth <= bare[1]),
            )
        )
    whole = evaluated.drift(found.error_proba, found.outlier, zone)
    return drawn, whole is not None and whole.raised


def _observed(part: Traced) -> Observations:
    return Observations(part.features, part.prediction, part.score, part.logits)


def show(found: list[Window], title: str) -> None:
    """Print one row for each size of window, and one for all."""
    print(f"\n{title}\n")
    heads = [f"{what} at {level:.0%}" for level in LEVELS for what in ("coverage", "width")]
    heads += [f"coverage at {level:.0%}, not widened" for level in LEVELS]
    print("| inputs | windows | " + " | ".join(heads) + " | drift stated |")
    print("|---" * (3 + len(heads)) + "|")
    for size in (*SIZES, None):
        chosen = [one for one in found if size in (None, one.size)]
        held, width, bare = (
            np.mean([getattr(one, name) for one in chosen], axis=0)
            for name in ("held", "width", "held_without_widening")
        )
        cells = [f"{held[at]:.3f} | {width[at]:.3f}" for at in range(len(LEVELS))]
        cells += [f"{one:.3f}" for one in bare]
        stated = np.mean([one.raised for one in chosen])
        print(f"| {size or 'all'} | {len(chosen)} | " + " | ".join(cells) + f" | {stated:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    given = parser.parse_args()
    jobs = list(product(VARIANTS, range(given.seeds)))
    with ProcessPoolExecutor(given.jobs) as workers:
        played = list(workers.map(windows, *zip(*jobs, strict=True)))

    found = [one for drawn, _ in played for one in drawn]
    show([one for one in found if not one.shifted], "Without shift")
    show([one for one in found if one.shifted], "Under shift (digits_shift, digits_ood)")
    print("\nDrift stated of the whole pool (digits thrice, jittered), of so many runs\n")
    for name in VARIANTS:
        stated = [
            raised for (other, _), (_, raised) in zip(jobs, played, strict=True) if other == name
        ]
        print(f"{name}: {sum(stated)}/{len(stated)}")


if __name__ == "__main__":
    main()
