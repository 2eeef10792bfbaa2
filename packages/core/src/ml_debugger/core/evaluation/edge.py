"""Score units where only NumPy is: an evaluation's error model and zones in two small files.

`Result.export_scorer` writes them; this module reads them and, like everything it needs, imports
NumPy and nothing else. It is the same arithmetic as everywhere: the same inputs give the same
numbers to the last bit.
"""

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ml_debugger.core.errors import InputError, SchemaError
from ml_debugger.core.evaluation.error_model.scaling import Array, log_softmax
from ml_debugger.core.evaluation.estimator import ErrorModel, Observations
from ml_debugger.core.evaluation.zoning import ZONES, assign_zones

SETTINGS = "scorer.json"
ARRAYS = "scorer.safetensors"

_VERSION = 1
# https://github.com/huggingface/safetensors#format: a length, a JSON header, the arrays' bytes
_TYPES = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}


class Scored(NamedTuple):
    """What is said of n units.

    Attributes:
        error_proba: Probability that the prediction is wrong, (n,), float32.
        outlier: p-value in (0, 1]; small: unlike the evaluated units, (n,), float32.
        unstable: Whether the features are torn between classes, (n,), bool.
        zone: Names of the zones, (n,).
        aspects: In a task whose units can be wrong in several ways, by the name of each way the
            probability that a unit is wrong in it if it is right in those before, (n,), float32:
            "det" and "cls" of a detector's boxes. Empty for other tasks.
    """

    error_proba: NDArray[np.float32]
    outlier: NDArray[np.float32]
    unstable: NDArray[np.bool_]
    zone: NDArray[np.str_]
    aspects: Mapping[str, NDArray[np.float32]]


class Scorer:
    """A fitted evaluation, ready to judge what a model says.

    Attributes:
        result_name: The evaluation that it comes from.
        layers: The layers whose features it looks at: module path by alias.
    """

    def __init__(
        self, model: ErrorModel, rules: list[dict[str, Any]], result_name: str, layers: Any
    ) -> None:
        """Take the parts; use `load`."""
        self.result_name = result_name
        self.layers = dict(layers)
        self._model = model
        self._rules = rules

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what `Result.export_scorer` wrote.

        Raises:
            SchemaError: The files are missing, damaged, or of a later version.
        """
        place = Path(folder)
        try:
            settings = json.loads((place / SETTINGS).read_text(encoding="utf-8"))
            if settings["version"] > _VERSION:
                raise SchemaError(
                    f"the scorer in {place} is of version {settings['version']}, this one reads "
                    f"up to {_VERSION}; upgrade ml-debugger-core here"
                )
            data = (place / ARRAYS).read_bytes()
            if sha256(data).hexdigest() != settings["arrays"]:
                raise SchemaError(
                    f"{place / ARRAYS} is damaged or of another scorer than {SETTINGS}; export "
                    "again"
                )
            model = ErrorModel.restore(_arrays_in(data), settings["error_model"])
            return cls(model, settings["rules"], settings["result_name"], settings["layers"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, SchemaError):
                raise
            raise SchemaError(f"there is no readable scorer in {place}: {error!r}") from error

    def __call__(
        self,
        features: Mapping[str, Array],
        logits: Array | None = None,
        *,
        prediction: Array | None = None,
        score: Array | None = None,
        statistics: Array | None = None,
        finite: Array | None = None,
    ) -> Scored:
        """Judge some units; each by itself, so a batch and its rows give the same.

        Args:
            features: What the layers gave, reduced as they were recorded, by alias, (n, d).
            logits: Class vectors, (n, K); None for tasks without.
            prediction: Predicted classes, (n,); by default those of the logits, where the task
                takes them from there, as classification does and detection does not.
            score: The model's confidence, (n,); by default, likewise, the max softmax of the
                logits, which may differ from torch's in the last bit.
            statistics: The task's statistics, (n, s); None for tasks without.
            finite: Whether what was recorded of each is finite, (n,), bool: also what is not given
                here, such as the corners of a box; by default only what is given is looked at.

        Raises:
            InputError: Something is missing or has another shape than in the evaluation.
        """
        if prediction is None or score is None:
            if not self._model.of_logits:
                raise InputError(
                    "give both prediction and score: in the evaluation they were not those of the "
                    "largest logit; of a detector's box they are its own label and score"
                )
            if logits is None:
                raise InputError("give logits, or both prediction and score")
        _check_shapes(
            dict(features) | {"logits": logits, "statistics": statistics},
            {"prediction": prediction, "score": score, "finite": finite},
        )
        if prediction is None:
            prediction = np.asarray(logits).argmax(axis=1)
        if score is None:
            shares = log_softmax(np.asarray(logits, np.float64))
            score = np.exp(shares.max(axis=1))
        observations = Observations(
            features={alias: np.asarray(values) for alias, values in features.items()},
            prediction=np.asarray(prediction, np.int64),
            score=np.asarray(score, np.float32),
            logits=None if logits is None else np.asarray(logits),
            statistics=None if statistics is None else np.asarray(statistics),
        ).recorded_as(finite)
        found = self._model.estimate(observations)
        columns = {
            "score": observations.score,
            "error_proba": found.error_proba,
            "outlier": found.outlier,
            "unstable": found.unstable,
        }
        zones = assign_zones(self._rules, columns, observations.prediction)
        names = np.array([str(zone) for zone in ZONES])
        return Scored(
            error_proba=found.error_proba,
            outlier=found.outlier,
            unstable=found.unstable,
            zone=names[zones],
            aspects={} if found.answers is None else dict(found.answers.aspects),
        )


def _check_shapes(vectors: Mapping[str, Any], scalars: Mapping[str, Any]) -> None:
    """Refuse what is not one row, or one number, a unit."""
    lengths = {}
    for ndim, given in ((2, vectors), (1, scalars)):
        for name, values in given.items():
            if values is None:
                continue
            shape = np.shape(values)
            if len(shape) != ndim:
                raise InputError(f"{name}: expected {ndim} dimensions, got shape {shape}")
            lengths[name] = shape[0]
    if len(set(lengths.values())) > 1:
        raise InputError(f"one row a unit is needed everywhere, got {lengths}")


def settings_of(
    model: ErrorModel,
    rules: list[dict[str, Any]],
    result_name: str,
    layers: Mapping[str, str],
    arrays: bytes,
) -> str:
    """Return the content of the settings file that belongs to the content of an arrays file."""
    content = {
        "version": _VERSION,
        "arrays": sha256(arrays).hexdigest(),
        "result_name": result_name,
        "layers": dict(layers),
        "rules": rules,
        "error_model": model.settings(),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _arrays_in(data: bytes) -> dict[str, Array]:
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(
            data[start + one["data_offsets"][0] : start + one["data_offsets"][1]],
            np.dtype(_TYPES[one["dtype"]]),
        ).reshape(one["shape"])
        for name, one in header.items()
    }
