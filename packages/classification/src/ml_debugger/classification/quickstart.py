"""Find where a digit classifier fails, and which images would help: the whole loop in one file.

Run it with `ml-debugger quickstart`. The images are scikit-learn's handwritten digits, which ship
with it; nothing is downloaded. Three things are made to go wrong, as they do in practice: some
training labels are mistaken, a quarter of what the model meets later is turned by 90 degrees,
which it never saw in training, and a few pictures are no digits at all.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

EPOCHS = 30
BUDGET = 120  # how many pool images there is time to label


class Split(NamedTuple):
    """Some images: (n, 1, 8, 8) in [0, 1], their classes (-1: no digit), and their ids."""

    images: Tensor
    labels: Tensor
    ids: Tensor


def load(seed: int) -> dict[str, Split]:
    """Deal the digits out, and make the trouble described above."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    digits = load_digits()
    order = rng.permutation(len(digits.images))
    images = torch.tensor(digits.images[order] / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target[order])
    ids = torch.tensor(order)
    splits = {}
    for name, part in {
        "train": slice(0, 400),
        "val": slice(400, 900),
        "pool": slice(900, 1500),
        "test": slice(1500, None),
    }.items():
        x, y = images[part].clone(), labels[part].clone()
        if name == "train":
            for true, mistaken in ((3, 8), (1, 7), (4, 9)):
                at = torch.from_numpy(rng.random(len(y)) < 0.3)
                y[(labels[part] == true) & at] = mistaken
        else:
            turned = torch.from_numpy(rng.random(len(y)) < 0.25)
            x[turned] = x[turned].rot90(1, (2, 3))
        if name in ("val", "pool"):
            junk = torch.from_numpy(rng.random(len(y)) < 0.05)
            x[junk] = torch.from_numpy(rng.random((int(junk.sum()), 1, 8, 8))).float()
            y[junk] = -1
        splits[name] = Split(x, y, ids[part])
    return splits


def build() -> nn.Module:
    """Return a small convolutional network."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )


def train(
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    after_epoch: Callable[[nn.Module, int], None] = lambda _model, _epoch: None,
) -> nn.Module:
    """Train a new network, an ordinary loop; images labelled -1 are left out."""
    torch.manual_seed(seed)
    model = build()
    known = labels >= 0
    images, labels = images[known], labels[known]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(EPOCHS):
        model.train()
        for batch in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        model.eval()
        after_epoch(model, epoch)
    return model


def debug(data: dict[str, Split], *, seed: int, home: str | Path | None) -> tuple[Any, list[int]]:
    """Trace, evaluate and query: what you would add to your own project.

    Returns:
        The evaluation's result, and the ids of the pool images that it would label next.
    """
    from ml_debugger.data_filter import ClassificationDataFilter
    from ml_debugger.evaluator import Evaluator
    from ml_debugger.training import ClassificationTracer

    version = f"seed{seed}"

    # 1. Trace the labelled validation split, in a few of the epochs.
    def trace(model: nn.Module, epoch: int) -> None:
        if epoch not in (9, 19, 29):
            return
        val = data["val"]
        with (
            ClassificationTracer(model, "quickstart", version, home=home) as tracer,
            torch.no_grad(),
        ):
            for batch in torch.arange(len(val.ids)).split(100):
                tracer(
                    val.images[batch],
                    val.labels[batch],
                    input_ids=val.ids[batch],
                    dataset_type="val",
                    n_epoch=epoch,
                )

    model = train(data["train"].images, data["train"].labels, seed=seed, after_epoch=trace)

    # 2. Evaluate the epoch traced last: where is the model wrong, and how can one tell?
    result = Evaluator("quickstart", version, home=home).request_evaluation()

    # 3. Run the unlabelled pool through the model, and ask what to label.
    pool = data["pool"]
    with (
        ClassificationDataFilter(
            model, "quickstart", version, result.result_name, home=home
        ) as data_filter,
        torch.no_grad(),
    ):
        for batch in torch.arange(len(pool.ids)).split(100):
            data_filter(pool.images[batch], input_ids=pool.ids[batch])
        queried = data_filter.query(BUDGET, "high_error_proba", type_cast=int)
    return result, queried


def accuracy_with(data: dict[str, Split], ids: list[int], *, seed: int) -> float:
    """Label some pool images, train again with them, and return the accuracy on the test split."""
    pool, extra = data["pool"], torch.isin(data["pool"].ids, torch.tensor(ids, dtype=torch.long))
    model = train(
        torch.cat([data["train"].images, pool.images[extra]]),
        torch.cat([data["train"].labels, pool.labels[extra]]),
        seed=seed,
    )
    with torch.no_grad():
        predicted = model(data["test"].images).argmax(1)
    return float((predicted == data["test"].labels).float().mean())


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one core, where a network this small is faster, and put it back after."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def quickstart(
    home: str | Path | None = None, report: str | Path = "quickstart.html", seeds: int = 5
) -> Path:
    """Run the loop, write the report, and measure whether the query was worth it.

    Args:
        home: Where records are kept; `MLD_HOME` or `~/.ml_debugger` if None.
        report: The report's file.
        seeds: How often everything is done again, to tell luck from gain.

    Returns:
        The report's path.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console()
    path = Path(report)
    rows = []
    for seed in range(seeds):
        data = load(seed)
        result, queried = debug(data, seed=seed, home=home)
        if seed == 0:
            console.print(result.summary())
            val = data["val"]
            images = {str(i): x for i, x in zip(val.ids.tolist(), val.images, strict=True)}
            path = result.report(report, images=images, title="Digits, the quickstart")
        pool = data["pool"].ids.tolist()
        random = np.random.default_rng(seed).choice(pool, BUDGET, replace=False).tolist()
        rows.append([accuracy_with(data, chosen, seed=seed) for chosen in ([], random, queried)])
        console.print(
            "seed {}: accuracy {:.3f}; {} random images labelled {:.3f}; queried {:.3f}".format(
                seed, rows[-1][0], BUDGET, *rows[-1][1:]
            )
        )
    table = Table(title=f"Test accuracy, {seeds} seeds: is the query worth its labels?")
    for heading in ("labelled from the pool", "mean", "standard deviation"):
        table.add_column(heading)
    names = ("nothing", f"{BUDGET} at random", f"{BUDGET} queried: high_error_proba")
    for name, values in zip(names, np.array(rows).T, strict=True):
        table.add_row(name, f"{values.mean():.3f}", f"{values.std():.3f}")
    console.print(table)
    console.print(f"report: {path.absolute()}", soft_wrap=True)
    return path
