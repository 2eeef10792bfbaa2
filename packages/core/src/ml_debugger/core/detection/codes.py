"""Error codes of boxes: what became of a box, what it was meant to be, and what it was taken for.

DET:A:CLS3->3                found, and well placed
DET:M:CLS3->7                poorly placed, and taken for a 7
DET:D*:CLS3->3               a second box, with little evidence for being just that
DET:N:CLS-->7                there is no true box
DET:no_prediction:CLS5->-    a true box that nothing has found
"""

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ml_debugger.core.detection.matching import KINDS
from ml_debugger.core.errors import InputError

#: The kind of a true box that nothing has found.
NO_PREDICTION = "no_prediction"
#: All kinds that a code can have: those of predicted boxes, then that of a missed one.
CODE_KINDS = (*KINDS, NO_PREDICTION)

_ALONE = frozenset({"ON", "N", "U"})  # kinds of boxes that have no true one
_NUMBER = r"(0|[1-9][0-9]*|-)"
_CODE = re.compile(rf"DET:({'|'.join(CODE_KINDS)})(\*)?:CLS{_NUMBER}->{_NUMBER}")


class BoxCode(NamedTuple):
    """An error code, taken apart; `str()` puts it together.

    Attributes:
        kind: One of `CODE_KINDS`.
        uncertain: Whether no kind is likely enough.
        truth: Class of the true box; None where there is no true box, or none of a known class.
        prediction: Predicted class; None if, and only if, nothing was predicted.
    """

    kind: str
    uncertain: bool
    truth: int | None
    prediction: int | None

    def __str__(self) -> str:
        truth, prediction = ("-" if one is None else one for one in (self.truth, self.prediction))
        return f"DET:{self.kind}{'*' if self.uncertain else ''}:CLS{truth}->{prediction}"


def parse_code(text: str) -> BoxCode:
    """Take an error code apart; the inverse of `str(BoxCode)`.

    Raises:
        InputError: It is not the error code of any box.

    Example:
        >>> parse_code("DET:D*:CLS3->7")
        BoxCode(kind='D', uncertain=True, truth=3, prediction=7)
    """
    match = _CODE.fullmatch(text)
    if match is None:
        raise InputError(
            f"not an error code of a box: {text!r}; expected a form such as DET:A:CLS3->3, with "
            f"one of {', '.join(CODE_KINDS)}"
        )
    kind, star, *classes = match.groups()
    truth, prediction = (None if one == "-" else int(one) for one in classes)
    code = BoxCode(kind, star is not None, truth, prediction)
    wrong = _contradiction(code)
    if wrong:
        raise InputError(f"not an error code of a box: {text!r}; {wrong}")
    return code


def box_codes(
    kind: ArrayLike,
    kind_proba: ArrayLike,
    truth_label: ArrayLike,
    prediction: ArrayLike,
    threshold: float = 0.8,
) -> list[str]:
    """Return the error code of each box.

    Args:
        kind: Positions in `CODE_KINDS`, shape (n,).
        kind_proba: Estimated probability of that kind, in [0, 1], shape (n,). NaN where it was
            not estimated; such a kind is not marked.
        truth_label: Class of the true box, shape (n,); negative where there is no true box, or
            none of a known class.
        prediction: Predicted class, shape (n,); negative where nothing was predicted.
        threshold: `error_proba_thresh`, in [0, 1]: kinds with a probability below
            1 - `threshold` are marked `*`.

    Raises:
        InputError: Shapes differ, the threshold or a kind is out of range, or classes contradict
            their kind.

    Example:
        >>> box_codes([0, 6, 8], [0.9, 0.1, np.nan], [3, -1, 5], [3, 7, -1])
        ['DET:A:CLS3->3', 'DET:N*:CLS-->7', 'DET:no_prediction:CLS5->-']
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold}; it must be in [0, 1]")
    columns = [np.asarray(one) for one in (kind, kind_proba, truth_label, prediction)]
    shapes = [one.shape for one in columns]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise InputError(
            f"kind, kind_proba, truth_label and prediction have shapes {shapes}; "
            "give one value of each a box"
        )
    kinds, truths, predictions = (columns[i].astype(np.int64) for i in (0, 2, 3))
    if not ((kinds >= 0) & (kinds < len(CODE_KINDS))).all():
        raise InputError(
            f"kinds are from {kinds.min()} to {kinds.max()}; expected positions in CODE_KINDS, "
            f"0 to {len(CODE_KINDS) - 1}"
        )
    star = columns[1] < 1 - threshold
    parts = np.column_stack([kinds, star, np.maximum(truths, -1), np.maximum(predictions, -1)])
    # there are few different codes; each is put together once
    different, which = np.unique(parts, axis=0, return_inverse=True)
    texts: NDArray[Any] = np.array([_text(row) for row in different.tolist()], dtype=object)
    codes: list[str] = texts[which.reshape(-1)].tolist()
    return codes


def _text(row: list[int]) -> str:
    kind, uncertain, *classes = row
    truth, prediction = (None if one < 0 else one for one in classes)
    code = BoxCode(CODE_KINDS[kind], bool(uncertain), truth, prediction)
    wrong = _contradiction(code)
    if wrong:
        raise InputError(f"no box can have the code {code}: {wrong}")
    return str(code)


def _contradiction(code: BoxCode) -> str | None:
    """Say why no box can have a code, if so."""
    if (code.kind == NO_PREDICTION) != (code.prediction is None):
        return f"{NO_PREDICTION}, and only it, comes without a predicted class"
    if code.kind in _ALONE and code.truth is not None:
        return f"{code.kind} means that there is no true box, so there is no true class"
    return None
