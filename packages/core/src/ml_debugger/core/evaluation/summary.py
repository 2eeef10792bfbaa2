"""The headline figures of a result."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from ml_debugger.core.records import in_words

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from ml_debugger.core.evaluation.result import Result


@dataclass(frozen=True)
class Summary(Mapping[str, Any]):
    """The headline figures of a result, as attributes and as a mapping.

    `used` names the score that the error probability is: "error_proba" for ours, or a baseline
    that beats it (see `Result.baselines`). `best_baseline` has the highest AUROC of the others,
    and `auroc_gain` is the AUROC of ours minus that, with its paired interval. Figures that are
    not defined, such as an AUROC without a single error, are None.
    """

    result_name: str
    model_name: str
    version_name: str
    method_name: str
    n_epoch: int | Literal["all"] | None
    created_at: datetime
    dataset_types: tuple[str, ...]
    settings: dict[str, float | int | None]
    n: int
    errors: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    auroc: float | None
    auroc_low: float | None
    auroc_high: float | None
    aurc: float | None
    augrc: float | None
    brier: float | None
    ece: float | None
    best_baseline: str | None
    best_baseline_auroc: float | None
    used: str
    auroc_gain: float | None
    auroc_gain_low: float | None
    auroc_gain_high: float | None
    zones: dict[str, int]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, result: "Result") -> "Summary":
        """Gather a result's headline figures."""
        manifest = result.manifest
        metrics = manifest.metrics
        others = {
            name: figures["auroc"]
            for name, figures in manifest.baselines.items()
            if name != "error_proba" and figures.get("auroc") is not None
        }
        best = max(others, key=lambda name: others[name] or 0.0) if others else None
        gain = manifest.baselines[best] if best else {}
        zones = result.zones(as_="arrow")
        return cls(
            result_name=manifest.result_name,
            model_name=manifest.model_name,
            version_name=manifest.version_name,
            method_name=manifest.method_name,
            n_epoch=manifest.n_epoch,
            created_at=manifest.created_at,
            dataset_types=tuple(manifest.dataset_types),
            settings=dict(manifest.settings),
            n=metrics.n,
            errors=metrics.errors,
            accuracy=metrics.accuracy,
            accuracy_low=metrics.accuracy_low,
            accuracy_high=metrics.accuracy_high,
            auroc=metrics.auroc,
            auroc_low=metrics.auroc_low,
            auroc_high=metrics.auroc_high,
            aurc=metrics.aurc,
            augrc=metrics.augrc,
            brier=metrics.brier,
            ece=metrics.ece,
            best_baseline=best,
            best_baseline_auroc=others[best] if best else None,
            used=manifest.used,
            auroc_gain=gain.get("auroc_gain"),
            auroc_gain_low=gain.get("auroc_gain_low"),
            auroc_gain_high=gain.get("auroc_gain_high"),
            zones=dict(
                zip(zones.column("zone").to_pylist(), zones.column("n").to_pylist(), strict=True)
            ),
            notes=tuple(manifest.notes),
        )

    def __getitem__(self, name: str) -> Any:
        if name not in self._names():
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> list[str]:
        return [field.name for field in fields(self)]

    def lines(self) -> list[tuple[str, str]]:
        """Return what a reader wants to know first, as names and values in words."""
        lines = [
            ("model", f"{self.model_name} / {self.version_name}, epoch {self.n_epoch}"),
            ("evaluated", f"{self.n:,} units of {', '.join(self.dataset_types)}"),
            *([("settings", said)] if (said := in_words(self.settings)) else []),
            (
                "accuracy",
                f"{self.accuracy:.1%} ({self.accuracy_low:.1%} to {self.accuracy_high:.1%}), "
                f"{self.errors:,} wrong",
            ),
        ]
        if self.auroc is None:
            lines.append(("error ranking", "not defined: it takes both right and wrong units"))
        else:
            text = f"AUROC {_with_interval(self.auroc, self.auroc_low, self.auroc_high)}"
            if self.used != "error_proba":
                text += f" by {self.used}, used in place of ours"
            elif self.best_baseline_auroc is not None:
                text += f"; best baseline {self.best_baseline} {self.best_baseline_auroc:.3f}"
            if self.auroc_gain is not None:
                gain = _with_interval(self.auroc_gain, self.auroc_gain_low, self.auroc_gain_high)
                text += f"; ours minus {self.best_baseline} {gain}"
            lines.append(("error ranking", text))
        if self.ece is not None:
            lines.append(("calibration error", f"{self.ece:.3f}"))
        shares = [f"{name} {n:,}" for name, n in self.zones.items() if n]
        lines.append(("zones", ", ".join(shares)))
        return lines

    def __str__(self) -> str:
        rows = [f"  {name:<18} {value}" for name, value in self.lines()]
        notes = [f"  note: {note}" for note in self.notes]
        return "\n".join([self.result_name, *rows, *notes])

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.result_name), title_justify="left", show_header=False)
        for name, value in self.lines():
            table.add_row(Text(name, style="bold"), Text(value))
        for note in self.notes:
            table.add_row(Text("note", style="bold yellow"), Text(note))
        yield table

    def to_html(self) -> str:
        """Return it as a small HTML table, for notebooks."""
        rows = [*self.lines(), *(("note", note) for note in self.notes)]
        cells = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in rows
        )
        return f"<table><caption>{escape(self.result_name)}</caption>{cells}</table>"


def _with_interval(value: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"{value:.3f}"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"
