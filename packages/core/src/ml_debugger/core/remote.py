"""Evaluations that a service makes, and copies of its results here."""

import shutil
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from difflib import get_close_matches
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
from ml_debugger.core.locks import locked
from ml_debugger.core.progress import progress
from ml_debugger.core.records import ModelVersion
from ml_debugger.core.service.client import (
    RefusedError,
    ServiceClient,
    UnavailableError,
    patiently,
    refusal,
)
from ml_debugger.core.service.uploader import PATIENCE, LeftOutError, Uploader
from ml_debugger.core.settings import outside
from ml_debugger.core.store import ResultInfo, Store
from ml_debugger.core.store.home import folder_name, sweep

JOB_PAUSE = 1.0  # seconds between looks how a job is going


def send_rest(client: ServiceClient, home: Path, version: ModelVersion) -> None:
    """Send what a store still has to send of a version, if it has any.

    What cannot be sent is warned of, and keeps nobody from what could.

    Raises:
        SyncError: The service cannot be reached, or refused.
        LicenseError: A quota is exhausted.
    """
    with Store(home) as store:
        if any(one.version == version for one in store.versions()):
            uploader = Uploader(store.open(version), client, store.home, auto=False)
            try:
                with suppress(LeftOutError):
                    uploader.wait("all", JOB_PAUSE)
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
    number_there = job["id"]
    try:
        with progress(1.0, f"{client.endpoint} evaluates {version}") as advance:
            said = 0.0
            while job["state"] in ("queued", "running"):
                time.sleep(JOB_PAUSE)
                job = patiently(lambda: client.job(number_there), PATIENCE)
                advance(max(0.0, job["progress"] - said))
                said = max(said, job["progress"])
    except (KeyboardInterrupt, UnavailableError) as error:
        error.add_note(
            f"The evaluation goes on at {client.endpoint}, as the job {number_there}. Once it is "
            f"done, get_result({job['result_name']!r}) returns it; an evaluator's "
            f"service_client.job({number_there!r}) tells how it is going, and "
            f"service_client.cancel({number_there!r}) stops it."
        )
        raise
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
    try:
        found = patiently(lambda: client.results(result_name=name))
        if not found:
            names = [one["result_name"] for one in patiently(client.results)]
            hint = _nearest(name, names) or "make one with request_evaluation"
            raise ResultNotFoundError(f"no result {name!r} at {client.endpoint}; {hint}")
        folder = _copies(client, home) / folder_name(name)
        if _completed(folder) != found[0]["completed_at"]:
            with locked(folder.with_name(f"{folder.name}.lock")):
                if _completed(folder) != found[0]["completed_at"]:
                    patiently(lambda: _copy(client, found[0]["id"], folder))
    except UnavailableError as error:
        folder = _copies(client, home) / folder_name(name)
        if _completed(folder) is None:
            raise
        warnings.warn(
            f"{error}. The copy of {name!r} that was made earlier is used", stacklevel=outside()
        )
    return Result.load(folder)


def _copies(client: ServiceClient, home: Path) -> Path:
    """Return the folder of the copies from a project, which outlive a key.

    Which project a key opens is noted, for when the service cannot be asked.
    """
    folder = home / "remote"
    note = folder / f"{client.key_place}.project"
    noted = note.read_text() if note.is_file() else ""
    if not client.met:
        return folder / (noted or client.key_place)  # where nothing is
    if noted != client.project_place:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = folder / f".{uuid.uuid4().hex}.tmp"
        draft.write_text(client.project_place)
        draft.rename(note)
    return folder / client.project_place


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.4) or known[-3:]
    return f"the nearest are: {', '.join(near)}" if near else ""


def known(client: ServiceClient, version: ModelVersion) -> tuple[list[ResultInfo], str, LastEpoch]:
    """Return a version's results at a service, oldest first, its task, and its latest epoch.

    Raises:
        NothingToEvaluateError: There is no such version there.
        SyncError: The service cannot be reached, or refused.
    """
    number = _numbered(client, version)
    about = patiently(lambda: client.about(number))
    return listed(client, *version), about["task"], LastEpoch(about["latest_epoch"])


def listed(
    client: ServiceClient, model_name: str | None = None, version_name: str | None = None
) -> list[ResultInfo]:
    """Return the results at a service, oldest first: all, or those of a model or a version.

    Raises:
        SyncError: The service cannot be reached, or refused.
    """
    given = {"model_name": model_name, "version_name": version_name}
    named = {key: name for key, name in given.items() if name is not None}
    return [
        ResultInfo(
            number=one["id"],
            name=one["result_name"],
            version=ModelVersion(one["model_name"], one["version_name"]),
            task=one["task"],
            method=one["method_name"],
            n_epoch=one["n_epoch"],
            created_at=one["created_at"],
            completed_at=one["completed_at"],
            options=one["options"],
        )
        for one in patiently(lambda: client.results(**named))
    ]


def _numbered(client: ServiceClient, version: ModelVersion) -> int:
    number = patiently(lambda: client.version(version))
    if number is None:
        found = patiently(client.versions)
        names = [f"{one['model_name']}/{one['version_name']}" for one in found]
        hint = _nearest(str(version), names) or "nothing is recorded there"
        raise NothingToEvaluateError(
            f"no records of {version} at {client.endpoint}; {hint}. Record some with a tracer that "
            "has this endpoint, and wait_for_save()"
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
        except ResultNotFoundError:
            if isinstance(missing, UnavailableError):
                raise missing from None
            if missing is None:
                raise
            here = _nearest(name, [one.name for one in store.results()])
            said = f"{missing}. Nor is there one in {store.home}{here and '; '}{here}"
            raise ResultNotFoundError(said) from None
        if isinstance(missing, UnavailableError):
            warnings.warn(
                f"{missing}. The result {name!r} of the local store is used", stacklevel=outside()
            )
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
