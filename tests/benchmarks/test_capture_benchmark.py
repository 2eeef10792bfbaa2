"""What recording costs: a traced model beside the bare one, in turns, all of it durable.

`uv run pytest tests/benchmarks/test_capture_benchmark.py -s` prints the ratios. Each round runs
the bare and the traced model one after the other, so that a change of the machine's speed hits
both; the median of the rounds' ratios is what counts.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50

from ml_debugger.data_filter import ClassificationDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.training import ClassificationTracer

BATCH = 32


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)
    )


#: A model, the shape of an input, batches a round, and the goal for traced / bare.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, float]] = {
    "perceptron, 0.5 ms": (perceptron, (784,), 400, 1.4),
    "resnet18, 32 x 32": (lambda: resnet18(num_classes=10), (3, 32, 32), 20, 1.05),
    "resnet18, 64 x 64": (lambda: resnet18(num_classes=10), (3, 64, 64), 8, 1.02),
    "resnet50, 128 x 128": (lambda: resnet50(num_classes=10), (3, 128, 128), 2, 1.02),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Leave a core to the writer, as a model on a GPU does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def say(text: str) -> None:
    print(f"\n{text}")


@pytest.mark.parametrize("name", MODELS)
def test_traced_over_bare(name: str, tmp_path: Path, benchmark: Any) -> None:
    build, shape, batches, goal = MODELS[name]
    torch.manual_seed(0)
    bare, traced = build().eval(), build().eval()
    x, y = torch.randn(BATCH, *shape), torch.zeros(BATCH, dtype=torch.long)
    ids = [[f"{batch}-{i}" for i in range(BATCH)] for batch in range(batches)]
    with ClassificationTracer(traced, "m", "v", home=tmp_path) as tracer, torch.inference_mode():
        epoch = 0

        def run_bare() -> None:
            for _ in range(batches):
                bare(x)

        def run_traced() -> None:
            nonlocal epoch
            epoch += 1
            for batch in range(batches):
                tracer(x, y, ids[batch], "val", epoch)
            tracer.flush()

        run_bare()
        first = seconds(lambda: tracer(x, y, ids[0], "first", 0))
        later = min(seconds(lambda: tracer(x, y, ids[0], "later", 0)) for _ in range(5))
        run_traced()
        ratios = [1 / (seconds(run_bare) / seconds(run_traced)) for _ in range(9)]
        benchmark.pedantic(run_traced, rounds=3)
        one = seconds(run_bare) / batches
    say(
        f"{name}: {1e3 * one:.1f} ms a batch; traced / bare {statistics.median(ratios):.3f} "
        f"(goal {goal}; {min(ratios):.3f} to {max(ratios):.3f}); first / later call "
        f"{first / later:.2f}"
    )


def test_live_flags_over_tracing(tmp_path: Path, benchmark: Any) -> None:
    torch.manual_seed(0)
    model = resnet18(num_classes=10).eval()
    x = torch.randn(BATCH, 3, 64, 64)
    with torch.inference_mode():
        with ClassificationTracer(model, "m", "v", home=tmp_path) as tracer:
            for at in range(0, 20_000, 500):
                small = torch.randn(500, 3, 8, 8)
                logits = tracer(small, torch.randint(10, (500,)), range(at, at + 500), "val", 0)
            assert logits.shape == (500, 10)
        result = Evaluator("m", "v", home=tmp_path).request_evaluation()
        options: dict[str, Any] = {"result_name": result.result_name, "home": tmp_path}
        config = {"conditions": [{"error_proba": ">=0.5"}]}
        plain = ClassificationDataFilter(model, "m", "v", **options)
        live = ClassificationDataFilter(model, "m", "v", filter_config=config, **options)

        def run(data_filter: ClassificationDataFilter) -> None:
            for batch in range(6):
                data_filter(x, range(batch * BATCH, (batch + 1) * BATCH))

        run(plain)
        run(live)
        ratios = [1 / (seconds(lambda: run(plain)) / seconds(lambda: run(live))) for _ in range(9)]
        benchmark.pedantic(lambda: run(live), rounds=3)
        plain.close()
        live.close()
    say(
        f"live flags / traced, 20,000 evaluated samples: {statistics.median(ratios):.3f} "
        f"(goal 1.10; {min(ratios):.3f} to {max(ratios):.3f})"
    )


def test_import_time(benchmark: Any) -> None:
    def spent(code: str) -> float:
        timed = f"import time; a = time.perf_counter(); {code}; print(time.perf_counter() - a)"
        done = subprocess.run(
            [sys.executable, "-c", timed], capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    code = "import torch, torch.distributed; b = time.perf_counter(); import ml_debugger.training"
    beyond = [spent(f"{code}; a = b") for _ in range(5)]
    benchmark.pedantic(lambda: spent("import ml_debugger.training"), rounds=1)
    found = statistics.median(beyond)
    say(f"import of ml_debugger.training beyond torch: {found:.2f} s (goal 0.2)")
