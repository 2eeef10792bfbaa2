"""What a task package offers, and which task packages are installed.

A package registers one entry point in the group `ml_debugger.tasks`: its name is the prefix of
its public classes (`Classification`), its value the `Task`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.errors import TaskIncompatibleError, TaskNotInstalledError
from ml_debugger.core.records import Array, TaskSchema, Units

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.estimator import Estimates
    from ml_debugger.core.evaluation.options import EvaluationOptions
    from ml_debugger.core.evaluation.report_page.section import Section
    from ml_debugger.core.evaluation.report_page.thumbnail import Thumbnails
    from ml_debugger.core.evaluation.result import Result
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


@dataclass(frozen=True)
class Verdict:
    """What is true of some predicted units.

    Attributes:
        target: The class that each should have been, shape (n,), int64; -1 where none of the
            model's classes is right. A unit is wrong where this differs from its prediction.
        label: The annotated class, shape (n,), int64, -1 for none; it differs from the target
            where a unit is wrong in another way than by its class. None: the target.
        judged: Whether each unit counts, shape (n,), bool: one in a region that was annotated as
            not to be looked at does not. None: all of them.
        aspects: For each of the schema's aspects, 1 where a unit is wrong in this respect, 0 where
            it is right, -1 where the question does not arise, shape (n,), int8.
        kind: Place in the schema's kinds of each unit's kind of error, shape (n,), int8; None for a
            task without kinds.
        columns: What else is known, for the reader of a result, shape (n,) by name.
        missed: Whether nothing was predicted for each actual unit, shape (m,), bool; None for a
            task in which everything is predicted.
    """

    target: NDArray[np.int64]
    label: NDArray[np.int64] | None = None
    judged: NDArray[np.bool_] | None = None
    aspects: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)
    kind: NDArray[np.int8] | None = None
    columns: Mapping[str, Array] = field(default_factory=dict)
    missed: NDArray[np.bool_] | None = None

    def take(self, rows: NDArray[np.int64]) -> "Verdict":
        """Return the verdict on some of the units; what was missed is left out."""
        return Verdict(
            target=self.target[rows],
            label=None if self.label is None else self.label[rows],
            judged=None if self.judged is None else self.judged[rows],
            aspects={name: values[rows] for name, values in self.aspects.items()},
            kind=None if self.kind is None else self.kind[rows],
            columns={name: values[rows] for name, values in self.columns.items()},
        )


#: The outcomes that are no error: a thing that is as it should be, and nothing where nothing is.
RIGHT, NOTHING = "right", "nothing"


@dataclass(frozen=True)
class Things:
    """What two results of the same inputs are about: actual units, and predictions beside them.

    Each is one row, so that it can be followed from one result to the other.

    Attributes:
        owner: The input that each belongs to, ascending, shape (n,), int64.
        label: Its true class, shape (n,), int64; -1 where nothing is true.
        units: The predicted unit that stands for it in either result, shape (n,), int64; -1 where
            there is none.
        outcomes: What can become of a thing, in words; `RIGHT` and `NOTHING` are no errors.
        outcome: What became of each in either result, as places in `outcomes`, shape (n,), int8.
        columns: What else is known of each, shape (n,) by name.
        relabelled: How many actual units are not the same in both results.
    """

    owner: NDArray[np.int64]
    label: NDArray[np.int64]
    units: tuple[NDArray[np.int64], NDArray[np.int64]]
    outcomes: tuple[str, ...]
    outcome: tuple[NDArray[np.int8], NDArray[np.int8]]
    columns: Mapping[str, Array]
    relabelled: int


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
    def judge(
        predicted: Units[Array], actual: Units[Array], options: "EvaluationOptions"
    ) -> Verdict:
        """Tell what each predicted unit should have been.

        Args:
            predicted: The predicted units of some inputs, with a column `prediction`. `counts` is
                None where every input has exactly one, whether or not the task said how many.
            actual: The actual units of the same inputs, likewise.
            options: Those of the evaluation.
        """

    @staticmethod
    @abstractmethod
    def codes(
        prediction: NDArray[Any],
        verdict: Verdict | None,
        zones: NDArray[Any],
        estimates: "Estimates",
        error_proba_thresh: float,
    ) -> Sequence[str]:
        """Name each unit's error in the task's grammar.

        Args:
            prediction: Predicted class of each unit.
            verdict: As `judge` gives it; None for unlabelled units, whose codes are estimated.
            zones: Position of each unit's zone in `ml_debugger.core.evaluation.zones.ZONES`.
            estimates: What the error model says of them.
            error_proba_thresh: The option of this name.
        """

    @staticmethod
    def missed_codes(label: NDArray[Any]) -> Sequence[str]:
        """Name each actual unit that nothing was predicted for, by its class."""
        return [f"no_prediction:CLS{one}->-" for one in label.tolist()]

    @staticmethod
    def follow(
        predicted: Units[Array],
        actual: Units[Array],
        other_predicted: Units[Array],
        other_actual: Units[Array],
        options: "EvaluationOptions",
    ) -> Things | None:
        """Tell which units of two results are about the same thing.

        Asked of a task that can miss something; elsewhere units are followed by their position
        within their input.

        Args:
            predicted: The predicted units of some inputs in an older result, with the schema's
                columns of units and of inputs; `counts` is always given.
            actual: The actual units of the same inputs in that result, likewise.
            other_predicted: The predicted units of the same inputs in a newer result.
            other_actual: The actual units there, by which both results are judged.
            options: Those of the newer result.

        Returns:
            The things, or None where the task cannot tell.
        """
        return None

    @staticmethod
    def figures(result: "Result") -> Mapping[str, tuple[float | None, bool | None]]:
        """Return figures of a result that only this task has, for comparisons.

        Asked of a task that can miss something.

        Args:
            result: A result of this task.

        Returns:
            By name, the value (None where it is not defined), and whether a larger one is better
            (None: neither). The names are the same for every result.
        """
        return {}

    @staticmethod
    def sections(result: "Result", pictures: "Thumbnails") -> Sequence["Section"]:
        """Return what the report of a result shows in this task only.

        Args:
            result: A result of this task.
            pictures: Gives the pictures of inputs; false where the user gave none.
        """
        return ()


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
