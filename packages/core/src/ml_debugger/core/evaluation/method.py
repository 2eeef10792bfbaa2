"""An evaluation, start to end: stored records in, a saved result out."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, count
from typing import Any
from warnings import warn

import pyarrow as pa

from ml_debugger.core.epochs import resolve_epoch
from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation import folder as saved
from ml_debugger.core.evaluation.choice import Selection, select
from ml_debugger.core.evaluation.estimation import Estimated, estimate
from ml_debugger.core.evaluation.labelled import LabelledUnits
from ml_debugger.core.evaluation.options import EvaluationOptions
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.evaluation.zones import ZONES
from ml_debugger.core.inputs import as_name
from ml_debugger.core.progress import progress
from ml_debugger.core.records import ModelVersion, TaskSchema, aspect_column
from ml_debugger.core.store import Store
from ml_debugger.core.task import Task, task_named

DEFAULT = "default"
_WORDS = """
    input_id dataset_type n_epoch run prediction label wrong score error_proba outlier unstable
    plausible zone code finite
"""
#: The columns of a result's units; an additional field that is called like one is renamed.
OWN_COLUMNS = frozenset(_WORDS.split())


def evaluate(
    store: Store,
    model_version: ModelVersion,
    *,
    method_name: str = DEFAULT,
    result_name: str | None = None,
    n_epoch: Any = "latest",
    options: Mapping[str, Any] | None = None,
) -> Result:
    """Evaluate a model version's labelled records and save the result.

    See `Evaluator.request_evaluation` for the arguments. Either a whole result is there
    afterwards, or nothing is.

    Raises:
        NothingToEvaluateError: No such version, or nothing of what was asked for has labels.
        InputError: The method does not exist, the name is taken, or an option does not fit.
        EpochError: `n_epoch` is not an epoch.
        StoreError: The result cannot be written.
    """
    created_at = datetime.now(UTC)
    chosen = EvaluationOptions.read(options)
    repository = store.open(model_version)
    task = task_named(repository.task)
    method = resolve_method(method_name, task)
    choose_name(store, model_version, method, result_name, created_at)  # before hours of work
    epoch = resolve_epoch(n_epoch, repository)

    selection = select(repository, epoch, chosen, task.judge)
    for text in selection.warnings:
        warn(text, stacklevel=3)
    units = selection.units
    with progress(2 * len(units), f"evaluating {model_version}") as advance:
        estimated = estimate(units, task.codes, chosen, advance, task.schema)

    manifest = saved.Manifest(
        # Again, for another evaluation may have taken the name that was free above.
        result_name=choose_name(store, model_version, method, result_name, created_at),
        model_name=model_version.model_name,
        version_name=model_version.version_name,
        task=repository.task,
        method_name=method,
        n_epoch=epoch,
        options=chosen.model_dump(mode="json", exclude_none=True),
        notes=notes(selection, estimated),
        created_at=created_at,
        completed_at=datetime.now(UTC),
        dataset_types=list(selection.dataset_types),
        runs=list(selection.runs),
        optimistic=selection.optimistic,
        rows=_rows(selection, estimated),
        n_class=estimated.model.n_class,
        class_names=None if chosen.class_names is None else list(chosen.class_names),
        architecture_hash=repository.architecture_hash,
        layers=selection.units.layers,
        settings=dict(selection.settings),
        fields=[field_name(full) for full in _users_fields(units, task.schema)],
        metrics=estimated.metrics,
        baselines=estimated.baselines,
        curves=estimated.curves,
        rules=estimated.rules.model_dump(mode="json"),
        error_model=estimated.model.settings(),
        omissions=None if estimated.omissions is None else estimated.omissions.settings(),
        made_by=_made_by(),
    )
    while True:
        try:
            return save(store, manifest, estimated, units, task.schema)
        except InputError:  # or in the meantime
            name = choose_name(store, model_version, method, result_name, created_at)
            if name == manifest.result_name:
                raise
            manifest = manifest.model_copy(update={"result_name": name})


def save(
    store: Store,
    manifest: saved.Manifest,
    estimated: Estimated,
    units: LabelledUnits,
    schema: TaskSchema,
) -> Result:
    """Write a result's folder, and enter it in the catalogue with its estimates.

    The estimates of the evaluated units were made without their own labels, which a later look
    at the same records could not repeat, so queries find them there.

    Raises:
        InputError: The name was taken meanwhile.
        StoreError: Something cannot be written; nothing is left of the result.
    """
    name = manifest.result_name
    with saved.drafted(store.result_folder(name)) as draft:
        table = units_table(units, estimated, schema)
        extra = {saved.TRUTHS: units.truths(), saved.INPUTS: estimated.inputs}
        arrays = estimated.model.arrays() | {saved.AS_NEW: estimated.as_new[units.judged]}
        saved.write(draft, manifest, arrays, table, extra)
        store.add_result(
            name=name,
            version=ModelVersion(manifest.model_name, manifest.version_name),
            method=manifest.method_name,
            n_epoch=manifest.n_epoch,
            options=manifest.options,
            created_at=manifest.created_at,
            completed_at=manifest.completed_at,
            draft=draft,
            estimates=[
                (part.records, _derived(estimated, slice(part.start, part.stop)))
                for part in units.parts
            ],
        )
    return Result.load(store.result_folder(name))


def _derived(estimated: Estimated, rows: slice) -> dict[str, Any]:
    """Return what is kept with the records."""
    return {
        "error_proba": estimated.error_proba[rows],
        "outlier": estimated.outlier[rows],
        "unstable": estimated.unstable[rows],
        "zone": estimated.zones[rows],
        **{aspect_column(name): values[rows] for name, values in estimated.aspects.items()},
    }


def resolve_method(method_name: Any, task: type[Task]) -> str:
    """Return the method that a name or the alias "default" stands for.

    Raises:
        InputError: The task has no method of this name.
    """
    if method_name in (DEFAULT, task.method):
        return task.method
    raise InputError(
        f"no evaluation method {method_name!r} for the task {task.schema.name}; "
        f"there are: {DEFAULT!r}, {task.method!r}"
    )


def choose_name(
    store: Store,
    model_version: ModelVersion,
    method: str,
    given: str | None,
    created_at: datetime,
    *,
    taken: Collection[str] = (),
) -> str:
    """Return the given name if it is free, or make one of model, version, method and day.

    Args:
        store: Where the result is to be.
        model_version: What it is of.
        method: How it is made.
        given: The name that was asked for, if any.
        created_at: When it was asked for.
        taken: Names of results that are still being made.

    Raises:
        InputError: It is taken, or no name.
    """
    listed = {one.name for one in store.results()}
    if given is not None:
        name = as_name(given, "result_name")
        if name in taken or name in listed:
            raise InputError(
                f"there is a result {name!r} already; choose another result_name, or leave it out "
                "to get a free one"
            )
        return name
    start = "_".join([*model_version, method, created_at.strftime("%Y%m%d")])
    numbered = (f"{start}_{number}" for number in count(2))
    names = chain([start], numbered)
    return next(name for name in names if name not in taken and name not in listed)


def notes(selection: Selection, estimated: Estimated) -> list[str]:
    """Return what a reader has to know before relying on the figures."""
    found = [*selection.warnings, *estimated.model.notes, *estimated.rules.notes]
    if selection.without_label:
        found.append(
            f"{selection.without_label:,} of {selection.stored:,} records have no ground truth "
            "and were left out."
        )
    if selection.replaced:
        found.append(
            f"{selection.replaced:,} records were replaced by a later record with the same id."
        )
    judged = int(selection.units.judged.sum())
    if judged < len(selection.units):
        found.append(
            f"{len(selection.units) - judged:,} units lie where the ground truth asks not to look, "
            "and were left out."
        )
    if estimated.fitted < judged:
        found.append(
            f"The error model was fitted on {estimated.fitted:,} of {judged:,} "
            "units; the others were estimated as units it has never seen."
        )
    return found


def units_table(units: LabelledUnits, estimated: Estimated, schema: TaskSchema) -> pa.Table:
    """Return the table of evaluated units, in the order in which they were written."""
    verdict = units.verdict
    label = verdict.target if verdict.label is None else verdict.label
    known = (label >= 0) & (label < estimated.model.n_class)
    zones = pa.DictionaryArray.from_arrays(
        pa.array(estimated.zones), pa.array([str(zone) for zone in ZONES])
    )
    columns: dict[str, Any] = {
        "input_id": units.of_inputs("input/id"),
        "dataset_type": units.of_inputs("input/dataset_type").dictionary_encode(),
        "n_epoch": units.of_inputs("input/n_epoch"),
        "run": units.of_inputs("input/run").dictionary_encode(),
        "prediction": units.prediction,
        "label": pa.array(label, mask=~known),
        "wrong": units.wrong,
        "score": units.score,
        "error_proba": estimated.error_proba,
        "outlier": estimated.outlier,
        "unstable": estimated.unstable,
        "plausible": estimated.plausible,
        "zone": zones,
        "code": estimated.codes,
        "finite": units.finite,
        **{aspect_column(name): values for name, values in estimated.aspects.items()},
    }
    if verdict.kind is not None:
        names = pa.array(schema.kinds)
        columns["kind"] = pa.DictionaryArray.from_arrays(pa.array(verdict.kind), names)
    columns |= verdict.columns
    recorded = [one.name for one in schema.extracted_feature if one.name not in columns]
    columns |= {name: units.column(name) for name in recorded}
    table = pa.table(columns)
    for full in _users_fields(units, schema):
        table = table.append_column(field_name(full), units.of_inputs(full))
    return table if units.judged.all() else table.filter(pa.array(units.judged))


def _users_fields(units: LabelledUnits, schema: TaskSchema) -> list[str]:
    """Return the additional columns that users declared, as `input/<name>`, `label/<name>`."""
    own = {f"input/{column.name}" for column in schema.inputs}
    return [full for full in units.fields() if full not in own]


def field_name(full: str) -> str:
    """Return what an additional field is called in a result: its own name if that is free."""
    name = full.partition("/")[2]
    return f"field.{name}" if name in OWN_COLUMNS else name


def _rows(selection: Selection, estimated: Estimated) -> saved.Rows:
    return saved.Rows(
        stored=selection.stored,
        without_label=selection.without_label,
        replaced=selection.replaced,
        evaluated=int(selection.units.judged.sum()),
        ignored=int((~selection.units.judged).sum()),
        not_finite=int((~selection.units.finite).sum()),
        fitted=estimated.fitted,
    )


def _made_by() -> str:
    try:
        return f"ml-debugger-core {version('ml-debugger-core')}"
    except PackageNotFoundError:
        return "ml-debugger-core"
