"""Print what an approximate index would bring to the search for neighbours (about 2 minutes).

    uv run --with faiss-cpu python tests/benchmarks/neighbour_index.py

`Points.search` looks at every reference; here faiss's IVF stands beside it, on one thread, with 64
units at a time. Classes are overlapping Gaussian clusters, the prediction is the likeliest class;
references are chosen of four times as many units, and 512 features scaled, as a fit does both.

- exact: `Points.search` for the 10 nearest, `same` and `other`, and for the 10 nearest by angle,
  for which each of the others counts one more index, probed as much as for the nearest;
- 16 nearest: as many candidates as the exact search keeps, out of as few lists as find 95% of the
  10 nearest; `same` and `other` are the nearest candidates of the predicted and any other class;
- same lists: `same` and `other` are also searched for in all of the lists that were probed;
- more lists: in as few lists as find 95% of each;
- by class, 1: in an index for each class, searched for one neighbour, beside the index of all;
- by class, 10: in an index for each class, searched for ten, of which the nearest of all come.

An index has as many lists as the square root of its vectors; a power of two of them is probed.
`no same` and `no other` are the shares of units that see no such reference, `same` and `other` the
shares whose distance is right to 1e-5. Times are the least processor time of five runs.
"""

import argparse
import time
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ml_debugger.core.evaluation.error_model.folds import choose_references
from ml_debugger.core.evaluation.error_model.layer import NEIGHBOURS
from ml_debugger.core.evaluation.error_model.scaling import Scaling
from ml_debugger.core.evaluation.error_model.search import Points, lengths

SIZES = (4096, 8192, 65_536, 200_000)  # from the default of `max_references` on
SEPARATIONS = (4.0, 2.5, 1.5)  # of the classes' means, in standard deviations in each direction
WIDTH, LATENT, CLASSES = 512, 64, 10
BLOCK, CANDIDATES, WANTED = 64, NEIGHBOURS + 6, 0.95
RECALL, NO_OTHER, SAME, OTHER = 0, 2, 3, 4  # of the shares in a row

Singles = NDArray[np.float32]
Integers = NDArray[np.int64]


class Data(NamedTuple):
    """References (m, 128) with labels (m,), and units (n, 128) with predictions (n,)."""

    points: Singles
    labels: Integers
    units: Singles
    prediction: Integers
    errors: float


class Row(NamedTuple):
    """Lists probed, seconds to build, milliseconds a unit, and shares in the order printed."""

    name: str
    lists: str
    build: float
    each: float
    shares: tuple[float, ...]


def made(m: int, n: int, separation: float) -> Data:
    rng = np.random.default_rng(7)
    centres = np.zeros((CLASSES, LATENT), np.float32)
    centres[:, : CLASSES - 1] = rng.normal(0, separation, (CLASSES, CLASSES - 1))
    label = rng.integers(0, CLASSES, 4 * m + n)
    latent = centres[label] + rng.standard_normal((len(label), LATENT), np.float32)
    prediction = (latent @ centres.T - np.square(centres).sum(axis=1) / 2).argmax(axis=1)
    wrong = prediction != label
    chosen, _ = choose_references(wrong[:-n], m)
    rows = np.concatenate([chosen, np.arange(4 * m, 4 * m + n)])
    falling = np.arange(1, LATENT + 1, dtype=np.float32)[:, None] ** -0.5
    features = latent[rows] @ (falling * rng.standard_normal((LATENT, WIDTH), np.float32))
    features += rng.standard_normal(features.shape, np.float32) / 10
    scaling = Scaling.fit(features, np.arange(min(m, 20_000)))
    scaled = np.vstack([scaling(part) for part in np.array_split(features, 50)])
    return Data(scaled[:m], label[chosen], scaled[m:], prediction[-n:], float(wrong.mean()))


def index(points: Singles) -> tuple[Any, float]:
    """Return an index, faiss's k-means being seeded, and the seconds that it took."""
    start = time.process_time()
    found = faiss.index_factory(points.shape[1], f"IVF{round(len(points) ** 0.5)},Flat")
    found.cp.min_points_per_centroid = 1  # it would warn where there are few
    found.train(points)
    found.add(points)
    return found, time.process_time() - start


class Indexes:
    """An index of all references, and one for each class.

    What a search finds for n units is (n, 2 + k): the nearest reference of the predicted class and
    of any other, and the k nearest of all; -1 is none, or not looked for.
    """

    def __init__(self, points: Singles, labels: Integers) -> None:
        self.labels, self.rows = labels, [np.flatnonzero(labels == k) for k in range(CLASSES)]
        self.whole, self.build = index(points)
        self.angles, self.build_angles = index(points / lengths(points)[:, None])
        self.own, builds = zip(*(index(points[rows]) for rows in self.rows), strict=True)
        self.build_own = sum(builds)
        self.only = [
            [faiss.IDSelectorBitmap(np.packbits(one, bitorder="little")) for one in (own, ~own)]
            for own in (labels == k for k in range(CLASSES))
        ]

    def near(self, units: Singles, prediction: Integers, lists: int) -> Integers:
        """Search for candidates of all classes."""
        params = faiss.SearchParametersIVF(nprobe=lists)
        at = self.whole.search(units, CANDIDATES, params=params)[1]
        own, rows = self.labels[at] == prediction[:, None], np.arange(len(units))
        sides = (np.where(one, at, -1) for one in (own, ~own))
        return np.column_stack([*(one[rows, (one >= 0).argmax(axis=1)] for one in sides), at])

    def by_angle(self, units: Singles, _: Integers, lists: int) -> Integers:
        params = faiss.SearchParametersIVF(nprobe=lists)
        return self.angles.search(units / lengths(units)[:, None], NEIGHBOURS, params=params)[1]

    def inside(self, units: Singles, prediction: Integers, lists: int, side: int) -> Integers:
        """Search the index of all for the predicted class, side 0, or for the others, 1."""
        at = np.full((len(units), 2), -1)
        for k in np.unique(prediction):
            rows = prediction == k
            params = faiss.SearchParametersIVF(nprobe=lists, sel=self.only[k][side])
            at[rows, side] = self.whole.search(units[rows], 1, params=params)[1][:, 0]
        return at

    def by_class(self, units: Singles, prediction: Integers, lists: int, k: int) -> Integers:
        """Search the index of each class for k."""
        params = faiss.SearchParametersIVF(nprobe=lists)
        squared, at = zip(*(one.search(units, k, params=params) for one in self.own), strict=True)
        far = np.hstack(squared)
        at = np.hstack([np.where(i < 0, i, own[i]) for own, i in zip(self.rows, at, strict=True)])
        near = np.take_along_axis(at, far.argpartition(k - 1, axis=1)[:, :k], axis=1)
        far, at, rows = far[:, ::k], at[:, ::k], np.arange(len(units))
        same = at[rows, prediction]
        far[rows, prediction] = np.inf
        return np.column_stack([same, at[rows, far.argmin(axis=1)], near])


def compare(data: Data) -> list[Row]:
    """Search in every way; the first row is the exact search."""
    points, labels, units, prediction, _ = data
    searched, indexes = Points.of(points), Indexes(points, labels)

    def timed(search: Callable[..., Any], *given: int) -> tuple[Any, float]:
        times = []
        for _ in range(5):
            start = time.process_time()
            found = [
                search(units[at : at + BLOCK], prediction[at : at + BLOCK], *given)
                for at in range(0, len(units), BLOCK)
            ]
            times.append(time.process_time() - start)
        return np.concatenate(found), 1e3 * min(times) / len(units)

    def exactly(some: Singles, said: Integers) -> NDArray[np.float64]:
        found = searched.search(some, labels, said, NEIGHBOURS)
        return np.column_stack([found.same, found.other, found.nearest])

    def shares(at: Integers) -> tuple[float, ...]:
        gap = points[at[:, :2]] - units[:, None]
        distance = np.where(at[:, :2] < 0, np.inf, np.sqrt(np.square(gap).sum(axis=2)))
        recall = (at[:, None, 2:] == true[:, 2:, None]).any(axis=2).mean()
        right = np.isclose(distance, true[:, :2], rtol=1e-5, atol=0)
        return (recall, *np.isinf(distance).mean(axis=0), *right.mean(axis=0))

    def tuned(search: Any, most: int, wanted: tuple[int, ...], *given: int) -> Any:
        """Probe the fewest lists, a power of two, that find enough of what is wanted."""
        lists = 1
        while True:
            at, each = timed(search, lists, *given)
            if lists >= most or min(shares(at)[one] for one in wanted) >= WANTED:
                return lists, at, each
            lists *= 2

    true, each = timed(exactly)
    rows = [Row("exact", "all", 0, each, (1, *np.isinf(true[:, :2]).mean(axis=0), 1, 1))]

    def add(name: str, lists: str, build: float, each: float, *found: Integers) -> None:
        build, each = build + indexes.build_angles, each + angles
        rows.append(Row(name, lists, build, each, shares(np.hstack(found))))

    most, build = indexes.whole.nlist, indexes.build
    lists, near, first = tuned(indexes.near, most, (RECALL,))
    _, angles = timed(indexes.by_angle, lists)
    add("16 nearest", f"{lists}/{most}", build, first, near)
    (same, own), (other, others) = (timed(indexes.inside, lists, side) for side in (0, 1))
    add("same lists", f"{lists}/{most}", build, first + own + others,
        np.maximum(same, other), near[:, 2:])  # fmt: skip
    a, same, own = tuned(indexes.inside, most, (SAME,), 0)
    b, other, others = tuned(indexes.inside, most, (OTHER,), 1)
    add("more lists", f"{lists},{a},{b}/{most}", build, first + own + others,
        np.maximum(same, other), near[:, 2:])  # fmt: skip
    build, most = indexes.build_own, max(one.nlist for one in indexes.own)
    a, both, each = tuned(indexes.by_class, most, (SAME, OTHER), 1)
    add("by class, 1", f"{lists},10x{a}/{most}", build + indexes.build, first + each,
        both[:, :2], near[:, 2:])  # fmt: skip
    a, both, each = tuned(indexes.by_class, most, (RECALL, SAME, OTHER), NEIGHBOURS)
    add("by class, 10", f"10x{a}/{most}", build, each, both)
    return rows


def span(values: list[float], form: str) -> str:
    return "-".join(dict.fromkeys(format(one, form) for one in (min(values), max(values))))


def conclusion(found: dict[int, list[list[Row]]]) -> str:
    """Say what the figures do: of each size, the tables of all separations."""
    probed = [rows[2].shares for tables in found.values() for rows in tables]
    words: list[str] = []
    slower: list[str] = []
    for m, tables in found.items():
        faster, after = [], []
        for exact, *others in tables:
            fit = [
                one for one in others if min(one.shares[i] for i in (RECALL, SAME, OTHER)) >= WANTED
            ]
            best = min(fit, key=lambda one: one.each)
            faster.append(exact.each / best.each)
            gain = exact.each - best.each
            after.append(1e3 * best.build / gain if gain > 0 else np.inf)
        words.append(
            f"{span(faster, '.1f')} at {m:,} (build repaid by {span(after, ',.0f')} units)"
        )
        slower += [f"{m:,}"] if min(faster) > 1 else []
    return (
        f"Lists that find 95% of the nearest hold no other class for "
        f"{span([one[NO_OTHER] for one in probed], '.0%')} of units, and not its nearest for "
        f"{span([1 - one[OTHER] for one in probed], '.0%')}. Exact search takes as many times as "
        f"long as the quickest that finds 95% of nearest, `same` and `other`: {'; '.join(words)}. "
        f"It is the slower throughout at {'; '.join(slower) or 'no size'}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--units", type=int, default=512)
    given = parser.parse_args()
    threadpool_limits(1)
    faiss.omp_set_num_threads(1)
    heads = ("recall", "no same", "no other", "same", "other")
    print(f"{'refs':>7} errors {'search':<12} {'lists':>13} {'build s':>7} {'ms each':>8}", end=" ")
    print(*(f"{head:>8}" for head in heads))
    found: dict[int, list[list[Row]]] = {}
    for m, separation in product(given.sizes, SEPARATIONS):
        data = made(m, given.units, separation)
        found.setdefault(m, []).append(compare(data))
        for one in found[m][-1]:
            cells = [f"{100 * share:.1f}%" for share in one.shares]
            print(
                f"{m:>7,} {data.errors:>6.1%} {one.name:<12} {one.lists:>13} "
                f"{one.build:>7.2f} {one.each:>8.4f} " + " ".join(f"{c:>8}" for c in cells),
                flush=True,
            )
    print(f"\n{conclusion(found)}")


if __name__ == "__main__":
    main()
