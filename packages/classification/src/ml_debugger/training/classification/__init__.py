"""Tracing classifiers while they are trained."""
