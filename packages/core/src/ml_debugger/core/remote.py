"""Evaluations that a service makes, and copies of its results here."""

import shutil
import time
import uuid
import warnings
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ml_debugger.core.epochs import LastEpoch
from ml_debugger.core.errors import (
    MLDebuggerError,
    NothingToEvaluateError,
    ResultNotFoundError,
    SchemaError,
    StoreError,
)
from ml_debugger.core.evaluation.folder import read_manifest
from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.progress import progress
from ml_debugger.core.records import ModelVersion
from ml_debugger.core.service import (
    RefusedError,
    ServiceClient,
    UnavailableError,
    patiently,
    refusal,
)
from ml_debugger.core.store import ResultInfo, Store
from ml_debugger.core.store.home import folder_name, sweep
from ml_debugger.core.sync import PATIENCE, Uploader, alone

LOOK = 1.0


def send_rest(client: ServiceClient, home: Path, version: ModelVersion) -> None:
    """Send what a store still has to send of a version, if it has any.

    Raises:
        SyncError: The service cannot be reached, or refused.
        LicenseError: A quota is exhausted.
    """
    with Store(home) as store:
        if any(one.version == version for one in store.versions()):
            uploader = Uploader(store.open(version), client, store.home, auto=False)
            try:
                uploader.wait("all", LOOK)
            finally:
                uploader.close()


def evaluate(
    client: ServiceClient, home: Path, version: ModelVersion, request: Mapping[str, Any]
) -> Result:
    """Have a service evaluate a version, wait for it, and return a copy of the result.

    Interrupted, the evaluation goes on at the service.

    Args:
        client: The service.
        home: The local store's folder.
        version: What to evaluate.
        request: The arguments of `Evaluator.request_evaluation`.

    Raises:
        NothingToEvaluateError: There is no such version, or nothing of it has labels.
        InputError: An argument does not fit.
        StoreError: The copy cannot be written.
        SyncError: The service cannot be reached, or refused.
        LicenseError: A quota is exhausted.
    """
    number = _numbered(client, version)
    key = uuid.uuid4().hex  # the same each time: an answer may be lost
    job = patiently(lambda: client.evaluate(number, request, key))
    with progress(1.0, f"{client.endpoint} evaluates {version}") as advance:
        said = 0.0
        number_there = job["id"]
        while job["state"] in ("queued", "running"):
            time.sleep(LOOK)
            job = patiently(lambda: client.job(number_there), PATIENCE)
            advance(max(0.0, job["progress"] - said))
            said = max(said, job["progress"])
    if job["state"] == "cancelled":
        raise RefusedError(f"the evaluation {job['result_name']!r} was cancelled by somebody")
    if job["state"] == "failed":
        kind, _, why = job["message"].partition(": ")
        raise refusal(kind, f"{client.endpoint} could not evaluate {version}: {why or kind}")
    return fetch(client, home, job["result_name"])


def fetch(client: ServiceClient, home: Path, name: str) -> Result:
    """Return a service's result, from a copy that is made where there is none yet.

    Where the service cannot be reached, an earlier copy does, with a warning.

    Raises:
        ResultNotFoundError: The service has no result of this name.
        UnavailableError: It cannot be reached, and there is no copy.
    """
    folder = home / "remote" / client.place / folder_name(name)
    try:
        found = patiently(lambda: client.results(result_name=name))
        if not found:
            raise ResultNotFoundError(f"no result {name!r} at {client.endpoint}")
        if _completed(folder) != found[0]["completed_at"]:
            with alone(folder.with_name(f"{folder.name}.lock")):
                if _completed(folder) != found[0]["completed_at"]:
                    patiently(lambda: _copy(client, found[0]["id"], folder))
    except UnavailableError as error:
        if _completed(folder) is None:
            raise
        warnings.warn(f"{error} The copy of {name!r} that was made earlier is used", stacklevel=2)
    return Result.load(folder)


def known(client: ServiceClient, version: ModelVersion) -> tuple[list[ResultInfo], str, LastEpoch]:
    """Return a version's results at a service, oldest first, its task, and its latest epoch.

    Raises:
        NothingToEvaluateError: There is no such version there.
        SyncError: The service cannot be reached, or refused.
    """
    number = _numbered(client, version)
    about = patiently(lambda: client.about(number))
    named = {"model_name": version.model_name, "version_name": version.version_name}
    found = [
        ResultInfo(
            number=one["id"],
            name=one["result_name"],
            version=version,
            task=one["task"],
            method=one["method_name"],
            n_epoch=one["n_epoch"],
            created_at=one["created_at"],
            completed_at=one["completed_at"],
            options=one["options"],
        )
        for one in patiently(lambda: client.results(**named))
    ]
    return found, about["task"], LastEpoch(about["latest_epoch"])


def _numbered(client: ServiceClient, version: ModelVersion) -> int:
    number = patiently(lambda: client.version(version))
    if number is None:
        raise NothingToEvaluateError(
            f"no records of {version} at {client.endpoint}; record some with a tracer that has "
            "this endpoint, and wait_for_save()"
        )
    return number


def open_result(client: ServiceClient | None, home: Path, name: str) -> Result:
    """Return a result by its name: the service's if there is a service, or the store's.

    Raises:
        ResultNotFoundError: There is none; similar names are listed.
        UnavailableError: The service cannot be reached, and there is no copy.
    """
    missing: ResultNotFoundError | UnavailableError | None = None
    if client is not None:
        try:
            return fetch(client, home, name)
        except (ResultNotFoundError, UnavailableError) as error:
            missing = error
    with Store(home) as store:
        try:
            store.result(name)  # says which results there are, if not this one
        except ResultNotFoundError as error:
            if isinstance(missing, UnavailableError):
                raise missing from None
            said = str(error) if missing is None else f"{missing}, and here: {error}"
            raise ResultNotFoundError(said) from None
        return Result.load(store.result_folder(name))


def _completed(folder: Path) -> datetime | None:
    try:
        return read_manifest(folder).completed_at
    except (LookupError, SchemaError):
        return None


def _copy(client: ServiceClient, number: int, folder: Path) -> None:
    draft = folder.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        draft.mkdir(mode=0o700, parents=True)
        sweep(folder.parent)
        client.download(number, draft)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    except OSError as error:
        if isinstance(error, MLDebuggerError):
            raise
        raise StoreError(f"cannot copy the result to {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
