"""What all tests share."""

from importlib.util import find_spec

from hypothesis import settings

# its doctests are looked for by importing it, which only MMEngine's users do
collect_ignore = (
    [] if find_spec("mmengine") else ["packages/core/src/ml_debugger/training/mmengine.py"]
)

settings.register_profile("no deadline", deadline=None)  # tests never assert on time
settings.load_profile("no deadline")
