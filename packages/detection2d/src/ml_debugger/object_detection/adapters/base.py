"""What has to be known of a family of detectors."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from torch import nn

from ml_debugger.core.capture import Call as Call
from ml_debugger.object_detection.output import Frame, ImageOutput, NMSConfig


class Calls(Protocol):
    """What was noted of a forward pass: the calls of each tapped module, in their order."""

    def __getitem__(self, name: str) -> Sequence[Call]:
        """Return the calls of a module by the name that `DetectionAdapter.taps` gives it."""


class DetectionAdapter(ABC):
    """What knows one family of detectors: where to look, and how to read what was found.

    It holds no state, so one instance serves every model of its family, in any thread. It imports
    its family's library inside functions, and only when a model of that family is there.

    Attributes:
        family: What the family is called, for messages.
        frame: In which image's pixels its boxes are: those of the image that the user loaded, or
            of what the network saw. Ground truth that holds both is read in the same.
        background: The label that stands for nothing, where the model numbers it.
        silence: What to say where a tapped module did not run.
    """

    family: ClassVar[str]
    frame: ClassVar[Frame] = "original"
    background: ClassVar[int | None] = None
    silence: ClassVar[str] = "was the model compiled, scripted or exported, or did it return early?"

    @abstractmethod
    def detect(self, model: nn.Module) -> bool:
        """Tell whether a model is of this family, without importing anything for it."""

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
    def parse(
        self, model: nn.Module, output: Any, calls: Calls, config: NMSConfig
    ) -> list[ImageOutput]:
        """Read one forward pass: what the user sees of each image, and what the head said.

        Args:
            model: The model.
            output: What it returned; never changed.
            calls: What was noted on the way.
            config: As `nms` gives it, with the user's wishes on top.

        Raises:
            UnsupportedModelError: The output is not what this family returns for inference.
        """

    @abstractmethod
    def nms(self, model: nn.Module) -> NMSConfig:
        """Return the settings that the model has now; None for those that it does not have."""

    @abstractmethod
    def apply_nms(self, model: nn.Module, config: NMSConfig) -> None:
        """Give the model these settings.

        Raises:
            UnsupportedModelError: The model has no such setting.
        """

    def running(self, model: nn.Module) -> nn.Module:
        """Return the module whose parts run when the model is called.

        Another one than the model where that runs a copy of itself; paths lead to the same parts.
        """
        return model

    def images(self, model_input: Any) -> int | None:
        """Return how many images a model input holds; None where only the output can tell."""
        return None
