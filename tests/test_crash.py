"""Processes that record are killed without warning; what they were told is saved must be there.

`MLD_CRASH_RUNS=100 pytest tests/test_crash.py` kills more often than the default.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from ml_debugger.core.records import ModelVersion
from ml_debugger.core.store import Scope, Store

KILLS = int(os.environ.get("MLD_CRASH_RUNS", "12"))
VERSION = ModelVersion("net", "crash")

# Imports once and then forks: starting is what would take the time, and the fork happens before
# anything of ours is open.
WORKER = r"""
import functools, os, random, signal, sys, time, traceback
import torch
import ml_debugger.core.store.local
from ml_debugger.core import tracer as tracing
from ml_debugger.core.store import Store
from ml_debugger.core.writer import BatchWriter
from ml_debugger.training import ClassificationTracer


def work(home, log, seed):
    rng = random.Random(seed)
    torch.set_num_threads(1)  # OpenMP's threads do not live through the fork
    tracing.BatchWriter = functools.partial(
        BatchWriter, flush_rows=rng.choice([1, 50, 500]), flush_seconds=rng.choice([0.001, 0.05])
    )
    model = torch.nn.Sequential(torch.nn.Linear(64, 2)).eval()
    tracer = ClassificationTracer(model, "net", "crash", {"x": "0:input"}, home=home)
    store = Store(home)
    run = tracer.run
    unsaved = []
    with open(log, "a") as file:
        k = 0
        while True:
            rows = rng.randint(1, 40)
            values = torch.arange(rows)[:, None] + torch.full((1, 64), 1000.0 * k)
            ids = [f"{run}:{k}:{row}:{rows}" for row in range(rows)]
            tracer(values, torch.arange(rows), ids, "train", rng.choice([None, 0, 1]))
            unsaved.append(f"{run}:{k}:{rows}\n")
            k += 1
            time.sleep(0.002)  # keeps what has to be read back small
            if rng.random() < 0.3:
                tracer.wait_for_save()
                file.write("".join(unsaved))
                file.flush()
                unsaved.clear()
            if rng.random() < 0.03:
                labels = torch.zeros(3000, dtype=torch.long)
                tracer(torch.zeros(3000, 64), labels, range(3000), "train", 2)
                tracer.drop_epoch_data(2)  # gives compaction work
                store.compact()


signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        try:
            work(*line.rstrip("\n").split("\t"))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(3)
    print(pid, flush=True)
"""


@pytest.fixture
def start():
    """Start a recording process: home, log and seed to its pid."""
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as factory:
        pids = []

        def begin(home, log, seed):
            factory.stdin.write(f"{home}\t{log}\t{seed}\n")
            factory.stdin.flush()
            pids.append(int(factory.stdout.readline()))
            return pids[-1]

        yield begin
        for pid in pids:
            kill(pid)
        factory.stdin.close()


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def wait_for(path, size, pid):
    """Wait until a log has grown: its process records."""
    deadline = time.monotonic() + 60
    while not path.exists() or path.stat().st_size <= size:
        assert time.monotonic() < deadline, "nothing was recorded"
        assert Path(f"/proc/{pid}").exists(), "a recording process ended by itself"
        time.sleep(0.005)


def check(home, logs):
    """Open the store as it is and compare with what the processes were told."""
    with Store(home) as store:
        repository = store.open(VERSION)
        found = defaultdict(dict)
        for epoch in (None, 0, 1):
            records = repository.records(Scope(n_epoch=epoch))
            assert records.replaced == 0
            ids = records.ids().to_pylist()
            features = records.column("predicted/feature.x")
            labels = records.column("actual/label")
            for name, feature, label in zip(ids, features, labels, strict=True):
                run, k, row, rows = name.split(":")
                assert label == int(row)
                assert np.all(feature == int(row) + 1000.0 * int(k)), name
                found[run, int(k), int(rows)][int(row)] = True
        for (run, k, rows), present in found.items():
            assert len(present) == rows, f"batch {k} of {run} is there in part"
        for log in logs:
            for line in log.read_text().splitlines():
                run, k, rows = line.split(":")
                assert (run, int(k), int(rows)) in found, f"saved batch {line} is lost"
        assert store.verify() == []
        return sum(map(len, found.values()))


def test_nothing_saved_is_lost_and_nothing_is_there_in_part(start, tmp_path):
    home = tmp_path / "home"
    logs = [tmp_path / "log0", tmp_path / "log1"]
    rng = random.Random(0)
    before = 0
    for number in range(KILLS):
        sizes = [log.stat().st_size if log.exists() else 0 for log in logs]
        pids = [start(home, log, f"{number}.{k}") for k, log in enumerate(logs)]
        for pid, log, size in zip(pids, logs, sizes, strict=True):
            if rng.random() < 0.8:  # else it may die while it opens the store
                wait_for(log, size, pid)
        time.sleep(rng.random() * 0.3)
        for pid in rng.sample(pids, 2):
            assert kill(pid), "a recording process ended by itself"
            time.sleep(rng.choice([0, 0.02]))
        for pid in pids:
            while Path(f"/proc/{pid}").exists():
                time.sleep(0.001)
        if number == 0 and not (home / "catalogue.db").exists():
            continue
        rows = check(home, logs) if any(log.exists() for log in logs) else 0
        assert rows >= before
        before = rows
    assert before > 0
    with Store(home) as store:
        store.compact()
    assert check(home, logs) == before


def test_a_process_that_is_killed_while_it_makes_the_store_does_no_harm(start, tmp_path):
    for number in range(max(3, KILLS // 4)):
        home, log = tmp_path / f"home{number}", tmp_path / f"log{number}"
        pid = start(home, log, "x")
        time.sleep(0.003 * number)
        kill(pid)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.001)
        with Store(home) as store:
            assert store.verify() == []
        second = start(home, log, "y")
        wait_for(log, log.stat().st_size if log.exists() else 0, second)
        kill(second)
