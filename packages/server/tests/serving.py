"""The processes of a service, for real, and what its clients and its tests do with it."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import SecretStr
from sqlmodel import select

from ml_debugger.core.evaluation.result import Result
from ml_debugger.core.records import ModelVersion
from ml_debugger.core.store import Store
from ml_debugger.core.store.tables import ChunkRow, RunRow
from ml_debugger.server.database import Database
from ml_debugger.server.service import Service
from ml_debugger.server.settings import Settings
from ml_debugger.training import ClassificationTracer

from .machines import HOST, PATIENCE, Machine

COMMAND = Path(sys.executable).with_name("ml-debugger")
ROOT = Path(__file__).parents[3]
PROGRAMS = "packages.server.tests.fault_programs"


def environment(**more: Any) -> dict[str, str]:
    """Return this process's environment, with nothing in it that a service or a client reads."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLD_")}
    return kept | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in more.items()}


def variables(settings: Settings) -> dict[str, str]:
    """Return settings as the environment of a service's processes."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    given = {
        name: one.get_secret_value() if isinstance(one, SecretStr) else one
        for name, one in given.items()
    }
    given = {name: one if isinstance(one, dict) else str(one) for name, one in given.items()}
    return {
        f"MLD_SERVER_{name.upper()}": one if isinstance(one, str) else json.dumps(one)
        for name, one in given.items()
    }


class Process(Machine):
    """A process of a service; its folder holds its log, which outlives a restart."""

    def __init__(self, settings: Settings, **more: Any) -> None:
        self._settings = settings
        self._more = more
        super().__init__("service")

    @property
    def log(self) -> str:
        """What it has said so far."""
        return (self._folder / "log").read_text()

    def kill(self) -> None:
        """End it as `kill -9` does."""
        if self.up:
            self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as whoever runs it would, and return when it has ended."""
        if self.up:
            self._end(signal.SIGTERM)

    def family(self) -> list[int]:
        """Return the numbers of the processes that it and its children are."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == self._process.pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found

    def _prepare(self) -> None:
        self._how["env"] = environment(**variables(self._settings), **self._more)

    def close(self) -> None:
        """End it and everything that it started."""
        if self._process is not None and (left := self.family()):
            self.kill()
            until(lambda: not self.family(), f"processes {left} to end with what started them")
        super().close()


class Server(Process):
    """`ml-debugger serve`, without workers; the tables are made first."""

    @property
    def endpoint(self) -> str:
        """The URL of the service."""
        return f"http://{HOST}:{self.port}"

    @property
    def key(self) -> str:
        """The API key that it made when it first started."""
        return json.loads((self._settings.data / "first_login.json").read_text())["key"]

    def _prepare(self) -> None:
        super()._prepare()
        tables = Database(self._settings.database, self._settings.data)
        tables.migrate()
        tables.close()

    def _command(self) -> list[Any]:
        return [COMMAND, "serve", "--port", str(self.port), "--workers", "0"]

    def _answers(self) -> bool:
        try:
            with closing(http.client.HTTPConnection(HOST, self.port, timeout=1)) as connection:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
        except OSError:
            return False


class Worker(Process):
    """`ml-debugger worker`."""

    def _command(self) -> list[Any]:
        return [COMMAND, "worker"]

    def _answers(self) -> bool:
        return True


def until(holds: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Return what is true once it is.

    Raises:
        TimeoutError: It does not come to be; this says what was waited for.
    """
    end = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.01)
    return found


def program(name: str, **arguments: Any) -> "subprocess.Popen[str]":
    """Start one of the programs, with its arguments as JSON."""
    return subprocess.Popen(
        [sys.executable, "-m", f"{PROGRAMS}.{name}", json.dumps(arguments, default=str)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        text=True,
        env=environment(),
    )


EVALUATE = """
import sys
from ml_debugger.evaluator import Evaluator
home, model_name, version_name, result_name = sys.argv[1:]
made = Evaluator(model_name, version_name, home=home).request_evaluation(result_name=result_name)
print(made.folder)
"""


def evaluated_here(home: Path, version: ModelVersion, name: str) -> Result:
    """Evaluate without a service, in a process like a worker's.

    What tests before have loaded into this one may round otherwise, in the last bits.
    """
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE, str(home), *version, name],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Result.load(done.stdout.splitlines()[-1])


def model() -> torch.nn.Module:
    """Return the model that everybody traces: the same weights everywhere."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)
    return torch.nn.Sequential(*layers).eval()


def tracer(home: Path, version: str = "v1", **options: Any) -> ClassificationTracer:
    """Return a tracer of that model."""
    return ClassificationTracer(model(), "net", version, home=home, **options)


def record(
    tracer: ClassificationTracer, calls: Sequence[int], *, inputs: int = 32, epoch: int | None = 0
) -> None:
    """Record calls by their numbers, each a chunk of its own; the same number, the same inputs."""
    for number in calls:
        source = torch.Generator().manual_seed(number)
        values = torch.randn(inputs, 16, generator=source)
        labels = (values[:, :4] + torch.randn(inputs, 4, generator=source) / 2).argmax(1)
        ids = range(number * inputs, (number + 1) * inputs)
        with torch.no_grad():
            tracer(values, labels, input_ids=ids, dataset_type="val", n_epoch=epoch)
        tracer.flush()


def content(store: Store, version: ModelVersion) -> dict[str, Any]:
    """Return all that can be read of a version, exact to the last bit, in order."""
    repository = store.open(version)
    records = repository.records()
    columns: dict[str, list[Any]] = {}
    for part in records.parts():
        for name in part.names():
            columns.setdefault(name, []).append(_exactly(part.column(name)))
    return {
        "columns": columns,
        "counts": [records.counts(side).tolist() for side in ("predicted", "actual")],
        "replaced": records.replaced,
        "epochs": [(one.n_epoch, one.runs, one.records) for one in repository.epochs()],
        "latest": repository.latest_epoch(),
        "runs": repository.runs(),
    }


def chunks(store: Store, version: ModelVersion) -> Counter[tuple[Any, ...]]:
    """Return the chunks of a version as they were written, whatever readers see of them."""
    number = next(one.number for one in store.versions() if one.version == version)
    query = select(RunRow.uuid, RunRow.rank, ChunkRow.n_epoch, ChunkRow.inputs, ChunkRow.crc)
    with store._catalogue.reading() as session:
        found = session.exec(
            query.join(ChunkRow, ChunkRow.run_id == RunRow.id).where(ChunkRow.version_id == number)
        )
        return Counter(map(tuple, found))


def inputs_in(counted: Counter[tuple[Any, ...]]) -> int:
    """Return how many inputs chunks have together."""
    return sum(one[3] * times for one, times in counted.items())


def project_store(service: Service) -> Store:
    """Return the store of a service's only project, opened directly."""
    from ml_debugger.server.tables import ProjectRow

    with service.database.reading() as session:
        return service.projects.store(session.exec(select(ProjectRow.id)).one())


def _exactly(values: Any) -> Any:
    if isinstance(values, np.ndarray):
        return values.dtype.str, values.shape, values.tobytes()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return str(values.type), values.to_pylist()
