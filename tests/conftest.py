"""What holds for all tests."""

from hypothesis import settings

# How long an example takes says nothing about what it proves.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
