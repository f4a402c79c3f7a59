"""Sizes that may have been forgotten in ``Config.dynamic``: they were those of a named dim."""

from __future__ import annotations

import re
from collections.abc import Iterator

from piecewise_core.graph.structure import Structure

__all__ = ["forgotten"]

_MOST = 4


def forgotten(structure: Structure, failure: str) -> str:
    """What to say of unnamed sizes that a trace failed over; "" where there are none.

    ``structure``: of a call that gave sizes to its named dims too. ``failure``: what the tracer
    said; only sizes that stand in it are suspects.
    """
    found = list(_suspects(structure, failure))
    if not found:
        return ""
    more = f"; and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return f"\nForgotten in Config.dynamic? {'; '.join(found[:_MOST])}{more}."


def _suspects(structure: Structure, failure: str) -> Iterator[str]:
    tensors = structure.tensors
    named = {leaf.sizes[at]: dim.name for leaf in tensors for at, dim in leaf.dims.items()}
    for leaf in tensors:
        for at, size in enumerate(leaf.sizes):
            # A size of 1 is a broadcast, which serves every size.
            if at in leaf.dims or size == 1 or size not in named:
                continue
            if re.search(rf"\b{size}\b", failure):
                name = named[size]
                yield (
                    f'argument "{leaf.path}" has size {size} in dim {at}, as dim "{name}" had; if '
                    f'they are always equal, add {{"{leaf.path}": {{{at}: Dim("{name}", ...)}}}}'
                )
