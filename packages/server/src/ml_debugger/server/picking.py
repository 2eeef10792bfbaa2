"""A query over what a project has recorded, as a data filter makes it over a store of its own."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_debugger.core.aggregation import BBoxStrategy
from ml_debugger.core.epochs import resolve_epoch
from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.query import FilterConfig
from ml_debugger.core.selection import select
from ml_debugger.core.store import LocalRepository, ResultInfo, Scope
from ml_debugger.core.task import task_named
from ml_debugger.server.pools import ReadPool
from ml_debugger.server.projects import ProjectStore

MOST_PICKS = 500_000  # in one answer, of which a client reads 64 MiB
MOST_EXPLAINED = 10_000


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
    repository = store.repository_of(info.version)
    scope = scope_of(repository, info, given)
    records = repository.records(scope)
    if not records.inputs:
        return Picked([], 0)
    most = MOST_EXPLAINED if given["explain"] else MOST_PICKS
    if min(given["n_data"], records.inputs) > most:
        raise InputError(
            f"n_data is {given['n_data']:,}, and a service answers with {most:,} inputs at most"
            + (
                " with explain; ask for fewer, or without"
                if given["explain"]
                else "; ask for fewer"
            )
        )
    schema = task_named(info.task).schema
    pool = store.pools.get(store.home, info, records)
    if pool is None:
        if records.missing_estimates(info.name) is not None:
            assert scope.n_epoch != "all"  # scope_of has resolved it
            return Missing(scope.n_epoch, records.inputs)
        result = Result.load(store.result_folder(info.name))
        pool = store.pools.keep(store.home, info, ReadPool(records, result, schema))
    found = select(
        pool,
        given["n_data"],
        given["strategy"],
        kinds=(FilterConfig, BBoxStrategy) if schema.aspects else (FilterConfig,),
        sampling=given["sampling"],
        diverse=given["diverse"],
        include_empty=given["include_empty"],
        explain=given["explain"],
    )
    if not given["explain"]:
        return Picked([{"input_id": one} for one in found], records.inputs)
    rows = found.astype(object).where(found.notna(), None).to_dict("records")
    return Picked(rows, records.inputs)


def scope_of(repository: LocalRepository, info: ResultInfo, given: Mapping[str, Any]) -> Scope:
    """Return which records of a version a query is about."""
    epoch = given["n_epoch"]
    if epoch == "latest" and info.n_epoch != "all":
        epoch = info.n_epoch
    resolved = resolve_epoch(epoch, repository)
    if resolved == "all":
        raise InputError("a query is about one epoch: n_epoch must be a number, null or 'latest'")
    runs = None if given["run"] is None else (given["run"],)
    return Scope((given["dataset_type"],), resolved, runs)
