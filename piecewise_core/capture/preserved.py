"""Memory and random numbers kept as they were, to run one call twice with one effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["Preserved"]


class Preserved:
    """The state that a call changes: tensors that it writes to, and generators that it draws from.

    ``tensors``: the caller's and the model's own. ``generators``: of devices; the CPU's default one
    always counts. Made before a run, ``take`` after it gives the state that the run left.
    ``now``: the tensors themselves. ``values``: what they held.
    """

    def __init__(
        self, tensors: Sequence[torch.Tensor], generators: Sequence[Any], *, draws: bool
    ) -> None:
        self.now = tuple(tensors)
        self._generators = (torch.default_generator, *generators) if draws else ()
        self.values = [t.clone() for t in self.now]
        self._states = [g.get_state() for g in self._generators]

    def take(self) -> Preserved:
        """The state as it is now."""
        again = object.__new__(Preserved)
        again.now, again._generators = self.now, self._generators
        again.values = [t.clone() for t in self.now]
        again._states = [g.get_state() for g in self._generators]
        return again

    def put_back(self) -> None:
        """Make everything as it was."""
        if self.now:
            with torch.inference_mode():
                for tensor, value in zip(self.now, self.values, strict=True):
                    tensor.copy_(value)
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)

    def states_differ(self, other: Preserved) -> bool:
        """Whether random numbers were drawn between the two."""
        pairs = zip(self._states, other._states, strict=True)
        return not all(torch.equal(a, b) for a, b in pairs)
