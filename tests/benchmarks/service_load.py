"""How a service bears many records and many clients, with PostgreSQL, on this machine.

    uv run python tests/benchmarks/service_load.py [--records 1000000] [--seconds 8]

Prints the throughput of an upload beside what a raw socket over loopback takes, and the times of
calls of 1, 8 and 32 clients at once, with 100 versions in the project, one of them large. Server,
worker, database and clients share the machine.
"""

import argparse
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import requests
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from ml_debugger.core import ModelVersion, Store  # noqa: E402
from ml_debugger.core.records import Batch, Units  # noqa: E402
from ml_debugger.core.service.client import ServiceClient  # noqa: E402
from ml_debugger.core.service.delivery import send  # noqa: E402
from ml_debugger.core.store import LocalRepository  # noqa: E402
from packages.server.tests.machines import Postgres  # noqa: E402

CLASSES, WIDTH, FLUSH = 10, 64, 4096
BIG = ModelVersion("big", "v1")
CALLS = ("list versions", "list results", "get result", "query top 50", "query by zone")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Postgres(fsync=True) as postgres,
        serving(Path(folder), postgres.new_database()) as (url, key),
    ):
        client = ServiceClient(url, key)
        upload(Path(folder) / "home", client, options.records)
        result = evaluate(client)
        wait_for_estimates(client, result)
        print(f"{'call':16} {'clients':>7} {'calls':>7} {'p50 ms':>8} {'p99 ms':>8} {'calls/s':>8}")
        for clients in options.clients:
            for what in CALLS:
                times = load(url, key, client.project, result, what, clients, options.seconds)
                low, high = np.percentile(times, [50, 99]) * 1e3
                rate = len(times) / options.seconds
                print(f"{what:16} {clients:7} {len(times):7} {low:8.1f} {high:8.1f} {rate:8.1f}")


@contextmanager
def serving(folder: Path, database: str) -> Iterator[tuple[str, str]]:
    """Run a service as its users do; give its address and a key."""
    told = {"MLD_SERVER_DATABASE": database, "MLD_SERVER_DATA": str(folder / "s")}
    variables = {**os.environ, **told}
    command = [sys.executable, "-m", "ml_debugger.core"]
    subprocess.run([*command, "service", "migrate"], env=variables, check=True, capture_output=True)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "serve", "--port", "0"],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("serving on "):
                break
        key = json.loads((folder / "s" / "first_login.json").read_text())["key"]
        yield line.removeprefix("serving on ").strip(), key
    finally:
        process.terminate()
        process.wait()


def upload(home: Path, client: ServiceClient, records: int) -> None:
    """Record 100 versions, one of them large, and send them."""
    rng = np.random.default_rng(0)
    with Store(home) as store:
        for number in range(99):
            repository = record(store, ModelVersion(f"small{number}", "v1"), rng, 200, "val")
            send(repository, client)
        repository = record(store, BIG, rng, 20_000, "val")
        record(store, BIG, rng, records - 20_000, "pool")
        size = store.versions()[-1].bytes
        start = time.perf_counter()
        send(repository, client)
        seconds = time.perf_counter() - start
    raw = loopback(size)
    print(
        f"upload: {records:,} records, {size / 1e6:,.0f} MB, {seconds:.1f} s: "
        f"{size / seconds / 1e6:,.0f} MB/s, {raw / seconds:.3f} of what a socket takes "
        f"({size / raw / 1e6:,.0f} MB/s)"
    )


def record(
    store: Store, version: ModelVersion, rng: np.random.Generator, n: int, split: str
) -> LocalRepository:
    """Write made records of a classifier that is right where classes are apart."""
    repository = store.register(
        version,
        task="classification",
        architecture=[f"made {version}"],
        layers={"last": "0"},
    )
    run = repository.start_run("training" if split == "val" else "data_filter")
    centres = np.random.default_rng(7).normal(size=(CLASSES, WIDTH)) * 0.6
    for start in range(0, n, FLUSH):
        size = min(FLUSH, n - start)
        label = rng.integers(0, CLASSES, size)
        feature = (centres[label] + rng.normal(size=(size, WIDTH))).astype(np.float32)
        logits = (feature @ centres.T).astype(np.float32)
        chance = torch.softmax(torch.from_numpy(logits), 1)
        predicted = Units(
            {
                "prediction": chance.argmax(1),
                "score": chance.amax(1),
                "finite": torch.ones(size, dtype=torch.bool),
                "logits": torch.from_numpy(logits),
                "feature.last": torch.from_numpy(feature),
            }
        )
        actual = Units({"label": torch.from_numpy(label)}) if split == "val" else None
        ids = [f"{split}/{k:07d}" for k in range(start, start + size)]
        batch = Batch(ids, split, 0, time.time_ns(), predicted, actual)
        repository.write(run, [batch])
    return repository


def loopback(size: int) -> float:
    """Return the seconds that a plain socket takes for as many bytes over loopback."""
    block = bytes(1 << 20)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            peer, _ = server.accept()
            buffer = bytearray(1 << 20)
            with peer:
                while peer.recv_into(buffer):
                    pass

        taker = threading.Thread(target=take)
        taker.start()
        start = time.perf_counter()
        with socket.create_connection(server.getsockname()) as giver:
            for _ in range(0, size, len(block)):
                giver.sendall(block)
        taker.join()
        return time.perf_counter() - start


def evaluate(client: ServiceClient) -> int:
    """Evaluate the large version; return the result's number."""
    number = client.version(BIG)
    assert number is not None
    start = time.perf_counter()
    job = client.evaluate(number, {"n_epoch": 0, "result_name": "big"})
    while job["state"] in ("queued", "running"):
        time.sleep(0.2)
        job = client.job(job["id"])
    assert job["state"] == "done", job
    print(f"evaluation of 20,000 records: {time.perf_counter() - start:.1f} s, queue and all")
    return int(client.results(result_name="big")[0]["id"])


def wait_for_estimates(client: ServiceClient, result: int) -> None:
    """Have a worker estimate the pool, as the first query does."""
    start = time.perf_counter()
    while client.query(result, {"n_data": 50, "strategy": "high_error_proba"})["picks"] is None:
        time.sleep(1)
    print(f"estimates of the pool, once: {time.perf_counter() - start:.1f} s")


def load(
    url: str, key: str, project: str, result: int, what: str, clients: int, seconds: float
) -> np.ndarray:
    """Return how long the calls took that some clients made, each one after another."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(clients)
    answers = context.SimpleQueue()

    def act() -> None:
        base = f"{url}/api/v1/projects/{project}"
        session = requests.Session()
        session.headers["Authorization"] = f"Bearer {key}"
        query = {"n_data": 50, "strategy": "high_error_proba"}
        if what == "query by zone":
            query["strategy"] = {
                "target_zones": ["critical_hotspot"],
                "conditions": [{"score": ">=0.5"}],
            }

        def call() -> requests.Response:
            if what == "list versions":
                return session.get(f"{base}/versions")
            if what == "list results":
                return session.get(f"{base}/results")
            if what == "get result":
                return session.get(f"{base}/results/{result}")
            return session.post(f"{base}/results/{result}/query", json=query)

        call().raise_for_status()
        ready.wait()
        times = []
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            call().raise_for_status()
            times.append(time.perf_counter() - start)
        answers.put(times)

    processes = [context.Process(target=act) for _ in range(clients)]
    for one in processes:
        one.start()
    found = [answers.get() for _ in processes]
    for one in processes:
        one.join()
    return np.concatenate(found)


if __name__ == "__main__":
    main()
