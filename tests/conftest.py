"""What holds for all tests: none of them asserts a time, the property tests included."""

from hypothesis import settings

settings.register_profile("no_clock", deadline=None)
settings.load_profile("no_clock")
