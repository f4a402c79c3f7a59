"""Every size at which a model takes another path, for refusals that name them all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from piecewise_core.config import Config
from piecewise_core.errors import PiecewiseError
from piecewise_core.frontend.coverage import cell_like, hint_in, uncovered
from piecewise_core.graph.structure import Structure
from piecewise_core.graph.trace import trace
from piecewise_core.ranges import LISTED, Box, Sizes

__all__ = ["endpoints_of", "too_many"]

_MOST_TRACED = 16
"""Regions that are traced to find endpoints."""

_SHOWN = 16
"""Endpoints and guards that are listed."""


def endpoints_of(fn: Callable[..., Any], structure: Structure, config: Config) -> str:
    """The endpoints that the branches of ``fn`` on sizes need, as the end of a sentence.

    Found by tracing as if regions were cut by themselves; "" where that finds none.
    """
    auto, bounds = config.replace(regions="auto"), config.bounds
    known: list[Box] = []
    held: list[torch.Tensor] = []

    def bind(tensor: torch.Tensor) -> int:
        held.append(tensor)
        return len(held) - 1

    try:
        while (sizes := uncovered(known, bounds)) is not None and len(known) < _MOST_TRACED:
            cell = cell_like(known, bounds, sizes)
            hint = hint_in(cell, known, bounds, sizes)
            known.append(trace(fn, structure, auto, cell, bind, assume=False, hint=hint).box)
    except PiecewiseError:
        pass  # what was found so far is what can be reported
    found = _ends(config, known)
    return f". All branches found need: {found}" if found else ""


def too_many(config: Config, sizes: Sizes, known: Sequence[Box], cuts: Sequence[str]) -> str:
    """The message for sizes that would make one region more than may be."""
    listed = "; ".join(cuts[:_SHOWN]) + ("; ..." if len(cuts) > _SHOWN else "")
    ends = _ends(config, known)
    return (
        f"sizes {sizes} would be traced as region {len(known) + 1}, and max_regions is "
        f"{config.max_regions}: the model takes another path for each of many sizes ({listed})"
        f"{'; regions end at ' + ends if ends else ''}. Raise max_regions, narrow Dim(min, max), "
        "or set Dim(multiple_of=) where only multiples are called"
    )


def _ends(config: Config, known: Sequence[Box]) -> str:
    """Per dim, the last sizes of regions before others begin."""
    parts = []
    for place, (dim, listed) in enumerate(zip(config.dims, config.endpoints_by_dim, strict=True)):
        spans = list(dict.fromkeys(box.ranges[place] for box in known))
        sizes = dim.sizes.clip(0, LISTED) or dim.sizes
        alike = ((size, [size in span for span in spans]) for size in sizes)
        ends = [one for (one, a), (_, b) in pairwise(alike) if a != b]
        inner = [end for end in ends if end > 1 and end not in listed]
        if len(inner) > _SHOWN and any(not span.is_whole for span in spans):
            some = next(span for span in spans if not span.is_whole)
            parts.append(f'dim "{dim.name}" regions="auto", for sets such as {some}')
        elif inner:
            more = ", ..." if len(inner) > _SHOWN else ""
            shown = ", ".join(map(str, inner[:_SHOWN]))
            parts.append(f'dim "{dim.name}" endpoints {shown}{more}')
    return "; ".join(parts)
