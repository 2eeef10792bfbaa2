"""A query over what a project has recorded, as a data filter makes it over a store of its own."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_debugger.core.aggregation import BBoxStrategy
from ml_debugger.core.epochs import resolve_epoch
from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.pool import StoredPool
from ml_debugger.core.query import FilterConfig
from ml_debugger.core.selection import select
from ml_debugger.core.store import Records, ResultInfo, Scope
from ml_debugger.core.task import task_named
from ml_debugger.server.projects import ProjectStore


class Picked(NamedTuple):
    """What a query picked, best first, of how many inputs."""

    picks: list[dict[str, Any]]
    inputs: int


class Missing(NamedTuple):
    """The result has not judged all of the records yet: a worker has to, first."""

    n_epoch: int | None
    inputs: int


def pick(store: ProjectStore, info: ResultInfo, given: Mapping[str, Any]) -> Picked | Missing:
    """Answer a query; see `QueryIn` for what it takes.

    Raises:
        InputError: The query does not fit the records.
    """
    scope = scope_of(store, info, given)
    records = records_of(store, info, scope)
    if not records.inputs:
        return Picked([], 0)
    if records.missing_estimates(info.name) is not None:
        assert scope.n_epoch != "all"  # scope_of has resolved it
        return Missing(scope.n_epoch, records.inputs)
    schema = task_named(info.task).schema
    pool = StoredPool(records, Result.load(store.result_folder(info.name)), schema)
    found = select(
        pool,
        given["n_data"],
        given["strategy"],
        kinds=(FilterConfig, BBoxStrategy) if schema.aspects else (FilterConfig,),
        sampling=given["sampling"],
        diverse=given["diverse"],
        include_empty=given["include_empty"],
        explain=True,
    )
    rows = found.astype(object).where(found.notna(), None).to_dict("records")
    return Picked(rows, records.inputs)


def scope_of(store: ProjectStore, info: ResultInfo, given: Mapping[str, Any]) -> Scope:
    """Return which records a query is about."""
    epoch = given["n_epoch"]
    if epoch == "latest" and info.n_epoch != "all":
        epoch = info.n_epoch
    resolved = resolve_epoch(epoch, store.open(info.version))
    if resolved == "all":
        raise InputError("a query is about one epoch: n_epoch must be a number, null or 'latest'")
    runs = None if given["run"] is None else (given["run"],)
    return Scope((given["dataset_type"],), resolved, runs)


def records_of(store: ProjectStore, info: ResultInfo, scope: Scope) -> Records:
    """Return the records of a scope, with what is cached of them."""
    number = next(one.number for one in store.versions() if one.version == info.version)
    return store.repository(number).records(scope)
