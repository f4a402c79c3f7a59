"""What is recorded of one function: a plan per captured size, and what its run told of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.capture.attempt import Source
from piecewise_core.capture.buffers import FixedInputs, OwnedInputs
from piecewise_core.capture.callers import Callers
from piecewise_core.capture.calls import user_line
from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.capture.collectives import without_handles
from piecewise_core.capture.plans import CapturedPlans
from piecewise_core.capture.watching import WatchingRecorder
from piecewise_core.counters import Counters
from piecewise_core.errors import CaptureFailed, ConfigError, Sealed
from piecewise_core.frontend.results import arguments, result_code, tensors_in
from piecewise_core.frontend.setup import Setup
from piecewise_core.graph.binder import Binder
from piecewise_core.graph.call import constants
from piecewise_core.graph.names import Matcher
from piecewise_core.graph.outputs import OutputCode
from piecewise_core.graph.padding.runs import Run
from piecewise_core.graph.spans import Spans
from piecewise_core.graph.structure import Structure
from piecewise_core.ranges import Sizes
from piecewise_core.runtime.overlap import Overlap
from piecewise_core.runtime.parameters import Parameters, roots_of
from piecewise_core.runtime.reach import anchors_of
from piecewise_core.runtime.treestate import TreeState

__all__ = ["Recordings"]

logger = logging.getLogger(__name__)


class Recordings:
    """Captures sizes of ``fn``, keeps them while what they read is in place, frees them.

    ``outputs``: per captured size, how a result is made of the graphs' tensors. ``written``: per
    captured size, the places of the inputs that it writes to; None where it writes to nothing of
    the caller's. ``objects``: the calls' constants. ``runs``: per captured size, the operators that
    ran, where calls may be padded. ``memory``: what it writes to besides inputs. ``external``: what
    it reads and writes besides inputs. ``overlaps``: tells calls whose inputs share what is written
    to; None where nothing is. ``sealed``: "error" or "warn" for captures from now on. ``released``:
    whether sizes stay without graphs until they are asked for again.
    """

    def __init__(
        self, fn: Callable[..., Any], setup: Setup, counters: Counters, callers: Callers
    ) -> None:
        self._fn = fn
        self._setup = setup
        self._config = setup.config
        self._splits = setup.splits(Matcher(setup.config.splitting_ops, setup.unsafe_ops))
        limit = setup.config.memory_limit
        self.plans = CapturedPlans(setup.platform, counters, limit, callers=callers)
        self.outputs: dict[Sizes, OutputCode] = {}
        self.written: dict[Sizes, tuple[int, ...] | None] = {}
        self.objects: list[Any] = []
        self.runs: dict[Sizes, Run] = {}
        self.memory: dict[Sizes, list[torch.Tensor]] = {}
        self.external: dict[Sizes, tuple[torch.Tensor, ...]] = {}
        self.overlaps: dict[Sizes, Overlap | None] = {}
        self.sealed: str | None = None
        self.released = False
        self.retraced = ""
        self._state = TreeState(fn)
        self._watches = False
        self._counters = counters
        self._structure: Structure | None = None
        self._owned: OwnedInputs | None = None
        self._external: dict[int, torch.Tensor] = {}
        self._parameters = Parameters(roots_of(fn), every=True)

    def begin(self, structure: Structure, binder: Binder) -> None:
        """Note what calls look like; ``binder`` is told of the inputs that are written to."""
        self._structure, self._binder = structure, binder
        self.objects = constants(structure)

    def plan(self, captured: Sizes, tensors: Any, *, more: bool = False) -> CapturedPlan | None:
        """The plan of a size, captured now if it must be; None where it cannot be captured.

        ``tensors``: a call's own; None in warm-up. ``more``: others follow. Raises Sealed.
        """
        found = self.plans.get(captured)
        if found is not None or captured in self.plans.dropped:
            return found
        if self.sealed is not None and captured not in self.plans.owed:
            text = f"sizes {captured} would be captured after seal(); call warmup() first"
            if self.sealed == "error":
                raise Sealed(text)
            logger.warning("%s", text)
        if not self._watches and self._config.check != "off":
            self._state.settle()
            self._watches = True
        found = self.plans.capture(captured, partial(self._source, captured, tensors), more=more)
        self._watch()
        self.ran()
        return found

    def capture_all(self, sizes: Sequence[Sizes]) -> None:
        """Capture ``sizes``; with ``inputs="static"`` there are no tensors to capture with yet."""
        if self._structure is None or self._config.inputs == "static":
            return
        for each in sizes:
            self.plan(each, None, more=True)
        self.plans.measure()

    def views(self, captured: Sizes) -> tuple[torch.Tensor, ...]:
        """The static inputs of a size, with ``inputs="copy"``."""
        return self._inputs().views(captured)

    def refresh(self) -> None:
        """Free graphs that read the memory of a tensor that was replaced."""
        if len(self.plans) and self._parameters.read() is None:
            self.free(later=True)
        if self._watches and self._state.check():
            why = self._state.look_again()
            if why is not None:
                self.retrace(why)

    def ran(self) -> None:
        """The function ran as it is: what it changed of Python's state is as it should be."""
        if self._watches:
            self._state.ran()
        if self.released:
            self.plans.settle()  # only now: what it frees may have been this call's input

    def retrace(self, why: str) -> None:
        """Drop the graphs; sizes are captured anew at their next calls. Raises Sealed."""
        if self.sealed == "error":
            raise Sealed(f"{why} after seal(); what was captured would have to be captured again")
        self.retraced = why
        self._counters.add("retraces")
        logger.info("recorded again: %s", why)
        self.free(later=True)
        self.plans.dropped.clear()
        self.released, self._watches = False, False

    def free(self, *, later: bool = False) -> None:
        """Give all graph memory back; sizes have no graphs until they are captured anew.

        ``later``: in the middle of a call, whose inputs may lie in it.
        """
        self.plans.release(later=later)
        self.outputs.clear()
        self.written.clear()
        self.runs.clear()
        self.memory.clear()
        self.external.clear()
        self.overlaps.clear()
        self.released = True
        self._external.clear()
        self._parameters = Parameters(roots_of(self._fn), every=True)

    # Inside ----------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look from now on at what holds the tensors that graphs read."""
        held = [
            anchor
            for anchor in anchors_of(self._fn)
            if isinstance(anchor.value, torch.nn.Module) or id(anchor.value) in self._external
        ]
        self._parameters = Parameters(roots_of(self._fn), anchors=held, every=True)
        for tensor in self._external.values():
            self._parameters.add(tensor)
        self._parameters.settle()

    def _handed(self) -> Spans:
        return self.plans.handed

    def _inputs(self) -> OwnedInputs:
        if self._owned is None:
            self._owned = OwnedInputs(
                self._begun(), self._config.captures, self._setup.platform.graphs
            )
        return self._owned

    def _begun(self) -> Structure:
        if self._structure is None:
            raise ConfigError("record() was not called yet")
        return self._structure

    def _source(self, captured: Sizes, tensors: Any) -> Source:
        structure = self._begun()
        inputs: Any
        if self._config.inputs == "static":
            inputs = FixedInputs(structure, tensors)
        else:
            inputs = self._inputs()
            if tensors is not None:
                inputs.stage(captured)(tensors, captured)
        views = inputs.views(captured)
        noted: Run | None = None
        if self._config.padding == "capture_sizes":
            noted = self.runs[captured] = Run(views, user_line)

        def build(recorder: WatchingRecorder) -> Callable[..., tuple[Any, ...]]:
            def run(t: Any, b: Any, *sizes: int) -> tuple[Any, ...]:
                args, kwargs = arguments(structure, t)
                before = [dict(vars(tensor)) for tensor in t]
                result = without_handles(self._fn(*args, **kwargs))
                if [dict(vars(tensor)) for tensor in t] != before:
                    raise CaptureFailed(
                        "the function sets attributes of a tensor that it is given, which no "
                        "replay can do to a call's own tensor"
                    )
                if noted is not None and not recorder.capturing:
                    noted.returned(tensors_in(result, self.objects))
                if recorder.capturing:
                    self._note(captured, result, views, recorder)
                return tuple(tensors_in(result, self.objects))

            return run

        make = partial(WatchingRecorder, is_splitting=self._splits, run=noted)
        owned = self._config.inputs == "copy"
        return Source(build, views, (), (), inputs.stage(captured), make, owned)

    def _note(
        self, captured: Sizes, result: Any, views: Sequence[Any], recorder: WatchingRecorder
    ) -> None:
        """What the recorded run tells: how to rebuild its result, what it reads and writes."""
        self.outputs[captured] = result_code(result, views, self.objects)
        written = tuple(i for i, view in enumerate(views) if recorder.writes_to(view))
        self.written[captured] = written if recorder.writes else None
        self._binder.mutated |= set(written)
        own = {view.untyped_storage()._cdata for view in views}
        recorder.note(tensors_in(result, self.objects))
        held = tuple(t for t in recorder.external if t.untyped_storage()._cdata not in own)
        changed = tuple(i for i, tensor in enumerate(held) if recorder.writes_to(tensor))
        self.memory[captured] = [held[i] for i in changed]
        self.external[captured] = held
        self.overlaps[captured] = Overlap(written, changed, self._handed) or None
        self._external |= {id(tensor): tensor for tensor in recorder.external}
