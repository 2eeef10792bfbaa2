"""Models that fail in a known way, on data that ships with scikit-learn or is made here.

Every variant deals its data into three disjoint parts: what the model is trained on, a labelled
evaluation set, and a pool that stands for production. Images are split before they are jittered,
so that no two parts share an original. Nothing is downloaded; a seed decides everything.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


class Split(NamedTuple):
    """Inputs and labels; a label of -1 is none of the model's classes."""

    x: Tensor
    y: Tensor


class Dealt(NamedTuple):
    """The three parts of a data set."""

    train: Split
    evaluation: Split
    pool: Split


@dataclass(frozen=True)
class Traced:
    """What a model saw and said of some inputs: features by layer (n, d), logits (n, K)."""

    features: dict[str, Floats]
    logits: Floats
    labels: Integers

    @property
    def prediction(self) -> Integers:
        return self.logits.argmax(axis=1).astype(np.int64)

    @property
    def score(self) -> Floats:
        return torch.from_numpy(self.logits).softmax(1).amax(1).numpy()

    @property
    def wrong(self) -> NDArray[np.bool_]:
        return self.prediction != self.labels

    def take(self, rows: NDArray[np.int64]) -> "Traced":
        features = {name: values[rows] for name, values in self.features.items()}
        return Traced(features, self.logits[rows], self.labels[rows])

    def only(self, *layers: str) -> "Traced":
        return replace(self, features={name: self.features[name] for name in layers})


class Run(NamedTuple):
    """A trained model's view of its evaluation set and of its pool.

    `flips` is the share of retrained models that predict another class, by pool input; None
    unless it was asked for.
    """

    evaluation: Traced
    pool: Traced
    flips: Floats | None


@dataclass(frozen=True)
class Variant:
    """A way to deal data, and a model trained on it.

    Attributes:
        deal: Makes the parts from a seed.
        build: Makes an untrained model; its `stages` are what is recorded.
        epochs: How long it is trained.
        shifted: Whether the pool differs from the evaluation set in ways that no labelled unit
            shows, so that calibration cannot be expected to survive.
    """

    deal: Callable[[int], Dealt]
    build: Callable[[int], "Staged"]
    epochs: int
    shifted: bool = False


# Models


class Staged(nn.Module):
    """Stages one after another, then a linear head; the output of every stage is recorded."""

    def __init__(self, stages: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stages, self.head = nn.ModuleList(stages), head

    def forward(self, x: Tensor) -> Tensor:
        return self.traced(x)[1]

    def traced(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        seen = []
        for stage in self.stages:
            x = stage(x)
            seen.append(x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x)
        return seen, self.head(seen[-1])


def mlp(inputs: int, *widths: int) -> Callable[[int], Staged]:
    def build(classes: int) -> Staged:
        stages: list[nn.Module] = []
        before = inputs
        for width in widths:
            stages.append(nn.Sequential(nn.Flatten(), nn.Linear(before, width), nn.ReLU()))
            before = width
        return Staged(stages, nn.Linear(before, classes))

    return build


def cnn(classes: int) -> Staged:
    return Staged(
        [
            nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Flatten(), nn.Linear(24 * 4, 48), nn.ReLU()),
        ],
        nn.Linear(48, classes),
    )


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.body(x)).relu()


def resnet(classes: int) -> Staged:
    return Staged(
        [
            nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), Residual(16)),
            nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), Residual(32)),
            nn.Sequential(nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.ReLU(), Residual(48)),
        ],
        nn.Linear(48, classes),
    )


class Patches(nn.Module):
    """Cut 8 x 8 images into 16 patches of 2 x 2, with learnt positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(2).transpose(1, 2) + self.position


def transformer(classes: int) -> Staged:
    def block() -> nn.Module:
        return nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, batch_first=True, norm_first=True)

    return Staged([nn.Sequential(Patches(48), block()), block(), block()], nn.Linear(48, classes))


# Digits


@cache
def digits() -> Split:
    from sklearn.datasets import load_digits

    found = load_digits()
    return Split(
        torch.tensor(found.images / 16, dtype=torch.float32)[:, None], torch.tensor(found.target)
    )


def dealt_digits(rng: torch.Generator, train: int = 450, copies: int = 3) -> Dealt:
    """Deal originals out, then jitter each of them; evaluation inputs come once."""
    x, y = digits()
    order = torch.randperm(len(y), generator=rng)
    parts = order[:train], order[train : train + 600], order[train + 600 :]
    return Dealt(
        *(
            Split(jittered(x[rows.repeat(times)], rng), y[rows.repeat(times)])
            for rows, times in zip(parts, (copies, 1, 3), strict=True)
        )
    )


def uniform(rng: torch.Generator, n: int, low: float, high: float) -> Tensor:
    return torch.rand(n, generator=rng) * (high - low) + low


def jittered(x: Tensor, rng: torch.Generator) -> Tensor:
    """Turn by up to 9 degrees, shift by up to 11 %, scale by up to 9 %."""
    n = len(x)
    angle, scale = uniform(rng, n, -9, 9).deg2rad(), uniform(rng, n, 0.91, 1.09)
    affine = torch.zeros(n, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = angle.cos() * scale
    affine[:, 0, 1], affine[:, 1, 0] = -angle.sin() * scale, angle.sin() * scale
    affine[:, 0, 2], affine[:, 1, 2] = uniform(rng, n, -0.11, 0.11), uniform(rng, n, -0.11, 0.11)
    grid = affine_grid(affine, [n, 1, 8, 8], align_corners=False)
    return grid_sample(x, grid, align_corners=False)


def corrupted(x: Tensor, rng: torch.Generator, most: float) -> Tensor:
    """Add noise, blur, occlude or take contrast from each image, with a severity up to `most`."""
    n = len(x)
    kind = torch.randint(4, (n,), generator=rng)
    severity = uniform(rng, n, 0, most)[:, None, None, None]
    noisy = x + 0.18 * severity * torch.randn(x.shape, generator=rng)
    blurred = avg_pool2d(x, 3, stride=1, padding=1)
    share = (0.36 * severity).clamp(max=1)
    blurred = share * blurred + (1 - share) * x
    corner = torch.randint(6, (2, n), generator=rng)
    at = torch.arange(8)
    size = 1.0 + 1.05 * severity[:, 0, 0, 0]
    rows = (at >= corner[0][:, None]) & (at < corner[0][:, None] + size[:, None])
    cols = (at >= corner[1][:, None]) & (at < corner[1][:, None] + size[:, None])
    hidden = x * ~(rows[:, None, :, None] & cols[:, None, None, :])
    pale = 0.5 + (x - 0.5) * (1 - 0.26 * severity).clamp(min=0.05)
    kinds = torch.stack([noisy, blurred, hidden, pale])
    return kinds[kind, torch.arange(n)].clamp(0, 1)


def redrawn(y: Tensor, rng: torch.Generator, share: float, classes: int = 10) -> Tensor:
    chosen = torch.rand(len(y), generator=rng) < share
    return torch.where(chosen, torch.randint(classes, y.shape, generator=rng), y)


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + seed)


def clean(seed: int) -> Dealt:
    return dealt_digits(_rng(seed))


def small(seed: int) -> Dealt:
    return dealt_digits(_rng(seed), train=120, copies=1)


def symmetric_noise(seed: int) -> Dealt:
    rng = _rng(seed)
    dealt = dealt_digits(rng)
    return dealt._replace(train=dealt.train._replace(y=redrawn(dealt.train.y, rng, 0.3)))


def pair_noise(seed: int) -> Dealt:
    rng = _rng(seed)
    dealt = dealt_digits(rng)
    mistaken = torch.arange(10)
    for true, taken in ((3, 8), (1, 7), (4, 9), (8, 3)):
        mistaken[true] = taken
    y = dealt.train.y
    chosen = torch.rand(len(y), generator=rng) < 0.42
    return dealt._replace(train=dealt.train._replace(y=torch.where(chosen, mistaken[y], y)))


def imbalance(seed: int) -> Dealt:
    rng = _rng(seed)
    dealt = dealt_digits(rng)
    x, y = dealt.train
    rare = torch.isin(y, torch.tensor([2, 5, 8]))
    kept = ~rare | (torch.rand(len(y), generator=rng) < 0.12)
    return dealt._replace(train=Split(x[kept], y[kept]))


def corruption(seed: int) -> Dealt:
    rng = _rng(seed)
    dealt = dealt_digits(rng)
    return Dealt(
        *(
            part._replace(x=corrupted(part.x, rng, most))
            for part, most in zip(dealt, (1.0, 2.0, 2.0), strict=True)
        )
    )


def shift(seed: int) -> Dealt:
    rng = _rng(seed)
    dealt = dealt_digits(rng)
    return dealt._replace(
        evaluation=dealt.evaluation._replace(x=corrupted(dealt.evaluation.x, rng, 1.0)),
        pool=dealt.pool._replace(x=corrupted(dealt.pool.x, rng, 3.0)),
    )


def new_classes(seed: int) -> Dealt:
    """Keep classes 8 and 9 out of training and evaluation."""
    dealt = known_new_classes(seed)
    x, y = dealt.evaluation
    return dealt._replace(evaluation=Split(x[y >= 0], y[y >= 0]))


def known_new_classes(seed: int) -> Dealt:
    """Keep classes 8 and 9 out of training alone."""
    dealt = dealt_digits(_rng(seed))
    dealt = Dealt(*(Split(part.x, torch.where(part.y < 8, part.y, -1)) for part in dealt))
    x, y = dealt.train
    return dealt._replace(train=Split(x[y >= 0], y[y >= 0]))


def shortcut(seed: int) -> Dealt:
    """Mark classes 3 and 5 by a bright corner each, in training nearly always."""
    rng = _rng(seed)
    dealt = dealt_digits(rng)

    def marked(part: Split, own: float, other: float) -> Split:
        x, y = part.x.clone(), part.y
        chance, which = (
            torch.rand(len(y), generator=rng),
            torch.randint(2, (len(y),), generator=rng),
        )
        for number, (true, row) in enumerate(((3, 0), (5, 6))):
            at = (y == true) & (chance < own)
            at |= (y != true) & (chance >= 1 - other) & (which == number)
            x[at, :, row : row + 2, 0:2] = 1.0
        return Split(x, y)

    return Dealt(
        marked(dealt.train, 0.95, 0.0),
        marked(dealt.evaluation, 0.5, 0.12),
        marked(dealt.pool, 0.5, 0.12),
    )


def subgroup(seed: int) -> Dealt:
    """Turn some images of classes 0 to 5 by 90 degrees, but none in training."""
    rng = _rng(seed)
    dealt = dealt_digits(rng)

    def turned(part: Split) -> Split:
        at = (part.y <= 5) & (torch.rand(len(part.y), generator=rng) < 0.22)
        x = part.x.clone()
        x[at] = x[at].rot90(1, (2, 3))
        return Split(x, part.y)

    return dealt._replace(evaluation=turned(dealt.evaluation), pool=turned(dealt.pool))


def label_noise(seed: int) -> Dealt:
    """Redraw a tenth of all labels: errors that nothing can foresee."""
    rng = _rng(seed)
    return Dealt(*(part._replace(y=redrawn(part.y, rng, 0.1)) for part in dealt_digits(rng)))


# Made-up and tabular data


def blobs(
    seed: int, *, classes: int = 10, clusters: int = 30, spread: float = 3.1, flipped: int = 0
) -> Dealt:
    """Scatter Gaussian clusters in 16 dimensions, warp them into 24, mislabel some in training."""
    rng = np.random.default_rng(2000 + seed)
    centres = rng.normal(0, spread / 2, (clusters, 16))
    owner = np.arange(clusters) % classes
    warp, bend = rng.normal(0, 0.25, (16, 24)), rng.normal(0, 0.25, (16, 24))
    mislabelled = owner.copy()
    for cluster in rng.permutation(clusters)[:flipped]:
        mislabelled[cluster] = (owner[cluster] + rng.integers(1, classes)) % classes

    def part(n: int, labels: NDArray[np.int64]) -> Split:
        cluster = rng.integers(0, clusters, n)
        z = centres[cluster] + rng.normal(0, 1, (n, 16))
        x = z @ warp + np.sin(z @ bend)
        return Split(torch.tensor(x, dtype=torch.float32), torch.tensor(labels[cluster]))

    sizes = 1500 if classes <= 10 else 30 * classes
    return Dealt(part(sizes, mislabelled), part(sizes, owner), part(6000, owner))


def breast(seed: int) -> Dealt:
    """Take the breast-cancer table with noise of 1.2 standard deviations on every column."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    rng = np.random.default_rng(3000 + seed)
    x = (found.data - found.data.mean(0)) / found.data.std(0)
    x = x + rng.normal(0, 1.2, x.shape)
    order = rng.permutation(len(x))
    x, y = torch.tensor(x[order], dtype=torch.float32), torch.tensor(found.target[order])
    return Dealt(*(Split(x[at], y[at]) for at in (slice(80), slice(80, 230), slice(230, None))))


_MLP = mlp(64, 64, 48, 32)
_TABLE = mlp(24, 64, 48, 32)

#: The variants of the study: fifteen that the method was developed on, then five more.
VARIANTS: dict[str, Variant] = {
    "digits_clean": Variant(clean, _MLP, 80),
    "digits_cleancnn": Variant(clean, cnn, 60),
    "digits_symnoise": Variant(symmetric_noise, cnn, 60),
    "digits_pairnoise": Variant(pair_noise, _MLP, 80),
    "digits_imbalance": Variant(imbalance, _MLP, 80),
    "digits_corrupt": Variant(corruption, _MLP, 80),
    "digits_shift": Variant(shift, cnn, 60, shifted=True),
    "digits_ood": Variant(new_classes, _MLP, 80, shifted=True),
    "digits_oodknown": Variant(known_new_classes, _MLP, 80),
    "digits_shortcut": Variant(shortcut, _MLP, 80),
    "digits_subgroup": Variant(subgroup, _MLP, 80),
    "digits_labelnoise": Variant(label_noise, _MLP, 80),
    "blobs_overlap": Variant(blobs, _TABLE, 80),
    "blobs_flip": Variant(lambda seed: blobs(seed, flipped=4), _TABLE, 80),
    "breast": Variant(breast, mlp(30, 64, 48, 32), 80),
    "digits_underfit": Variant(clean, _MLP, 4),
    "digits_overfit": Variant(small, _MLP, 400),
    "digits_resnet": Variant(pair_noise, resnet, 40),
    "digits_transformer": Variant(imbalance, transformer, 60),
    "blobs_100classes": Variant(
        lambda seed: blobs(seed, classes=100, clusters=150, spread=3.0), _TABLE, 60
    ),
}
DEVELOPED_ON = tuple(VARIANTS)[:15]


def train(variant: Variant, dealt: Dealt, seed: int) -> Staged:
    """Train with AdamW at 3e-3 and a cosine schedule, batches of 64."""
    torch.manual_seed(seed)
    x, y = dealt.train
    classes = int(max(int(part.y.max()) for part in dealt)) + 1
    model = variant.build(classes)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = -(-len(y) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, variant.epochs * steps)
    model.train()
    for _ in range(variant.epochs):
        for rows in torch.randperm(len(y)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def traced(model: Staged, part: Split) -> Traced:
    seen, logits = model.traced(part.x)
    features = {f"stage{number}": one.numpy() for number, one in enumerate(seen)}
    return Traced(features, logits.numpy(), part.y.numpy().astype(np.int64))


def run(name: str, seed: int, *, retrained: int = 0) -> Run:
    """Deal, train and trace one variant; also ask some retrained models, where wanted."""
    variant = VARIANTS[name]
    dealt = variant.deal(seed)
    model = train(variant, dealt, seed)
    evaluation, pool = traced(model, dealt.evaluation), traced(model, dealt.pool)
    flips = None
    if retrained:
        others = [
            train(variant, dealt, 10_000 * (number + 1) + seed) for number in range(retrained)
        ]
        changed = [traced(one, dealt.pool).prediction != pool.prediction for one in others]
        flips = np.mean(changed, axis=0, dtype=np.float32)
    return Run(evaluation, pool, flips)
