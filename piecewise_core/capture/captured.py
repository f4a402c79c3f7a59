"""One captured plan: steps over static memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import torch

from piecewise_core.capture.buffers import Stage
from piecewise_core.capture.dispatcher_bypass import modes_active
from piecewise_core.capture.hostvalues import current_host_values
from piecewise_core.capture.opsteps import Step
from piecewise_core.capture.output_ownership import OutputOwnership
from piecewise_core.protocols import ReplayCall
from piecewise_core.ranges import Sizes

__all__ = ["CapturedPlan", "Owner"]


class Owner(Protocol):
    """The plans of one form of calls."""

    def evict(self, sizes: Sizes, why: str) -> None:
        """Serve ``sizes`` by graphs no more."""


@dataclass
class CapturedPlan:
    """Steps over static memory: ``prepare`` puts a call's inputs there, ``replay`` does them.

    ``sizes``: what was captured. ``graphs``: the driver's, to reset. ``held``: tensors that the
    graphs read and nobody else may keep alive. ``at``: where the model's tensors lay. ``direct``:
    the steps with operators' kernels called past the dispatcher, for when no mode wants to see
    them. ``before``: the driver's ``before_replay``. ``blame``: says whose an error of a step is
    (None: of staging). ``made``: what each replay leaves, in order, until the next step.
    ``replays``: ids of the steps that are one. ``callers``: notified that the memory is in use
    while steps are done, since an operator among them may call the model. ``forks``: how often
    its graph parts into two streams.
    """

    sizes: Sizes
    stage: Stage
    steps: tuple[Step, ...]
    direct: tuple[Step, ...]
    outputs: tuple[Any, ...]
    graphs: tuple[Any, ...]
    held: tuple[Any, ...]
    before: Callable[[Any, ReplayCall], None] | None = None
    blame: Callable[[Any, Exception], Exception] = lambda step, error: error
    made: tuple[tuple[torch.Tensor, ...], ...] = ()
    replays: frozenset[int] = frozenset()
    callers: OutputOwnership = field(default_factory=lambda: OutputOwnership(cloning=False))
    at: tuple[int, ...] = ()
    forks: int = 0

    def prepare(self, tensors: Sequence[torch.Tensor], sizes: Sizes) -> None:
        """Tell a driver that wants to know of the call; then put its inputs where graphs read."""
        if self.before is not None:
            call = ReplayCall(self.sizes, sizes, tensors, current_host_values())
            for graph in self.graphs:
                self.before(graph, call)
        self.stage(tensors, sizes)

    def walk(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Do the steps on what is staged, stopping behind each replay for what it left."""
        made = iter(self.made)
        with self.callers.using():
            for step in self.steps:
                step()
                if id(step) in self.replays:
                    yield next(made, ())

    def replay(self) -> None:
        """Do the steps once more on what is staged."""
        step: Any = None
        with self.callers.using():
            try:
                for step in self.steps if modes_active() else self.direct:
                    step()
            except Exception as error:
                self.reraise(step, error)

    def reraise(self, step: Any, error: Exception) -> NoReturn:
        """Raise ``error`` of ``step``, or of preparing, as that of whoever made the step."""
        whose = self.blame(step, error)
        if whose is error:
            raise error
        raise whose from error
