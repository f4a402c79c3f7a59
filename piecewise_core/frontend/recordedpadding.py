"""Calls of a recorded function that are padded: there is no trace to tell how to cut them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from piecewise_core.capture.calls import user_line
from piecewise_core.capture.copied_outputs import outside_inference
from piecewise_core.capture.course import Following
from piecewise_core.capture.modes import DataInSteps
from piecewise_core.frontend.recordedrun import RecordedRun
from piecewise_core.frontend.results import Padded, tensors_in
from piecewise_core.graph.padding.judge import cannot_pad
from piecewise_core.graph.padding.runs import Run, between
from piecewise_core.ranges import Sizes
from piecewise_core.replay.replayable import Alone, Entry, Rebuild

__all__ = ["PaddedRecording"]


class PaddedRecording:
    """Learns each size from one call that runs as it is, and serves the next by ``captured``.

    ``recorded``: the run that was captured, ``larger`` its operators; ``outputs``: what its replays
    give. ``eagerly``: runs a call as it is. ``report``: the log. ``rng``: gives the device's
    generator. ``compares``: whether results are compared at all.
    """

    checked = 0  # each size is compared when it is learned
    asks = True

    def __init__(
        self,
        recorded: RecordedRun,
        larger: Run,
        captured: Sizes,
        outputs: Sequence[Any],
        eagerly: Entry,
        report: Callable[[str], None],
        rng: Callable[[], Any] | None,
        *,
        compares: bool,
    ) -> None:
        self._recorded = recorded
        self._larger = larger
        self._captured = captured
        self._outputs = outputs
        self._eagerly = eagerly
        self._report = report
        self._rng = rng
        self._compares = compares
        self._known: dict[Sizes, Padded] = {}
        self._refused: set[Sizes] = set()

    def allows(self, sizes: Sizes) -> bool:
        """Whether nothing found so far is against it; what padding writes cannot be taken back."""
        return not self._recorded.writes and sizes not in self._refused

    def learns(self, sizes: Sizes) -> bool:
        """Whether no call of ``sizes`` ran yet."""
        return sizes not in self._known

    def alone(self, t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Alone:
        """Run a call as it is, once: what it returns is what padding must give."""
        raw = self._recorded.binder.raw(*args, **kwargs)
        objects = self._recorded.objects
        before = self._random_state()
        run = Run(raw, user_line)
        course = self._recorded.follow(sizes, raw)
        with run.noted(), Following(course), DataInSteps():
            result = self._eagerly(t, b, sizes, args, kwargs)
        course.returned(result)
        found = tensors_in(result, objects)
        run.returned(found)
        known = self._known[sizes] = Padded(result, raw, objects, sizes)
        after = self._random_state()
        drew = before is None or after is None or not torch.equal(before, after)
        if not known.fits(self._outputs, self._captured):
            self._refused.add(sizes)
        else:
            why = between(self._larger, run)
            if why is not None:
                self.refuse(sizes, cannot_pad(f"sizes {sizes}", why))
        if not torch.is_inference_mode_enabled():
            # It ran in that mode to be noted.
            result = known.code.rebuild(outside_inference(found), raw, ())
        comparable = self._compares and not drew
        return Alone(found, comparable, not run.rounds, serves=True, result=result)

    def made_at(self, place: int) -> str:
        """By the run that was captured."""
        return self._recorded.made_at(f"result {place}")

    def refuse(self, sizes: Sizes, why: str) -> None:
        """Calls of ``sizes`` run as they are."""
        self._refused.add(sizes)
        self._report(why)

    def cut(self, outputs: Sequence[Any], sizes: Sizes) -> tuple[Sequence[Any], Rebuild]:
        """As the call gave it that was learned from."""
        known = self._known[sizes]
        return known.cut(outputs), known.code.rebuild

    def _random_state(self) -> torch.Tensor | None:
        state: torch.Tensor | None = None if self._rng is None else self._rng().get_state()
        return state
