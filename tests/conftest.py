"""What every test shares: how long hypothesis looks, and that no test is timed."""

from __future__ import annotations

from hypothesis import settings

# A deadline would be a timed test. `pytest --hypothesis-profile=long` is the long run.
# The default draws the same examples every time, so that a change is judged by what it changes;
# the long run draws new ones.
settings.register_profile("default", deadline=None, print_blob=True, derandomize=True)
settings.register_profile("long", deadline=None, print_blob=True, max_examples=10_000)
settings.load_profile("default")
