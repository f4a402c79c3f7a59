"""Sizes past what the model can take, found before graphs are captured: the smallest size first.

A model's table, of positions say, may be shorter than ``Dim.max``. On a device an index beyond it
ends the context, and nothing runs there any more: what ran before, from the smallest size up, tells
how long the table is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch

from piecewise_core.capture.plans import CapturedPlans
from piecewise_core.capture.source import Source
from piecewise_core.capture.thinning import largest_first
from piecewise_core.capture.trial import try_once
from piecewise_core.config import Config, Dim
from piecewise_core.errors import CaptureFailed, OutOfRange, RanksDisagree, SizeBranch
from piecewise_core.plugins import error_text, raised
from piecewise_core.ranges import Sizes
from piecewise_core.replay.reads import Reads
from piecewise_core.replay.replayable import Replayable

__all__ = ["try_new", "try_sizes"]

logger = logging.getLogger(__name__)

_BEYOND = ("device-side assert", "index out of", "out of bounds", "out of range")
"""What devices, compilers and torch say of an index that is too large."""


def try_new(
    plans: CapturedPlans,
    reads: Reads,
    config: Config,
    programs: Mapping[Sizes, Replayable],
    new: Sequence[Sizes],
    bound: Sequence[torch.Tensor],
) -> dict[Sizes, Source]:
    """Run what was never captured once, the smallest size first. Raises OutOfRange.

    Returns what to capture without another run.
    """
    memory, ranks = plans.memory, plans.ranks
    memory.open()
    largest = largest_first(new)[0]
    # One that the model surely takes, to compare with.
    least = tuple(max(span.start, 1) for span in config.bounds.ranges)

    tried: dict[Sizes, Source] = {}
    once = partial(try_once, memory.platform, memory.pool, memory.stream)

    def run_once(source: Source, sizes: Sizes, *, whole: bool) -> Source | None:
        side = plans.streams.side(whole)
        run = partial(once, source, sizes, whole=whole, side=side)
        what = f"a trial of sizes {sizes}"
        return ranks.jointly(what, run, lambda made: None)

    def run(sizes: Sizes) -> None:
        program = programs.get(sizes, programs[largest])
        source = reads.source(program, sizes, None, bound, ())
        try:
            try:
                found = run_once(source, sizes, whole=plans.whole)
            except CaptureFailed:
                if not plans.whole:
                    raise
                found = run_once(source, sizes, whole=False)  # no graph has all of it
            if found is not None:
                tried[sizes] = found
        except SizeBranch as error:  # sizes depend on data, and these are no call's
            logger.debug("%s", error)
        finally:
            program.captured()

    try_sizes({least, *new}, run, config.dims)
    memory.platform.empty_cache()  # captures cannot use what these runs leave
    # Where one rank has to run again before its capture, all must.
    return tried if ranks.meeting is None else {}


def try_sizes(order: Iterable[Sizes], run: Callable[[Sizes], None], dims: Sequence[Dim]) -> None:
    """``run`` each of the sizes, the smallest first. Raises OutOfRange at an index too large.

    Where the smallest raises it too, it is no matter of sizes: warm-up runs on zeros, which may be
    no index. That, and whatever else is raised, captures will meet and tell.
    """
    ran: Sizes | None = None
    for sizes in sorted(order, key=lambda s: (math.prod(s), s)):
        try:
            run(sizes)
        except RanksDisagree:
            raise
        except Exception as error:
            logger.debug("a run of sizes %s raised %s", sizes, error_text(error))
            beyond, lost = _is_beyond(error), _is_lost(error)
            if lost or (beyond and ran is not None):
                raise OutOfRange(_message(sizes, ran, dims, error)) from error
            if beyond:
                return
        else:
            ran = sizes


def _is_beyond(error: Exception) -> bool:
    cause = raised(error)
    return isinstance(cause, IndexError) or any(x in str(cause).lower() for x in _BEYOND)


def _is_lost(error: Exception) -> bool:
    return _BEYOND[0] in str(raised(error)).lower()


def _message(sizes: Sizes, ran: Sizes | None, dims: Sequence[Dim], error: Exception) -> str:
    named = ", ".join(f"{d.name}={s}" for d, s in zip(dims, sizes, strict=True))
    before = "none smaller was tried" if ran is None else f"sizes {ran} ran"
    limits = ", ".join(f'Dim("{d.name}", max={d.max})' for d in dims)
    first = str(error_text(error)).partition("\n")[0]
    return (
        f"warm-up ran the model at sizes {sizes} ({named}), which its bounds allow, and it raised "
        f"{first}; {before}. A table of the model, of positions say, is shorter than {limits}: set "
        "max to the largest size that the model takes"
        + (
            ". The device serves no call of this process any more: start it again"
            if _is_lost(error)
            else ""
        )
    )
