"""What a simulated graph holds: operators with the memory they read and write, in order."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from piecewise_core.testing.simulated.frozen import Frozen, unseen
from piecewise_core.testing.simulated.pool import Block, poison
from piecewise_core.torch_compat import pytree

__all__ = ["Operation", "Recording"]


@dataclass(frozen=True)
class Operation:
    """One operator as it was called, its tensors frozen.

    ``results``: place among the flattened results -> the block that takes that result's memory.
    """

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    results: Mapping[int, Block]

    def run(self) -> None:
        """Run the operator on the memory as it is now; call it unseen."""
        args, kwargs = pytree.tree_map_only(
            Frozen, lambda f: f.thaw(), (tuple(self.args), dict(self.kwargs))
        )
        leaves = pytree.tree_leaves(self.function(*args, **kwargs))
        for place, block in self.results.items():
            storage = leaves[place].untyped_storage()
            ctypes.memmove(block.address, storage.data_ptr(), min(block.nbytes, storage.nbytes()))
            block.shadow = None

    def __str__(self) -> str:
        given = [*map(repr, self.args), *(f"{k}={v!r}" for k, v in self.kwargs.items())]
        written = [f"{block.address:#x}" for block in self.results.values()]
        return f"{self.function}({', '.join(given)}) -> [{', '.join(written)}]"


@dataclass
class Recording:
    """Operators, and between them the deaths of memory that the capture saw.

    ``random``: generators with their state at the capture, where replays draw the same again.
    ``numbers``: tensors made of Python's numbers, which a device would take by value.
    """

    steps: list[Operation | Block] = field(default_factory=list)
    random: tuple[tuple[torch.Generator, torch.Tensor], ...] = ()
    numbers: list[torch.Tensor] = field(default_factory=list)

    def run(self) -> None:
        """Replay. Memory that died in the capture is poisoned where it died."""
        with torch.inference_mode(), unseen():
            before = [(g, g.get_state()) for g, _ in self.random]
            try:
                for generator, state in self.random:
                    generator.set_state(state)
                for step in self.steps:
                    if isinstance(step, Block):
                        poison(step.address, step.nbytes, step.byte)
                    else:
                        step.run()
            finally:
                for generator, state in before:
                    generator.set_state(state)

    def __str__(self) -> str:
        return "\n".join(
            f"free {step.address:#x}, {step.nbytes} bytes" if isinstance(step, Block) else str(step)
            for step in self.steps
        )
