"""What has to be known of a family of detectors."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import nn

from ml_debugger.core.capture import Call
from ml_debugger.core.detection.output import NMSSettings
from ml_debugger.core.tracer import arguments_of

Said = TypeVar("Said")
Config = TypeVar("Config", bound=NMSSettings)


class Calls(Protocol):
    """What was noted of a forward pass: the calls of each tapped module, in their order."""

    def __getitem__(self, name: str) -> Sequence[Call]:
        """Return the calls of a module by the name that `Adapter.taps` gives it."""


class Adapter(ABC, Generic[Said, Config]):
    """What knows one family of detectors: where to look, and how to read what was found.

    It holds no state, so one instance serves every model of its family, in any thread. It imports
    its family's library inside functions, and only when a model of that family is there.

    Attributes:
        family: What the family is called, for messages.
        background: The label that stands for nothing, where the model numbers it.
        silence: What to say where a tapped module did not run.
    """

    family: ClassVar[str]
    background: ClassVar[int | None] = None
    silence: ClassVar[str] = "was the model compiled, scripted or exported, or did it return early?"

    @abstractmethod
    def detect(self, model: nn.Module) -> bool:
        """Tell whether a model is of this family, without importing anything for it."""

    def accept(self, model: nn.Module) -> None:
        """Refuse a model of this family that cannot be traced.

        Raises:
            UnsupportedModelError: It says why.
        """

    def refuse(self, model: nn.Module) -> None:
        """Say why a model that no adapter knows is none, if it is of this adapter's library.

        Raises:
            UnsupportedModelError: It says why.
        """

    @abstractmethod
    def n_class(self, model: nn.Module) -> int:
        """Return K: labels are 0 to K - 1, background included where the model numbers it."""

    @abstractmethod
    def layers(self, model: nn.Module) -> dict[str, str]:
        """Return the layers that box features come from: module path by alias."""

    @abstractmethod
    def taps(self, model: nn.Module) -> dict[str, str]:
        """Return the modules whose calls `parse` needs: module path by name."""

    @abstractmethod
    def parse(self, model: nn.Module, output: Any, calls: Calls, config: Config) -> list[Said]:
        """Read one forward pass: what the user sees of each input, and what the head said.

        Args:
            model: The model.
            output: What it returned; never changed.
            calls: What was noted on the way.
            config: As `nms` gives it, with the user's wishes on top.

        Raises:
            UnsupportedModelError: The output is not what this family returns for inference.
        """

    @abstractmethod
    def nms(self, model: nn.Module) -> Config:
        """Return the settings that the model has now; None for those that it does not have."""

    @abstractmethod
    def apply_nms(self, model: nn.Module, config: Config) -> None:
        """Give the model these settings; None leaves one as it is.

        Raises:
            UnsupportedModelError: The model has no such setting.
        """

    def shared(self, model: nn.Module) -> Sequence[tuple[Any, str]]:
        """Return the mappings that `apply_nms` writes to and that other models may read.

        Each as its owner and the name of the owner's attribute. While a tracer lends settings a
        copy stands there; afterwards the mapping itself does.
        """
        return ()

    def run(self, model: nn.Module, model_input: Any) -> Any:
        """Call the model, and return what it returns.

        Args:
            model: The model, in whatever the user has wrapped it.
            model_input: What the tracer was called with; a mapping is keyword arguments.

        Raises:
            InputError: The model cannot be called with it.
        """
        args, kwargs = arguments_of(model_input)
        return model(*args, **kwargs)

    def running(self, model: nn.Module) -> nn.Module:
        """Return the module whose parts run when the model is called.

        Another one than the model where that runs a copy of itself; paths lead to the same parts.
        """
        return model

    def images(self, model_input: Any) -> int | None:
        """Return how many inputs a model input holds; None where only the output can tell."""
        return None
