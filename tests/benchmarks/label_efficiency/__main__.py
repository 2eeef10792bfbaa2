"""Print how much is learnt from a label: ours beside the usual ways to pick inputs.

    uv run python tests/benchmarks/label_efficiency            # 6 settings x 5 seeds
    uv run python tests/benchmarks/label_efficiency --seeds 1

Each run starts with 50 labelled inputs and picks 30 more in each of six rounds; a new model is
trained every time. The first model of a run is the same for all strategies. Ours also use 300
labelled inputs that nothing is trained on, which the others have no use for.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from failure.variants import Split
from label_efficiency.settings import TASKS, accuracy, train
from label_efficiency.strategies import STRATEGIES, situation
from threadpoolctl import threadpool_limits

ROUNDS, PICKED = 6, 30
OURS = ("high_error_proba", "diverse=True")

#: Accuracy on the test part after each round, shape (rounds,), and the share of junk picked.
Outcome = tuple[list[float], float]


def played(name: str, seed: int) -> dict[str, Outcome]:
    """Play one setting once with every strategy."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    task = TASKS[name]
    setting = task.deal(seed)
    first = train(task, setting.start, seed)
    outcomes: dict[str, Outcome] = {}
    for strategy, pick in STRATEGIES.items():
        rng = np.random.default_rng(seed)
        free = np.arange(len(setting.pool.y))
        taken = free[:0]
        model, reached = first, []
        for turn in range(ROUNDS):
            rows = free[pick(situation(model, setting, free, taken, rng), PICKED)]
            taken, free = np.concatenate([taken, rows]), np.setdiff1d(free, rows)
            both = zip(setting.start, setting.pool, strict=True)
            labelled = Split(*(torch.cat([start, pool[taken]]) for start, pool in both))
            model = train(task, labelled, 100 * (turn + 1) + seed)
            reached.append(accuracy(model, setting.test))
        junk = float((setting.pool.y[taken] < 0).float().mean())
        outcomes[strategy] = reached, junk
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--setting", action="append", choices=TASKS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    given = parser.parse_args()
    began = time.perf_counter()
    names = given.setting or list(TASKS)
    jobs = list(product(names, range(given.seeds)))
    with ProcessPoolExecutor(given.jobs) as workers:
        runs = list(workers.map(played, *zip(*jobs, strict=True)))

    reached = np.array([[run[strategy][0] for run in runs] for strategy in STRATEGIES])
    reached = reached.reshape(len(STRATEGIES), len(names), given.seeds, ROUNDS)
    mean = reached.mean(axis=3)
    print("Mean accuracy over the rounds, and its deviation over seeds\n")
    print("| strategy | " + " | ".join(names) + " | all | last round |")
    print("|---" * (len(names) + 3) + "|")
    for strategy, row, last in zip(STRATEGIES, mean, reached[..., -1], strict=True):
        cells = [f"{one.mean():.3f}±{_deviation(one):.3f}" for one in row]
        print(f"| {strategy} | " + " | ".join(cells) + f" | {row.mean():.3f} | {last.mean():.3f} |")

    order = list(STRATEGIES)
    print("\nPaired differences in points, ± standard error, and runs won\n")
    print("| | " + " | ".join(f"- {one}" for one in order if one not in OURS) + " |")
    print("|---" * (len(order) - len(OURS) + 1) + "|")
    for ours in OURS:
        cells = []
        for other in order:
            if other not in OURS:
                apart = 100 * (mean[order.index(ours)] - mean[order.index(other)]).ravel()
                error = _deviation(apart) / np.sqrt(len(apart))
                cells.append(f"{apart.mean():+.1f}±{error:.1f}, {(apart > 0).sum()}/{len(apart)}")
        print(f"| {ours} | " + " | ".join(cells) + " |")

    junky = [run for (name, _), run in zip(jobs, runs, strict=True) if name.startswith("junk")]
    if junky:
        print("\nShare of junk among what was picked, where there is junk\n")
        for strategy in STRATEGIES:
            print(f"{strategy}: {np.mean([run[strategy][1] for run in junky]):.2f}")
    print(f"\n{len(runs)} runs in {time.perf_counter() - began:.0f} s")


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=values.size > 1))


if __name__ == "__main__":
    main()
