"""Pass or fail: a result held against the limits of a project, for use in CI."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ml_debugger.core.errors import InputError, MLDebuggerError


class CheckFailedError(MLDebuggerError, AssertionError):
    """A result does not keep the limits it was checked against.

    Attributes:
        report: Every limit with the value it was held against.
    """

    def __init__(self, report: "CheckReport") -> None:
        super().__init__(str(report))
        self.report = report


@dataclass(frozen=True, slots=True)
class CheckLine:
    """One limit and what the result has to say to it.

    Attributes:
        name: The limit, as the argument of `check` is called.
        limit: What was asked for.
        value: What the result has; None where it is not defined, which fails.
        passed: Whether the limit is kept.
        text: All of it in words.
    """

    name: str
    limit: float | bool
    value: float | None
    passed: bool
    text: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The outcome of a check; true in a condition when every limit is kept."""

    result_name: str
    lines: tuple[CheckLine, ...]

    @property
    def passed(self) -> bool:
        """Whether every limit is kept."""
        return all(line.passed for line in self.lines)

    def __bool__(self) -> bool:
        return self.passed

    def raise_if_failed(self) -> None:
        """Raise a `CheckFailedError` that lists every line, unless all limits are kept."""
        if not self.passed:
            raise CheckFailedError(self)

    def __str__(self) -> str:
        kept = sum(line.passed for line in self.lines)
        head = f"{self.result_name}: {kept} of {len(self.lines)} checks passed"
        return "\n".join(
            [head, *(f"  {'PASS' if one.passed else 'FAIL'}  {one.text}" for one in self.lines)]
        )


def against(
    result_name: str, limits: Mapping[str, float | None], values: Mapping[str, float | None]
) -> list[CheckLine]:
    """Hold values against limits called `min_<value>` and `max_<value>`; None is no limit.

    Raises:
        InputError: A limit is not a finite number.
    """
    lines = []
    for name, limit in limits.items():
        if limit is None:
            continue
        if isinstance(limit, bool) or not isinstance(limit, int | float) or math.isnan(limit):
            raise InputError(f"{name} must be a number, got {limit!r}")
        bound, what = name.split("_", 1)
        value = values[what]
        label = what.replace("_", " ")
        sign = ">=" if bound == "min" else "<="
        if value is None:
            text = f"{label} is not defined for {result_name} (wanted {sign} {limit:g})"
            lines.append(CheckLine(name, limit, None, False, text))
            continue
        passed = value >= limit if bound == "min" else value <= limit
        text = f"{label} {value:.4f} {sign} {limit:g}"
        if not passed:
            text = f"{label} {value:.4f}, wanted {sign} {limit:g}"
        lines.append(CheckLine(name, limit, value, passed, text))
    return lines
