"""How a data filter draws from its candidates, under its documented path."""

from ml_debugger.core.sampling import SamplingConfig as SamplingConfig
