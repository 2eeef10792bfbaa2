"""What detectors of every kind share: boxes are matched, named and followed alike."""
