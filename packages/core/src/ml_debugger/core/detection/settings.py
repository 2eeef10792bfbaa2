"""Settings that tracers lend to a model, and that the model gets back."""

from collections.abc import Callable, MutableMapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

from torch import nn

from ml_debugger.core.detection.output import NMSSettings

Some = TypeVar("Some", bound=NMSSettings)


class _Copy:
    """A copy in the place of a mapping that other models may read too."""

    def __init__(self, owner: Any, name: str) -> None:
        # the owner may be the model, which must not be kept for what is lent to it
        self._owner, self._name, self._own = ref(owner), name, getattr(owner, name)
        self._before, self._copy = deepcopy(self._own), deepcopy(self._own)
        setattr(owner, name, self._copy)

    def give_back(self) -> None:
        """Put the mapping itself back, with what the user changed in the copy meanwhile."""
        owner = self._owner()
        if owner is None or getattr(owner, self._name) is not self._copy:
            return  # the user has put another there
        for key in self._before.keys() - self._copy.keys():
            self._own.pop(key, None)
        for key, value in self._copy.items():
            if key not in self._before or not _same(self._before[key], value):
                self._own[key] = value
        setattr(owner, self._name, self._own)


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (RuntimeError, ValueError):  # arrays are not just equal or not
        return False


@dataclass
class _Lent:
    """What is lent to a model.

    Attributes:
        copies: What stands in the place of what the model may share.
        before: What the model had, of the settings that are lent, by name.
        wishes: What each tracer wants, in the order in which they came.
    """

    copies: list[_Copy]
    before: dict[str, Any] = field(default_factory=dict)
    wishes: list[Any] = field(default_factory=list)


_lent: "WeakKeyDictionary[nn.Module, _Lent]" = WeakKeyDictionary()
_lock = RLock()  # applying may be a user's own code, which may make another tracer


def lend(
    model: nn.Module,
    own: Some,
    wanted: Some,
    apply: Callable[[nn.Module, Some], None],
    shared: Sequence[tuple[Any, str]] = (),
) -> Callable[[], None]:
    """Give a model settings, and return what takes these, and no others, back.

    Of several tracers of one model the newest that still is open has its way; when none is left,
    the model has what it had before the first, in whatever order they are closed.

    Args:
        model: The model.
        own: The settings that it has now.
        wanted: Those to give it; None leaves one as it is.
        apply: Gives a model settings.
        shared: Mappings that `apply` writes to and other models may read: their owners, and the
            names by which these have them. Copies stand there meanwhile.
    """
    names = wanted.model_dump(exclude_none=True).keys()

    def take_back() -> None:
        with _lock:
            if not any(one is wanted for one in lent.wishes):
                return  # it acts once
            lent.wishes[:] = [one for one in lent.wishes if one is not wanted]
            left = {name: lent.before[name] for name in names}
            held: dict[str, Any] = {}
            for one in lent.wishes:
                held |= one.model_dump(exclude_none=True)
            left |= {name: value for name, value in held.items() if name in names}
            for name in names - held.keys():
                del lent.before[name]
            try:
                apply(model, wanted.model_copy(update=left))
            finally:
                if not lent.wishes:
                    _lent.pop(model, None)
                    for copy in lent.copies:
                        copy.give_back()

    with _lock:
        if model not in _lent:
            mappings = [one for one in shared if isinstance(getattr(*one), MutableMapping)]
            _lent[model] = _Lent([_Copy(*one) for one in mappings])
        lent = _lent[model]
        for name in names:
            lent.before.setdefault(name, getattr(own, name))
        lent.wishes.append(wanted)
        try:
            apply(model, wanted)
        except BaseException:
            take_back()
            raise
    return take_back
