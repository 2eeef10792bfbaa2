"""What a model name and a version name stand for, and what may change about it."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, Literal

from sqlmodel import Session, col, select

from ml_debugger.core.errors import ArchitectureMismatchError, InputError
from ml_debugger.core.layers import architecture_hash
from ml_debugger.core.records import ModelVersion
from ml_debugger.core.store.columns import FIELD_TYPES
from ml_debugger.core.store.sending import delete_chunks
from ml_debugger.core.store.tables import ChunkRow, ModelRow, VersionRow

Unfit = Literal["unfit"]
RESERVED = ("id", "recorded_at", "dataset_type", "n_epoch", "run")


def register(
    session: Session,
    version: ModelVersion,
    *,
    task: str,
    architecture: Sequence[str],
    layers: Mapping[str, str],
    fields: Sequence[Mapping[str, Any]],
    label_fields: Sequence[Mapping[str, Any]],
    recreate: bool | Unfit,
) -> int:
    """Return the number of a version's row, made or brought up to date; see `Store.register`."""
    version = ModelVersion(*version)
    declare = partial(
        _register,
        session,
        version,
        task=task,
        architecture=architecture,
        layers=layers,
        fields=fields,
        label_fields=label_fields,
    )
    if recreate != "unfit":
        return declare(recreate=recreate)
    try:
        return declare(recreate=False)
    except (ArchitectureMismatchError, InputError):
        if _has_records(session, version):
            raise
        return declare(recreate=True)


def _register(
    session: Session,
    version: ModelVersion,
    *,
    task: str,
    architecture: Sequence[str],
    layers: Mapping[str, str],
    fields: Sequence[Mapping[str, Any]],
    label_fields: Sequence[Mapping[str, Any]],
    recreate: bool,
) -> int:
    if not version.model_name or not version.version_name:
        raise InputError("model_name and version_name must not be empty")
    model = _model(session, version, list(architecture), recreate=recreate)
    query = select(VersionRow).where(
        VersionRow.model_id == model.id, VersionRow.name == version.version_name
    )
    row = session.exec(query).first()
    if row is None:
        assert model.id is not None  # flushed
        row = VersionRow(
            model_id=model.id,
            name=version.version_name,
            task=task,
            layers="{}",
            fields="[]",
            label_fields="[]",
        )
    elif recreate:
        delete_chunks(session, col(ChunkRow.version_id) == row.id)
        row.task, row.layers, row.fields, row.label_fields = task, "{}", "[]", "[]"
    elif row.task != task:
        raise InputError(
            f"{version} is recorded for task {row.task!r}, not {task!r}; use another version_name"
        )
    row.layers = _merged_layers(session, version, row, layers)
    row.fields = _merged(version, "field", row.fields, fields)
    row.label_fields = _merged(version, "label field", row.label_fields, label_fields)
    session.add(row)
    session.flush()
    assert row.id is not None  # flushed
    return row.id


def _has_records(session: Session, version: ModelVersion) -> bool:
    query = (
        select(ChunkRow.id)
        .join(VersionRow, col(VersionRow.id) == ChunkRow.version_id)
        .join(ModelRow, col(ModelRow.id) == VersionRow.model_id)
        .where(ModelRow.name == version.model_name, VersionRow.name == version.version_name)
    )
    return session.exec(query.limit(1)).first() is not None


def _merged_layers(
    session: Session, version: ModelVersion, row: VersionRow, layers: Mapping[str, str]
) -> str:
    """Add layers to those that a version has records of; an alias stands for one layer only."""
    has_records = select(ChunkRow.id).where(ChunkRow.version_id == row.id).limit(1)
    if row.id is None or session.exec(has_records).first() is None:
        return json.dumps(dict(layers))
    merged: dict[str, str] = json.loads(row.layers)
    for alias, path in layers.items():
        if merged.setdefault(alias, path) != path:
            raise InputError(
                f"layer {alias!r} of {version} is recorded at {merged[alias]!r}, not {path!r}; use "
                "another alias or another version_name, or force_table_recreate=True to delete "
                "the records of this version"
            )
    return json.dumps(merged)


def _model(
    session: Session, version: ModelVersion, architecture: list[str], *, recreate: bool
) -> ModelRow:
    name = version.model_name
    model = session.exec(select(ModelRow).where(ModelRow.name == name)).first()
    if model is None:
        model = ModelRow(name=name, architecture="", architecture_hash="")
    elif model.architecture_hash == architecture_hash(architecture):
        return model
    else:
        difference = _difference(json.loads(model.architecture), architecture)
        if not recreate:
            raise ArchitectureMismatchError(
                f"model_name {name!r} stands for another architecture: {difference}. Use a new "
                "model_name, or force_table_recreate=True to delete the records of this version "
                "and let the name stand for the new one"
            )
        if other := _other_version(session, model, version):
            raise ArchitectureMismatchError(
                f"model_name {name!r} stands for another architecture, of which version "
                f"{other!r} has records: {difference}. Use a new model_name"
            )
    model.architecture = json.dumps(architecture)
    model.architecture_hash = architecture_hash(architecture)
    session.add(model)
    session.flush()
    return model


def _difference(before: Sequence[str], now: Sequence[str]) -> str:
    for k, (old, new) in enumerate(zip_longest(before, now)):
        if old != new:
            return f"entry {k} is {new or 'missing'!r}, it was {old or 'missing'!r}"
    return "the same entries, differently separated"


def _other_version(session: Session, model: ModelRow, version: ModelVersion) -> str | None:
    return session.exec(
        select(VersionRow.name)
        .join(ChunkRow, col(ChunkRow.version_id) == VersionRow.id)
        .where(VersionRow.model_id == model.id, VersionRow.name != version.version_name)
        .limit(1)
    ).first()


def _merged(
    version: ModelVersion, what: str, before: str, declared: Sequence[Mapping[str, Any]]
) -> str:
    merged = {one["name"]: one for one in json.loads(before)}
    for one in declared:
        name, kind = one["name"], one["type"]
        if name in RESERVED or "/" in name or "#" in name:
            raise InputError(f"{what} {name!r} cannot have this name; it is kept for the store")
        if kind not in FIELD_TYPES:
            raise InputError(
                f"{what} {name!r} has type {kind!r}, expected {', '.join(FIELD_TYPES)}"
            )
        if name in merged and merged[name]["type"] != kind:
            raise InputError(
                f"{what} {name!r} of {version} has type {merged[name]['type']!r}, not {kind!r}; "
                "use another name for it, or another version_name"
            )
        merged[name] = dict(one)
    return json.dumps(list(merged.values()), default=str)
