"""What tests share: how long hypothesis looks, that no test is timed, a machine without devices."""

from __future__ import annotations

import gc
import logging

import pytest
from fresh_process import FreshProcesses
from hypothesis import settings

# A deadline would be a timed test. `pytest --hypothesis-profile=long` is the long run.
# The default draws the same examples every time, so that a change is judged by what it changes;
# the long run draws new ones.
settings.register_profile("default", deadline=None, print_blob=True, derandomize=True)
settings.register_profile("long", deadline=None, print_blob=True, max_examples=10_000)
settings.load_profile("default")


def pytest_collection_modifyitems(items):
    """Begin with the longest tests."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish():
    """Take out of every test what costs time and tells nothing.

    What is imported and collected stays out of later collections of garbage, and these come more
    seldom: what tracing leaves needs no collector. Pytest's handlers stay off the log that torch
    writes for machines; pytest adds them to every logger that does not propagate, and with any
    handler torch makes these records, graphs and stacks in full, as it does in nobody's process.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    logging.getLogger("torch.__trace").propagate = True


@pytest.fixture(scope="module", autouse=True)
def _what_is_there_is_walked_no_more():
    """What earlier modules imported and left in caches stays out of collections of garbage.

    After an hour's worth of models a whole collection takes seconds, and tests ask for many.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def without_accelerators(monkeypatch):
    """Hide the machine's accelerators from platforms' probes: a CPU is all there is.

    For tests of what happens when nobody names a platform; the others name the one they mean.
    """
    monkeypatch.delenv("PIECEWISE_PLATFORM", raising=False)
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")


@pytest.fixture(autouse=True)
def _no_compile_store(monkeypatch):
    """Neither read nor fill the user's compile store; tests of the store name one of their own."""
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "off")


@pytest.fixture(scope="session")
def fresh_processes():
    """Processes that begin with torch imported and nothing of ours; quicker than interpreters."""
    processes = FreshProcesses()
    yield processes
    processes.close()
