"""What detectors of every kind share: boxes are matched, named, followed and counted alike."""
