"""What all tests share."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # tests never assert on time
settings.load_profile("no deadline")
