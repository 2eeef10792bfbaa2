"""Watching object detectors in use."""
