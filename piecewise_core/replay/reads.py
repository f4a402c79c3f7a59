"""What the graphs of one form of calls read: our own buffers, or the caller's tensors."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from piecewise_core.capture.buffers import FixedInputs, OwnedInputs, Stage, repeat_rows
from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.capture.resting import addresses
from piecewise_core.capture.source import Source
from piecewise_core.config import Config
from piecewise_core.errors import ConfigError
from piecewise_core.ranges import Sizes
from piecewise_core.replay.overlap import Overlap
from piecewise_core.replay.replayable import Calls, Facts, Replayable
from piecewise_core.replay.views import Views, left_out

__all__ = ["Reads"]


class Reads:
    """The inputs of every captured size, as calls that ``begin`` tells of have them.

    ``static``: whether graphs read the caller's own tensors, as of their first call. ``shared``:
    results that are views of what a call gives; captures fill it.
    """

    def __init__(self, memory: GraphMemory, config: Config) -> None:
        self._memory = memory
        self._captures = config.captures
        self.static = config.inputs == "static"
        # Without ranks nobody looks for collectives, whose graphs must not share.
        shares = config.graph_executables == "shared" and config.ranks is not None
        self._like = () if shares else None
        self._binder: Calls | None = None
        self._owned: OwnedInputs | None = None
        self._unlisted: dict[Sizes, OwnedInputs] = {}
        self.shared: Views = {}
        self._overlaps: weakref.WeakSet[Overlap] = weakref.WeakSet()

    def begin(self, binder: Calls) -> None:
        """Note what calls look like."""
        self._owned, self._binder = None, binder
        self._unlisted.clear()

    def overlap(self, facts: Facts) -> Overlap | None:
        """Tells calls whose inputs share memory that is written to; None where none is."""
        places = facts.mutated, facts.mutated_bound
        made = Overlap(*places, lambda: self._memory.handed, facts.bound)
        if made:
            self._overlaps.add(made)
        return made or None

    def forget(self) -> None:
        """Let the model's tensors go: what served them lies on circles, and is gone much later."""
        for overlap in self._overlaps:
            overlap.forget()

    @property
    def binder(self) -> Calls:
        """The binder of the calls. Raises ConfigError before the first."""
        if self._binder is None:
            raise ConfigError("capture before the first call; call the model or warmup() first")
        return self._binder

    @property
    def nbytes(self) -> int:
        """Bytes of our own buffers, so far."""
        made = [self._owned] if self._owned is not None else []
        return sum(buffers.nbytes for buffers in (*made, *self._unlisted.values()))

    def refuse_lost_writes(self, facts: Facts | None, t: Any, args: Any, kwargs: Any) -> None:
        """Bind again, which raises, when a capture found writes to what was bound as a copy."""
        if facts is None or not facts.mutated:
            return
        given = self.binder.raw(*args, **kwargs)
        if any(t[place] is not given[place] for place in facts.mutated):
            self.binder.bind(*args, **kwargs)

    def buffers(self, captured: Sizes) -> tuple[torch.Tensor, ...]:
        """Our own, at a captured size; none where graphs read the caller's."""
        return () if self.static else self._own(captured).views(captured)

    def of(self, captured: Sizes, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """What the graphs of a captured size read: our buffers, or the caller's ``tensors``."""
        return tensors if self.static else self._own(captured).views(captured)

    def source(
        self,
        program: Replayable,
        captured: Sizes,
        tensors: Sequence[torch.Tensor] | None,
        bound: Sequence[torch.Tensor],
        sizes: Sizes,
    ) -> Source:
        """What to capture, with a call's ``tensors``, of ``sizes``, staged if there are any."""
        inputs = self._fixed(tensors) if self.static else self._own(captured)
        stage = self._in_order(inputs.stage(captured))
        views = inputs.views(captured)
        if tensors is not None:
            stage(tensors, sizes)
            if sizes != captured:
                repeat_rows(views, tensors)
        recording = program.recording(captured, views, bound)
        made = left_out(recording, captured, self.shared, len(bound))
        return Source(
            made.build,
            views,
            made.bound,
            made.written,
            stage,
            made.recorder,
            owned=not self.static,
            at=addresses(bound),
            like=self._like,
        )

    def _in_order(self, stage: Stage) -> Stage:
        """``stage``, which begins a replay, behind what earlier ones still do on other streams."""
        in_order = self._memory.in_order
        if in_order is None:
            return stage

        def staged(tensors: Sequence[torch.Tensor], own: Sizes) -> None:
            in_order()
            stage(tensors, own)

        return staged

    def _fixed(self, tensors: Sequence[torch.Tensor] | None) -> FixedInputs:
        if tensors is None:
            raise ConfigError(
                'inputs="static" captures at the first call of each size, since warm-up has no '
                "tensors of that size"
            )
        return FixedInputs(self.binder.structure, tensors)

    def _own(self, captured: Sizes) -> OwnedInputs:
        """One allocation for all listed sizes; a size that nobody listed has its own."""
        structure, stager = self.binder.structure, self._memory.platform.stager
        if captured not in self._captures:
            found = self._unlisted.get(captured)
            if found is None:
                found = self._unlisted[captured] = OwnedInputs(structure, (captured,), stager)
            return found
        if self._owned is None:
            self._owned = OwnedInputs(structure, self._captures, stager)
        return self._owned
