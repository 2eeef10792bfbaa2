"""A million records: the writer's memory, and queries beside DuckDB over the same Parquet.

`uv run pytest tests/benchmarks/test_query_benchmark.py -s` prints the figures. The records are made
up: 512 features and 10 logits each. DuckDB reads a Parquet file with the same columns and answers
the same questions, ties by id as ours.
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml_debugger.core import ModelVersion, Scope, Store
from ml_debugger.core.pool import StoredPool
from ml_debugger.core.records import TaskSchema
from ml_debugger.core.selection import select

N = 1_000_000

WRITE = """
import sys, time
import numpy as np, torch
from ml_debugger.core import Batch, ModelVersion, Store, Units
from ml_debugger.core.writer import BatchWriter

home, n = sys.argv[1], int(sys.argv[2])
store = Store(home)
repository = store.register(
    ModelVersion("net", "v1"), task="classification", architecture=["m"], layers={"last": "0"},
    fields=[], label_fields=[],
)
run = repository.start_run("data_filter")

def peak_mib():  # of this program; ru_maxrss would begin with what its parent had used
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

before = peak_mib()
writer = BatchWriter(lambda batches: repository.write(run, batches))
torch.manual_seed(0)
features, logits = torch.randn(4096, 512), torch.randn(4096, 10)
start = time.perf_counter()
for at in range(0, n, 256):
    rows = slice(at % 4096, at % 4096 + 256)
    z = logits[rows] + 0.001 * (at / n)
    score, prediction = z.softmax(1).max(1)
    writer.put(Batch(
        input_ids=[f"image-{i:07d}" for i in range(at, min(at + 256, n))], dataset_type="pool",
        n_epoch=0, recorded_at=time.time_ns(), predicted=Units({
            "prediction": prediction.int(), "score": score,
            "finite": torch.ones(256, dtype=torch.bool), "logits": z,
            "feature.last": features[rows].clone()})))
writer.stop()
spent = time.perf_counter() - start
peak = peak_mib()
print(f"{n / spent:,.0f} rows/s; peak memory {peak:,.0f} MiB, {peak - before:,.0f} MiB above start")
"""


class Judged:
    """Stands for a result whose estimates are stored with the records already."""

    result_name = "r"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("million")
    n = N // 256 * 256
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(folder / "home"), str(n)],
        capture_output=True,
        text=True,
        check=True,
    )
    print(f"\nwriting: {done.stdout.strip()}")
    store = Store(folder / "home")
    records = store.open(ModelVersion("net", "v1")).records(Scope(("pool",), 0))
    import numpy as np

    rng = np.random.default_rng(0)
    proba = rng.beta(0.5, 3, records.inputs).astype(np.float32)
    zone = rng.choice(6, records.inputs, p=[0.6, 0.2, 0.05, 0.05, 0.03, 0.07]).astype(np.int8)
    records.write_estimates(
        "r",
        {
            "error_proba": proba,
            "zone": zone,
            "outlier": np.ones_like(proba),
            "unstable": np.zeros(len(proba), bool),
        },
    )
    pq.write_table(
        pa.table(
            {
                "input_id": records.ids(),
                "score": records.column("predicted/score"),
                "prediction": records.column("predicted/prediction"),
                "error_proba": proba,
                "zone": zone,
            }
        ),
        folder / "records.parquet",
    )
    store.close()
    return folder


QUERIES: dict[str, tuple[Any, str]] = {
    "top 50": ("high_error_proba", "true"),
    "condition": (
        {"conditions": [{"error_proba": ">=0.5", "score": "<0.4"}]},
        "error_proba >= 0.5::float and score < 0.4::float",
    ),
    "zone": ({"target_zones": ["critical_hotspot"]}, "zone = 4"),
}


def median(act: Callable[[], Any], rounds: int = 7) -> float:
    spent = []
    for _ in range(rounds):
        start = time.perf_counter()
        act()
        spent.append(time.perf_counter() - start)
    return 1e3 * statistics.median(spent)


@pytest.mark.parametrize("name", QUERIES)
def test_query_beside_duckdb(name: str, home: Path, benchmark: Any) -> None:
    strategy, condition = QUERIES[name]
    store = Store(home / "home")
    repository = store.open(ModelVersion("net", "v1"))
    result: Any = Judged()

    def ours() -> Any:
        pool = StoredPool(repository.records(Scope(("pool",), 0)), result, TaskSchema("made"))
        return select(pool, 50, strategy)

    sql = (
        f"select input_id from '{home / 'records.parquet'}' where {condition} "
        "order by error_proba desc, input_id limit 50"
    )
    connection = duckdb.connect()
    connection.execute("set threads = 2")

    def theirs() -> Any:
        return [row[0] for row in connection.execute(sql).fetchall()]

    start = time.perf_counter()
    first = ours()
    cold = 1e3 * (time.perf_counter() - start)
    assert first == theirs()
    mine, duck = median(ours), median(theirs)
    benchmark.pedantic(ours, rounds=3)
    print(
        f"\n{name} of {N:,}: ours {mine:.1f} ms (first {cold:.0f} ms), DuckDB {duck:.1f} ms, "
        f"ratio {mine / duck:.2f}; memory "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB"
    )
    store.close()
