"""One call run twice, as written and as it is served, with the effects of one; and compared."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from piecewise_core.capture.preserved import Preserved
from piecewise_core.errors import CaptureFailed
from piecewise_core.ranks.ranks import Ranks
from piecewise_core.runtime.compared import apart, kept, parted
from piecewise_core.runtime.marks import Marks
from piecewise_core.runtime.readonly import ReadOnly

__all__ = ["Compared", "NoRoom", "Turns", "compared", "together"]

_DUE = 1.0 - 1e-9
"""Credit at which a call is compared: shares such as 0.1 do not add up to 1 exactly."""


class NoRoom(Exception):
    """There is no memory to run the model as written beside what serves it."""


def together(ranks: Ranks, as_written: Callable[[], Any]) -> Callable[[], Any]:
    """``as_written``, run by all ranks, or where it fails on one by none. Raises NoRoom."""

    def run() -> Any:
        try:
            return ranks.jointly("a run as written, to compare", as_written, lambda made: None)
        except CaptureFailed as error:
            raise NoRoom(str(error)) from error

    return run if ranks.meeting is not None else as_written


class Turns:
    """Which calls of a target are compared: a share of them, evenly spread.

    ``left``: how many calls come before the next one that is; below zero, none is any more. Who
    serves a call that is not compared takes one off.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._credit = 0.0
        self.left = 0
        self.begin()

    def begin(self) -> None:
        """A call was compared, or none yet: count to the next."""
        calls = max(math.ceil(min((_DUE - self._credit) / self._rate, sys.maxsize)), 1)
        self._credit += calls * self._rate - 1.0
        self.left = calls - 1

    def end(self) -> None:
        """Compare no more."""
        self.left = -1


class Compared:
    """One call run as written and as it is served, and how the two are apart.

    ``result``: the served one, ``leaves`` by path; its writes are what stays. ``wanted``: the
    model's own. ``path``: of the leaf that differs; "memory[0]" is the first that is written to.
    ``before``, ``after``: what the call writes to, as it was and as the model left it. ``reads``:
    what it does not. ``damaged``: whether a tensor of the model's was written to that is not to be.
    """

    def __init__(
        self,
        result: Any,
        leaves: Mapping[str, Any],
        wanted: Any,
        found: tuple[str, str] | None,
        before: Preserved,
        after: Preserved,
        reads: ReadOnly,
        *,
        damaged: bool = False,
    ) -> None:
        self.result, self.leaves, self.wanted = result, leaves, wanted
        self.path = "" if found is None else found[0]
        self.how = None if found is None else found[1]
        self.damaged = damaged
        self._before, self._after, self._reads = before, after, reads

    def agree(self, ranks: Ranks) -> None:
        """Take over what another rank found."""
        how = ranks.heard("a compared call", self.how)
        if self.how is None and how is not None:
            self.blame("", how)

    def blame(self, path: str, how: str) -> None:
        """Something else was found to be wrong."""
        self.path, self.how = path, how

    def rewind(self) -> None:
        """Make all memory as it was before the call."""
        self._before.put_back()
        self._reads.put_back()

    def leave(self) -> None:
        """Make all memory as the model left it."""
        self._after.put_back()
        self._reads.leave()

    @property
    def drew(self) -> bool:
        """Whether the model drew random numbers."""
        return self._before.states_differ(self._after)


def compared(
    as_written: Callable[[], Any],
    served: Callable[[], Any],
    memory: Sequence[torch.Tensor],
    generators: Sequence[Any],
    *,
    reads: Sequence[torch.Tensor] = (),
    held: Sequence[torch.Tensor] = (),
    draws: bool = True,
) -> Compared:
    """Run one call both ways, with the effects of one. Raises what the model itself raises.

    ``memory``: the tensors that it writes to. ``reads``: those that nothing is to write to.
    ``held``: the same, of the model's own that are not copied. ``generators``: of devices.
    ``draws``: whether it may draw random numbers.
    """
    try:
        before, given = Preserved(memory, generators, draws=draws), ReadOnly(reads, memory)
        try:
            wanted = as_written()
            # A result may lie in memory that is about to be put back, or written to.
            theirs = kept(wanted, copy=bool(memory) or bool(reads))
            after = before.take()
        finally:
            before.put_back()
        given.turn()
    except torch.OutOfMemoryError as error:
        raise NoRoom(str(error)) from error
    marks = Marks(held)
    result = served()
    ours = kept(result)
    with torch.no_grad():
        damaged = marks.changed()
        found = parted(ours, theirs) or _written(after) or _scribbled(given)
    if damaged is not None:
        found = "", f"{described(damaged)} of the model, which it does not write to, was written to"
    return Compared(result, ours, wanted, found, before, after, given, damaged=damaged is not None)


def described(tensor: torch.Tensor) -> str:
    """A tensor in a message: what it is, never what it holds."""
    return f"a tensor {str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _written(after: Preserved) -> tuple[str, str] | None:
    """How memory that is written to is apart from what the model left in it."""
    for place, (now, value) in enumerate(zip(after.now, after.values, strict=True)):
        how = apart({"": now}, {"": value})
        if how is not None:
            return f"memory[{place}]", f"memory that is written to{how}"
    return None


def _scribbled(given: ReadOnly) -> tuple[str, str] | None:
    how = given.changed()
    return None if how is None else ("", f"an input that the model does not write to: {how}")
