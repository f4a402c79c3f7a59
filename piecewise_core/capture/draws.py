"""Random state in the two runs of a recording: set inside, it would be set by no replay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from piecewise_core.errors import CaptureFailed
from piecewise_core.torch_compat.dispatcher import DisableTorchFunction, without_modes
from piecewise_core.torch_compat.operators import schema_name
from piecewise_core.torch_compat.storages import generator_key

__all__ = ["Draws"]

_OTHER = 0x5DEECE66D
"""What the first run's seed is moved by: a seed that the function sets must not be the one it is
found with."""


class Draws:
    """Follows generators from number to number; raises CaptureFailed where one was set between.

    The default generators are followed through the first run. Others are first met where they are
    drawn from, so the second run must find them as the first one left them.
    """

    def __init__(self) -> None:
        self._begun: dict[int, tuple[Any, torch.Tensor]] = {}
        self._now: dict[int, torch.Tensor] = {}
        self._met: set[int] = set()
        self._drew = False

    def begin(self, generators: Iterable[Any]) -> None:
        """The first run begins, with ``generators`` in a state that nobody knows."""
        for generator in generators:
            if generator is not None and _identity(generator) not in self._begun:
                self._begun[_identity(generator)] = generator, generator.get_state()
                generator.manual_seed((generator.initial_seed() + _OTHER) % 2**62)
        self.drawn()

    def before(self, fn: Any, args: Any, kwargs: Any) -> None:
        """The first run is about to call ``fn``."""
        if not _may_draw(fn):
            return
        for generator in _given(args, kwargs):
            if _identity(generator) not in self._begun:
                self._begun[_identity(generator)] = generator, generator.get_state()
                self._now[_identity(generator)] = generator.get_state()
        self.check()

    def again(self, fn: Any, args: Any, kwargs: Any) -> None:
        """The second run is about to call ``fn``."""
        for generator in _given(args, kwargs):
            key = _identity(generator)
            if key in self._met:
                continue
            self._met.add(key)
            if key not in self._now or not _same(self._now[key], generator.get_state()):
                raise CaptureFailed(_SET)

    def after(self, fn: Any) -> None:
        """The first run has called ``fn``."""
        if _may_draw(fn):
            self.drawn()

    def drawn(self) -> None:
        """Numbers may have been drawn."""
        for key, (generator, _) in self._begun.items():
            state = generator.get_state()
            self._drew |= key in self._now and not _same(self._now[key], state)
            self._now[key] = state

    def check(self) -> bool:
        """Whether any number was drawn. Raises CaptureFailed where a generator was set since."""
        for key, (generator, _) in self._begun.items():
            if not _same(self._now[key], generator.get_state()):
                raise CaptureFailed(_SET)
        return self._drew

    def put_back(self) -> None:
        """Every generator is as it was found."""
        for generator, state in self._begun.values():
            generator.set_state(state)
        self._begun.clear()
        self._now.clear()
        self._met.clear()


_SET = (
    "the state of a random generator is set inside (torch.manual_seed, fork_rng, a generator made "
    "there), which a replay does not repeat. Set it outside, or put all that sets and draws into "
    "a splitting op"
)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    with DisableTorchFunction(), without_modes():
        return torch.equal(a, b)


def _may_draw(fn: Any) -> bool:
    name = schema_name(fn)
    if not name.startswith(("aten::", "prims::")):
        return True  # nobody can tell
    return torch.Tag.nondeterministic_seeded in fn.tags


def _given(args: Any, kwargs: Any) -> Iterable[Any]:
    return [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Generator)]


def _identity(generator: Any) -> int:
    """What two Python objects of one generator share; the dispatcher makes new ones."""
    return int(generator_key(generator))
