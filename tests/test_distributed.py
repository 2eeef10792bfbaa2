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
from ml_debugger.evaluator import Evaluator
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
print(json.dumps({
    "run": tracer.run, "seen": seen, "exported": exported and str(exported),
    "result": result and [result.result_name, len(result)],
}))
tracer.close()
dist.destroy_process_group()
"""


FAILING = """
import json, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from ml_debugger.core import MLDebuggerError
from ml_debugger.evaluator import Evaluator
from ml_debugger.training import ClassificationTracer

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)


def trace(width, **more):
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, width), torch.nn.ReLU(), torch.nn.Linear(width, 4)
    model = torch.nn.Sequential(*layers)
    if rank == 0 and more:
        time.sleep(1)  # the other rank would find the old version, if it did not wait
    return ClassificationTracer(model, "net", "v1", home=folder / "home", **more)


def outcome(act):
    start = time.monotonic()
    try:
        act()
    except MLDebuggerError as error:
        return [f"{type(error).__name__}: {error}", time.monotonic() - start]
    return ["", time.monotonic() - start]


trace(8)(torch.randn(3, 6), torch.tensor([0, 1, 2]), [3 * rank, 3 * rank + 1, 3 * rank + 2])
with trace(9, force_table_recreate=True) as tracer:
    said = [outcome(lambda: tracer.export(folder / "nowhere" / "export.zip"))]
    evaluator = Evaluator("net", "v1", home=folder / "home")
    said.append(outcome(lambda: evaluator.request_evaluation()))
print(json.dumps(said))
dist.destroy_process_group()
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
    for (own, _), (told, spent) in zip(primary, other, strict=True):
        assert told == f"MLDebuggerError: rank 0 failed, and so do all: {own}"
        assert spent < 60  # gloo would give up after half an hour
    assert primary[0][0].startswith("InputError")
    assert primary[1][0].startswith("NothingToEvaluateError")


@pytest.mark.parametrize("wrapper", ["bare", "ddp"])
def test_two_ranks(tmp_path: Path, wrapper: str) -> None:
    primary, other = run_ranks(RANK, tmp_path, wrapper)
    assert primary["run"] == other["run"]
    assert primary["seen"] + other["seen"] == 102  # the sampler repeats one of the 101
    assert primary["exported"] == str(tmp_path / "export.zip")
    assert other["exported"] is None
    assert primary["result"][1] == 101
    assert other["result"] is None

    from ml_debugger.core import ModelVersion, Store

    store = Store(tmp_path / "home")
    records = store.open(ModelVersion("net", "v1")).records()
    assert records.inputs == 101
    assert records.replaced == 1
    assert sorted(map(int, records.ids().to_pylist())) == list(range(101))
    assert len(list((tmp_path / "home" / "segments").glob("*.seg"))) >= 2
    store.close()
