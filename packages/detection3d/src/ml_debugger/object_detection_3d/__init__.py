"""3D object detection: what detectors say, box by box."""
