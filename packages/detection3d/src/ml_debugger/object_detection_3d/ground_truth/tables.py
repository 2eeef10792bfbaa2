"""Tables of nuScenes: read row by row, since some have millions, and kept as arrays."""

import json
import re
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ml_debugger.core.errors import InputError

T = TypeVar("T")

#: How much of a file is read at a time, and how long a row may be, in characters.
_PIECE, _LONGEST_ROW = 2**20, 2**24
#: What is before a row, or else the end.
_START, _NEXT = re.compile(r"\s*\[\s*(\]?)"), re.compile(r"\s*(?:,|(\]))\s*")
#: Two annotations of an object that are further apart in time tell no velocity, in seconds.
_LONGEST = 1.5


class Rows(dict[str, T]):
    """Something of each row of a table, by token.

    Raises:
        InputError: There is no such row.
    """

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__()
        self._path = folder / f"{name}.json"

    def __missing__(self, token: str) -> T:
        raise InputError(
            f"{self._path} has no row with the token {token!r}, which another table names; "
            "expected all tables of one version of the data set"
        )


def read_rows(folder: Path, name: str, *columns: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a table, without holding more than a piece of its file.

    Raises:
        InputError: There is no such table, it is no list of objects, or a row lacks a column.
    """
    path = folder / f"{name}.json"
    for number, row in enumerate(_objects(path)):
        missing = [one for one in columns if one not in row]
        if missing:
            raise InputError(
                f"row {number} of {path} has no {' and no '.join(map(repr, missing))}; expected "
                f"nuScenes' columns {', '.join(columns)}"
            )
        yield row


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    scan, text, at, rows = json.JSONDecoder().raw_decode, "", 0, 0
    try:
        with path.open(encoding="utf-8") as source:
            while True:
                before = (_NEXT if rows else _START).match(text, at)
                if before and before[1]:
                    return
                try:
                    row, at = scan(text, before.end() if before else len(text))
                except ValueError:  # it is not whole yet
                    piece = source.read(_PIECE)
                    text, at = text[at:] + piece, 0
                    if not piece or len(text) > _LONGEST_ROW:
                        break
                    continue
                if not isinstance(row, dict):
                    break
                yield row
                rows += 1
    except FileNotFoundError:
        raise InputError(f"{path} is not there; expected a table of nuScenes") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no table of nuScenes, but no text at all: {error}") from None
    raise InputError(
        f"{path} is no table of nuScenes, or a part of one; expected a JSON list of objects, but "
        f"after {rows} of them there is {text[at : at + 40]!r}"
    )


class Annotations:
    """The table `sample_annotation`, by sample.

    Args:
        folder: Where the tables are.
        categories: Names of the categories of instances, by their tokens.

    Raises:
        InputError: The table, or that of samples, is not what nuScenes has.
    """

    def __init__(self, folder: Path, categories: Mapping[str, str]) -> None:
        self._samples, times = Rows[int](folder, "sample"), array("d")
        for row in read_rows(folder, "sample", "token", "timestamp"):
            self._samples[row["token"]] = len(times)
            times.append(row["timestamp"] / 1e6)
        # tokens are numbered as they turn up: neighbours in time may be further down the table
        numbers = defaultdict[str, int](count().__next__)
        names: dict[str, int] = {}
        shapes, others = array("d"), array("q")
        columns = ("token", "sample_token", "instance_token", "translation", "size", "rotation")
        for at, row in enumerate(read_rows(folder, "sample_annotation", *columns)):
            name = row.get("category_name") or categories[row["instance_token"]]
            tokens = [row["token"], row.get("prev") or "", row.get("next") or ""]
            try:
                shapes.extend((*row["translation"], *row["size"], *row["rotation"]))
                others.extend(numbers[one] for one in tokens)
                others.extend(row.get(one, -1) for one in ("num_lidar_pts", "num_radar_pts"))
            except TypeError:
                shapes.append(0)
            if len(shapes) != _SHAPE * (at + 1):
                raise InputError(
                    f"row {at} of {folder / 'sample_annotation.json'} has no box; expected numbers "
                    "in translation (3), size (3), rotation (4), num_lidar_pts and num_radar_pts"
                )
            others.extend((self._samples[row["sample_token"]], names.setdefault(name, len(names))))
        box = np.array(shapes).reshape(-1, _SHAPE)
        own, before, after, lidar, radar, sample, kind = np.array(others).reshape(-1, 7).T
        rows = np.full(len(numbers), -1)
        rows[own] = here = np.arange(len(own))
        start, end = (np.where(rows[one] < 0, here, rows[one]) for one in (before, after))
        sides = (start != here).astype(int) + (end != here)
        time = np.array(times)[sample]
        span = time[end] - time[start]
        known = (span > 0) & (span <= _LONGEST * sides)
        speed = (box[end] - box[start])[:, :2] / np.where(known, span, np.nan)[:, None]
        order = np.argsort(sample, kind="stable")
        self._first = np.searchsorted(sample[order], np.arange(len(times) + 1))
        self._numbers = np.concatenate([box, speed], 1)[order]
        self._counts = np.stack([lidar, radar, kind], 1)[order].astype(np.int32)
        self._names = list(names)

    def of(self, sample: str) -> list[dict[str, Any]]:
        """Return a sample's annotations, as nuScenes' connector takes them."""
        number = self._samples[sample]
        rows = slice(self._first[number], self._first[number + 1])
        return [
            {
                "translation": numbers[:3],
                "size": numbers[3:6],
                "rotation": numbers[6:10],
                "velocity": None if np.isnan(numbers[10]) else numbers[10:],
                "category_name": self._names[kind],
                "num_lidar_pts": lidar,
                "num_radar_pts": radar,
            }
            for numbers, (lidar, radar, kind) in zip(
                self._numbers[rows].tolist(), self._counts[rows].tolist(), strict=True
            )
        ]


#: Numbers of a box: translation, size, rotation.
_SHAPE = 10
