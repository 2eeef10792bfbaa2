"""The connection to a service: requests, and what its answers mean here."""

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import ConfigDict, StringConstraints, TypeAdapter
from typing_extensions import TypedDict

from ml_debugger.core import errors
from ml_debugger.core.errors import InputError, LicenseError, MLDebuggerError, SyncError
from ml_debugger.core.records import ModelVersion

if TYPE_CHECKING:
    import requests

T = TypeVar("T")

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
RETRY_SECONDS = 30.0  # for which a request is made again
PASSING = (408, 425, 429)  # what these say may be otherwise a moment later
UNFIT = (413, 422)  # what these say of a part is not said of others
BLOCK = 1 << 20
MOST_BYTES = 64 << 20  # of an answer that is no file
MOST_SAID = 1 << 20  # of what goes with a refusal
PAGE = 1000  # results in one answer
PART_TYPE = "application/vnd.ml-debugger.part+zstd"
LONGEST_REQUEST = 3600.0  # to be left alone for longer is not believed
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class _Answer(TypedDict):
    """What we read of an answer; there may be more in it."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # no field


class Project(_Answer):
    """A project that a key opens."""

    id: str


class Me(_Answer):
    """Who a key makes us."""

    projects: list[Project]


class Numbered(_Answer):
    """A model version."""

    id: int


class Named(Numbered):
    """A model version with its name."""

    model_name: str
    version_name: str


class About(_Answer):
    """What is there of a version."""

    task: str
    latest_epoch: int | None


class Job(_Answer):
    """Work for a service's workers; `kind` is what it is, `progress` a share, in [0, 1]."""

    id: str
    kind: str
    model_name: str
    version_name: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    result_name: str
    progress: float
    message: str
    created_at: datetime


class Found(_Answer):
    """A result."""

    id: int
    result_name: str
    model_name: str
    version_name: str
    task: str
    method_name: str
    n_epoch: int | str | None
    options: dict[str, Any]
    created_at: datetime
    completed_at: datetime


class File(_Answer):
    """A file of a result."""

    name: Annotated[str, StringConstraints(pattern=r"^\w{1,50}\.\w{1,20}$")]
    bytes: int
    sha256: str


class Refusal(_Answer):
    """What goes with a status that is none of success."""

    detail: str
    kind: str


class Taken(_Answer):
    """What became of a part."""

    records: int


class UnavailableError(SyncError):
    """The service cannot be reached, or cannot answer, just now.

    Attributes:
        pause: Seconds that it asks to be left alone, or None.
    """

    def __init__(self, text: str, pause: float | None = None) -> None:
        super().__init__(text)
        self.pause = pause


class RefusedError(SyncError):
    """The service will not do it, however often it is asked."""


class UnfitError(RefusedError):
    """The service does not take this part; it may take others."""


class ServiceClient:
    """A project of a service, as an API key opens it; safe for several threads.

    Nothing is asked before something is needed. A request that the service cannot answer just
    now raises `UnavailableError`; `patiently` tries again.

    Attributes:
        endpoint: The service's address.
    """

    def __init__(self, endpoint: str, api_key: str | None) -> None:
        """Take an address and a key.

        Raises:
            InputError: The address is none, or there is no key.
        """
        try:
            parts = urlsplit(endpoint)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            known = False
        if not known:
            shown = "an API key" if "mldbg_" in endpoint else repr(endpoint.rpartition("@")[2])
            raise InputError(
                "api_endpoint must be an address such as https://ml-debugger.example.org, got "
                + shown
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InputError("api_endpoint must be a plain address; the key belongs in api_key")
        if not api_key:
            raise InputError(
                f"{endpoint} needs an API key: set MLD_API_KEY, or pass api_key=; an admin of the "
                "project makes one"
            )
        if not (api_key.isascii() and api_key.isprintable()) or " " in api_key:
            raise InputError("api_key is malformed; it looks like mldbg_...")
        self.endpoint = endpoint.rstrip("/")
        self._key = api_key
        self._local = threading.local()
        self._me: Me | None = None

    def __repr__(self) -> str:
        return f"ServiceClient({self.endpoint!r})"

    @property
    def encrypted(self) -> bool:
        """Whether nobody on the way can read along."""
        parts = urlsplit(self.endpoint)
        return parts.scheme == "https" or parts.hostname in LOOPBACK

    @property
    def key_place(self) -> str:
        """A file name for what is kept of this service and this key."""
        prefix, _, rest = self._key.partition("_")
        name, _, secret = rest.partition("_")  # which may hold the same sign
        public = f"{prefix}_{name}" if secret else ""  # of a key of another form nothing is known
        return hashlib.sha256(f"{self.endpoint} {public}".encode()).hexdigest()[:16]

    @property
    def project_place(self) -> str:
        """A file name for what is kept of this service and this project, by whatever key."""
        return hashlib.sha256(f"{self.endpoint} {self.project}".encode()).hexdigest()[:16]

    @property
    def project(self) -> str:
        """The id of the project that the key opens."""
        return self.me()["projects"][0]["id"]

    @property
    def met(self) -> bool:
        """Whether it has told us who we are, so that `project` asks nothing."""
        return self._me is not None

    def me(self) -> Me:
        """Return who the key makes us; asked once."""
        if self._me is None:
            found = self._json(Me, "GET", "/me")
            if len(found["projects"]) != 1:
                raise RefusedError(f"the key opens no project at {self.endpoint}; ask for another")
            self._me = found
        return self._me

    def register(
        self,
        version: ModelVersion,
        *,
        task: str,
        architecture: Sequence[str],
        layers: Mapping[str, str],
        fields: Sequence[Mapping[str, Any]],
        label_fields: Sequence[Mapping[str, Any]],
    ) -> int:
        """Make a model version there, or find it; return its number there."""
        found = self._json(
            Numbered,
            "POST",
            f"{self._project}/versions",
            {
                "model_name": version.model_name,
                "version_name": version.version_name,
                "task": task,
                "architecture": list(architecture),
                "layers": dict(layers),
                "fields": [dict(one) for one in fields],
                "label_fields": [dict(one) for one in label_fields],
            },
        )
        return found["id"]

    def put_part(self, number: int, version: ModelVersion, digest: str, packed: bytes) -> int:
        """Send a part, compressed; return how many of its inputs were new there.

        Raises:
            RefusedError: The number is of another version there.
            NothingToEvaluateError: It is of none.
            UnfitError: It is too large, or something in it cannot be taken.
        """
        path = f"{self._project}/versions/{number}/parts/{digest}"
        headers = {"Content-Type": PART_TYPE}
        return self._json(Taken, "PUT", path, params=_named(version), data=packed, headers=headers)[
            "records"
        ]

    def withdraw(self, version: int, origins: Sequence[str]) -> None:
        """Have chunks forgotten that were deleted here."""
        path = f"{self._project}/versions/{version}/withdrawals"
        self._json(_Answer, "POST", path, {"origins": list(origins)})

    def version(self, version: ModelVersion) -> int | None:
        """Return the number of a model version there; None if there is none."""
        found = self._json(
            list[Numbered], "GET", f"{self._project}/versions", params=_named(version)
        )
        return found[0]["id"] if found else None

    def versions(self) -> list[Named]:
        """Return the model versions there, the first thousand."""
        return self._json(list[Named], "GET", f"{self._project}/versions")

    def about(self, version: int) -> About:
        """Return what is there of a version."""
        return self._json(About, "GET", f"{self._project}/versions/{version}")

    def evaluate(self, version: int, request: Mapping[str, Any], key: str | None = None) -> Job:
        """Ask for an evaluation; return its job, which is one and the same for one `key`."""
        path = f"{self._project}/versions/{version}/evaluations"
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return self._json(Job, "POST", path, dict(request), headers=headers)

    def job(self, number: str) -> Job:
        """Return how a job is going."""
        return self._json(Job, "GET", f"{self._project}/jobs/{number}")

    def jobs(self, limit: int = 100) -> list[Job]:
        """Return the project's jobs, the newest first, 1000 at most."""
        return self._json(list[Job], "GET", f"{self._project}/jobs", params={"limit": limit})

    def cancel(self, number: str) -> Job:
        """Stop a job; return how it stands."""
        return self._json(Job, "POST", f"{self._project}/jobs/{number}/cancel")

    def results(self, **named: str) -> list[Found]:
        """Return results, all of them or those of a `result_name`, `model_name`, `version_name`."""
        found: list[Found] = []
        while True:
            after = str(found[-1]["id"] if found else 0)
            params = {**named, "after": after, "limit": str(PAGE)}
            page = self._json(list[Found], "GET", f"{self._project}/results", params=params)
            found += page
            if len(page) < PAGE:
                return found

    def download(self, result: int, folder: Path) -> None:
        """Fetch a result's files into a folder, each compared with its hash.

        Raises:
            UnavailableError: A file arrived damaged; try again.
        """
        path = f"{self._project}/results/{result}/files"
        for file in self._json(list[File], "GET", path):
            name, most = file["name"], file["bytes"]
            digest = hashlib.sha256()
            with (
                self._request("GET", f"{path}/{name}", most=most) as answer,
                (folder / name).open("xb") as out,
            ):
                for block in self._blocks(answer, most):
                    digest.update(block)
                    out.write(block)
            if digest.hexdigest() != file["sha256"]:
                raise UnavailableError(f"{name} arrived damaged from {self.endpoint}; try again")

    def query(self, result: int, request: Mapping[str, Any]) -> dict[str, Any]:
        """Ask which inputs to pick; see the service's interface."""
        path = f"{self._project}/results/{result}/query"
        return self._json(dict[str, Any], "POST", path, dict(request))

    @property
    def _project(self) -> str:
        return f"/projects/{self.project}"

    def _json(self, wanted: type[T], method: str, path: str, body: Any = None, **more: Any) -> T:
        with self._request(method, path, json=body, **more) as answer:
            content = b"".join(self._blocks(answer, MOST_BYTES))
        try:
            read: T = _reader(wanted).validate_json(content)  # type: ignore[arg-type]  # a class
            return read
        except ValueError as error:
            raise self._stranger() from error

    def _request(
        self, method: str, path: str, *, most: int = 0, **more: Any
    ) -> "requests.Response":
        """Return an answer whose body is still to be read, with `_blocks`; `most` is its size."""
        from ml_debugger.core.service import transport

        try:
            answer = self._session.request(
                method,
                f"{self.endpoint}/api/v1{path}",
                timeout=(transport.CONNECT_SECONDS, transport.allowed_seconds(most)),
                allow_redirects=False,  # a key is not to follow wherever it is sent
                stream=True,
                **more,
            )
        except (OSError, ValueError) as error:
            raise self._failed(error) from error
        if answer.status_code >= 300:
            with answer:
                raise self._refusal(answer)
        return answer

    def _blocks(self, answer: "requests.Response", most: int) -> Iterator[bytes]:
        """Yield the body of an answer.

        Raises:
            UnavailableError: It ends too early, or takes too long.
            RefusedError: It has more bytes than `most`.
        """
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise self._stranger()  # who knows how large it is unpacked
        read = 0
        blocks = answer.iter_content(BLOCK)
        while True:
            try:
                block = next(blocks, b"")
            except OSError as error:
                raise self._failed(error) from error
            read += len(block)
            if read > most:
                raise self._stranger()
            if not block:
                return
            yield block

    @property
    def _session(self) -> "requests.Session":
        """The connections of this thread: requests' sessions are not for several.

        Nor are they for a forked child, which would mix its requests into its parent's.
        """
        from ml_debugger.core.service.transport import (
            Session,  # only who has a service waits for it
        )

        found: Session | None = getattr(self._local, "session", None)
        if found is None or self._local.pid != os.getpid():
            found = self._local.session = Session()
            found.auth = self._authorize  # or a .netrc would take the place of the key
            self._local.pid = os.getpid()
        return found

    def _authorize(self, request: "requests.PreparedRequest") -> "requests.PreparedRequest":
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _failed(self, error: Exception) -> SyncError:
        from ml_debugger.core.service.transport import explain

        why, passing = explain(error)
        if not passing:
            return RefusedError(f"{self.endpoint} cannot be used: {why}")
        return UnavailableError(
            f"{self.endpoint} cannot be reached: {why}. What is recorded is safe here and can be "
            "sent later"
        )

    def _stranger(self) -> RefusedError:
        return RefusedError(
            f"{self.endpoint} does not answer as an ml-debugger service; check the address"
        )

    def _refusal(self, answer: "requests.Response") -> MLDebuggerError:
        status = answer.status_code
        if status == 407:
            from requests.exceptions import ProxyError

            return self._failed(ProxyError("407"))
        try:
            told: Refusal = _reader(Refusal).validate_json(
                b"".join(self._blocks(answer, MOST_SAID))
            )
            detail, kind = told["detail"], told["kind"]
        except (ValueError, RefusedError):
            kind = ""
            detail = f"status {status}; is this the address of an ml-debugger service?"
        if status in PASSING or status >= 500 or (status == 409 and kind == "Problem"):
            pause = answer.headers.get("Retry-After", "")
            return UnavailableError(
                f"{self.endpoint} cannot do this just now: {detail}",
                min(float(pause), LONGEST_REQUEST) if pause.isdecimal() else None,
            )
        if status < 400:
            return RefusedError(
                f"{self.endpoint} points elsewhere; set MLD_API_ENDPOINT to where it leads"
            )
        if status == 404 and detail == "Not Found":  # no route, rather than nothing under it
            return RefusedError(
                f"{self.endpoint} has no such interface; check the address, which ends before "
                "/api, or bring the service up to the version of this package"
            )
        if status == 401:
            detail += "; set another as MLD_API_KEY, or pass api_key=; an admin of the project "
            detail += "makes one"
        if status == 402:
            return LicenseError(f"{self.endpoint}: {detail}")
        if status in UNFIT and answer.request.headers.get("Content-Type") == PART_TYPE:
            return UnfitError(f"{self.endpoint}: {detail}")
        return refusal(kind, f"{self.endpoint}: {detail}")


def _named(version: ModelVersion) -> dict[str, str]:
    return {"model_name": version.model_name, "version_name": version.version_name}


@cache
def _reader(wanted: Any) -> TypeAdapter[Any]:
    return TypeAdapter(wanted)


def refusal(kind: str, text: str) -> MLDebuggerError:
    """Return the error of a service as one of this process, if it means the same here."""
    found: type[MLDebuggerError] = getattr(errors, kind) if kind in _SHARED else RefusedError
    return found(text)


#: Errors that mean the same there and here.
_SHARED = frozenset(
    {
        "ArchitectureMismatchError",
        "EpochError",
        "InputError",
        "NothingToEvaluateError",
        "ResultNotFoundError",
        "SchemaError",
        "StrategyError",
    }
)


def patiently(act: Callable[[], T], patience: float | None = None) -> T:
    """Do something again while the service cannot be reached, for a while.

    Args:
        act: What to do.
        patience: For how many seconds; 30 by default.

    Raises:
        UnavailableError: It still cannot be then.
    """
    end = time.monotonic() + (RETRY_SECONDS if patience is None else patience)
    pause = FIRST_PAUSE
    while True:
        try:
            return act()
        except UnavailableError as error:
            wait = max(pause, error.pause or 0.0)
            if time.monotonic() + wait > end:
                raise
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)
