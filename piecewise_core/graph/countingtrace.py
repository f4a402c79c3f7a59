"""A trace of a model that counts in objects of its calls: numbers as symbols, if that is sure.

Dynamo's answers about a number that is a symbol may not be Python's. So such a model is traced with
the numbers as they are, too, and both must be one program.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from piecewise_core.errors import TraceFailed
from piecewise_core.graph.paths import same_path
from piecewise_core.graph.trace import Traced, trace

__all__ = ["trace_counting"]


def trace_counting(*args: Any, **settings: Any) -> Traced:
    """Trace as ``trace`` does, with numbers that are others at each call as ``counted``."""
    plain = trace(*args, **settings, counted=())
    if not plain.counts:
        return plain
    with suppress(TraceFailed):  # what is changed is told
        found, counted = plain, frozenset[str]()
        while not found.counts <= counted:  # those set to such numbers are such
            counted |= found.counts
            found = trace(*args, **settings, counted=counted)
        if found.counts and found.box == plain.box and same_path(plain, found, {}):
            return found
    return trace(*args, **settings)
