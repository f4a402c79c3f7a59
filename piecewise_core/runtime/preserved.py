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
    """

    def __init__(
        self, tensors: Sequence[torch.Tensor], generators: Sequence[Any], *, draws: bool
    ) -> None:
        self._tensors = tuple(tensors)
        self._generators = (torch.default_generator, *generators) if draws else ()
        self._values = [t.clone() for t in self._tensors]
        self._states = [g.get_state() for g in self._generators]

    def take(self) -> Preserved:
        """The state as it is now."""
        again = object.__new__(Preserved)
        again._tensors, again._generators = self._tensors, self._generators
        again._values = [t.clone() for t in self._tensors]
        again._states = [g.get_state() for g in self._generators]
        return again

    def put_back(self) -> None:
        """Make everything as it was."""
        if self._tensors:
            with torch.inference_mode():
                for tensor, value in zip(self._tensors, self._values, strict=True):
                    tensor.copy_(value)
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)

    def states_differ(self, other: Preserved) -> bool:
        """Whether random numbers were drawn between the two."""
        pairs = zip(self._states, other._states, strict=True)
        return not all(torch.equal(a, b) for a, b in pairs)

    @property
    def values(self) -> list[torch.Tensor]:
        """What the tensors held."""
        return self._values

    @property
    def now(self) -> tuple[torch.Tensor, ...]:
        """The tensors themselves."""
        return self._tensors
