"""What a front end supplies of calls that graphs serve; all the rest is in this package.

``pw.compile`` supplies a region of a traced graph, ``pw.record`` a callable that was watched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from piecewise_core.capture.recorder import Recorder
from piecewise_core.graph.structure import Structure
from piecewise_core.ranges import Sizes

__all__ = ["Alone", "Calls", "Entry", "Facts", "PaddedCalls", "Rebuild", "Recording", "Replayable"]

Entry = Callable[..., Any]
"""Serves calls of one target: ``entry(tensors, bound, sizes, args, kwargs) -> result``."""

Rebuild = Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], Any]
"""``rebuild(outputs, tensors, bound)`` makes a call's result."""


@dataclass(frozen=True)
class Recording:
    """How the graphs of one captured size are made.

    ``build(recorder)``: the plan to record, as of ``capture.attempt.Source``. ``bound``: tensors
    of the model that it is given. ``written``: tensors of the user's that it writes to and that
    have to be put back after the capture. ``recorder``: the kind to record with.
    """

    build: Callable[[Any], Callable[..., tuple[Any, ...]]]
    bound: tuple[torch.Tensor, ...] = ()
    written: tuple[torch.Tensor, ...] = ()
    recorder: Callable[..., Recorder] = Recorder


@dataclass(frozen=True)
class Facts:
    """What is known of one captured size.

    ``rebuild``: makes results of the graphs' outputs; it reads the call's own tensors where
    ``uses_inputs``. ``mutated``: places of the inputs that are written to. ``mutated_bound``:
    places of tensors written to among those bound: ``bound``, or where that is None, those that
    entries are called with.
    """

    rebuild: Rebuild
    uses_inputs: bool
    mutated: tuple[int, ...] = ()
    mutated_bound: tuple[int, ...] = ()
    bound: tuple[torch.Tensor, ...] | None = None


@dataclass(frozen=True)
class Alone:
    """One call that ran at its own sizes, without padding.

    ``outputs``: its tensors, in the order of the graphs'. ``comparable``: whether a replay must
    give the same ones. ``wild``: whether rows of padding may hold any float. ``serves``: whether
    ``result`` is what the caller gets.
    """

    outputs: Sequence[Any]
    comparable: bool
    wild: bool
    serves: bool = False
    result: Any = None


class Calls(Protocol):
    """What calls look like: a Binder, or what stands for one where another has bound them.

    ``raw``: gives a call's own tensors. ``bind``: refuses a call whose inputs cannot be copies.
    """

    structure: Structure
    raw: Callable[..., tuple[torch.Tensor, ...]]
    bind: Callable[..., Any]


class PaddedCalls(Protocol):
    """Calls of other sizes that the graphs of one captured size serve.

    ``checked``: how many of the first ones are compared with calls of their own size, whatever
    their sizes. ``asks``: whether calls after those have to ask for their sizes; read at every
    call, so no property.
    """

    checked: int
    asks: bool

    def allows(self, sizes: Sizes) -> bool:
        """Whether calls of ``sizes`` may be padded, as far as is known."""
        ...

    def learns(self, sizes: Sizes) -> bool:
        """Whether how to cut ``sizes`` is yet to be learned from a run of their own."""
        ...

    def alone(self, t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Alone:
        """Run one call without padding."""
        ...

    def made_at(self, place: int) -> str:
        """The line that makes the output at ``place``; "" where none is known."""
        ...

    def refuse(self, sizes: Sizes, why: str) -> None:
        """Calls of ``sizes`` are padded no more; ``why`` is for the log."""
        ...

    def cut(self, outputs: Sequence[Any], sizes: Sizes) -> tuple[Sequence[Any], Rebuild]:
        """A replay's outputs without what padding added, and what makes the result of them."""
        ...


class Replayable(Protocol):
    """A program whose calls may be served by graphs."""

    @property
    def graphs_per_size(self) -> int:
        """How many graphs one captured size takes, about."""
        ...

    def recording(
        self, captured: Sizes, inputs: tuple[torch.Tensor, ...], bound: Sequence[torch.Tensor]
    ) -> Recording:
        """What to record at ``captured``. ``inputs``: what graphs will read the inputs from."""
        ...

    def facts(self, captured: Sizes) -> Facts | None:
        """What is known of a size; None before its capture where only that tells."""
        ...

    def captured(self) -> None:
        """A capture was tried, or a run before it."""
        ...

    def padded(self, captured: Sizes, outputs: Sequence[Any]) -> PaddedCalls | None:
        """How calls of other sizes go to ``captured``, whose replays give ``outputs``.

        None where none do.
        """
        ...
