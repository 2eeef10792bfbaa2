"""What the rest of core may expect of a repository, and what it gets from one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from ml_debugger.core.records import Batch, ModelVersion, Settings

if TYPE_CHECKING:
    from ml_debugger.core.store.records import Records

#: Why a process records.
Purpose = Literal["training", "monitoring", "data_filter"]
PURPOSES: tuple[Purpose, ...] = ("training", "monitoring", "data_filter")

PART_BYTES = 8 << 20  # of what is sent to a service at once, unless a single chunk is larger


@dataclass(frozen=True, slots=True)
class Scope:
    """Which records of a version are meant.

    Attributes:
        dataset_types: Only these splits; None for all.
        n_epoch: Only this epoch, where None is the epoch "no epoch"; "all" for all.
        runs: Only these runs; None for all.
        labelled: Only records with ground truth; those without then replace none.
    """

    dataset_types: tuple[str, ...] | None = None
    n_epoch: int | Literal["all"] | None = "all"
    runs: tuple[str, ...] | None = None
    labelled: bool = False


EVERYTHING = Scope()


class LeftOut(NamedTuple):
    """A chunk that a service cannot be sent, and why."""

    n_epoch: int | None
    inputs: int
    why: str


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """A model version in the store; `records` counts inputs as written, replaced ones too."""

    number: int
    version: ModelVersion
    task: str
    records: int
    epochs: tuple[int | None, ...]
    bytes: int
    last_written: datetime | None


@dataclass(frozen=True, slots=True)
class EpochInfo:
    """An epoch of a version; `records` counts inputs as written, by data set."""

    n_epoch: int | None
    last_written: datetime
    runs: tuple[str, ...]
    records: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run that has records: one process, or all ranks of a distributed one.

    `settings` are those that it recorded with, by name; see `Tracer.settings`.
    """

    run: str
    purpose: Purpose
    host: str
    world_size: int
    started_at: datetime
    records: int
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResultInfo:
    """What the store knows of an evaluation result."""

    number: int
    name: str
    version: ModelVersion
    task: str
    method: str
    n_epoch: int | str | None
    created_at: datetime
    completed_at: datetime
    options: Mapping[str, Any] = field(default_factory=dict)


class Repository(Protocol):
    """Where one model version's records live.

    **Thread safety**: safe to call from several threads and processes; the batch writer writes
    while a query reads. **Durability**: what `write` has returned from survives a crash of the
    process and of the machine. **Snapshots**: a `Records` never changes after `records`
    returned it, whatever is written or deleted meanwhile.
    """

    version: ModelVersion
    task: str
    architecture: tuple[str, ...]
    architecture_hash: str
    layers: dict[str, str]
    fields: tuple[Mapping[str, Any], ...]
    label_fields: tuple[Mapping[str, Any], ...]

    def start_run(
        self,
        purpose: Purpose,
        *,
        run: str | None = None,
        rank: int = 0,
        world_size: int = 1,
        settings: Settings | None = None,
    ) -> str:
        """Begin to record, and return the id that `write` and `Scope.runs` take.

        Args:
            purpose: Why this process records.
            run: The run to join: the same on all ranks of a distributed job. None for a new one.
            rank: This process's rank.
            world_size: How many ranks there are.
            settings: What the run records with, by name; a rank that joins leaves it out or gives
                the same.
        """

    def write(self, run: str, batches: Sequence[Batch]) -> None:
        """Add batches, all of them or none; durable on return.

        Waits for `Batch.ready` where set. Batches of one epoch and data set keep their order,
        and of two records with the same id there the later one counts.

        Raises:
            StoreError: The disk refused; the batches may be written again.
            InputError: A batch cannot be stored.
        """

    def records(self, scope: Scope = EVERYTHING) -> "Records":
        """Return the records of a scope as they are now; empty when there are none."""

    def latest_epoch(self) -> int | None:
        """Return the epoch written last: by time, since training may count from 0 again.

        Training runs decide; other runs only where there are none. None stands for the epoch
        "no epoch", and for nothing recorded yet: `epochs` is empty then.
        """

    def epochs(self) -> list[EpochInfo]:
        """Return the epochs, the one written last at the end."""

    def runs(self) -> list[RunInfo]:
        """Return the runs that have records, in the order in which they began."""

    def delete_epoch(self, n_epoch: int | None) -> dict[str, int]:
        """Delete an epoch's records and count the units by table; deleting none is no error.

        `ground_truth` is missing where none of the version's records has ground truth.
        """

    def recreate(self) -> None:
        """Delete all records of the version; what it stands for, and its results, stay."""

    def close(self) -> None:
        """Let go of what was cached; idempotent. The store stays open."""
