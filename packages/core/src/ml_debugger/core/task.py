"""What a task package offers, and which task packages are installed.

A package registers one entry point in the group `ml_debugger.tasks`: its name is the prefix of
its public classes (`Classification`), its value the `Task`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from ml_debugger.core.errors import TaskIncompatibleError, TaskNotInstalledError
from ml_debugger.core.records import Array, TaskSchema, Units

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.estimator import Estimates
    from ml_debugger.core.tracer import Tracer

#: Changes when the signature of a contract does, and only then.
CONTRACT = 1

GROUP = "ml_debugger.tasks"

#: The distribution that provides each documented prefix: the only place where core knows a task.
KNOWN = {
    "Classification": "ml-debugger-classification",
    "ObjectDetection": "ml-debugger-detection2d",
    "ObjectDetection3D": "ml-debugger-detection3d",
}


class Task(ABC):
    """A kind of model output, and how to tell that it is wrong.

    Attributes:
        schema: The scalar columns of its units; the schema's name is the task's.
        method: The name of its evaluation method, as results carry it.
        tracer: The class behind `ml_debugger.training.<Prefix>Tracer`.
        logger: The class behind `ml_debugger.monitoring.<Prefix>Logger`.
        data_filter: The class behind `ml_debugger.data_filter.<Prefix>DataFilter`.
        contract: The contract of core that the package was written for.
        quickstart: A demonstration on real data for `ml-debugger quickstart`, or None.
    """

    schema: ClassVar[TaskSchema]
    method: ClassVar[str]
    tracer: ClassVar[type["Tracer"]]
    logger: ClassVar[type["Tracer"]]
    data_filter: ClassVar[type["Tracer"]]
    contract: ClassVar[int] = CONTRACT
    quickstart: ClassVar[Callable[..., Any] | None] = None

    @staticmethod
    @abstractmethod
    def judge(predicted: Units[Array], actual: Units[Array]) -> NDArray[Any]:
        """Tell what each predicted unit should have been.

        Args:
            predicted: The predicted units of some inputs, with a column `prediction`. `counts` is
                None where every input has exactly one, whether or not the task said how many.
            actual: The actual units of the same inputs, likewise.

        Returns:
            The true class of each predicted unit, int64; -1 where none of the model's classes is
            right. A unit is wrong where this differs from its prediction.
        """

    @staticmethod
    @abstractmethod
    def codes(
        prediction: NDArray[Any],
        target: NDArray[Any] | None,
        zones: NDArray[Any],
        estimates: "Estimates",
    ) -> Sequence[str]:
        """Name each unit's error in the task's grammar.

        Args:
            prediction: Predicted class of each unit.
            target: True class as `judge` gives it; None for unlabelled units, whose codes are
                estimated.
            zones: Position of each unit's zone in `ml_debugger.core.evaluation.zones.ZONES`.
            estimates: What the error model says of them.
        """


@cache
def installed() -> dict[str, EntryPoint]:
    """Return the installed tasks' entry points by prefix, importing none of them.

    Raises:
        TaskIncompatibleError: Two distributions claim one prefix.
    """
    tasks: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = tasks.setdefault(entry.name, entry)
        if other.value != entry.value:
            names = sorted(str(e.dist.name if e.dist else e.value) for e in (entry, other))
            raise TaskIncompatibleError(
                f"{' and '.join(names)} both provide the task {entry.name}; uninstall one of them"
            )
    return tasks


@cache
def load(prefix: str) -> type[Task]:
    """Return an installed task by the prefix of its public classes.

    Raises:
        TaskNotInstalledError: A documented task whose package is missing.
        TaskIncompatibleError: The package was written for another contract.
        KeyError: No task has this prefix.
    """
    entry = installed().get(prefix)
    if entry is None:
        if prefix in KNOWN:
            raise TaskNotInstalledError(
                f"{prefix} needs {KNOWN[prefix]}: pip install {KNOWN[prefix]}"
            )
        raise KeyError(prefix)
    task: type[Task] = entry.load()
    if task.contract != CONTRACT:
        package = entry.dist.name if entry.dist else entry.value
        raise TaskIncompatibleError(
            f"{package} was written for contract {task.contract} of ml-debugger-core, "
            f"this core has contract {CONTRACT}; install versions of both that fit"
        )
    return task


def task_named(name: str) -> type[Task]:
    """Return the installed task of a schema name, as a stored version carries it.

    Raises:
        TaskNotInstalledError: No installed package provides it.
    """
    for prefix in installed():
        task = load(prefix)
        if task.schema.name == name:
            return task
    raise TaskNotInstalledError(
        f"these records belong to the task {name!r}, which no installed package provides "
        f"(installed: {', '.join(installed()) or 'none'})"
    )
