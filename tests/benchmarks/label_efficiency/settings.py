"""Pools of unlabelled inputs, and models to train on what is picked from them.

Nothing is downloaded; a seed decides everything. Digits are split before they are jittered, so
that no two parts share an original.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from failure.variants import Split, Staged, blobs, cnn, digits, jittered, mlp
from torch import Tensor, nn


class Setting(NamedTuple):
    """What is labelled at first, what may be labelled, and what it is judged by.

    A label of -1 in the pool is junk: it costs a label, and nothing can be trained on it.
    `evaluation` is labelled too, but never trained on: it is what `error_proba` is learnt from.
    """

    start: Split
    pool: Split
    evaluation: Split
    test: Split


@dataclass(frozen=True)
class Task:
    """A way to make a setting, and the model to train on it."""

    deal: Callable[[int], Setting]
    build: Callable[[int], Staged]


START, EVALUATED, TESTED = 50, 300, 500
STEPS = 400


def _parts(seed: int) -> tuple[Setting, torch.Generator]:
    """Deal 1,797 jittered digits: 50 labelled, 300 to evaluate, 500 to test, the rest the pool."""
    rng = torch.Generator().manual_seed(4000 + seed)
    x, y = digits()
    order = torch.randperm(len(y), generator=rng)
    images, labels = jittered(x[order], rng), y[order]
    sizes = (START, EVALUATED, TESTED, len(y) - START - EVALUATED - TESTED)
    start, evaluation, test, pool = (
        Split(*both)
        for both in zip(images.split(sizes), labels.split(sizes), strict=True)  # type: ignore[no-untyped-call]
    )
    return Setting(start, pool, evaluation, test), rng


def clean(seed: int) -> Setting:
    return _parts(seed)[0]


def imbalanced(seed: int) -> Setting:
    """Keep a tenth of classes 5 to 9 where labels come from; what is judged keeps all of them."""
    setting, rng = _parts(seed)

    def thinned(part: Split) -> Split:
        kept = (part.y < 5) | (torch.rand(len(part.y), generator=rng) < 0.1)
        return Split(part.x[kept], part.y[kept])

    spare = Split(*(torch.cat(both) for both in zip(setting.start, setting.pool, strict=True)))
    x, y = thinned(spare)
    return setting._replace(start=Split(x[:START], y[:START]), pool=Split(x[START:], y[START:]))


def junk(seed: int) -> Setting:
    """Make junk of 21 % of the pool: pixels in disorder, or two digits on top of each other."""
    setting, rng = _parts(seed)
    x, y = setting.pool.x.clone(), setting.pool.y.clone()
    chosen = torch.rand(len(y), generator=rng) < 0.21
    other = x[torch.randperm(len(y), generator=rng)]
    mixed = (x + other.flip(-1)).clamp(0, 1)
    shuffled = torch.stack(
        [one.flatten()[torch.randperm(64, generator=rng)].reshape(1, 8, 8) for one in x]
    )
    first = torch.rand(len(y), generator=rng) < 0.5
    x[chosen & first], x[chosen & ~first] = shuffled[chosen & first], mixed[chosen & ~first]
    y[chosen] = -1
    return setting._replace(pool=Split(x, y))


def near_duplicates(seed: int) -> Setting:
    """Record a tenth of the pool's inputs ten times each, a little noise apart."""
    setting, rng = _parts(seed)
    x, y = setting.pool
    times = torch.where(torch.rand(len(y), generator=rng) < 0.1, 10, 1)
    x, y = x.repeat_interleave(times, 0), y.repeat_interleave(times)
    x = (x + 0.02 * torch.randn(x.shape, generator=rng)).clamp(0, 1)
    return setting._replace(pool=Split(x, y))


def generated(seed: int) -> Setting:
    """Warped Gaussian clusters, three a class; see `failure.variants.blobs`."""
    dealt = blobs(4000 + seed, spread=3.6)
    x, y = dealt.pool
    cuts = (START, EVALUATED, TESTED, 1000)
    start, evaluation, test, pool = (
        Split(a, b)
        for a, b in zip(x[: sum(cuts)].split(cuts), y[: sum(cuts)].split(cuts), strict=True)  # type: ignore[no-untyped-call]
    )
    return Setting(start, pool, evaluation, test)


_MLP = mlp(64, 64, 48, 32)

TASKS: dict[str, Task] = {
    "clean, MLP": Task(clean, _MLP),
    "clean, CNN": Task(clean, cnn),
    "imbalanced, MLP": Task(imbalanced, _MLP),
    "junk, CNN": Task(junk, cnn),
    "near-duplicates, MLP": Task(near_duplicates, _MLP),
    "generated, MLP": Task(generated, mlp(24, 64, 48, 32)),
}


def train(task: Task, labelled: Split, seed: int) -> Staged:
    """Train a new model on what is labelled and no junk: 400 steps of AdamW, batches of 32."""
    torch.manual_seed(seed)
    model = task.build(10)
    x, y = labelled.x[labelled.y >= 0], labelled.y[labelled.y >= 0]
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    epochs = -(-STEPS // -(-len(y) // 32))
    batches = [rows for _ in range(epochs) for rows in torch.randperm(len(y)).split(32)]
    model.train()
    for rows in batches[:STEPS]:
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Staged, part: Split) -> float:
    found: Tensor = model(part.x).argmax(1) == part.y
    return float(found.float().mean())
