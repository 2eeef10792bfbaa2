"""What all tests share."""

from hypothesis import settings

# doctests are looked for by importing, and MMEngine, which not everyone has, warns when imported
collect_ignore = ["packages/core/src/ml_debugger/training/mmengine.py"]

settings.register_profile("no deadline", deadline=None)  # tests never assert on time
settings.load_profile("no deadline")
