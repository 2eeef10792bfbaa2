"""What an evaluation costs as samples grow, beside brute force and cleanlab's Datalab.

`uv run --with "cleanlab[datalab]" python tests/benchmarks/evaluation_scale.py` prints time and peak
memory for N samples of 512 float32 features and ten classes (`--sizes 10000 100000 1000000`), and
by which power of N both grow (least squares of their logarithms). Every case runs in a process of
its own with one thread; processor seconds are about the same on a busy machine, which seconds are
not, and memory is the largest resident set beyond the arrays and the imports.

- fit: `ErrorModel.fit`, which also estimates the samples themselves; above 200,000 samples on as
  many as `Evaluator` fits on, then `estimate` of the others in pieces, as `Evaluator` does;
- evaluator: `Evaluator.request_evaluation` on a store that holds the samples, result saved (the
  arrays are not in memory then);
- brute force: the ten nearest of all samples for each, by blocked matrix product and `topk` in
  torch; beyond `--brute` seconds, one slice of queries is timed and scaled up, which is marked `~`;
- Datalab: `find_issues(features=..., pred_probs=...)`, where cleanlab is installed.
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, CLASSES, FITTED, PIECE = 512, 10, 200_000, 16_384
CASES = ("fit", "evaluator", "brute", "datalab")


def made(n: int, seed: int) -> tuple[Any, Any, Any]:
    """Return features (n, 512), logits (n, 10), both float32, and labels, made in pieces.

    Each class has 24 directions of its own; every 20th label is not what the features say.
    """
    fixed, rng = np.random.default_rng(99), np.random.default_rng(seed)
    centres = fixed.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    basis = fixed.normal(size=(CLASSES, 24, WIDTH)).astype(np.float32) / 3
    label = rng.integers(0, CLASSES, n)
    features = np.empty((n, WIDTH), np.float32)
    for start in range(0, n, 10_000):
        some = label[start : start + 10_000]
        noise = rng.standard_normal((len(some), WIDTH), np.float32)
        inner = rng.standard_normal((len(some), 24), np.float32)
        for k in range(CLASSES):
            at = np.flatnonzero(some == k)
            features[start + at] = centres[k] + inner[at] @ basis[k] + noise[at]
    logits = np.vstack([part @ centres.T / 200 for part in np.array_split(features, 100)])
    logits += rng.normal(0, 0.6, logits.shape).astype(np.float32)
    label[::20] = rng.integers(0, CLASSES, len(label[::20]))
    return features, logits, label


def softmax(logits: Any) -> Any:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def used() -> tuple[float, float]:
    """Return the processor seconds of this process and its children, and its peak memory in MB."""
    own, children = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return seconds, own.ru_maxrss / 1e3


def measured(act: Callable[[], Any]) -> dict[str, Any]:
    Path("/proc/self/clear_refs").write_text("5")  # what was freed before must not hide a peak
    (cpu, memory), start = used(), time.perf_counter()
    share = act()
    wall, (cpu_after, most) = time.perf_counter() - start, used()
    scale = share if isinstance(share, float) else 1.0
    return {
        "wall": wall * scale,
        "cpu": (cpu_after - cpu) * scale,
        "memory": most - memory,
        "scaled": scale != 1.0,
    }


def fit(n: int, _brute: float) -> dict[str, Any]:
    from ml_debugger.core.evaluation.estimator import ErrorModel, Observations

    features, logits, label = made(n, 1)
    score = softmax(logits).max(axis=1).astype(np.float32)
    said = Observations({"layer": features}, logits.argmax(axis=1), score, logits)
    ErrorModel.fit(said.take(np.arange(500)), label[:500])  # imports what it needs

    def act() -> None:
        fitted = said if n <= FITTED else said.take(np.arange(FITTED))
        model, _ = ErrorModel.fit(fitted, label[: len(fitted)])
        for start in range(FITTED, n, PIECE):
            model.estimate(said.take(np.arange(start, min(start + PIECE, n))))

    return measured(act)


def evaluator(n: int, _brute: float) -> dict[str, Any]:
    import torch

    from ml_debugger.evaluator import Evaluator
    from ml_debugger.training import ClassificationTracer

    class Recorded(torch.nn.Module):
        """Features come in, logits go out; what was computed before is played back."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Identity()

        def forward(self, both: Any) -> Any:
            features, logits = both.split([WIDTH, CLASSES], dim=1)
            return logits + 0 * self.layer(features)[:, :1]

    model = Recorded()
    with tempfile.TemporaryDirectory() as home:
        with torch.no_grad(), ClassificationTracer(
            model, "net", "v1", target_layers={"layer": "layer"}, home=home
        ) as tracer:  # fmt: skip
            for start in range(0, n, 10_000):
                size = min(10_000, n - start)
                features, logits, label = made(size, 1 + start)
                both = torch.from_numpy(np.hstack([features, logits]))
                ids = range(start, start + size)
                tracer(both, torch.from_numpy(label), ids, "val", n_epoch=0)
        one = Evaluator("net", "v1", home=home)
        return measured(lambda: one.request_evaluation(result_name="r"))


def brute(n: int, limit: float) -> dict[str, Any]:
    import torch

    points = torch.from_numpy(made(n, 1)[0])
    squares = (points * points).sum(dim=1)
    queries, tile = 256, 100_000

    def nearest(start: int) -> Any:
        block = points[start : start + queries]
        best, at = torch.zeros(len(block), 0), torch.zeros(len(block), 0, dtype=torch.int64)
        for first in range(0, n, tile):
            part = slice(first, first + tile)
            far = squares[part] - 2 * block @ points[part].T
            found = far.topk(min(11, far.shape[1]), largest=False)
            best = torch.cat([best, found.values], dim=1)
            at = torch.cat([at, found.indices + first], dim=1)
        chosen = best.topk(11, largest=False).indices
        return at.gather(1, chosen)

    def act() -> float:
        start = time.perf_counter()
        for done in range(0, n, queries):
            nearest(done)
            if time.perf_counter() - start > limit:
                return n / min(done + queries, n)
        return 1.0

    nearest(0)
    return measured(act)


def datalab(n: int, _brute: float) -> dict[str, Any]:
    from cleanlab import Datalab

    features, logits, label = made(n, 1)
    chances = softmax(logits.astype(np.float64))
    small = Datalab(data={"y": label[:500]}, label_name="y", verbosity=0)
    small.find_issues(features=features[:500], pred_probs=chances[:500])

    def act() -> None:
        lab = Datalab(data={"y": label}, label_name="y", verbosity=0)
        lab.find_issues(features=features, pred_probs=chances)

    return measured(act)


def run(case: str, n: int, limit: float) -> dict[str, Any]:
    """Measure a case in a process of its own."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        [sys.executable, __file__, "--case", case, "--sizes", str(n), "--brute", str(limit)],
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:] or [f"code {done.returncode}"]}
    return json.loads(done.stdout.splitlines()[-1])


def growth(sizes: list[int], values: list[float]) -> str:
    """Return the exponent b of a * N**b, by least squares of the logarithms."""
    if len(sizes) < 2 or min(values) <= 0:
        return "-"
    return f"{np.polyfit(np.log(sizes), np.log(values), 1)[0]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--brute", type=float, default=600, help="seconds of brute force at most")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        warnings.simplefilter("ignore")
        print(json.dumps(globals()[given.case](given.sizes[0], given.brute)))
        return
    print(f"{'case':<10} {'samples':>9} {'seconds':>9} {'CPU s':>9} {'CPU ms each':>11} {'MB':>7}")
    for case in given.only:
        if case == "datalab" and importlib.util.find_spec("datasets") is None:
            print('datalab is not installed: uv run --with "cleanlab[datalab]" ...')
            continue
        found = {}
        for n in given.sizes:
            row = run(case, n, given.brute)
            if "failed" in row:
                print(f"{case:<10} {n:>9,} {row['failed']}", flush=True)
                continue
            found[n] = row
            mark = "~" if row["scaled"] else ""
            wall, cpu = (mark + format(row[key], ",.1f") for key in ("wall", "cpu"))
            each = 1e3 * row["cpu"] / n
            print(
                f"{case:<10} {n:>9,} {wall:>9} {cpu:>9} {each:>11.3f} {row['memory']:>7,.0f}",
                flush=True,
            )
        cpu, memory = ([one[key] for one in found.values()] for key in ("cpu", "memory"))
        print(
            f"{case:<10} grows as N^{growth([*found], cpu)} in CPU seconds and as "
            f"N^{growth([*found], memory)} in memory",
            flush=True,
        )


if __name__ == "__main__":
    main()
