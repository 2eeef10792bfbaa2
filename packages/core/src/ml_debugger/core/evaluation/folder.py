"""The folder a result is saved in: what it holds, and how it becomes visible whole or not at all.

`result.json` (everything scalar), `model.safetensors` (the error model's arrays, and what it would
say of the evaluated units if they were new), `units.parquet` (one row an evaluated unit) and, of
tasks whose inputs have several units, `truths.parquet` (one row an actual unit) and
`inputs.parquet` (one row an input). Nothing in it is executable, so a folder from a stranger is
safe to open.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ml_debugger.core.errors import ResultNotFoundError, SchemaError, StoreError

SCHEMA_NUMBER = 1

MANIFEST = "result.json"
ARRAYS = "model.safetensors"
UNITS = "units.parquet"
TRUTHS = "truths.parquet"
INPUTS = "inputs.parquet"

#: The array that `SavedResult.as_new` is read from.
AS_NEW = "evaluated.as_new"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Metrics(_Frozen):
    """How well the model and its error probability did; None where a figure is not defined.

    Attributes:
        n: Units that every figure here is about.
        errors: How many of them are wrong.
        accuracy: Share that is right, with a 95 % interval.
        auroc: Chance that a wrong unit has a higher `error_proba` than a right one, in [0, 1].
        aurc: Area under the risk-coverage curve; lower is better.
        augrc: The same with undetected errors counted among all units; lower is better.
        brier: Mean squared difference of `error_proba` and the truth; lower is better.
        ece: Expected calibration error of `error_proba`; lower is better.
        nll: Mean negative log-likelihood of the truth; lower is better.

    Each but `nll` has a 95 % interval, `<figure>_low` and `<figure>_high`, by bootstrap over
    inputs; results of earlier versions lack some of them.
    """

    n: int
    errors: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    auroc: float | None = None
    auroc_low: float | None = None
    auroc_high: float | None = None
    aurc: float | None = None
    aurc_low: float | None = None
    aurc_high: float | None = None
    augrc: float | None = None
    augrc_low: float | None = None
    augrc_high: float | None = None
    brier: float | None = None
    brier_low: float | None = None
    brier_high: float | None = None
    ece: float | None = None
    ece_low: float | None = None
    ece_high: float | None = None
    nll: float | None = None


class Rows(_Frozen):
    """What became of the stored rows that fit the request.

    Attributes:
        stored: Units of all of them.
        without_label: Left out, since nothing says what is true.
        replaced: Records that a later record of the same input replaced.
        evaluated: Units that the figures are about: all that have a label.
        ignored: Left out, since the ground truth asks not to look where they are.
        not_finite: How many of those have outputs or features that are not finite. They take no
            part in the fit.
        fitted: How many of those the error model was fitted on.
    """

    stored: int
    without_label: int = 0
    replaced: int = 0
    evaluated: int
    ignored: int = 0
    not_finite: int = 0
    fitted: int


class Curve(_Frozen):
    """A risk-coverage curve: the error rate among the `coverage` share judged safest."""

    coverage: list[float]
    risk: list[float]


class Manifest(_Frozen):
    """Everything scalar about a result; the content of `result.json`."""

    schema_number: int = SCHEMA_NUMBER
    result_name: str
    model_name: str
    version_name: str
    task: str
    method_name: str
    n_epoch: int | Literal["all"] | None
    options: dict[str, Any] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    created_at: datetime
    completed_at: datetime
    dataset_types: list[str]
    runs: list[str] = Field(default_factory=list)
    optimistic: bool = False
    rows: Rows
    n_class: int
    class_names: list[str] | None = None
    architecture_hash: str
    layers: dict[str, str]
    settings: dict[str, float | int | None] = Field(default_factory=dict)
    fields: list[str] = Field(default_factory=list)
    metrics: Metrics
    baselines: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    curves: dict[str, Curve] = Field(default_factory=dict)
    rules: dict[str, Any]
    error_model: dict[str, Any]
    omissions: dict[str, Any] | None = None
    made_by: str = ""

    @property
    def used(self) -> str:
        """The score among `baselines` that the error probability is: "error_proba", or another."""
        substitute = self.error_model.get("substitute")
        return "error_proba" if substitute is None else str(substitute["name"])


@contextmanager
def drafted(folder: Path) -> Iterator[Path]:
    """Give a folder beside a place to fill, which whoever enters the result moves there.

    Nothing is left of it where nobody did.

    Raises:
        StoreError: It cannot be written.
    """
    draft = folder.with_name(f".{folder.name[:80]}.{uuid.uuid4().hex}.tmp")
    try:
        draft.mkdir(parents=True)
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"cannot write the result folder {folder}: {error}") from error


def write(
    draft: Path,
    manifest: Manifest,
    arrays: Mapping[str, NDArray[Any]],
    units: pa.Table,
    extra: Mapping[str, pa.Table | None],
) -> None:
    """Fill a folder with a result; durable on return."""
    import pyarrow.parquet as pq
    from safetensors.numpy import save_file

    text = json.dumps(manifest.model_dump(mode="json"), indent=1, allow_nan=False)
    (draft / MANIFEST).write_text(text + "\n", encoding="utf-8")
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, str(draft / ARRAYS))
    pq.write_table(units, draft / UNITS, compression="zstd")
    for name, table in extra.items():
        if table is not None:
            pq.write_table(table, draft / name, compression="zstd")
    for file in draft.iterdir():
        _fsync(file)
    _fsync(draft)


def read_manifest(folder: Path) -> Manifest:
    """Read a result's scalar part.

    Raises:
        ResultNotFoundError: No result lies in this folder.
        SchemaError: It was written by a version this one cannot read, or is damaged.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultNotFoundError(f"no result in {folder}: {MANIFEST} is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SchemaError(f"{folder / MANIFEST} cannot be read: {error}") from error
    number = content.get("schema_number") if isinstance(content, dict) else None
    if not isinstance(number, int):
        raise SchemaError(f"{folder / MANIFEST} has no schema number: it is not a result")
    if number > SCHEMA_NUMBER:
        raise SchemaError(
            f"the result in {folder} has schema number {number}, this version reads up to "
            f"{SCHEMA_NUMBER}; upgrade ml-debugger to open it"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise SchemaError(f"{folder / MANIFEST} is damaged at {where}: {problem['msg']}") from None


def read_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """Read the error model's arrays, and `AS_NEW`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(str(folder / ARRAYS))
    except (OSError, SafetensorError) as error:
        raise SchemaError(f"{folder / ARRAYS} cannot be read: {error}") from error


def read_table(folder: Path, name: str) -> pa.Table:
    """Read the table `UNITS`, `TRUTHS` or `INPUTS`."""
    import pyarrow.parquet as pq

    try:
        return pq.read_table(folder / name)
    except (OSError, pa.ArrowInvalid) as error:
        raise SchemaError(f"{folder / name} cannot be read: {error}") from error


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
