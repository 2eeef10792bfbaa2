"""Picking data for 3D object detectors."""
