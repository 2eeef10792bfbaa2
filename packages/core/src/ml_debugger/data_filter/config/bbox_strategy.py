"""Ranking images by their boxes, under its documented path."""

from ml_debugger.core.aggregation import BBoxStrategy as BBoxStrategy
