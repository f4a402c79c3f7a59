"""Calls of a recorded function whose tensors are not as those that it was recorded with.

They lie otherwise in memory, are Parameters, need gradients: whatever Python or torch may ask. A
recording answers as its own buffers did. So the first call of each kind runs as it is, and what it
did is compared with what the recorded run did (`capture.course`).
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.capture.copied_outputs import outside_inference
from piecewise_core.capture.course import Course, Following
from piecewise_core.capture.modes import DataInSteps
from piecewise_core.frontend.recordings import Recordings
from piecewise_core.frontend.results import result_code, tensors_in
from piecewise_core.graph.binder import Binder
from piecewise_core.ranges import Sizes
from piecewise_core.replay.replayable import Entry
from piecewise_core.replay.views import shares
from piecewise_core.targets import Target

__all__ = ["LaidOtherwise"]

logger = logging.getLogger(__name__)

_MOST = 1024
"""Kinds of calls that are remembered."""


class LaidOtherwise:
    """Serves such calls: by replay where the function does the same for them, else as it is.

    ``eagerly``: runs a call as it is, and counts it.
    """

    def __init__(self, recordings: Recordings, binder: Binder, eagerly: Entry) -> None:
        self._made = recordings
        self._binder = binder
        self._eagerly = eagerly
        self._said = False
        self._known: dict[Any, tuple[Callable[[], Course | None], bool]] = {}

    def entry(self, targets: Sequence[Target], place: int, served: Entry) -> Entry:
        """What serves a call that goes to ``served``, the entry at ``place``."""
        captured = targets[place].capture if 0 <= place < len(targets) else None
        return served if captured is None else partial(self._serve, captured, served)

    def _serve(
        self, captured: Sizes, served: Entry, t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any
    ) -> Any:
        recorded = self._made.course(captured, served, t, sizes)
        if recorded is None or self._made.asks_modes.differ():
            return self._eagerly(t, b, sizes, args, kwargs)
        # A view has to be one of the call's own tensor, which ``t`` may hold a copy of.
        if shares(self._made.replays.reads.shared.get(captured, {})):
            return self._eagerly(t, b, sizes, args, kwargs)
        raw = self._binder.raw(*args, **kwargs)
        key = captured, sizes, self._form(raw)
        course, same = self._known.get(key, (_unknown, False))
        if course() is not recorded:  # not known, or recorded anew since
            own, result = self._followed(raw, t, b, sizes, args, kwargs)
            same = recorded.is_like(own)
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[key] = weakref.ref(recorded), same
            if not same:
                self._report(raw)
            return result
        serve = served if same else self._eagerly
        return serve(t, b, sizes, args, kwargs)

    def _form(self, raw: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        """All that tells one kind of call from another."""
        offset = "offset" in self._binder.asked
        places = [id(tensor) for tensor in raw]
        twins = tuple(map(places.index, places))
        return twins, *(
            (
                type(t),
                t.stride(),
                t.storage_offset() if offset else 0,
                t.requires_grad,
                t.is_leaf,
                t.is_inference(),
                t.is_conj(),
                t.is_neg(),
                *sorted(vars(t)),
            )
            for t in raw
        )

    def _followed(
        self, raw: Sequence[torch.Tensor], t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any
    ) -> tuple[Course, Any]:
        """Run a call as it is; what it did, and its result."""
        course, objects = Course(raw), self._made.objects
        # In inference mode operators come whole, not as what autograd would make of them.
        with torch.inference_mode(), Following(course), DataInSteps():
            result = self._eagerly(t, b, sizes, args, kwargs)
        course.returned(result)
        if torch.is_inference_mode_enabled():
            return course, result
        code = result_code(result, raw, objects)
        return course, code.rebuild(outside_inference(tensors_in(result, objects)), raw, ())

    def _report(self, raw: Sequence[torch.Tensor]) -> None:
        """Log it, once as a warning."""
        laid = ", ".join(str(tuple(x.stride())) for x in raw)
        logger.log(
            logging.DEBUG if self._said else logging.WARNING,
            "the recorded function does something else for tensors that lie otherwise than those "
            "that it was recorded with (strides %s): such calls run as written",
            laid,
        )
        self._said = True


def _unknown() -> None:
    """Stands for the course of what was never compared."""
