"""A Dynamo graph that was split, and what serves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from piecewise_core.counters import Counters
from piecewise_core.frontend.background import Background
from piecewise_core.frontend.door.calls import DoorCalls
from piecewise_core.frontend.door.memory import DoorMemory
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.setup import Setup
from piecewise_core.ranges import Sizes
from piecewise_core.replay.replayable import Entry

__all__ = ["Made"]

Read = Callable[[Sequence[Any]], tuple[Sequence[Any], Sequence[Any], Sizes]]


@dataclass(frozen=True)
class Made:
    """One graph.

    ``read``: a call's tensors, those that the model holds, and its sizes. ``inputs``: how many;
    ``places``: of the held ones among them; ``marked``: of parameters and buffers among the held.
    ``calls``: None where no call can be captured, and ``why``. ``every_size``: whether
    sizes that nobody listed are captured. ``differentiable``: whether gradients may be asked of
    what it returns or writes. ``name``: the line that it begins with.
    """

    name: str
    setup: Setup
    region: Region
    counters: Counters
    memory: DoorMemory
    background: Background | None
    miss: Entry
    read: Read
    inputs: int
    places: tuple[int, ...]
    marked: tuple[int, ...]
    calls: DoorCalls | None
    why: str
    every_size: bool
    differentiable: bool
