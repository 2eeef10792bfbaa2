"""Which inputs a data filter matches, under its documented path."""

from ml_debugger.core.query import FilterConfig as FilterConfig
