"""Picking data for object detectors."""
