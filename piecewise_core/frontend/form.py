"""One form of calls of a callable: its binder, regions, parameters and plans."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.errors import OutOfRange, Sealed, TraceFailed, UnsupportedSideEffect
from piecewise_core.frontend.building import Unready
from piecewise_core.frontend.capturing import Capturing
from piecewise_core.frontend.coverage import out_of_range
from piecewise_core.frontend.dispatch import Dispatch
from piecewise_core.frontend.layoutjudge import LayoutJudge
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.regions import Regions
from piecewise_core.frontend.shared import Shared
from piecewise_core.frontend.suspects import FormSubject
from piecewise_core.frontend.verifying import Verifier
from piecewise_core.graph.binder import Binder
from piecewise_core.graph.call import constants
from piecewise_core.graph.lying import Lying
from piecewise_core.graph.questions import FACTS, IDENTITY
from piecewise_core.graph.structure import Structure, TensorLeaf, objects_in
from piecewise_core.graph.trace import Traced
from piecewise_core.ranges import Sizes
from piecewise_core.runtime.closure_walk import reach
from piecewise_core.runtime.parameters import Parameters
from piecewise_core.runtime.tracestate import TraceState
from piecewise_core.torch_compat.dynamo import compile_lock

__all__ = ["Form"]

logger = logging.getLogger(__name__)


class Form:
    """Serves the calls that have one structure.

    ``bind(*args, **kwargs)`` checks a call and picks its tensors and sizes out. Where the call does
    not fit it raises, or returns None if there are other forms (``share``). ``read()`` gives the
    model's tensors, or None where they have to be bound anew; ``state()`` is 0 while nothing that
    traces read was written to. ``new``: how these calls differ from those known before, or "".
    ``give_up``: is told of a form whose first call failed. ``warm``: warms it up.
    ``fills``: whether the model, traced before and changed, may fill a memo at its next forward.
    ``to_warm``: whether the first call warms the form up. ``filling``: whether a forward as written
    has just filled a memo, ``alone``: and the call's sizes are traced by themselves. ``filled``:
    how often that was.
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
        self.shared = shared
        self.structure = structure
        self.new = new
        self._give_up = give_up
        self._warm_up = warm
        self._checked = config.check != "off"
        self.binder = Binder(
            structure,
            alignment=setup.platform.capabilities.alignment,
            static=config.inputs == "static",
            check=self._checked,
            on_restride=lambda: shared.counters.add("restrided"),
        )
        self.binder.matters = self._layout_matters
        self._alone = True
        self.bind: Callable[..., Any] = self.binder.bind
        self._regions = Regions(shared)
        self.capturing: Capturing | None = None
        if shared.memory is not None:
            self.capturing = Capturing(setup, shared.counters, shared.memory)
            self.capturing.begin(self.binder)
        self.verifier: Verifier | None = None
        if config.check == "verify":
            subject = FormSubject(shared, self.binder, self.capturing)
            self.verifier = Verifier(config, shared.counters, subject)
        self.dispatch = Dispatch(
            config, shared.counters, shared.background, self._miss, self.capturing, self.verifier
        )
        self.dispatch.raw = self.binder.raw
        self.fills = self.to_warm = self.alone = self.filling = False
        self.filled = 0
        # Of what traces go by: what was begun under another one is dropped.
        self._version = 0
        self._begin_anew()
        self.seal()
        self._settle()

    @property
    def regions(self) -> list[Region]:
        """The regions so far."""
        return self._regions.known

    def share(self, *, alone: bool) -> None:
        """Whether this is the only form: among several, a call that does not fit is no error."""
        self._alone = alone
        self.bind = self.binder.bind if alone else self.binder.fits

    def seal(self) -> None:
        """Take over whether a trace, compilation or capture is an error from now on."""
        self.dispatch.sealed = self.shared.sealed
        if self.capturing is not None:
            self.capturing.replays.sealed = self.shared.sealed

    # What the model holds --------------------------------------------------------------

    def forget(self, why: str = "") -> None:
        """Drop every trace; the counters stay. Raises Sealed."""
        if self.shared.sealed == "error":
            what = why or (
                "a parameter changed its dtype, device, shape or strides, or the model's training "
                "mode or modules changed,"
            )
            raise Sealed(f"{what} after seal(); the model would have to be traced again")
        self.fills |= bool(self.regions)
        self._regions.forget()
        self._version += 1
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Know nothing of the model."""
        self.shared.follow()
        self._judge = LayoutJudge(self.shared.fn, self.shared.config)
        self._watched = TraceState(self.shared.setup.selected.info.device_type)
        self.state: Callable[[], int] = _unchanged
        if self.verifier is not None:
            self.verifier.forget()
        self.parameters = self._held()
        self.read: Callable[[], tuple[torch.Tensor, ...] | None] = tuple

    def _held(self) -> Parameters:
        """What the model holds, its calls' constant objects included; no tensors yet."""
        found = reach(self.shared.fn, objects_in(self.structure))
        return Parameters(
            found.roots,
            found.called,
            found.anchors,
            found.objects,
            checked=self._checked,
            every=self.capturing is not None,
        )

    def install(self) -> None:
        """Make the look-up anew: what serves some sizes has changed."""
        self.dispatch.install(self.shared.config.hull, self.regions)

    def bound(self) -> tuple[torch.Tensor, ...]:
        """The tensors that the model holds, read anew; graphs and traces that do not fit go."""
        found = self.read()
        return self.rebound() if found is None else found

    def rebound(self) -> tuple[torch.Tensor, ...]:
        """A held tensor was replaced or moved: take the new ones, or trace anew. Raises Sealed."""
        if self.capturing is not None and len(self.capturing.plans):
            # Graphs read the old memory. They serve no more; restore() or warmup() brings new ones.
            self.release(later=True)
        if self.parameters.rebind():
            self._version += 1
            self.read = self.parameters.read
            return self.read() or ()
        self.forget()
        self._settle()
        return ()

    def is_stale(self) -> bool:
        """Whether the model has changed so that it must be traced again."""
        return self.read() is None and not self.parameters.rebind()

    def _settle(self) -> None:
        self.install()
        self.parameters.settle()
        self.read = self.parameters.read
        if self._checked:
            self.state = self._watched.check

    def state_changed(self) -> bool:
        """Something that traces read was written to: whether they are gone for it."""
        why = self._watched.look_again()
        self.state = self._watched.check
        if why is not None:
            if self._watched.switched:
                self.shared.scheduler.forget()
            self.shared.kept &= not self._watched.beyond_facts
            self.retrace(why)
            self.shared.counters.add("retraces")
        return why is not None

    def retrace(self, why: str) -> None:
        """Drop traces and graphs; the next call makes new ones. Raises Sealed."""
        self.forget(why)
        self.shared.retraced = why
        logger.info("traced again: %s", why)
        if self.capturing is not None:
            self.capturing.plans.release(later=True)
        self._settle()

    # Graph memory ----------------------------------------------------------------------

    def release(self, *, later: bool = False) -> list[Sizes]:
        """Free all graph memory; sizes are served without graphs until they are captured again.

        ``later``: in the middle of a call, whose inputs may lie in it.
        """
        if self.capturing is None:
            return []
        freed = self.capturing.replays.release(later=later)
        self.install()
        return freed

    def capture_all(self) -> list[Sizes]:
        """Capture every capture size, the largest first; returns those now served by graphs."""
        if self.capturing is None:
            return []
        bound = self.bound()
        if self.capturing.replays.released:
            self.capturing.replays.released = False
            self.install()
        return self.capturing.capture_all(self.regions, bound)

    # Other sizes -----------------------------------------------------------------------

    def _miss(self, t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        """Serves sizes that no target holds: not traced yet, or out of bounds."""
        config = self.shared.config
        if sizes in config.bounds:
            self.held_region(sizes)
        padded = config.padded_up(sizes) if self.capturing is not None else None
        if padded is not None and self._regions.holding(padded) is None:
            self.held_region(padded)  # which may have a target for these sizes
        if config.out_of_range == "eager":
            self.shared.counters.calls["eager"] += 1
            return self.shared.fn(*args, **kwargs)
        if config.out_of_range == "general" and sizes in self._regions.outer_bounds:
            return self.dispatch.beyond(self.held_region(sizes), t, b, sizes, args, kwargs)
        raise OutOfRange(out_of_range(config, sizes))

    # Regions ---------------------------------------------------------------------------

    def region_for(self, sizes: Sizes) -> Region:
        """The region that holds ``sizes``, traced now if it is not yet."""
        return self.shared.once_ready(partial(self.held_region, sizes))

    def held_region(self, sizes: Sizes) -> Region:
        """The region that holds ``sizes``. Raises Unready where that has to be traced."""
        region = self._regions.holding(sizes)
        if region is not None:
            return region
        if self.to_warm:
            raise Unready(("warm-up", self), self._warm)
        raise Unready(("trace", self), partial(self._trace, sizes))

    def _warm(self) -> None:
        """What ``compile_mode="warmup"`` does at the first call."""
        self.to_warm = False
        self._warm_up(self)

    def _trace(self, sizes: Sizes) -> None:
        """Trace the region of ``sizes``; dropped if the model changed while it was traced."""
        with self.shared.lock:
            if self.shared.memory is not None:
                self.shared.memory.open_pool()
            regions, version = self._regions, self._version
            parameters = self.parameters.copy()
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
                if not self.regions and self._version == version and not fills:
                    self._give_up(self)
            raise
        with self.shared.lock:
            if self._version == version:
                self.parameters = parameters
                self._admit(made)
            else:
                self.shared.give_back(made.index)

    def uncovered(self, without: Sequence[Sizes] = ()) -> Sizes | None:
        """Some sizes in bounds that no region holds yet; None when all are held.

        ``without``: sizes that do not count.
        """
        return self._regions.uncovered(without)

    def _admit(self, region: Region) -> None:
        """Serve from one region more."""
        self._regions.admit(region)
        self._version += 1
        self.fills = False
        self.binder.mutated |= region.program.mutated
        if region.program.traced.asks_layout:
            self.binder.exactly()
        self.binder.expect(_facts(region.program.traced.words))
        self.binder.refuses = True
        self.share(alone=self._alone)
        if self._checked:
            traced, objects = region.program.traced, constants(self.structure)
            self._watched.add(traced.assumptions, self.shared.fn, objects, traced.words)
        self._settle()

    def adopt(self, bound: Iterable[torch.Tensor], traces: Iterable[Traced]) -> None:
        """Take what another process traced, in place of tracing it here.

        ``bound``: the tensors that the model holds, in the order in which they were bound there.
        """
        if self.shared.memory is not None:
            self.shared.memory.open_pool()
        for tensor in bound:
            self.parameters.add(tensor)
        for traced in traces:
            self._admit(self._regions.take(traced))

    def _layout_matters(self, leaf: TensorLeaf, lying: Lying) -> bool:
        """Whether the model does something else where an input lies so."""
        boxes = [r.general_box for r in self.regions if r.program.traced.asks_layout]
        may_trace = self.shared.sealed is None and not self.shared.setup.is_capturing()
        structure, judge = self.binder.structure, self._judge
        return judge.matters(structure, boxes, leaf, lying, self._binding, may_trace=may_trace)

    def _binding(self) -> Callable[[torch.Tensor], int]:
        """Binds tensors for a trace that nothing is served from."""
        return self.parameters.copy().add


def _unchanged() -> int:
    """Stands in for a check while there is nothing to check."""
    return 0


def _facts(words: Collection[str]) -> frozenset[str]:
    """What calls must answer as the traced one, since code names the question."""
    found = {kind for kind, names in FACTS.items() if names & {*words}}
    return frozenset(found | {"apart"} if IDENTITY in words else found)
