"""Watching classifiers in use."""
