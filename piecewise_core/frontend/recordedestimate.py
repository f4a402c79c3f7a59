"""One form of calls of a recorded function, for ``estimate``: it is run at the sizes to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.frontend.recordedcalls import RecordedCalls
from piecewise_core.frontend.recordings import Recordings
from piecewise_core.frontend.setup import Setup
from piecewise_core.ranges import Sizes
from piecewise_core.replay.replayable import Replayable
from piecewise_core.replay.replays import Replays

__all__ = ["RecordedSubject"]


class RecordedSubject:
    """A Subject."""

    def __init__(self, form: RecordedCalls) -> None:
        self._form = form
        self._sizes: Sequence[Sizes] = ()
        self._made: Recordings | None = None

    def prepare(self, sizes: Sequence[Sizes]) -> None:
        self._sizes = sizes

    def begin(self, setup: Setup, memory: GraphMemory) -> Replays:
        self._made = self._form.beside(setup, memory)
        return self._made.replays

    def end(self) -> None:
        self._made = None

    def programs(self) -> Mapping[Sizes, Replayable]:
        made = self._made
        return {} if made is None else dict.fromkeys(self._sizes, made)

    def bound(self) -> Sequence[torch.Tensor]:
        return ()
