"""Generated scenes to try a 3D detector on: what a turning LiDAR sees of cars, people and clutter.

The sensor is at the origin, x to its front, y to its left and z up, over flat ground. It casts a
ray for each cell of a grid of azimuths and elevations, and each ray ends at what it hits first: so
what is far has few points, and what is hidden has none.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: The classes, in the order of their labels.
CLASSES = ("car", "pedestrian", "cyclist")

#: Height of the ground, in metres.
GROUND = -1.73

_SIZES = np.array([[4.2, 1.8, 1.6], [0.7, 0.7, 1.75], [1.8, 0.7, 1.7]])
_SPREAD = 0.08  # of a side's logarithm
_SHARES = (0.4, 0.35, 0.25)
#: What an object is built of: its prisms' x, dx, dy, bottom and top, as parts of its box.
_PARTS: tuple[tuple[tuple[float, float, float, float, float], ...], ...] = (
    ((0, 1, 1, 0.1, 0.58), (-0.08, 0.55, 0.86, 0.58, 1)),
    ((0, 0.5, 0.75, 0, 0.85), (0, 0.35, 0.35, 0.85, 1)),
    ((0, 1, 0.2, 0, 0.6), (-0.06, 0.3, 0.8, 0.4, 1)),
)
_WHOLE = ((0.0, 1.0, 1.0, 0.0, 1.0),)
_FEWEST = 5  # points, for a detector to be asked for the object
_NEAREST = 3.0  # metres from the sensor
_AZIMUTHS, _ELEVATIONS = 360, np.tan(np.radians(np.linspace(-24, 4, 32)))


class Scene(NamedTuple):
    """One point cloud and what is in it, in the LiDAR's frame, in metres.

    Attributes:
        points: x, y, z and intensity in [0, 1], shape (p, 4), float32.
        boxes: x, y, z of the centre of gravity, dx, dy, dz, and the yaw in radians in [-pi, pi),
            counter-clockwise about z, shape (n, 7), float32.
        labels: Positions in `CLASSES`, shape (n,), int64.
        num_points: How many points lie in each box, shape (n,), int64.
        ignored: Whether so few do, fewer than 5, that nobody could find the object, shape (n,),
            bool.
    """

    points: NDArray[np.float32]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    num_points: NDArray[np.int64]
    ignored: NDArray[np.bool_]


def make_scenes(n: int, seed: int = 0, reach: float = 20.0, noise: float = 0.02) -> list[Scene]:
    """Make some scenes; the same seed makes the same ones.

    Args:
        n: How many.
        seed: Another seed makes others.
        reach: How far from the sensor points are, and a metre less the centres of boxes, at most
            along x and along y, in metres; at least 8.
        noise: Standard deviation of the distances measured in the clearest scenes, in metres; the
            worst have three times as much.
    """
    return [_make(np.random.default_rng([seed, at]), reach, noise) for at in range(n)]


def _make(rng: np.random.Generator, reach: float, noise: float) -> Scene:
    ground = _Ground(rng, reach)
    for _ in range(int(rng.integers(1, 4))):  # walls
        ground.place((rng.uniform(5, 14), 0.3, rng.uniform(2, 4)), _WHOLE, rng.uniform(0.2, 0.6))
    boxes: list[NDArray[np.float64]] = []
    labels: list[int] = []
    for label in rng.choice(len(CLASSES), int(rng.integers(2, 13)), p=_SHARES):
        sides = _SIZES[label] * np.exp(rng.normal(0, _SPREAD, 3))
        # people walk together
        near = boxes[-1] if label == 1 and labels and labels[-1] == 1 else None
        box = ground.place(tuple(sides), _PARTS[label], rng.uniform(0.1, 1), near=near)
        if box is not None:
            boxes.append(box)
            labels.append(int(label))
    for _ in range(int(rng.integers(0, 6))):  # poles
        width = rng.uniform(0.12, 0.5)
        ground.place((width, width, rng.uniform(1.2, 4)), _WHOLE, rng.uniform(0.2, 0.9))
    for _ in range(int(rng.integers(0, 7))):  # bushes, some of the size of a car
        sides = rng.uniform((0.6, 0.6, 0.7), (4, 1.8, 1.8))
        ground.place(tuple(sides), _WHOLE, rng.uniform(0.1, 0.5), open_share=rng.uniform(0.3, 0.7))
    points = _scan(rng, np.array(ground.prisms).reshape(-1, 9), reach, noise * rng.uniform(1, 3))
    found = np.array(boxes, np.float32).reshape(-1, 7)
    counts = _count(points, found)
    return Scene(points, found, np.array(labels, np.int64), counts, counts < _FEWEST)


class _Ground:
    """Where things stand.

    `prisms` has x, y, half of dx and dy, bottom, top, yaw, intensity, and the share of rays that
    pass; `discs` has what they cover, x, y and radius.
    """

    def __init__(self, rng: np.random.Generator, reach: float) -> None:
        self.prisms: list[tuple[float, ...]] = []
        self._discs = np.array([[0, 0, _NEAREST]])
        self._rng = rng
        self._reach = reach

    def place(
        self,
        sides: tuple[float, ...],
        parts: tuple[tuple[float, float, float, float, float], ...],
        intensity: float,
        *,
        open_share: float = 0.0,
        near: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64] | None:
        """Put a thing where there is room, and return its box (7,); None where none is found."""
        dx, dy, dz = sides
        steps = int(np.ceil(dx / dy))  # a long thing covers a row of discs
        along = (np.arange(steps) + 0.5) / steps * dx - dx / 2
        radius = np.hypot(dx / steps, dy) / 2
        for _ in range(20):
            yaw = self._rng.uniform(-np.pi, np.pi)
            if near is None:
                middle = self._rng.uniform(1 - self._reach, self._reach - 1, 2)
            else:
                middle = near[:2] + self._rng.normal(0, 1.2, 2)
            discs = middle + along[:, None] * (np.cos(yaw), np.sin(yaw))
            apart = np.linalg.norm(discs[:, None] - self._discs[:, :2], axis=2)
            room = (apart > radius + self._discs[:, 2]).all()
            if room and (abs(middle) <= self._reach - 1).all():
                break
        else:
            return None
        self._discs = np.concatenate([self._discs, np.c_[discs, np.full(steps, radius)]])
        bottom = GROUND + self._rng.uniform(0, 0.05)
        for shift, length, width, low, high in parts:
            x, y = middle + shift * dx * np.array([np.cos(yaw), np.sin(yaw)])
            halves = (length * dx / 2, width * dy / 2)
            ends = (bottom + low * dz, bottom + high * dz)
            self.prisms.append((x, y, *halves, *ends, yaw, intensity, open_share))
        return np.array([*middle, bottom + dz / 2, dx, dy, dz, yaw])


def _scan(
    rng: np.random.Generator, prisms: NDArray[np.float64], reach: float, noise: float
) -> NDArray[np.float32]:
    """Return the points (p, 4) where rays end."""
    azimuth = (np.arange(_AZIMUTHS, dtype=np.float64) + rng.uniform()) * 2 * np.pi / _AZIMUTHS
    shape = (_AZIMUTHS, len(_ELEVATIONS))
    with np.errstate(divide="ignore"):
        flat = np.where(_ELEVATIONS < 0, GROUND / _ELEVATIONS, np.inf)
    # how far each ray goes, seen from above, and the intensity of what it hits
    far = np.repeat(flat[None], _AZIMUTHS, 0)
    intensity = np.full(shape, rng.uniform(0.1, 0.4))
    row, column, distance, which = _hits(prisms, azimuth)
    keep = rng.uniform(size=len(which)) >= prisms[which, 8]
    row, column, distance, which = row[keep], column[keep], distance[keep], which[keep]
    order = np.argsort(-distance)  # so that the nearest is written last
    row, column, which = row[order], column[order], which[order]
    far[row, column], intensity[row, column] = distance[order], prisms[which, 7]

    # what is dark and far returns too little light
    lost = 0.05 + 0.6 * (1 - intensity) * np.minimum(far / reach, 1) ** 2
    row, column = np.nonzero(np.isfinite(far) & (rng.uniform(size=shape) > lost))
    distance = far[row, column] + rng.normal(0, noise, len(row))
    value = intensity[row, column] + rng.normal(0, 0.05, len(row))
    x, y = distance * np.cos(azimuth[row]), distance * np.sin(azimuth[row])
    points = np.stack([x, y, distance * _ELEVATIONS[column], value.clip(0, 1)], 1)
    dust = rng.uniform((-reach, -reach, GROUND, 0), (reach, reach, 1, 0.2), (rng.poisson(10), 4))
    points = np.concatenate([points, dust])
    return points[(abs(points[:, :2]) < reach).all(1)].astype(np.float32)


def _hits(
    prisms: NDArray[np.float64], azimuth: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return azimuth, elevation, distance seen from above, and prism of each hit, shape (h,)."""
    x, y, half_x, half_y, bottom, top, yaw = prisms.T[:7]
    cos, sin = np.cos(yaw), np.sin(yaw)
    turned = azimuth - yaw[:, None]
    with np.errstate(divide="ignore"):
        per_x, per_y = 1 / np.cos(turned), 1 / np.sin(turned)
    # the sensor, as each prism sees it, is at -(ahead, left)
    ahead, left = (x * cos + y * sin)[:, None], (y * cos - x * sin)[:, None]
    wide_x, wide_y = half_x[:, None] * abs(per_x), half_y[:, None] * abs(per_y)
    enter = np.maximum(ahead * per_x - wide_x, left * per_y - wide_y)
    leave = np.minimum(ahead * per_x + wide_x, left * per_y + wide_y)
    which, row = np.nonzero((enter > 0) & (enter < leave))
    enter, leave = enter[which, row, None], leave[which, row, None]
    low, high = bottom[which, None], top[which, None]
    height = enter * _ELEVATIONS
    side = (height >= low) & (height <= high)
    roof = (height > high) & (leave * _ELEVATIONS < high)
    hit, column = np.nonzero(side | roof)
    with np.errstate(divide="ignore"):
        on_roof = top[which[hit]] / _ELEVATIONS[column]
    distance = np.where(side[hit, column], enter[hit, 0], on_roof)
    return row[hit], column, distance, which[hit]


def _count(points: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Count the points in each box."""
    apart = points[None, :, :3].astype(np.float64) - boxes[:, None, :3]
    cos, sin = np.cos(boxes[:, 6:]), np.sin(boxes[:, 6:])
    ahead = apart[..., 0] * cos + apart[..., 1] * sin
    left = apart[..., 1] * cos - apart[..., 0] * sin
    inside = 2 * abs(np.stack([ahead, left, apart[..., 2]], 2)) <= boxes[:, None, 3:6]
    counts: NDArray[np.int64] = inside.all(2).sum(1)
    return counts
