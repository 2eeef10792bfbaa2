"""Two real gloo processes: each writes its own part, the primary does what is done once."""

import json
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("wrapper", ["bare", "ddp"])
def test_two_ranks(tmp_path: Path, wrapper: str) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), tmp_path, wrapper],
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
    primary, other = said
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
