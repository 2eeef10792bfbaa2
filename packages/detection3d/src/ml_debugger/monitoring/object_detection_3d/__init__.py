"""Watching 3D object detectors in use."""
