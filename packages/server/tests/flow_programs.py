"""What the users of a service do, each as a process of its own.

With `MLD_API_ENDPOINT` in the environment they work with a service, without it by themselves; what
they print is to be the same.
"""

import hashlib
import json
import sys
import time

import torch
from sklearn.datasets import load_digits

from ml_debugger.data_filter import ClassificationDataFilter
from ml_debugger.evaluator import Evaluator
from ml_debugger.training import ClassificationTracer

BATCH = 250
NOISE = 4.0


def data(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return n noisy digits, shape (n, 64), and their labels."""
    images, labels = map(torch.tensor, load_digits(return_X_y=True))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, len(images), (n,), generator=generator)
    noise = torch.randn(n, 64, generator=generator)
    return images[rows].float() + NOISE * noise, labels[rows]


def trained() -> torch.nn.Module:
    """Return a small network, trained alike in every process."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    images, labels = data(4000, 1)
    for _ in range(80):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def trace(n: int) -> None:
    """Trace n records, unlike what the network was trained on, and evaluate them."""
    model, (images, labels) = trained(), data(n, 2)
    outputs = hashlib.sha256()
    start = time.perf_counter()
    with ClassificationTracer(model, "digits", "v1", auto_sync=True) as tracer, torch.no_grad():
        for at in range(0, n, BATCH):
            rows = slice(at, at + BATCH)
            ids = [f"val/{k}" for k in range(n)[rows]]
            logits = tracer(images[rows], labels[rows], ids, dataset_type="val", n_epoch=3)
            outputs.update(logits.numpy().tobytes())
        traced = time.perf_counter() - start
        tracer.wait_for_save()
        saved = time.perf_counter() - start
    start = time.perf_counter()
    files = evaluated()
    tell(
        {"outputs": outputs.hexdigest(), "files": files},
        {"traced": traced, "saved": saved, "evaluated": time.perf_counter() - start},
    )


def evaluate(_: int) -> None:
    """Evaluate what was traced."""
    start = time.perf_counter()
    tell({"files": evaluated()}, {"evaluated": time.perf_counter() - start})


def evaluated() -> dict[str, object]:
    """Evaluate, and return what is in the result's files, but for the time."""
    result = Evaluator("digits", "v1").request_evaluation(result_name="digits", n_epoch=3)
    files: dict[str, object] = {
        one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in result.folder.iterdir()
    }
    manifest = json.loads((result.folder / "result.json").read_text())
    times = ("created_at", "completed_at")
    files["result.json"] = {k: v for k, v in manifest.items() if k not in times}
    return files


def pick(n: int) -> None:
    """Filter n inputs without labels by the result."""
    model, (images, _) = trained(), data(n, 3)
    config = {"target_zones": ["critical_hotspot", "hotspot", "aleatoric_hotspot"]}
    start = time.perf_counter()
    found = []
    with (
        ClassificationDataFilter(
            model, "digits", "v1", "digits", filter_config=config
        ) as data_filter,
        torch.no_grad(),
    ):
        for at in range(0, n, BATCH):
            rows = slice(at, at + BATCH)
            found += data_filter(images[rows], [f"pool/{k}" for k in range(n)[rows]])[1]
        picks = data_filter.query(100, "high_error_proba", explain=True)
        data_filter.wait_for_save()
    told = {
        "flags": found,
        "picks": json.loads(picks.to_json(orient="records", double_precision=15)),
    }
    tell(told, {"filtered": time.perf_counter() - start})


def tell(told: object, seconds: dict[str, float]) -> None:
    """Print what was found, and how long it took."""
    json.dump({"told": told, "seconds": seconds}, sys.stdout)


if __name__ == "__main__":
    {"trace": trace, "evaluate": evaluate, "pick": pick}[sys.argv[1]](int(sys.argv[2]))
