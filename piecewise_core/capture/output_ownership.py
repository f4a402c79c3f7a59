"""Whose the outputs of replays are: the next replay overwrites them, whichever thread asks for it.

One thread knows what it still reads when it calls again. Of two threads neither does.

A capture writes to the same memory as a replay does, and freeing graphs gives it away: who wants
either asks here first. So does a call from inside of a replay, by an operator or a callback of the
model's own: it would put its inputs over those that the replay in progress still reads.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from piecewise_core.errors import CaptureFailed

__all__ = ["IN_USE", "Methods", "OutputOwnership"]

logger = logging.getLogger(__name__)

IN_USE = -1
"""``owner`` while the graphs' memory is being written: no thread has this number."""


class Methods(threading.local):
    """``running``: how many methods of the model, ``generate()`` say, this thread is in."""

    running = 0


class OutputOwnership:
    """Lets one thread have outputs as they are, and more than one only copies of their own.

    ``cloning``: whether outputs are copied before they are handed out. ``owner``: the thread that
    may replay without asking, 0 for none, IN_USE while a replay or a capture is under way; whoever
    replays sets that and puts back what was there. Call everything under the model's lock.
    ``strict``: tell once of an output that is kept too long. ``methods``: of the model; what they
    keep of a call that they make nobody can copy for them.
    """

    def __init__(self, *, cloning: bool, strict: bool = False) -> None:
        self.cloning = cloning
        self.owner = 0
        self.strict = strict and not cloning
        self.methods = Methods()
        self._holder: threading.Thread | None = None
        self._refused = False
        self._last: list[weakref.ref[torch.Tensor]] = []
        self._older: list[weakref.ref[torch.Tensor]] = []

    def admit(self) -> bool:
        """Whether this thread may replay; else its call has to be served without graphs.

        A second thread may not while the first may be reading what it got last. When the first
        calls again it is done with that, and from then on both get copies. Nobody may from inside
        of a replay.
        """
        if self.owner == IN_USE:
            return False
        if self.cloning:
            return True
        if self.may_overwrite():
            self._holder, self.owner = threading.current_thread(), threading.get_ident()
            if self._refused or self.methods.running:
                self.cloning, self.strict = True, False
            return True
        holder = self._holder
        if not self._refused and holder is not None:
            self._refused, self.owner = True, 0
            logger.warning(
                "called from two threads, %s and %s: outputs are the graphs' memory, which the "
                "next replay overwrites. Calls of other threads run without graphs until %s calls "
                "again, then all threads get copies; set clone_outputs=True to have that from the "
                "start",
                holder.name,
                threading.current_thread().name,
                holder.name,
            )
        return False

    def ask_again(self) -> None:
        """A method of the model begins: where it calls the model, all get copies from then on."""
        if not self.cloning and self.owner == threading.get_ident():
            self.owner = 0

    def begin_anew(self) -> None:
        """In a forked process: whoever replayed or read outputs in its parent does not here."""
        self.owner, self._holder = 0, None

    def may_overwrite(self) -> bool:
        """Whether no other thread may be reading outputs: this one may capture, or free graphs."""
        if self.owner == IN_USE:
            return False
        holder = self._holder
        mine = holder is None or holder is threading.current_thread() or not holder.is_alive()
        return self.cloning or mine

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """The graphs' memory is written to inside: calls made from there are served without it."""
        owner, self.owner = self.owner, IN_USE
        try:
            yield
        finally:
            self.owner = owner

    @property
    def is_used(self) -> bool:
        """Whether a replay or a capture is under way, an operator of which made this call."""
        return self.owner == IN_USE

    def refuse_inside(self, what: str) -> None:
        """Raise CaptureFailed where a replay or a capture is under way: ``what`` would break it."""
        if self.is_used:
            raise CaptureFailed(
                f"{what} inside of a call that the same model's static graphs are serving, from an "
                "operator, a hook or a callback of its own; do that between calls"
            )

    def handed(self, outputs: Iterable[Any]) -> Sequence[Any]:
        """For ``strict``: what to hand out for ``outputs``, and a look at what was before.

        An output of the call before last that is still there is reported. One of the last call
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
