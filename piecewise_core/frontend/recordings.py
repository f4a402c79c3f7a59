"""What a recorded function supplies to its replays: its runs, and what they showed of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.capture.course import Course
from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.counters import Counters
from piecewise_core.errors import ConfigError, Sealed
from piecewise_core.frontend.askedmodes import AskedModes
from piecewise_core.frontend.leftbehind import LeftBehind
from piecewise_core.frontend.recordedpadding import PaddedRecording
from piecewise_core.frontend.recordedrun import RecordedRun
from piecewise_core.frontend.results import arguments
from piecewise_core.frontend.setup import Setup
from piecewise_core.graph.binder import Binder
from piecewise_core.graph.call import constants
from piecewise_core.graph.names import Matcher
from piecewise_core.ranges import Sizes
from piecewise_core.ranks.ranks import Ranks
from piecewise_core.replay.replayable import Entry, Facts, PaddedCalls, Recording
from piecewise_core.replay.replays import Replays
from piecewise_core.runtime.closure_walk import anchors_to, default_anchors, reach
from piecewise_core.runtime.hostrandom import kept_state
from piecewise_core.runtime.parameters import Parameters, roots_of
from piecewise_core.runtime.treestate import TreeState

__all__ = ["Recordings"]

logger = logging.getLogger(__name__)


class Recordings:
    """``fn`` as something to replay, while what its graphs read is in place.

    ``module``: whose forward ``fn`` is, if of one. ``eagerly``: serves a call without graphs.
    ``freed()``: called when no size has graphs any more. ``objects``: the calls' constants.
    ``asks_modes``: of torch's modes. ``gave_up``: this call's capture. ``left``: by captures.
    """

    graphs_per_size = 1

    def __init__(
        self,
        fn: Callable[..., Any],
        setup: Setup,
        counters: Counters,
        memory: GraphMemory,
        eagerly: Entry,
        freed: Callable[[], None],
        module: torch.nn.Module | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._fn = fn
        self._module = module
        self._setup = setup
        self._config = setup.config
        self._counters = counters
        self._eagerly = eagerly
        self._freed = freed
        self._splits = setup.splits(Matcher(setup.config.splitting_ops, setup.unsafe_ops))
        self.replays = Replays(memory, setup.config, counters, ranks=ranks)
        self.objects: list[Any] = []
        self.retraced = ""
        self._trying: Sizes | None = None
        self._put_random_back: Callable[[], None] = kept_state()
        self.asks_modes = AskedModes()
        self._runs: dict[Sizes, RecordedRun] = {}
        self._said_mixing = False
        self._state = TreeState(fn, setup.selected.info.device_type, module)
        self._watches = False
        self.left = LeftBehind(self.replays.plans)
        self.gave_up = False
        self._binder: Binder | None = None
        self._external: dict[int, torch.Tensor] = {}
        self._parameters = Parameters(roots_of(fn), every=True)

    def follow(self, fn: Callable[..., Any]) -> None:
        """Nothing is captured, and another function is run from now on."""
        self._fn, self._watches = fn, False
        self._state = TreeState(fn, self._setup.selected.info.device_type, self._module)
        self._parameters = Parameters(roots_of(fn), every=True)

    def begin(self, binder: Binder) -> None:
        """Note what calls look like; ``binder`` learns which inputs are written to."""
        self.replays.begin(binder)
        self._binder = binder
        self.objects = constants(binder.structure)

    # While what graphs read is in place ------------------------------------------------

    def refresh(self) -> None:
        """Free graphs that read the memory of a tensor that was replaced."""
        if len(self.replays.plans) and self._parameters.read() is None:
            self.free(later=True)
        if self._watches and self._state.check():
            why = self._state.look_again()
            if why is not None:
                self.retrace(why)

    def ran(self) -> None:
        """The function ran as it is: what it changed of Python's state is as it should be."""
        if not self._watches:
            return
        replaced, changes = self._state.ran(), self.gave_up
        self.gave_up = False
        if replaced and changes and len(self.replays.plans):
            self.retrace("the function replaced Python state that graphs may rest on")

    def retrace(self, why: str) -> None:
        """Drop the graphs; sizes are captured anew at their next calls. Raises Sealed."""
        if self.replays.sealed == "error":
            raise Sealed(f"{why} after seal(); what was captured would have to be captured again")
        self.retraced = why
        self._counters.retraced(why)
        logger.info("recorded again: %s", why)
        self.free(later=True)
        self.replays.asleep.end()
        self._watches = False
        self._freed()

    def free(self, sizes: Sequence[Sizes] | None = None, *, later: bool = False) -> None:
        """Give graph memory back, all or of ``sizes``: they have none until captured anew.

        ``later``: in the middle of a call, whose inputs may lie in it.
        """
        self.replays.release(sizes, later=later, collect=not later)
        for each in list(self._runs) if sizes is None else sizes:
            run = self._runs.pop(each, None)
            if run is not None:
                run.padded = None  # it knows the run: a circle would keep their tensors
        if sizes is None:
            self._external.clear()
            self._parameters = Parameters(roots_of(self._fn), every=True)
        self._freed()

    # What replays ask (Replayable) -----------------------------------------------------

    def recording(
        self, captured: Sizes, inputs: tuple[torch.Tensor, ...], bound: Sequence[torch.Tensor]
    ) -> Recording:
        """The function itself, watched."""
        if self._binder is None:
            raise ConfigError("record() was not called yet")
        if not self._watches and self._config.check != "off":
            self._state.objects = self.objects
            self._state.settle()
            self._watches = True
            self.asks_modes = AskedModes(self._state.words)
        self._trying, self._put_random_back = captured, kept_state(self._state.randoms)
        pads = self._config.padding == "capture_sizes"
        run = self._runs[captured] = RecordedRun(
            captured,
            inputs,
            self._binder,
            self.objects,
            pads=pads,
            keeps_lines=pads or self._config.check == "verify",
        )
        return run.recording(self._fn, self._splits, partial(self.left.before_run, self._state))

    def facts(self, captured: Sizes) -> Facts | None:
        """What the recorded run showed."""
        run = self._runs.get(captured)
        return None if run is None else run.facts

    def padded(self, captured: Sizes, outputs: Sequence[Any]) -> PaddedCalls | None:
        """By the rules on what ran at either size, and what calls gave by themselves."""
        run = self._runs.get(captured)
        if run is None or run.run is None:
            return None
        rng = self._setup.platform.declared.rng
        compares = self._config.check != "off"
        run.padded = PaddedRecording(
            run, run.run, captured, outputs, self._eagerly, self._refuse, rng, compares=compares
        )
        return run.padded

    def course(self, captured: Sizes, served: Entry, t: Any, sizes: Sizes) -> Course | None:
        """What calls of ``sizes`` do that lie as recorded; None where graphs do not serve them.

        Where it is not known yet the size is captured, and what padding has to learn is learned
        from ``t``, a call's tensors as they should lie, by ``served``.
        """
        if self._binder is None or not self.replays.learn(self, captured, t, sizes):
            return None
        run = self._runs[captured]
        if sizes not in run.courses and not run.writes:
            args, kwargs = arguments(self._binder.structure, t)
            served(t, (), sizes, args, kwargs)
            self.replays.tallies.of("eager")[sizes] -= 1  # nobody's call
        return run.courses.get(sizes)

    def replays_of(self, captured: Sizes, sizes: Sizes) -> bool:
        """Whether the next call of ``sizes`` is not one that runs as it is anyway."""
        if captured not in self.replays.plans:
            return False
        padded = self._runs[captured].padded
        return sizes == captured or (padded is not None and not padded.learns(sizes))

    def memory(self, captured: Sizes) -> list[torch.Tensor]:
        """What calls of ``captured`` write to besides their inputs."""
        return self._runs[captured].memory

    def made_at(self, captured: Sizes, path: str) -> str:
        """The line that makes a leaf of the result."""
        return self._runs[captured].made_at(path) if captured in self._runs else ""

    def captured(self) -> None:
        """Look from now on at what graphs read; undo what the runs of a failed capture changed."""
        changes = self._gives_up()
        if self._trying not in self.replays.plans:
            self._put_random_back()
            if self._watches:
                self._state.put_back()
        for run in self._runs.values():
            self._external |= {id(tensor): tensor for tensor in run.external}
        held = *anchors_to(self._fn, self._external), *self._state.holders(self._external)
        held += tuple(default_anchors(self._fn)) if self._watches else ()
        found = reach(self._fn)
        roots, given = found.roots, (*self.objects, *(found.objects if self._watches else ()))
        self._parameters = Parameters(roots, anchors=held, objects=given, every=True)
        for tensor in self._external.values():
            self._parameters.add(tensor)
        self._parameters.settle()
        self.ran()
        self.gave_up = changes

    def _gives_up(self) -> bool:
        """Whether a capture goes for what its runs left in Python, and it was a call's."""
        sizes, plans = self._trying, self.replays.plans
        if sizes is None or sizes not in plans or not self._watches:
            return False
        derived = None if self.replays.at_call else self._runs[sizes].derived
        if not self.left.gives_up(self._state, sizes, derived, again=self.gave_up):
            return False
        self._runs.pop(sizes, None)
        return derived is None

    def _refuse(self, text: str) -> None:
        """Some calls are not padded; said once."""
        if not self._said_mixing:
            logger.warning("%s", text)
        self._said_mixing = True
