"""Picking data for classifiers."""
