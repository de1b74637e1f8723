"""What holds for all tests: none of them asserts a time, the property tests included."""

import os

# Two processes run tests; with a thread a core in every product they would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("no_clock", deadline=None)
settings.load_profile("no_clock")
