"""How zones, scores and classes look and are called, wherever they are shown."""

from collections.abc import Sequence
from typing import NamedTuple


class Mark(NamedTuple):
    """How a zone is told from the others: by colour and, for those who see none, by symbol."""

    colour: str
    symbol: str
    title: str
    meaning: str


# Okabe and Ito's colours, which stay apart for every common kind of colour blindness.
MARKS = {
    "stable_coverage": Mark("#009E73", "●", "Highly stable", "Right, and its features show it."),
    "operational_coverage": Mark("#56B4E9", "○", "Stable", "Good enough in operation."),
    "hotspot": Mark("#E69F00", "▲", "Unstable", "Likely wrong; features torn between classes."),
    "recessive_hotspot": Mark(
        "#B5679A", "▽", "Under-confidence", "Likely wrong, in a way its features predict."
    ),
    "critical_hotspot": Mark(
        "#D55E00", "✕", "Over-confidence", "Likely wrong, though the model is confident."
    ),
    "aleatoric_hotspot": Mark("#6E6E78", "◆", "Outlier", "Unlike the rest of the evaluated data."),
}

SCORE_NAMES = {
    "error_proba": "error probability (ours)",
    "max_softmax": "max softmax",
    "temperature_scaled": "temperature-scaled softmax",
    "entropy": "entropy",
    "margin": "margin",
    "energy": "energy",
    "knn_distance": "kNN distance",
    "mahalanobis": "Mahalanobis distance",
}


def score_name(name: str) -> str:
    """Return a score's name in words."""
    return SCORE_NAMES.get(name, name.replace("_", " "))


def class_name(number: int | None, names: Sequence[str], missed: int | None = None) -> str:
    """Return a class in words: its number, and its name where it has one.

    Args:
        number: The class; None where a unit is of none.
        names: One name a class.
        missed: As `missed_units` gives it; in a task in which units can be missed, a unit may
            also be predicted where there is none.
    """
    if number is None:
        return "none of the classes" if missed is None else "nothing"
    if not 0 <= number < len(names) or names[number] == str(number):
        return str(number)
    return f"{names[number]} ({number})"
