"""The forms of calls of a compiled model, for ``estimate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.counters import Counters
from piecewise_core.errors import ConfigError
from piecewise_core.frontend.capturing import Capturing
from piecewise_core.frontend.estimate import Estimate
from piecewise_core.frontend.estimating import estimate
from piecewise_core.frontend.form import Form
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.session import Session
from piecewise_core.frontend.setup import Setup
from piecewise_core.ranges import Sizes
from piecewise_core.replay.replayable import Replayable
from piecewise_core.replay.replays import Replays

__all__ = ["estimate_of"]


def estimate_of(session: Session, sizes: Sequence[Any] | None) -> Estimate:
    """What static graphs of ``sizes`` would take. Raises ConfigError and NotTraced."""
    if session.shared.memory is None:
        raise ConfigError(
            "estimate(): this model captures no static graphs; set capture_sizes, or graph_mode, "
            f"on a platform that has them (this is {session.setup.selected.info.name!r})"
        )
    forms = [_OfForm(form) for form in session.forms if not form.model.waits]
    return estimate(session.shared.setup, forms, sizes, session.lock)


class _OfForm:
    """A Subject."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._regions: dict[Sizes, Region] = {}
        self._capturing: Capturing | None = None

    def prepare(self, sizes: Sequence[Sizes]) -> None:
        self._regions = {each: self._form.region_for(each) for each in sizes}
        for region in self._regions.values():
            self._form.exactness.known(region)  # as before a capture: other code takes other memory

    def begin(self, setup: Setup, memory: GraphMemory) -> Replays:
        self._capturing = Capturing(setup, Counters(), memory, ranks=self._form.shared.ranks)
        self._capturing.replays.begin(self._form.binder)
        return self._capturing.replays

    def end(self) -> None:
        self._capturing = None

    def programs(self) -> Mapping[Sizes, Replayable]:
        made = self._capturing
        return {s: made.program(r) for s, r in self._regions.items()} if made is not None else {}

    def bound(self) -> Sequence[torch.Tensor]:
        return self._form.bound()
