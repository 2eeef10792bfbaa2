"""Tracing 3D object detectors while they are trained."""
