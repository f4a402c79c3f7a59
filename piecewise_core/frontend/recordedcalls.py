"""From a recorded function's calls to what serves them: one entry per captured size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.capture.modes import being_watched
from piecewise_core.counters import Counters
from piecewise_core.errors import InputMismatch, Interlocked
from piecewise_core.frontend.aroundforward import around_forward
from piecewise_core.frontend.calllock import as_written, served_beside
from piecewise_core.frontend.coverage import out_of_range
from piecewise_core.frontend.laidotherwise import LaidOtherwise
from piecewise_core.frontend.recordedverify import RecordedVerifier
from piecewise_core.frontend.recordings import Recordings
from piecewise_core.frontend.refusals import refuse_ambient
from piecewise_core.frontend.setup import Setup
from piecewise_core.graph.binder import Binder
from piecewise_core.graph.describe import describe_call
from piecewise_core.graph.signatures import same_signature, signature_of
from piecewise_core.ranges import Sizes
from piecewise_core.ranks.ranks import Ranks
from piecewise_core.replay.replayable import Entry
from piecewise_core.table import TargetTable
from piecewise_core.targets import Target, capture_targets
from piecewise_core.torch_compat.around import in_force

__all__ = ["RecordedCalls"]


class RecordedCalls:
    """Serves calls of ``fn`` that have one form; ``fn`` is the forward of ``module`` if of one.

    ``lock``: of all forms, and ``memory`` of their graphs. ``elsewhere(self, args, kwargs)``: what
    serves a call that is not of this form; None where that is an error.
    ``recordings``: what is captured. ``targets``: the captured sizes, once a call ``started`` it.
    ``around()``: what runs a module's hooks around ``serve``; None of what is no module.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        setup: Setup,
        counters: Counters,
        module: torch.nn.Module | None,
        memory: GraphMemory,
        lock: Any,
        elsewhere: Callable[..., Callable[..., Any] | None],
        ranks: Ranks,
    ) -> None:
        self.fn = fn
        self._module = module
        self._setup = setup
        self._config = setup.config
        self._counters = counters
        self._elsewhere = elsewhere
        self._ranks = ranks
        self.recordings = self._none_yet(memory)
        self.targets: tuple[Target, ...] = ()
        self._entries: list[Entry] = []
        rng = setup.platform.declared.rng
        self.verifier = RecordedVerifier(
            self._config, counters, () if rng is None else (rng(),), ranks
        )
        self.lock = lock
        self._left: list[Recordings] = []
        self.started = False
        self.around = around_forward(module, self.serve) if module is not None else None

    def serve(self, *args: Any, **kwargs: Any) -> Any:
        """Serve one call."""
        try:
            with self.lock:
                made = self.recordings
                watched = being_watched()
                if not watched and (around := in_force()) and not self._setup.is_capturing():
                    why = f"called inside {around}"
                    return as_written(why, self.fn, self._counters, args, kwargs)
                if not watched:
                    made.refresh()
                    self._ranks.own_up()
                    self._ranks.same_world()
                first = not self.started
                if first:
                    self.start(args, kwargs)
                binder = self.binder
                binder.is_foreign = False
                try:
                    tensors, sizes = binder.bind(*args, **kwargs)
                except (InputMismatch, TypeError):
                    other = None if first else self._elsewhere(self, args, kwargs)
                    if other is None:
                        raise
                    return other(*args, **kwargs)
                refuse_ambient(self.fn, tensors)
                if not watched:
                    place = self._find(*sizes)
                    serve = self._entries[place]
                    if binder.is_foreign or made.asks_modes:
                        serve = self._chosen(place, serve)
                else:
                    serve = self._eagerly
                try:
                    return serve(tensors, (), sizes, args, kwargs)
                finally:
                    made.ran()
        except Interlocked as error:
            return served_beside(error, self.lock, self.fn, self._counters, args, kwargs)

    def start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Learn from a call what calls look like."""
        self._setup.refuse_lost_device()
        structure = describe_call(self.fn, args, kwargs, self._config)
        self.binder = Binder(
            structure,
            alignment=self._setup.platform.capabilities.alignment,
            static=self._config.inputs == "static",
            on_restride=lambda: self._counters.add("restrided"),
        )
        self.binder.matters = lambda leaf, lying: False  # asked of runs instead
        self.binder.expect(frozenset({"apart", "attributes"}))
        self.recordings.begin(self.binder)
        self._otherwise = LaidOtherwise(self.recordings, self.binder, self._eagerly)
        self._install()
        self.started = True

    def _none_yet(self, memory: GraphMemory) -> Recordings:
        setup, counters, eagerly = self._setup, self._counters, self._eagerly
        around = self._module, self._ranks
        return Recordings(self.fn, setup, counters, memory, eagerly, self._freed, *around)

    def beside(self, setup: Setup, memory: GraphMemory) -> Recordings:
        """Recordings of the same calls, made as ``setup`` says and in another ``memory``."""
        eagerly, forget = self._eagerly, lambda: None
        around = self._module, self._ranks
        made = Recordings(self.fn, setup, Counters(), memory, eagerly, forget, *around)
        made.begin(self.binder)
        return made

    def begin_anew(self, memory: GraphMemory) -> None:
        """In a forked process: know of nothing that was captured in the other."""
        if self._setup.lost_device:
            self._left.append(self.recordings)  # the driver is not to be asked to free graphs
        sealed = self.recordings.replays.sealed
        self.recordings, self.started = self._none_yet(memory), False
        self.recordings.replays.sealed = sealed

    def wake(self, sizes: Sequence[Sizes] | None = None) -> None:
        """Have ``sizes``, or all, captured again, now or at their next call."""
        self.recordings.refresh()  # behind a capture nobody would see what is stale
        replays = self.recordings.replays
        if replays.asleep:
            replays.asleep.end(sizes, self._config.captures)
            self._install()

    def _freed(self) -> None:
        """No size has graphs any more, and the module may have another forward by now."""
        if self._module is None or self._module.forward == self.fn:
            self._install()
            return
        self.fn, self.started = self._module.forward, False
        self.recordings.follow(self.fn)
        self.around = around_forward(self._module, self.serve)

    def _install(self) -> None:
        """Every size that does not sleep is pending, until its next call; the last has no size."""
        bounds, config = self._config.bounds, self._config
        padded = config.padding == "capture_sizes" and config.inputs == "copy"
        dims = range(len(bounds.ranges)) if padded else ()
        awake, factor = self.recordings.replays.awake(), config.max_padding_factor
        self.targets = capture_targets(bounds, awake, padded=dims, factor=factor)
        self._find = TargetTable(bounds, self.targets).find
        captures = (target.capture or () for target in self.targets)
        self._entries = [*map(self._pending, captures), self._eagerly]

    def _chosen(self, place: int, serve: Entry) -> Entry:
        """What serves a call that may not be as the recorded one, in place of ``serve``."""
        if self.recordings.asks_modes.differ():
            return self._eagerly
        return (
            self._otherwise.entry(self.targets, place, serve) if self.binder.is_foreign else serve
        )

    def _pending(self, captured: Sizes) -> Entry:
        made = self.recordings
        replays = made.replays.pending(made, captured, self._eagerly, self._put)
        if self._config.check == "verify":
            replays = self._verified(captured, replays)

        def first(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            serve = replays
            if self._is_outgrown():
                return self.serve(*args, **kwargs)
            if made.facts(captured) is None and made.replays.learn(made, captured, t, sizes):
                # Only now it is known what the function asks of its tensors.
                self.binder.bind(*args, **kwargs)
                serve = self._chosen(self._find(*sizes), replays)
            elif made.gave_up:
                serve = self._eagerly
            return serve(t, b, sizes, args, kwargs)

        return first

    def _is_outgrown(self) -> bool:
        """Whether calls that omit an argument mean another by now; then all begins anew."""
        alike = same_signature(signature_of(self.fn), self.binder.structure.signature)
        self.started &= alike
        return not alike

    def _put(self, sizes: Sizes, entry: Entry) -> None:
        place = self._find(*sizes)
        captured = self.targets[place].capture or ()
        verify = self._config.check == "verify"
        self._entries[place] = self._verified(captured, entry) if verify else entry

    def _verified(self, captured: Sizes, served: Entry) -> Entry:
        """``served``, compared with the function where that is due."""
        made, verifier = self.recordings, self.verifier

        def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            key = captured, sizes != captured
            if key in verifier.wrong:
                return self._eagerly(t, b, sizes, args, kwargs)
            facts = made.facts(captured)
            known = facts is not None and made.replays_of(captured, sizes)
            if facts is None or not known or not verifier.is_due(key):
                return served(t, b, sizes, args, kwargs)
            raw = self.binder.raw(*args, **kwargs)
            return verifier.check(
                key,
                lambda: self.fn(*args, **kwargs),
                lambda: served(t, b, sizes, args, kwargs),
                [raw[i] for i in facts.mutated] + made.memory(captured),
                [tensor for i, tensor in enumerate(raw) if i not in facts.mutated],
                partial(made.made_at, captured),
            )

        return entry

    def _eagerly(self, t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        """Serve a call by the function as it is."""
        if sizes not in self._config.bounds and self._config.out_of_range == "error":
            raise out_of_range(self._config, sizes, general=False)
        self.recordings.replays.tallies.of("eager")[sizes] += 1
        return self.fn(*args, **kwargs)
