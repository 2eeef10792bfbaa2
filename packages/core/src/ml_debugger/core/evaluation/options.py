"""What a caller may set about an evaluation."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    model_validator,
)

from ml_debugger.core.errors import InputError
from ml_debugger.core.evaluation.zones import ZoneRules


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)]


class EvaluationOptions(BaseModel):
    """The options of `Evaluator.request_evaluation`.

    Attributes:
        dataset_type: Evaluate units of this data set, or of these; by default of every one but
            "train", and of "train" only where nothing else has labels.
        run: Evaluate records of this run, or of these; all by default.
        zones: Rules to use in place of those found in the data, as `Result.rules` gives them.
        stable_risk: Error rate that `stable_coverage` may have, in (0, 1).
        operational_risk: Error rate that `operational_coverage` may have, in (0, 1).
        seed: Another seed draws other folds and references.
        max_references: Most units that others are compared with; bounds memory and time.
        error_proba_thresh: How certain a detection's error type must be to be shown as certain,
            in [0, 1]; without effect on classification.
        aligned_iou: IoU from which on a box is where a true one is, in (0, 1]; without effect on
            classification.
        matched_iou: IoU from which on a box has to do with a true one at all, in (0, 1], at most
            `aligned_iou`; without effect on classification.
        overlap: What IoU means for boxes in space: that of their rectangles seen from above, that
            of their volumes, or how near their centres are seen from above (0.5 at 2 m, 0 at 4 m);
            without effect on other tasks.
        class_names: One name a class, in their order, for reports.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset_type: Names | None = None
    run: Names | None = None
    zones: ZoneRules | None = None
    stable_risk: float = Field(default=0.01, gt=0, lt=1)
    operational_risk: float = Field(default=0.1, gt=0, lt=1)
    seed: StrictInt = Field(default=0, ge=0, lt=2**32)
    max_references: StrictInt = Field(default=4096, ge=10)
    error_proba_thresh: float = Field(default=0.8, ge=0, le=1)
    aligned_iou: float = Field(default=0.5, gt=0, le=1)
    matched_iou: float = Field(default=0.1, gt=0, le=1)
    overlap: Literal["bev", "3d", "distance"] = "bev"
    class_names: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.matched_iou > self.aligned_iou:
            raise ValueError(
                f"matched_iou {self.matched_iou} is above aligned_iou {self.aligned_iou}"
            )
        return self

    @classmethod
    def read(cls, given: "Mapping[str, Any] | EvaluationOptions | None") -> "EvaluationOptions":
        """Return options from what a caller gave.

        Raises:
            InputError: Not a mapping, an option that does not exist, or a value that does not fit.
        """
        if isinstance(given, EvaluationOptions):
            return given
        if given is None:
            return cls()
        if not isinstance(given, Mapping):
            raise InputError(f"options must be a dict, got {type(given).__name__}")
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
                known = ", ".join(cls.model_fields)
                raise InputError(f"no option {where!r}; the options are: {known}") from None
            raise InputError(
                f"option {where!r}: {problem['msg']} (got {problem['input']!r})"
            ) from None
