"""A saved evaluation as it lies on disk: its header, its units and its error model."""

import os
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ml_debugger.core.evaluation import folder as files
from ml_debugger.core.evaluation.frames import as_frame

if TYPE_CHECKING:
    from ml_debugger.core.evaluation.estimator import ErrorModel
    from ml_debugger.core.evaluation.omissions import Omissions
    from ml_debugger.core.evaluation.zones import ZoneRules


class SavedResult:
    """What a result's folder holds, read when it is first used and never changed.

    Attributes:
        folder: The folder.
        manifest: Everything scalar in it.
    """

    def __init__(self, folder: Path, manifest: files.Manifest) -> None:
        """Take a folder whose manifest was read; use `load`."""
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Open a saved result; its units and its error model are read when first used.

        Raises:
            ResultNotFoundError: The folder holds no result.
            SchemaError: It was written by a later version, or is damaged.
        """
        path = Path(folder).expanduser().absolute()
        return cls(path, files.read_manifest(path))

    @property
    def result_name(self) -> str:
        """The name that a data filter or a logger asks for it by."""
        return self.manifest.result_name

    @property
    def model_name(self) -> str:
        """The evaluated model."""
        return self.manifest.model_name

    @property
    def version_name(self) -> str:
        """The evaluated version of the model."""
        return self.manifest.version_name

    @property
    def method_name(self) -> str:
        """How it was evaluated, `classification_v1` for example."""
        return self.manifest.method_name

    @property
    def n_epoch(self) -> int | Literal["all"] | None:
        """The evaluated epoch, "all", or None for records without an epoch."""
        return self.manifest.n_epoch

    @property
    def options(self) -> dict[str, Any]:
        """The options it was made with, defaults included."""
        return dict(self.manifest.options)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know before trusting the figures, in plain words."""
        return tuple(self.manifest.notes)

    @property
    def created_at(self) -> datetime:
        """When the evaluation was asked for (UTC)."""
        return self.manifest.created_at

    @property
    def completed_at(self) -> datetime:
        """When the evaluation was done (UTC)."""
        return self.manifest.completed_at

    @property
    def layers(self) -> dict[str, str]:
        """The recorded layers that the error model looks at: module path by alias."""
        return dict(self.manifest.layers)

    @property
    def settings(self) -> dict[str, float | int | None]:
        """What decided which units were recorded, such as thresholds; None for what is not known.

        Empty for a task without settings, and in results of earlier versions.
        """
        return dict(self.manifest.settings)

    @property
    def fields(self) -> list[str]:
        """The additional fields among the columns."""
        return list(self.manifest.fields)

    @property
    def architecture_hash(self) -> str:
        """The architecture of the evaluated model; another model has another."""
        return self.manifest.architecture_hash

    @property
    def class_names(self) -> list[str]:
        """One name a class: as given in the options, or the class numbers."""
        given = self.manifest.class_names or []
        return [given[k] if k < len(given) else str(k) for k in range(self.manifest.n_class)]

    @cached_property
    def rules(self) -> "ZoneRules":
        """The rules that put a unit into its zone."""
        from pydantic import ValidationError

        from ml_debugger.core.errors import SchemaError
        from ml_debugger.core.evaluation.zones import ZoneRules

        try:
            return ZoneRules.model_validate(self.manifest.rules)
        except ValidationError as error:
            raise SchemaError(
                f"the zones of {self.result_name} have a form that this version cannot read: "
                f"{error.errors(include_url=False)[0]['msg']}; evaluate anew"
            ) from None

    @cached_property
    def estimator(self) -> "ErrorModel":
        """The fitted error model, ready to estimate units it has never seen."""
        from ml_debugger.core.evaluation.estimator import ErrorModel

        return ErrorModel.restore(files.read_arrays(self.folder), self.manifest.error_model)

    @cached_property
    def as_new(self) -> NDArray[np.float32] | None:
        """What `error_proba` would be of new units like the evaluated ones, one value a unit.

        Out of fold as theirs is, and then corrected as that of a new unit: so it is what new ones
        compare with. None in results of earlier versions.
        """
        return files.read_arrays(self.folder).get(files.AS_NEW)

    @cached_property
    def _units(self) -> pa.Table:
        return files.read_table(self.folder, files.UNITS)

    @cached_property
    def _truths(self) -> pa.Table | None:
        return self._table(files.TRUTHS)

    @cached_property
    def _inputs(self) -> pa.Table | None:
        return self._table(files.INPUTS)

    @cached_property
    def omissions(self) -> "Omissions | None":
        """What tells how much was probably missed in an input; None where nothing can be."""
        from ml_debugger.core.evaluation.omissions import Omissions

        settings = self.manifest.omissions
        return None if settings is None else Omissions.restore(settings)

    def _table(self, name: str) -> pa.Table | None:
        there = (self.folder / name).exists()
        return files.read_table(self.folder, name) if there else None

    def __len__(self) -> int:
        """Return the number of evaluated units."""
        return self.manifest.rows.evaluated

    def __bool__(self) -> bool:
        return True  # a result is something, however many units it has

    def export_scorer(self, folder: str | os.PathLike[str]) -> Path:
        """Write what it takes to judge new units where only NumPy is, on an edge device.

        There, `Scorer.load(folder)` of `ml_debugger.core.evaluation.edge` reads it. None of the
        evaluated units is named in it; of its references it holds the scaled features.

        Args:
            folder: Made if it is not there; a scorer in it is replaced.

        Returns:
            The folder.

        Raises:
            StoreError: It cannot be written.
        """
        from safetensors.numpy import save

        from ml_debugger.core.errors import StoreError
        from ml_debugger.core.evaluation import edge

        place = Path(folder)
        rules = self.rules.model_dump(mode="json")["rules"]
        try:
            place.mkdir(parents=True, exist_ok=True)
            own = self.estimator.arrays().items()
            arrays = save({name: np.ascontiguousarray(values) for name, values in own})
            (place / edge.ARRAYS).write_bytes(arrays)
            settings = edge.settings_of(
                self.estimator, rules, self.result_name, self.layers, arrays
            )
            (place / edge.SETTINGS).write_text(settings, encoding="utf-8")
        except OSError as error:
            raise StoreError(f"cannot write a scorer to {place}: {error}") from error
        return place

    def to_arrow(self) -> pa.Table:
        """Return all units as an Arrow table."""
        return self._units

    def to_pandas(self) -> Any:
        """Return all units as a pandas frame."""
        return as_frame(self._units, "pandas")

    def to_polars(self) -> Any:
        """Return all units as a polars frame."""
        return as_frame(self._units, "polars")
