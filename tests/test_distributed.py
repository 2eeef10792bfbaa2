"""Two real gloo processes: each writes its own part, the primary does what is done once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RANK = """
import json, sys, warnings
from pathlib import Path
import torch, torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from ml_debugger.core import MLDebuggerError
from ml_debugger.evaluator import Evaluator
from ml_debugger.monitoring import ClassificationLogger
from ml_debugger.training import ClassificationTracer

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
torch.manual_seed(0)
x = torch.randn(101, 6)
y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
data = TensorDataset(x, y, torch.arange(101))
torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
if sys.argv[3] == "ddp":
    model = torch.nn.parallel.DistributedDataParallel(model)
model.eval()
tracer = ClassificationTracer(model, "net", "v1", home=folder / "home", force_table_recreate=True)
sampler = DistributedSampler(data, shuffle=False)
seen = 0
for images, labels, ids in DataLoader(data, 16, sampler=sampler):
    tracer(images, labels, ids, "val", n_epoch=0)
    seen += len(ids)
tracer.wait_for_save(n_epoch=0)
exported = tracer.export(folder / "export.zip")
result = Evaluator("net", "v1", home=folder / "home").request_evaluation()
named = [result and result.result_name]
dist.broadcast_object_list(named)
homes = folder / "home", folder / "other"  # where there is no result
try:
    ClassificationLogger(model, "net", "v1", *named, home=homes[rank])
except LookupError as error:
    failure = f"{type(error).__name__}: {error}"
except MLDebuggerError as error:
    failure = str(error)
print(json.dumps({
    "failure": failure,
    "run": tracer.run, "seen": seen, "exported": exported and str(exported),
    "result": result and [result.result_name, len(result)],
}))
tracer.close()
dist.destroy_process_group()
"""


FAILING = """
import atexit, http.server, json, os, signal, sys, threading, time, warnings
from pathlib import Path
import torch, torch.distributed as dist
from ml_debugger.core import MLDebuggerError, distributed
from ml_debugger.evaluator import Evaluator
from ml_debugger.training import ClassificationTracer

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)


def trace(width, home=folder / "home", **more):
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, width), torch.nn.ReLU(), torch.nn.Linear(width, 4)
    model = torch.nn.Sequential(*layers)
    if rank == 0 and "force_table_recreate" in more:
        time.sleep(1)  # the other rank would find the old version, if it did not wait
    return ClassificationTracer(model, "net", "v1", home=home, **more)


def record(tracer):
    ids = [3 * rank, 3 * rank + 1, 3 * rank + 2]
    tracer(torch.randn(3, 6), torch.tensor([0, 1, 2]), ids)
    tracer.flush()


def outcome(act):
    start = time.monotonic()
    try:
        act()
    except (MLDebuggerError, KeyboardInterrupt) as error:
        notes = " ".join(getattr(error, "__notes__", []))
        return [f"{type(error).__name__}: {error}{notes}", time.monotonic() - start]
    return ["", time.monotonic() - start]


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(403)

    def log_message(self, *_):
        pass


def interrupted():
    if rank == 0:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            time.sleep(60)
        except KeyboardInterrupt as error:
            error.add_note("noted")
            raise


record(trace(8))
with trace(9, force_table_recreate=True) as tracer:
    said = [outcome(lambda: tracer.export(folder / "nowhere" / "export.zip"))]
    evaluator = Evaluator("net", "v1", home=folder / "home")
    said.append(outcome(lambda: evaluator.request_evaluation()))
said.append(outcome(lambda: distributed.together(interrupted)))

# what is set on one rank only
refusing = http.server.HTTPServer(("127.0.0.1", 0), Refusing)
threading.Thread(target=refusing.serve_forever, daemon=True).start()
there = {"api_endpoint": f"http://127.0.0.1:{refusing.server_port}"}
(folder / "file").touch()
said.append(outcome(lambda: trace(9, **(there if rank else {}))))
said.append(outcome(lambda: trace(9, home=folder / ("file" if rank else "home"))))
there["api_key"] = "mldbg_public_secret"
evaluator = Evaluator("net", "v1", home=folder / "home", **(there if rank else {}))
said.append(outcome(lambda: evaluator.request_evaluation(options={"seeed": 1})))
with trace(9, **(there if rank else {})) as tracer:
    record(tracer)
    said.append(outcome(tracer.wait_for_save))

with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    tracer = trace(9, api_endpoint="http://service.invalid", api_key="mldbg_public_secret")
    tracer.close()
where = {(one.filename, one.lineno) for one in warned}

tracer = trace(9)
if rank == 1:  # it records, while the other has begun to drop
    time.sleep(0.5)
record(tracer)
tracer.drop_version_data()
dist.barrier()
left = tracer._recording.repository.records().inputs
dist.barrier()
record(tracer)


def at_exit():
    tracer.wait_for_save()  # from Python 3.12 on no thread can be begun any more
    print(json.dumps({"said": said, "where": list(where), "left": left}))
    dist.destroy_process_group()


atexit.register(at_exit)
"""


def run_ranks(script: str, tmp_path: Path, *arguments: str) -> list[Any]:
    """Run a script on two ranks; return what each printed last."""
    file = tmp_path / "rank.py"
    file.write_text(script)
    ranks = [
        subprocess.Popen(
            [sys.executable, file, str(rank), tmp_path, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = []
    for process in ranks:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        said.append(json.loads(out.splitlines()[-1]))
    return said


def test_ranks_fail_together_and_none_waits(tmp_path: Path) -> None:
    primary, other = run_ranks(FAILING, tmp_path)
    told = "MLDebuggerError: rank {} failed, and so do all: {}"
    expected = ["InputError", "NothingToEvaluateError", "KeyboardInterrupt"]
    expected += ["InputError", "StoreError", "InputError", "RefusedError"]
    for k, start in enumerate(expected):
        failed = int(k > 2)
        own, others = (one["said"][k] for one in ((primary, other), (other, primary))[failed])
        assert own[0].startswith(start)
        assert others[0] == told.format(failed, own[0].removesuffix("noted"))
        assert max(own[1], others[1]) < 50  # gloo would give up after half an hour
    assert primary["said"][2][0].endswith("noted")
    for one in (primary, other):
        assert one["left"] == 0
        ((file, line),) = one["where"]
        assert Path(file) == tmp_path / "rank.py"
        assert "ClassificationTracer(" in FAILING.splitlines()[line - 1]


@pytest.mark.parametrize("wrapper", ["bare", "ddp"])
def test_two_ranks(tmp_path: Path, wrapper: str) -> None:
    primary, other = run_ranks(RANK, tmp_path, wrapper)
    assert primary["run"] == other["run"]
    assert primary["seen"] + other["seen"] == 102  # the sampler repeats one of the 101
    assert primary["exported"] == str(tmp_path / "export.zip")
    assert other["exported"] is None
    assert primary["result"][1] == 101
    assert other["result"] is None
    assert other["failure"].startswith("ResultNotFoundError")
    assert primary["failure"] == f"rank 1 failed, and so do all: {other['failure']}"

    from ml_debugger.core import ModelVersion, Store

    store = Store(tmp_path / "home")
    records = store.open(ModelVersion("net", "v1")).records()
    assert records.inputs == 101
    assert records.replaced == 1
    assert sorted(map(int, records.ids().to_pylist())) == list(range(101))
    assert len(list((tmp_path / "home" / "segments").glob("*.seg"))) >= 2
    store.close()
