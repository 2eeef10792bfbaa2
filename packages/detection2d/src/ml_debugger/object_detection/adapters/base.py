"""What has to be known of a family of detectors."""

from typing import ClassVar

from ml_debugger.core.capture import Call as Call
from ml_debugger.core.detection.adapter import Adapter
from ml_debugger.core.detection.adapter import Calls as Calls
from ml_debugger.object_detection.output import Frame, ImageOutput, NMSConfig


class DetectionAdapter(Adapter[ImageOutput, NMSConfig]):
    """What knows one family of 2D detectors: where to look, and how to read what was found.

    Attributes:
        frame: In which image's pixels its boxes are: those of the image that the user loaded, or
            of what the network saw. Ground truth that holds both is read in the same.
    """

    frame: ClassVar[Frame] = "original"
