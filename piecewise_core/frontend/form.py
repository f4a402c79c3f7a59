"""One form of calls of a callable: its binder, regions, parameters and plans."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.errors import NotTraced, Sealed, TraceFailed, UnsupportedSideEffect
from piecewise_core.frontend.building import Unready
from piecewise_core.frontend.capturing import Capturing
from piecewise_core.frontend.coverage import out_of_range
from piecewise_core.frontend.dispatch import Dispatch
from piecewise_core.frontend.exactness import Exactness
from piecewise_core.frontend.modelstate import ModelState
from piecewise_core.frontend.refusals import ANOTHER_MODEL
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.regions import Regions
from piecewise_core.frontend.shared import Shared
from piecewise_core.frontend.suspects import FormSubject
from piecewise_core.frontend.verifying import Verifier
from piecewise_core.graph.formbinder import FormBinder
from piecewise_core.graph.structure import Structure
from piecewise_core.ranges import Sizes
from piecewise_core.torch_compat.dynamo import compile_lock

__all__ = ["Form"]

logger = logging.getLogger(__name__)


class Form:
    """Serves the calls that have one structure.

    ``bind(*args, **kwargs)`` checks a call and picks its tensors and sizes out. Where the call does
    not fit it raises, or returns None if there are other forms (``share``). ``model``: what traces
    rest on. ``new``: how these calls differ from those known before, or "". ``give_up(form)``: what
    is done where it serves nobody. ``warm(form)``: warms it up, first of all if ``to_warm``.
    ``fills``: whether a changed model may fill a memo next. ``filling``: what was just filled,
    ``filled`` times. ``alone``: whether sizes are traced by themselves.
    """

    def __init__(
        self,
        shared: Shared,
        structure: Structure,
        new: str,
        give_up: Callable[[Form], None],
        warm: Callable[[Form], None],
    ) -> None:
        setup, config = shared.setup, shared.config
        self.shared, self.structure, self.new = shared, structure, new
        self._give_up, self._warm_up = give_up, warm
        self.binder = FormBinder(
            structure,
            alignment=setup.platform.capabilities.alignment,
            static=config.inputs == "static",
            check=config.check != "off",
            on_restride=lambda: shared.counters.add("restrided"),
        )
        self._alone = True
        self.bind: Callable[..., Any] = self.binder.bind
        self.regions = Regions(shared)
        self.model = ModelState(shared, structure, self.regions)
        self.binder.matters = self.model.layout_matters
        self.exactness = Exactness(shared, self.binder, self.bound)
        self.capturing: Capturing | None = None
        if shared.memory is not None:
            settle = self.exactness.known
            graphs = setup, shared.counters, shared.memory
            self.capturing = Capturing(*graphs, settle=settle, ranks=shared.ranks)
            self.capturing.replays.begin(self.binder)
        self.verifier: Verifier | None = None
        if config.check == "verify":
            subject = FormSubject(shared, self.binder, self.capturing)
            self.verifier = Verifier(config, shared.counters, subject, shared.ranks)
        self.dispatch = Dispatch(
            config, shared.counters, shared.background, self._miss, self.capturing, self.verifier
        )
        self.dispatch.ranks, self.dispatch.raw = shared.ranks, self.binder.raw
        self.fills = self.to_warm = self.alone = False
        self.filling: tuple[str, ...] = ()
        self.filled = 0
        self.seal()
        self._settle()

    def share(self, *, alone: bool) -> None:
        """Whether this is the only form: else a call that does not fit is no error."""
        self._alone = alone
        self.bind = self.binder.bind if alone else self.binder.fits

    def seal(self) -> None:
        """Take over whether a trace, compilation or capture is an error from now on."""
        self.dispatch.sealed = self.shared.sealed
        if self.capturing is not None:
            self.capturing.replays.sealed = self.shared.sealed

    def forget(self, why: str = "") -> None:
        """Drop every trace; the counters stay. Raises Sealed, and CaptureFailed inside a replay."""
        if self.shared.sealed == "error":
            what = why or ANOTHER_MODEL
            raise Sealed(f"{what} after seal(); the model would have to be traced again")
        if self.capturing is not None:
            self.capturing.plans.callers.refuse_inside("the model would be traced again")
        self.fills |= bool(self.regions)
        self.regions.forget()
        self.model.forget()
        if self.verifier is not None:
            self.verifier.forget()

    def install(self) -> None:
        """Make the look-up anew: what serves some sizes has changed."""
        self.dispatch.install(self.shared.config.hull, self.regions)

    def bound(self) -> tuple[torch.Tensor, ...]:
        """The tensors that the model holds, read anew; graphs and traces that do not fit go."""
        if self.model.waits:
            raise NotTraced("the objects of these calls are gone; call the model with others first")
        return self.rebound() if (found := self.model.read()) is None else found

    def rebound(self) -> tuple[torch.Tensor, ...]:
        """A held tensor was replaced or moved: take the new ones, or trace anew. Raises Sealed."""
        if self.capturing is not None and self.capturing.plans:
            # Graphs read the old memory. They serve no more; restore() or warmup() brings new ones.
            self.release(later=True)
        if self.model.rebind():
            return self.model.read() or ()
        self.forget()
        self._settle()
        return ()

    def is_stale(self) -> bool:
        """Whether the model must be traced again; ``rebound`` alone reads what was rebound."""
        return not self.model.waits and self.model.read() is None and not self.model.regained()

    def _settle(self) -> None:
        self.install()
        self.model.settle()

    def state_changed(self) -> bool:
        """Something that traces read was written to: whether they are gone for it."""
        if (why := self.model.look_again()) is not None:
            self.retrace(why)
            self.shared.counters.retraced(why)
        return why is not None

    def retrace(self, why: str) -> None:
        """Drop traces and graphs; the next call makes new ones. Raises Sealed."""
        self.forget(why)
        self.shared.retraced = why
        logger.info("traced again: %s", why)
        if self.capturing is not None:
            self.capturing.plans.release(later=True)
        self._settle()
        self.shared.ranks.own_up()

    def release(self, sizes: Sequence[Sizes] | None = None, *, later: bool = False) -> list[Sizes]:
        """Free graph memory, all or of ``sizes``, until they wake. ``later``: inside of a call."""
        if self.capturing is None:
            return []
        freed = self.capturing.replays.release(sizes, later=later, collect=not later)
        self.install()
        self.shared.ranks.own_up()
        return freed

    def capture_all(self, sizes: Sequence[Sizes] | None = None) -> list[Sizes]:
        """Capture ``sizes``, or all, the largest first; returns those now served by graphs."""
        if self.capturing is None or self.model.waits:
            return []
        bound = self.bound()
        self.dispatch.meet(self.regions)
        return self.capturing.capture_all(self.regions, bound, sizes)

    def wake(self, sizes: Sequence[Sizes] | None = None) -> None:
        """Have ``sizes``, or all, captured again, by ``capture_all`` or their next call."""
        if self.capturing is not None and self.capturing.replays.asleep:
            self.capturing.replays.asleep.end(sizes, self.shared.config.captures)
            self.install()

    def _miss(self, t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        """Serves sizes that no target holds: not traced yet, or out of bounds."""
        config = self.shared.config
        if sizes in config.bounds:
            self.held_region(sizes)
        padded = config.padded_up(sizes) if self.capturing is not None else None
        if padded is not None and self.regions.holding(padded) is None:
            self.held_region(padded)  # which may have a target for these sizes
        if config.out_of_range == "eager":
            self.dispatch.tallies.of("eager")[sizes] += 1
            return self.shared.fn(*args, **kwargs)
        if config.out_of_range == "general" and sizes in self.regions.outer_bounds:
            return self.dispatch.beyond(self.held_region(sizes), t, b, sizes, args, kwargs)
        raise out_of_range(config, sizes)

    def region_for(self, sizes: Sizes) -> Region:
        """The region that holds ``sizes``, traced now if it is not yet."""
        return self.shared.once_ready(partial(self.held_region, sizes))

    def held_region(self, sizes: Sizes) -> Region:
        """The region that holds ``sizes``. Raises Unready where that has to be traced."""
        if (region := self.regions.holding(sizes)) is not None:
            return region
        if self.model.is_outgrown and self.shared.sealed != "error":
            raise Unready(("signature", self), partial(self._give_up, self))
        if self.to_warm:
            raise Unready(("warm-up", self), partial(self._warm_up, self))
        raise Unready(("trace", self), partial(self._trace, sizes))

    def _trace(self, sizes: Sizes) -> None:
        """Trace the region of ``sizes``; dropped if the model changed while it was traced."""
        with self.shared.lock:
            if self.shared.memory is not None:
                self.shared.memory.open_pool()
            regions, version, before = self.regions, self.model.version, self.model.now()
            parameters = self.model.parameters.copy()
            if regions.holding(sizes) is not None:
                return
        try:
            with compile_lock:
                alone, once = self.alone, self.filling
                made = regions.make(self.structure, sizes, parameters, alone=alone, once=once)
                if self.capturing is not None:
                    self.capturing.padded.of(made)  # runs the program on symbols
        except TraceFailed as error:
            with self.shared.lock:
                fills = isinstance(error, UnsupportedSideEffect) and error.undo
                if not self.regions and self.model.version == version and not fills:
                    self._give_up(self)
            raise
        with self.shared.lock:
            if self.model.is_as_traced(made, version, before):
                self.model.parameters = parameters
                self.admit(made)
            else:
                self.shared.give_back(made.index)

    def admit(self, region: Region) -> None:
        """Serve from one region more."""
        self.regions.admit(region)
        self.fills = False
        self.binder.admit(region.program, self.regions.hold)
        self.share(alone=self._alone)
        self.install()
        self.model.watch(region.program.traced)
