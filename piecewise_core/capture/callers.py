"""Whose the outputs of replays are: the next replay overwrites them, whichever thread asks for it.

One thread knows what it still reads when it calls again. Of two threads neither does.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch

__all__ = ["Callers"]

logger = logging.getLogger(__name__)


class Callers:
    """Lets one thread have outputs as they are, and more than one only copies of their own.

    ``cloning``: whether outputs are copied before they are handed out. ``owner``: the thread that
    may replay without asking, 0 for none. Call everything under the model's lock. ``strict``: tell
    once of an output that is kept too long.
    """

    def __init__(self, *, cloning: bool, strict: bool = False) -> None:
        self.cloning = cloning
        self.owner = 0
        self.strict = strict and not cloning
        self._holder: threading.Thread | None = None
        self._refused = False
        self._last: list[weakref.ref[torch.Tensor]] = []
        self._older: list[weakref.ref[torch.Tensor]] = []

    def admit(self) -> bool:
        """Whether this thread may replay; else its call has to be served without graphs.

        A second thread may not while the first may be reading what it got last. When the first
        calls again it is done with that, and from then on both get copies.
        """
        if self.cloning:
            return True
        holder, me = self._holder, threading.current_thread()
        if holder is None or holder is me or not holder.is_alive():
            self._holder, self.owner = me, threading.get_ident()
            if self._refused:
                self.cloning, self.strict = True, False
            return True
        if not self._refused:
            self._refused, self.owner = True, 0
            logger.warning(
                "called from two threads, %s and %s: outputs are the graphs' memory, which the "
                "next replay overwrites. Calls of other threads run without graphs until %s calls "
                "again, then all threads get copies; set clone_outputs=True to have that from the "
                "start",
                holder.name,
                me.name,
                holder.name,
            )
        return False

    def handed(self, outputs: Iterable[Any]) -> Sequence[Any]:
        """For ``strict``: what to hand out for ``outputs``, and a look at what was before.

        An output of the call before last that is still there is told of. One of the last call
        proves nothing: ``y = model(x)`` in a loop holds it until the next call returns.
        """
        if any(ref() is not None for ref in self._older):
            self.strict = False
            logger.warning(
                "an output of an earlier call is still held, and replays since have overwritten "
                "it: use or copy outputs before the next call, or set clone_outputs=True"
            )
        mine = [o.view_as(o) if isinstance(o, torch.Tensor) else o for o in outputs]
        self._older = self._last
        self._last = [weakref.ref(o) for o in mine if isinstance(o, torch.Tensor)]
        return mine
