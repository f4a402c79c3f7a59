"""One compiled callable: from the first call's structure to regions, one look-up per call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch

from piecewise_core.capture.modes import being_watched
from piecewise_core.compile.scheduler import Scheduler
from piecewise_core.compile.store.protocol import Store
from piecewise_core.config import Config
from piecewise_core.counters import Counters, Stats, process_counters
from piecewise_core.errors import (
    InputMismatch,
    NotTraced,
    OutOfRange,
    Sealed,
    TraceFailed,
    UnsupportedSideEffect,
)
from piecewise_core.frontend.ahead import capture_all, compile_all, release
from piecewise_core.frontend.background import Background
from piecewise_core.frontend.building import Builds, Unready, between_builds
from piecewise_core.frontend.capturing import Capturing
from piecewise_core.frontend.cells import out_of_range
from piecewise_core.frontend.dispatch import Dispatch
from piecewise_core.frontend.layoutjudge import LayoutJudge
from piecewise_core.frontend.refusals import check_grad, need_grad, refuse_autocast
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.regions import Regions
from piecewise_core.frontend.setup import Setup
from piecewise_core.frontend.suspects import SessionSubject
from piecewise_core.frontend.verifying import Verifier
from piecewise_core.graph.binder import AnotherLayout, Binder
from piecewise_core.graph.call import constants
from piecewise_core.graph.describe import bind_arguments, describe_call
from piecewise_core.graph.lying import Lying
from piecewise_core.graph.memory import values
from piecewise_core.graph.structure import Structure, TensorLeaf, objects_in
from piecewise_core.graph.torch_private import any_autocast, compile_lock
from piecewise_core.graph.trace import Traced
from piecewise_core.ranges import Sizes
from piecewise_core.runtime.parameters import Parameters
from piecewise_core.runtime.reach import reach, roots_of
from piecewise_core.runtime.tracestate import TraceState

__all__ = ["Session"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Session:
    """Runs ``fn`` through compiled plans.

    ``fn``: the callable as the user wrote it; also what the ``eager`` target calls. ``setup``:
    config, platform and compiler. ``front``: where compiled pieces are looked for first. One call
    at a time: a lock serialises threads, but not while one traces or compiles (`building`).
    """

    def __init__(self, fn: Callable[..., Any], setup: Setup, front: Store | None = None) -> None:
        self.fn = fn
        self.setup = setup
        self.config: Config = setup.config
        self.counters = Counters()
        process_counters.watch(self.counters)
        keeper = setup.keeper(front)
        self.scheduler = Scheduler(
            setup.compiler, self.config, self.counters, setup.passes, setup.is_capturing, keeper
        )
        self._regions = Regions(fn, setup, self.scheduler, keeper, self.counters)
        self.structure: Structure | None = None
        self.lock = threading.RLock()
        self.builds = Builds(self.lock)
        # Of what traces go by: what was begun under another one is dropped.
        self._version = 0
        self._to_warm = False
        self._checked = self.config.check != "off"
        self._bind: Callable[..., Any] = self._first
        background = Background(setup, keeper) if self.config.compile_mode == "background" else None
        self.capturing = Capturing(setup, self.counters) if setup.graph_mode != "none" else None
        self.verifier: Verifier | None = None
        if self.config.check == "verify":
            self.verifier = Verifier(self.config, self.counters, SessionSubject(self))
        self.dispatch = Dispatch(
            self.config, self.counters, background, self._miss, self.capturing, self.verifier
        )
        self.retraced = ""
        self._fills = False
        self._said_layout = False
        self._forget_regions()

    @property
    def regions(self) -> list[Region]:
        """The regions so far."""
        return self._regions.known

    @property
    def unmet(self) -> tuple[str, ...]:
        """The splitting ops that no graph so far has."""
        return self._regions.unmet

    # The hot path ----------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one call. Raises the errors of the group "Call"."""
        with self.lock:
            tensors: Any = ()
            try:
                try:
                    tensors, sizes = self._bind(*args, **kwargs)
                except AnotherLayout as error:
                    return self._as_written(error, args, kwargs)
                except (InputMismatch, TypeError) as error:
                    tensors, sizes = self._bind_anew(error, args, kwargs)
                bound = self._read()
                if bound is None:
                    bound = self._rebound()
                if self._state() and self._state_changed():
                    bound = ()
                if torch.is_grad_enabled():
                    self._check_grad(tensors)
                if any_autocast():
                    refuse_autocast()
                if being_watched():
                    # Compiled kernels and graphs would not get into the recording.
                    self.counters.calls["eager"] += 1
                    return self.fn(*args, **kwargs)
                dispatch = self.dispatch
                return dispatch.serving[dispatch.find(*sizes)](tensors, bound, sizes, args, kwargs)
            except Unready as missing:
                unready = missing.with_traceback(None)  # it would keep this call's tensors
                self._uncount(tensors, args, kwargs)
        return self._once_built(unready, args, kwargs)

    def _uncount(self, tensors: Any, args: Any, kwargs: Any) -> None:
        """A call that was bound comes again: the copies of its inputs are counted then."""
        given = self.binder.raw(*args, **kwargs) if tensors else ()
        copies = sum(a is not b for a, b in zip(tensors, given, strict=True))
        if copies:
            self.counters.add("restrided", -copies)

    def _once_built(self, unready: Unready, args: Any, kwargs: Any) -> Any:
        """Have built what a call lacks, and make it again: more may be lacking."""
        unknown = not self.regions
        try:
            self.builds.have(unready)
        except UnsupportedSideEffect:
            # A model that was traced before and changed may fill a memo at its next forward, as a
            # recurrent layer does for replaced weights: once as written, then it is traced.
            with self.lock:
                if not self._fills:
                    raise
                self._fills = False
                self.counters.calls["eager"] += 1
                return self.fn(*args, **kwargs)
        try:
            return self(*args, **kwargs)
        except (InputMismatch, torch.OutOfMemoryError):  # which do not say that its form is wrong
            raise
        except Exception:
            with self.lock:
                if unknown:
                    self._start_over()
            raise

    def once_ready(self, step: Callable[[], Result]) -> Result:
        """``step()`` under the call lock, made again whenever it lacks something."""
        while True:
            with self.lock:
                try:
                    return step()
                except Unready as missing:
                    unready = missing.with_traceback(None)
            self.builds.have(unready)

    def taken(self, args: Any, kwargs: Any) -> tuple[Any, Any, Sizes]:
        """One call's tensors, what the model holds, and the sizes, as entries take them."""
        try:
            tensors, sizes = self._bind(*args, **kwargs)
        except (InputMismatch, TypeError) as error:
            tensors, sizes = self._bind_anew(error, args, kwargs)
        if torch.is_grad_enabled():
            self._check_grad(tensors)
        return tensors, self.bound(), sizes

    # Structure -------------------------------------------------------------------------

    def start(self, *args: Any, **kwargs: Any) -> None:
        """Fix the structure of calls from one example, whose sizes mean nothing."""
        self._begin(describe_call(self.fn, args, kwargs, self.config))

    def _begin(self, structure: Structure) -> None:
        self.binder = Binder(
            structure,
            alignment=self.setup.platform.capabilities.alignment,
            static=self.config.inputs == "static",
            check=self._checked,
            on_restride=lambda: self.counters.add("restrided"),
        )
        self.binder.matters = self._layout_matters
        self._bind = self.binder.bind
        self.dispatch.raw = self.binder.raw
        if self.capturing is not None:
            self.capturing.begin(self.binder)
        self.structure = structure
        self._version += 1
        self.parameters = self._held()
        self._settle()

    def _first(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the binder until there is one."""
        if torch.is_grad_enabled():
            self._check_grad(values((args, kwargs)), roots_of(self.fn))
        self.start(*args, **kwargs)
        self._to_warm = self.config.compile_mode == "warmup"
        return self._bind(*args, **kwargs)

    def _warm(self) -> None:
        """What ``compile_mode="warmup"`` does at the first call."""
        self._to_warm = False
        for _ in compile_all(self):
            pass
        capture_all(self)

    def _bind_anew(self, error: Exception, args: Any, kwargs: Any) -> Any:
        """A call does not fit: start again if the model itself changed, else say what is wrong."""
        if self.structure is not None:
            bind_arguments(self.structure.signature, args, kwargs)
            if self._read() is None and not self.parameters.rebind():
                self._forget_regions()
                self.structure, self._bind = None, self._first
                return self._first(*args, **kwargs)
        raise error

    def _forget_regions(self, why: str = "") -> None:
        """Drop every trace; the counters stay. Raises Sealed."""
        if self._regions.sealed == "error":
            what = why or (
                "a parameter changed its dtype, device, shape or strides, or the model's training "
                "mode or modules changed,"
            )
            raise Sealed(f"{what} after seal(); the model would have to be traced again")
        self._fills |= bool(self._regions.known)
        self._regions.known = []
        self._version += 1
        self._judge = LayoutJudge(self.fn, self.config)
        self._watched = TraceState(self.setup.selected.info.device_type)
        self._state: Callable[[], int] = _unchanged
        if self.verifier is not None:
            self.verifier.forget()
        self.parameters = self._held()
        self._read: Callable[[], tuple[torch.Tensor, ...] | None] = tuple

    def _held(self) -> Parameters:
        """What the model holds, its calls' constant objects included; no tensors yet."""
        found = reach(self.fn, objects_in(self.structure) if self.structure else ())
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
        self.dispatch.install(self.config.bounds, self.regions)

    def bound(self) -> tuple[torch.Tensor, ...]:
        """The tensors that the model holds, read anew; graphs and traces that do not fit go."""
        found = self._read()
        return self._rebound() if found is None else found

    def _settle(self) -> None:
        self.install()
        self.parameters.settle()
        self._read = self.parameters.read
        if self._checked:
            self._state = self._watched.check

    # Other sizes -----------------------------------------------------------------------

    def _miss(self, t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        """Serves sizes that no target holds: not traced yet, or out of bounds."""
        if sizes in self.config.bounds:
            self.held_region(sizes)
        if self.config.out_of_range == "eager":
            self.counters.calls["eager"] += 1
            return self.fn(*args, **kwargs)
        if self.config.out_of_range == "general" and sizes in self._regions.outer_bounds:
            return self.dispatch.beyond(self.held_region(sizes), t, b, sizes, args, kwargs)
        raise OutOfRange(out_of_range(self.config, sizes))

    # Regions ---------------------------------------------------------------------------

    def region_for(self, sizes: Sizes) -> Region:
        """The region that holds ``sizes``, traced now if it is not yet."""
        return self.once_ready(partial(self.held_region, sizes))

    def held_region(self, sizes: Sizes) -> Region:
        """The region that holds ``sizes``. Raises Unready where that has to be traced."""
        region = self._regions.holding(sizes)
        if region is not None:
            return region
        if self.structure is None:
            raise NotTraced("nothing was called yet; call the model once, or pass examples")
        if self._to_warm:
            raise Unready("warm-up", self._warm)
        raise Unready("trace", partial(self._trace, sizes))

    def _trace(self, sizes: Sizes) -> None:
        """Trace the region of ``sizes``; dropped if the model changed while it was traced."""
        with self.lock:
            regions, version = self._regions, self._version
            structure, parameters = self.structure, self.parameters.copy()
            if structure is None or regions.holding(sizes) is not None:
                return
        try:
            with compile_lock:
                made = regions.make(structure, sizes, parameters)
                if self.capturing is not None:
                    self.capturing.padded.of(made)  # runs the program on symbols
        except TraceFailed:
            with self.lock:
                if not self.regions and self._version == version:
                    self._start_over()
            raise
        with self.lock:
            if self._version == version:
                self.parameters = parameters
                self._admit(made)

    def uncovered(self, without: Sequence[Sizes] = ()) -> Sizes | None:
        """Some sizes in bounds that no region holds yet; None when all are held.

        ``without``: sizes that do not count.
        """
        return self._regions.uncovered(without)

    def _start_over(self) -> None:
        """A model whose first call failed may be called in another form next."""
        if self._regions.sealed != "error":
            self._forget_regions()
            self.structure, self._bind = None, self._first

    def _admit(self, region: Region) -> None:
        """Serve from one region more."""
        self._regions.admit(region)
        self._version += 1
        self._fills = False
        self.binder.mutated |= region.program.mutated
        if region.program.traced.asks_layout:
            self._bind = self.binder.exactly()
        if self._checked and self.structure is not None:
            traced, objects = region.program.traced, constants(self.structure)
            self._watched.add(traced.assumptions, self.fn, objects, traced.words)
        self._settle()

    def adopt(
        self, structure: Structure, bound: Iterable[torch.Tensor], traces: Iterable[Traced]
    ) -> None:
        """Take what another process traced, in place of tracing it here.

        ``bound``: the tensors that the model holds, in the order in which they were bound there.
        """
        with between_builds(self.lock):
            self._begin(structure)
            for tensor in bound:
                self.parameters.add(tensor)
            for traced in traces:
                self._admit(self._regions.take(traced))

    # Checks ----------------------------------------------------------------------------

    def _rebound(self) -> tuple[torch.Tensor, ...]:
        """A held tensor was replaced or moved: take the new ones, or trace anew."""
        if self.capturing is not None and len(self.capturing.plans):
            # Graphs read the old memory. They serve no more; restore() or warmup() brings new ones.
            release(self, later=True)
        if self.parameters.rebind():
            self._version += 1
            self._read = self.parameters.read
            return self._read() or ()
        self._forget_regions()
        self._settle()
        return ()

    def _as_written(self, why: Exception, args: Any, kwargs: Any) -> Any:
        """Serve a call by the model itself; said once."""
        if torch.is_grad_enabled():
            self._check_grad(values((args, kwargs)))
        if not self._said_layout:
            self._said_layout = True
            logger.warning("%s; such calls run as written", why)
        self.counters.calls["eager"] += 1
        return self.fn(*args, **kwargs)

    def _layout_matters(self, leaf: TensorLeaf, lying: Lying) -> bool:
        """Whether the model does something else where an input lies so."""
        boxes = [r.general_box for r in self.regions if r.program.traced.asks_layout]
        may_trace = self._regions.sealed is None and not self.setup.is_capturing()
        structure, judge = self.binder.structure, self._judge
        return judge.matters(structure, boxes, leaf, lying, self._binding, may_trace=may_trace)

    def _binding(self) -> Callable[[torch.Tensor], int]:
        """Binds tensors for a trace that nothing is served from."""
        return self.parameters.copy().add

    def _state_changed(self) -> bool:
        """Something that traces read was written to: whether they are gone for it."""
        why = self._watched.look_again()
        self._state = self._watched.check
        if why is not None:
            if self._watched.switched:
                self.scheduler.forget()
            self.retrace(why, kept=not self._watched.beyond_facts)
        return why is not None

    def retrace(self, why: str, *, kept: bool = False) -> None:
        """Drop traces and graphs; the next call makes new ones. Raises Sealed.

        ``kept``: whether those may come from the compile store.
        """
        with self.lock:
            self._regions.kept &= kept
            self._forget_regions(why)
            self.counters.add("retraces")
            self.retraced = why
            logger.info("traced again: %s", why)
            if self.capturing is not None:
                self.capturing.plans.release(later=True)
            if self.structure is not None:
                self._settle()

    def _check_grad(self, tensors: Iterable[Any], roots: Iterable[torch.nn.Module] = ()) -> None:
        check_grad(tensors, self.parameters.need_grad() or need_grad(roots))

    # Books -----------------------------------------------------------------------------

    def seal(self, on_miss: str) -> None:
        """From now on a trace or compilation is an error, or a warning."""
        self._regions.sealed = on_miss
        self.scheduler.sealed = on_miss
        self.dispatch.sealed = on_miss
        if self.capturing is not None:
            self.capturing.replays.sealed = on_miss

    def stats(self) -> Stats:
        """The counters so far."""
        return self.counters.stats()


def _unchanged() -> int:
    """Stands in for a check while there is nothing to check."""
    return 0
