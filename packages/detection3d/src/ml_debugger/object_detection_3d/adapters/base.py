"""What has to be known of a family of detectors."""

from typing import ClassVar

from ml_debugger.core.capture import Call as Call
from ml_debugger.core.detection.adapter import Adapter
from ml_debugger.core.detection.adapter import Calls as Calls
from ml_debugger.object_detection_3d.frames import Frame
from ml_debugger.object_detection_3d.output import FrameOutput, NMSConfig


class DetectionAdapter(Adapter[FrameOutput, NMSConfig]):
    """What knows one family of 3D detectors: where to look, and how to read what was found.

    Attributes:
        frame: Where its boxes are. True boxes must be in the same.
    """

    frame: ClassVar[Frame] = "lidar"
