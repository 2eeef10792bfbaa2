"""Which stored records an evaluation is about: those with ground truth that fit the request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa

from ml_debugger.core.errors import NothingToEvaluateError
from ml_debugger.core.evaluation.labelled import Judge, LabelledUnits
from ml_debugger.core.evaluation.options import EvaluationOptions
from ml_debugger.core.records import Settings
from ml_debugger.core.store import Records, Repository, Scope

TRAIN = "train"


@dataclass(frozen=True)
class Selection:
    """The labelled units of a request, and what has to be said about the choice.

    Attributes:
        units: The labelled units.
        dataset_types: The data sets they belong to.
        runs: The runs they come from.
        settings: What these recorded with, where they agree; None where they do not.
        stored: Units of all records that fit the request.
        without_label: How many of those have no ground truth.
        replaced: Records that a later record of the same input replaced.
        optimistic: Whether any of them belong to the training data.
        warnings: What the caller should hear now, and a reader later.
    """

    units: LabelledUnits
    dataset_types: tuple[str, ...]
    runs: tuple[str, ...]
    settings: Settings
    stored: int
    without_label: int
    replaced: int
    optimistic: bool
    warnings: tuple[str, ...]


def select(
    repository: Repository,
    n_epoch: int | Literal["all"] | None,
    options: EvaluationOptions,
    judge: Judge,
) -> Selection:
    """Choose the labelled units of a request.

    Without `options.dataset_type`, units of every data set but "train" are taken, and those of
    "train" only where nothing else has labels.

    Raises:
        NothingToEvaluateError: Nothing that fits the request has labels.
    """
    scope = Scope(options.dataset_type, n_epoch, options.run, labelled=True)
    kinds = list(repository.records(scope).dataset_types)
    if options.dataset_type is None and any(kind != TRAIN for kind in kinds):
        kinds = [kind for kind in kinds if kind != TRAIN]
    if not kinds:
        raise NothingToEvaluateError(_nothing(repository, n_epoch, options))
    scope = replace(scope, dataset_types=tuple(kinds))
    records = repository.records(scope)
    stored = repository.records(replace(scope, labelled=False)).units
    parts = [part for part in records.parts() if part.inputs]
    if not any(part.units for part in parts):
        raise NothingToEvaluateError(
            f"the model predicted nothing at all in {records.inputs:,} labelled inputs; lower its "
            "threshold, or look at its outputs"
        )
    units = LabelledUnits(parts, repository.layers, judge, options)
    if not len(units):
        raise NothingToEvaluateError(_nothing(repository, n_epoch, options))
    if not units.judged.any():
        raise NothingToEvaluateError(
            f"all of the {len(units):,} predicted units lie where the ground truth asks not to look"
        )
    runs = _runs_by_epoch(parts)
    settings, differences = _settings(repository, runs)
    notes = [*_optimism(kinds), *_mixture(runs), *differences]
    left = [alias for alias in repository.layers if alias not in units.layers]
    if left:
        notes.append(
            f"Features were not recorded everywhere, or not as wide, of: {', '.join(left)}. The "
            "error model does without them."
        )
    return Selection(
        units=units,
        dataset_types=tuple(kinds),
        runs=tuple(dict.fromkeys(run for some in runs.values() for run in some)),
        settings=settings,
        stored=stored,
        without_label=stored - len(units),
        replaced=records.replaced,
        optimistic=TRAIN in kinds,
        warnings=tuple(notes),
    )


def _runs_by_epoch(parts: Sequence[Records]) -> dict[int | None, list[str]]:
    found: dict[int | None, list[str]] = {}
    for part in parts:
        table = pa.table({"n_epoch": part.column("input/n_epoch"), "run": part.column("input/run")})
        for row in table.group_by(["n_epoch", "run"], use_threads=False).aggregate([]).to_pylist():
            runs = found.setdefault(row["n_epoch"], [])
            if row["run"] not in runs:
                runs.append(row["run"])
    return found


def _settings(
    repository: Repository, runs: Mapping[int | None, Sequence[str]]
) -> tuple[Settings, list[str]]:
    """Return the settings of some runs, and what there is to say if they differ."""
    chosen = {run for names in runs.values() for run in names}
    known = [one.settings for one in repository.runs() if one.run in chosen]
    values: dict[str, list[float | int]] = {}
    for name, value in (item for one in known for item in one.items()):
        found = values.setdefault(name, [])
        if value is not None and value not in found:
            found.append(value)
    settings = {name: found[0] if len(found) == 1 else None for name, found in values.items()}
    return settings, [
        f"The runs were recorded with different {name} ({', '.join(map(str, found))}): what is "
        'seen under one is not under another; choose one run with options={"run": ...}.'
        for name, found in values.items()
        if len(found) > 1
    ]


def _optimism(kinds: Sequence[str]) -> list[str]:
    if TRAIN not in kinds:
        return []
    which = "Only training data has labels" if len(kinds) == 1 else "Training data is included"
    return [
        f"{which}: a model is right more often on data it was trained on, so every figure here "
        "is optimistic. Trace a validation set with its labels and evaluate that "
        '(options={"dataset_type": "val"}).'
    ]


def _mixture(runs: Mapping[int | None, Sequence[str]]) -> list[str]:
    return [
        f"Epoch {'none' if n_epoch is None else n_epoch} mixes records of {len(names)} runs: "
        f"{', '.join(names)}. If the model was trained anew in between, these are different "
        'models; choose one with options={"run": ...}.'
        for n_epoch, names in runs.items()
        if len(names) > 1
    ]


def _nothing(
    repository: Repository, n_epoch: int | Literal["all"] | None, options: EvaluationOptions
) -> str:
    asked = [] if n_epoch == "all" else [f"epoch {'none' if n_epoch is None else n_epoch}"]
    for name, chosen in (("dataset_type", options.dataset_type), ("run", options.run)):
        if chosen is not None:
            asked.append(f"{name} {', '.join(chosen)}")
    text = f"no labelled records of {repository.version}"
    text += f" for {' and '.join(asked)}" if asked else ""
    there = []
    for epoch in repository.epochs():
        labelled = repository.records(Scope(n_epoch=epoch.n_epoch, labelled=True)).dataset_types
        said = ", ".join(
            f"{kind} ({count:,}, {'labelled' if kind in labelled else 'no labels'})"
            for kind, count in epoch.records.items()
        )
        there.append(f"epoch {'none' if epoch.n_epoch is None else epoch.n_epoch}: {said}")
    if not there:
        return f"{text}: nothing is recorded yet. Run the model through a tracer with ground truth"
    return (
        f"{text}; recorded are {'; '.join(there)}. Name what to evaluate with n_epoch= and "
        'options={"dataset_type": ...}, or trace with ground truth'
    )
