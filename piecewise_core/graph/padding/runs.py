"""Whether a call may be padded, by the operators that ran at its own sizes and at larger ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from piecewise_core.graph.padding.calls import together
from piecewise_core.graph.padding.extents import extent
from piecewise_core.graph.padding.judge import Mixing, mixing
from piecewise_core.graph.padding.table import has_rule
from piecewise_core.graph.padding.tape import Noting, Ref, Tape, makes_whole_numbers

__all__ = ["Run", "between"]


class Run:
    """One run of a callable on real tensors: what it ran, noted as it goes.

    ``inputs``: the tensors of the call, those that carry a padded dim included. ``place()``: a
    function that says where the program is.
    """

    def __init__(
        self, inputs: Sequence[torch.Tensor], place: Callable[[], Callable[[], str]]
    ) -> None:
        self.tape = Tape(has_rule)
        self.inputs = [self.tape.ref(tensor) for tensor in inputs]
        self.results: list[Ref] = []
        self._place = place

    def returned(self, tensors: Iterable[torch.Tensor]) -> None:
        """The run is over and gave ``tensors``."""
        self.results = [self.tape.ref(tensor) for tensor in tensors]

    def forget(self) -> None:
        """The run was given up and starts anew."""
        self.tape.calls.clear()

    def note(self, op: Any, args: Any, kwargs: Any, result: Any) -> None:
        """One operator ran and gave ``result``."""
        self.tape.note(op, args, kwargs, result, self._place())

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Everything that runs inside is noted."""
        # In inference mode operators come whole, not as what autograd would make of them.
        with torch.inference_mode(), Noting(self.tape, self._place):
            yield

    @property
    def rounds(self) -> bool:
        """Whether the program turns floats into whole numbers, which may then be indices."""
        return any(map(makes_whole_numbers, self.tape.calls))


def between(larger: Run, own: Run) -> Mixing | None:
    """What keeps a call that ran as ``own`` from being served by what ran as ``larger``."""
    calls = together((larger.tape.calls, own.tape.calls))
    if calls is None:
        return Mixing("the program", "", "runs other operators at other sizes")
    inputs = list(map(_both, larger.inputs, own.inputs))
    if [r.number for r in larger.results] != [r.number for r in own.results]:
        return Mixing("the program", "", "returns other tensors at other sizes")
    return mixing(calls, inputs, map(_both, larger.results, own.results))


def _both(larger: Ref, own: Ref) -> Ref:
    sizes = zip(larger.shape, own.shape, strict=True)
    return Ref(larger.number, tuple(extent(pair) for pair in sizes), larger.dtype)
