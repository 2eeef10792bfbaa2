"""What flows from a model to a query: the columns of units, gathered in batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Values = TypeVar("Values", Tensor, Array)

#: What decides which units a model shows, such as a threshold, by name; None: not known.
Settings = Mapping[str, float | int | None]

#: The two tables of the contract: what the model saw and said, and what was true.
Table = Literal["extracted_feature", "ground_truth"]


class ModelVersion(NamedTuple):
    """A model under one set of training conditions."""

    model_name: str
    version_name: str

    def __str__(self) -> str:
        return f"{self.model_name}/{self.version_name}"


class Column(NamedTuple):
    """A scalar column that a task promises for each of its units."""

    name: str
    type: type


@dataclass(frozen=True, slots=True)
class TaskSchema:
    """The scalar columns of a task's predicted and actual units.

    Vectors (`logits`, `statistics`, `feature.<alias>`) need no declaration: their width is the
    model's.

    Attributes:
        name: The task's name.
        extracted_feature: Columns of predicted units.
        ground_truth: Columns of actual units.
        inputs: Columns of inputs that the task itself fills, with ints, floats or texts; from the
            numbers it is told how much was probably missed in an input.
        statistics: Names of the columns of `statistics`.
        aspects: Ways in which a unit can be wrong, each asked of units that are right in those
            before; of each there is an estimate, `<aspect>_error_proba`.
        kinds: Kinds of error in the first aspect, the first of which is none.
    """

    name: str
    extracted_feature: tuple[Column, ...] = ()
    ground_truth: tuple[Column, ...] = ()
    inputs: tuple[Column, ...] = ()
    statistics: tuple[str, ...] = ()
    aspects: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()

    @property
    def taken(self) -> frozenset[str]:
        """Names that mean something in a result, so that no additional field can have them."""
        columns = (*self.extracted_feature, *self.ground_truth, *self.inputs)
        own = {"kind", "missed", "units", "expected_wrong", "expected_missed", "iou"}
        return self.estimated | own | {column.name for column in columns}

    @property
    def estimated(self) -> frozenset[str]:
        """The columns that a result adds to each unit, as queries name them."""
        own = {"error_proba", "zone", "outlier", "unstable"}
        return frozenset(own | {aspect_column(name) for name in self.aspects})


def aspect_column(name: str) -> str:
    """Return what the estimate of an aspect is called."""
    return f"{name}_error_proba"


@dataclass(frozen=True, slots=True)
class Units(Generic[Values]):
    """The units of a batch, column by column.

    A unit is the smallest thing that can be wrong: an image, a box. Tensors on the way into the
    store, NumPy arrays on the way out.

    Attributes:
        columns: One value a unit: shape (n,) for scalars, (n, d) for `logits`, `feature.<alias>`
            and `statistics`: numbers that may speak for or against a unit, such as a box's size.
        counts: How many units each input has, shape (inputs,), int32; units lie in the order of
            their inputs. None where every input has exactly one.
        inputs: The schema's columns of inputs, shape (inputs,), of predicted units; texts are a
            list, or an array of objects on the way out.
    """

    columns: Mapping[str, Values]
    counts: Values | None = None
    inputs: Mapping[str, Values | Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return next((len(values) for values in self.columns.values()), 0)

    def __getitem__(self, name: str) -> Values:
        return self.columns[name]

    @property
    def n_inputs(self) -> int:
        """How many inputs these units are of."""
        return len(self) if self.counts is None else len(self.counts)


def features_of(columns: Mapping[str, Array]) -> dict[str, Array]:
    """Return the feature matrices among some columns, by layer alias."""
    start = "feature."
    return {k.removeprefix(start): v for k, v in columns.items() if k.startswith(start)}


@dataclass(frozen=True, slots=True)
class Batch:
    """One parsed forward pass on its way to the store.

    Attributes:
        input_ids: One id an input.
        dataset_type: The split it belongs to.
        n_epoch: The training epoch, or None.
        recorded_at: When it was captured, nanoseconds since 1970 (UTC).
        predicted: What the model said. Host tensors, possibly still being filled.
        actual: What was true, or None without ground truth.
        fields: Additional columns of the inputs, one value an input.
        label_fields: Additional columns of the ground truth, one value an input.
        ready: Waits until the tensors hold their values; None when they already do.
    """

    input_ids: Sequence[str]
    dataset_type: str
    n_epoch: int | None
    recorded_at: int
    predicted: Units[Tensor]
    actual: Units[Tensor] | None = None
    fields: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    label_fields: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    ready: Callable[[], None] | None = None

    @property
    def nbytes(self) -> int:
        """The memory that its tensors, ids and fields hold, in bytes, about."""
        units = [self.predicted] if self.actual is None else [self.predicted, self.actual]
        tensors = [t for one in units for t in one.columns.values()]
        texts = [self.input_ids, *self.fields.values(), *self.label_fields.values()]
        return sum(t.numel() * t.element_size() for t in tensors) + sum(map(_text_bytes, texts))


def _text_bytes(values: Sequence[Any]) -> int:
    """Return what a list of values takes: 64 bytes each, and its text where it is one."""
    try:
        return 64 * len(values) + len("".join(values))
    except TypeError:  # not all of them are text
        return 64 * len(values) + sum(len(one) for one in values if isinstance(one, str))


def owners(counts: Array | None, inputs: int) -> Array:
    """Return, for each unit, the position of the input it belongs to."""
    if counts is None:
        return np.arange(inputs)
    return np.repeat(np.arange(inputs), counts)


def differing(first: Settings, second: Settings) -> tuple[str, str] | None:
    """Return in words what either has of the settings in which they differ; None for nothing.

    What one of them does not know is no difference.
    """
    both = {name: (value, second.get(name)) for name, value in first.items()}
    names = [name for name, pair in both.items() if None not in pair and pair[0] != pair[1]]
    if not names:
        return None
    return in_words({n: first[n] for n in names}), in_words({n: second[n] for n in names})


def in_words(settings: Settings) -> str:
    """Return settings as they would be passed; those that are not known are left out."""
    return ", ".join(f"{name}={value}" for name, value in settings.items() if value is not None)
