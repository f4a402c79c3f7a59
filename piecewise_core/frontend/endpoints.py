"""Every size at which a model takes another path, for refusals that name them all at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch

from piecewise_core.config import Config, Dim
from piecewise_core.errors import PiecewiseError
from piecewise_core.frontend.coverage import cell_like, hint_in, uncovered
from piecewise_core.graph.branches import Branch
from piecewise_core.graph.structure import Structure
from piecewise_core.graph.trace import trace
from piecewise_core.ranges import LISTED, Box, Range, Sizes

__all__ = ["branches_of", "too_many"]

_MOST_TRACED, _MOST_SECONDS = 16, 20
"""Regions that are traced to find branches, and how long that may take."""

_NOTHING_NEW = 3
"""Traces in a row that ask nothing new, after which no more is looked for."""

_SIZES, _WIDE = LISTED // 4, 4096
"""Sizes at which guards are computed: at most, and at least."""

_SHOWN = 64
"""Endpoints that are listed; of lines, and of what each asks, fewer."""

_LINES, _ASKED = 8, 3


def branches_of(fn: Callable[..., Any], structure: Structure, config: Config) -> str:
    """The branches of ``fn`` on sizes: the lines that ask, and what they need; "" without any.

    Found by tracing as if regions were cut by themselves, and by what each trace asked: one trace
    of the largest sizes may meet every threshold.
    """
    auto = config.replace(regions="auto")
    # Size 0 is none to trace at.
    bounds = Box(tuple(r.clip(1, r.end) or r for r in config.bounds.ranges))
    known: list[Box] = []
    held: list[torch.Tensor] = []
    met: dict[tuple[int, str], Branch] = {}
    idle, begun = 0, time.monotonic()

    def bind(tensor: torch.Tensor, of: torch.Tensor | None = None) -> int:
        held.append(tensor)
        return len(held) - 1

    try:
        while (sizes := uncovered(known, bounds)) is not None and len(known) < _MOST_TRACED:
            cell = cell_like(known, bounds, sizes)
            hint = hint_in(cell, known, bounds, sizes)
            traced = trace(fn, structure, auto, cell, bind, assume=False, hint=hint)
            known.append(traced.box)
            asked = {(b.place, _asks(b, config.dims)): b for b in traced.branches}
            idle = 0 if asked.keys() - met.keys() else idle + 1
            met |= asked
            if idle == _NOTHING_NEW or time.monotonic() - begun > _MOST_SECONDS:
                break
    except PiecewiseError:
        pass  # what was found so far is what can be reported
    needs = [
        need for place in range(len(config.dims)) for need in _needs(place, config, met, known)
    ]
    return f"{_lines(met)}. All branches found need: {'; '.join(needs)}" if needs else ""


def too_many(config: Config, sizes: Sizes, count: int, branches: str) -> str:
    """The message for sizes that would make one region more than may be."""
    return (
        f"sizes {sizes} would be traced as region {count + 1}, and max_regions is "
        f"{config.max_regions}: the model takes another path for each of many sizes{branches}. "
        "Raise max_regions, narrow Dim(min, max), or set Dim(multiple_of=) where only multiples "
        "are called"
    )


def _needs(
    place: int, config: Config, met: dict[tuple[int, str], Branch], known: Sequence[Box]
) -> Iterator[str]:
    """What the branches over the dim at ``place`` need."""
    dim, listed = config.dims[place], config.endpoints_by_dim[place]
    sizes = dim.sizes.clip(0, _SIZES) or dim.sizes
    # Wide enough to tell what repeats from what does not.
    wide = Range(sizes.start, max(sizes.end, _WIDE))
    sets = [b.held(wide) for (at, _), b in met.items() if at == place]
    found = [each for each in dict.fromkeys(sets) if each is not None]
    single = [box.ranges[place] for box in known if box.ranges[place].is_single_size()]
    if len(single) == len(known) >= _NOTHING_NEW:
        tried = f"all {len(single)} that were tried have a path of their own"
        yield f'dim "{dim.name}" a region for each size: {tried}'
        return
    periods = dict.fromkeys(each.modulus for each in found if _repeats(each))
    for period in periods:
        yield f'dim "{dim.name}" regions by {dim.name} % {period}'
    plain = [each for each in found if not _repeats(each)]
    alike = ((size, [size in each for each in plain]) for size in sizes)
    ends = [one for (one, a), (_, b) in pairwise(alike) if a != b]
    ends = [end for end in ends if end > 1 and end not in listed] if plain else []
    if ends:
        more = f", ... ({len(ends)} in all)" if len(ends) > _SHOWN else ""
        yield f'dim "{dim.name}" endpoints {", ".join(map(str, ends[:_SHOWN]))}{more}'


def _repeats(held: Range) -> bool:
    return 1 < held.modulus <= held.end // 2


def _asks(branch: Branch, dims: Sequence[Dim]) -> str:
    return str(branch.expr).replace(str(branch.symbol), dims[branch.place].name)


def _lines(met: dict[tuple[int, str], Branch]) -> str:
    """The lines that ask, and what they ask; "" of one branch alone."""
    by_line: dict[str, list[str]] = {}
    for (_, text), branch in met.items():
        by_line.setdefault(branch.where, []).append(text)
    shown = []
    for where, texts in list(by_line.items())[:_LINES]:
        more = f" and {len(texts) - _ASKED} more" if len(texts) > _ASKED else ""
        shown.append(f"{', '.join(texts[:_ASKED])}{more} at {where}")
    left = len(by_line) - len(shown)
    more = f"; and {left} more lines" if left else ""
    return f"; in all it asks {'; '.join(shown)}{more}" if len(met) > 1 else ""
