"""Generated scenes to try a detector on: shapes that overlap, are hidden, and drown in noise."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: The classes, in the order of their labels; label 0 is background, as torchvision has it.
CLASSES = ("background", "disc", "ring", "square", "triangle", "cross")

_VISIBLE = 0.4  # of a shape's area; what is hidden further is not annotated
_SMALLEST, _LARGEST = 9.0, 40.0


class Scene(NamedTuple):
    """One image and what is in it.

    Attributes:
        image: Shape (3, height, width), float32, in [0, 1].
        boxes: Corners x1, y1, x2, y2 of the visible part of each shape, in pixels, shape (n, 4),
            float32.
        labels: Positions in `CLASSES`, shape (n,), int64.
    """

    image: NDArray[np.float32]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def make_scenes(n: int, seed: int = 0, size: int = 96, noise: float = 0.08) -> list[Scene]:
    """Draw some scenes; the same seed draws the same ones.

    Args:
        n: How many.
        seed: Another seed draws others.
        size: Height and width, in pixels.
        noise: Standard deviation of the noise of the clearest scenes; the worst have three times
            as much.
    """
    return [_draw(np.random.default_rng([seed, at]), size, noise) for at in range(n)]


def _draw(rng: np.random.Generator, size: int, noise: float) -> Scene:
    image = _background(rng, size)
    rows, columns = np.mgrid[:size, :size].astype(np.float32) + 0.5
    owner = np.zeros((size, size), np.int64)
    whole, labels = [0], [0]
    for number in range(1, 1 + int(rng.integers(1, 7))):
        label = int(rng.integers(1, len(CLASSES)))
        half = 0.5 * float(np.exp(rng.uniform(np.log(_SMALLEST), np.log(_LARGEST))))
        middle = rng.uniform(0.3 * half, size - 0.3 * half, 2)
        inside = _shape(label, columns - middle[0], rows - middle[1], half, rng.uniform(0, np.pi))
        colour = rng.uniform(0.1, 0.9, 3)
        image[:, inside] = colour[:, None] + rng.normal(0, 0.04, (3, int(inside.sum())))
        owner[inside] = number
        whole.append(max(int(inside.sum()), 1))
        labels.append(label)
    for _ in range(int(rng.integers(0, 5))):  # clutter hides parts, and looks a little like shapes
        _scratch(image, owner, rng)
    image += rng.normal(0, noise * rng.uniform(1, 3), image.shape)
    boxes, kept = [], []
    for number, (area, label) in enumerate(zip(whole, labels, strict=True)):
        y, x = np.nonzero(owner == number)
        if number and len(x) >= _VISIBLE * area and len(x) > 12:
            boxes.append((x.min(), y.min(), x.max() + 1, y.max() + 1))
            kept.append(label)
    return Scene(
        np.clip(image, 0, 1).astype(np.float32),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(kept, np.int64),
    )


def _background(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    coarse = rng.uniform(0.2, 0.8, (3, 4, 4))
    at = np.linspace(0, 3, size)
    low = np.minimum(at.astype(int), 2)
    share = at - low
    along = coarse[:, low] * (1 - share)[:, None] + coarse[:, low + 1] * share[:, None]
    image: NDArray[np.float64] = along[:, :, low] * (1 - share) + along[:, :, low + 1] * share
    return image


def _shape(
    label: int, x: NDArray[np.float32], y: NDArray[np.float32], half: float, turn: float
) -> NDArray[np.bool_]:
    """Tell which pixels, at x and y from the middle, lie in a shape."""
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    away = np.hypot(x, y)
    kind = CLASSES[label]
    if kind == "disc":
        depth = away / half
    elif kind == "ring":
        depth = np.abs(away / half - 0.775) / 0.225
    elif kind == "square":
        depth = np.maximum(np.abs(u), np.abs(v)) / (0.75 * half)
    elif kind == "cross":
        arms = np.minimum(np.abs(u), np.abs(v)) / (0.28 * half)
        depth = np.maximum(arms, np.maximum(np.abs(u), np.abs(v)) / half)
    else:
        corners = (np.pi / 2, 7 * np.pi / 6, 11 * np.pi / 6)
        depth = np.maximum.reduce([u * np.cos(a) + v * np.sin(a) for a in corners]) / (0.5 * half)
    return np.asarray(depth <= 1)


def _scratch(
    image: NDArray[np.float64], owner: NDArray[np.int64], rng: np.random.Generator
) -> None:
    size = owner.shape[0]
    start, step = rng.uniform(0, size, 2), rng.normal(0, 1, 2)
    along = np.linspace(0, rng.uniform(5, 25), 60)[:, None] * step / np.hypot(*step)
    points = np.clip((start + along).round().astype(int), 0, size - 1)
    image[:, points[:, 0], points[:, 1]] = rng.uniform(0, 1, 3)[:, None]
    owner[points[:, 0], points[:, 1]] = 0
