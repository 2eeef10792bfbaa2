"""Tracing object detectors while they are trained."""
