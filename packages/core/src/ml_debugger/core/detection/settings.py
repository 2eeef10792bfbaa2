"""Settings that tracers lend to a model, and that the model gets back."""

from collections.abc import Callable
from threading import RLock
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from ml_debugger.core.detection.output import NMSSettings

Some = TypeVar("Some", bound=NMSSettings)

_lent: "WeakKeyDictionary[nn.Module, tuple[Any, list[Any]]]" = WeakKeyDictionary()
_lock = RLock()  # applying may be a user's own code, which may make another tracer


def lend(
    model: nn.Module, own: Some, wanted: Some, apply: Callable[[nn.Module, Some], None]
) -> Callable[[], None]:
    """Give a model settings, and return what takes these back.

    Of several tracers of one model the newest that still is open has its way; when none is left,
    the model has what it had before the first, in whatever order they are closed.

    Args:
        model: The model.
        own: The settings that it has now.
        wanted: Those to give it; None leaves one as it is.
        apply: Gives a model settings.
    """

    def take_back() -> None:
        with _lock:
            if not any(one is wanted for one in wishes):
                return  # it acts once
            wishes[:] = [one for one in wishes if one is not wanted]
            left = before
            for one in wishes:
                left = left.model_copy(update=one.model_dump(exclude_none=True))
            if not wishes:
                _lent.pop(model, None)
            apply(model, left)

    with _lock:
        before, wishes = _lent.setdefault(model, (own, []))
        wishes.append(wanted)
        try:
            apply(model, wanted)
        except BaseException:
            take_back()
            raise
    return take_back
