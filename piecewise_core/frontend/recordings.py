"""What a recorded function supplies to its replays: its runs, and what they told of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.capture.calls import user_line
from piecewise_core.capture.collectives import without_handles
from piecewise_core.capture.course import Course
from piecewise_core.capture.lines import Lines
from piecewise_core.capture.watching import WatchingRecorder
from piecewise_core.counters import Counters
from piecewise_core.errors import CaptureFailed, ConfigError, Sealed
from piecewise_core.frontend.recordedpadding import PaddedRecording
from piecewise_core.frontend.results import arguments, result_code, tensors_in
from piecewise_core.frontend.setup import Setup
from piecewise_core.graph.binder import Binder
from piecewise_core.graph.call import constants
from piecewise_core.graph.names import Matcher
from piecewise_core.graph.padding.runs import Run
from piecewise_core.graph.questions import MODES, RANDOM_STATE
from piecewise_core.ranges import Sizes
from piecewise_core.replay.replayable import Entry, Facts, PaddedCalls, Recording
from piecewise_core.replay.replays import Replays, graph_memory
from piecewise_core.runtime.compared import kept
from piecewise_core.runtime.parameters import Parameters, roots_of
from piecewise_core.runtime.reach import anchors_of
from piecewise_core.runtime.treestate import TreeState

__all__ = ["Recordings"]

logger = logging.getLogger(__name__)


class Recordings:
    """``fn`` as something to replay, while what its graphs read is in place.

    ``module``: whose forward ``fn`` is, if of one.
    ``eagerly``: serves a call without graphs. ``freed``: is told when no size has graphs any more.
    ``objects``: the calls' constants. ``memory``: per captured size, what it writes to besides
    inputs. ``asks_modes``: whether the function may ask for torch's modes.
    """

    graphs_per_size = 1

    def __init__(
        self,
        fn: Callable[..., Any],
        setup: Setup,
        counters: Counters,
        eagerly: Entry,
        freed: Callable[[], None],
        module: torch.nn.Module | None = None,
    ) -> None:
        self._fn = fn
        self._module = module
        self._setup = setup
        self._config = setup.config
        self._counters = counters
        self._eagerly = eagerly
        self._freed = freed
        self._splits = setup.splits(Matcher(setup.config.splitting_ops, setup.unsafe_ops))
        memory = graph_memory(setup.platform, setup.config, counters)
        self.replays = Replays(memory, setup.config, counters)
        self.objects: list[Any] = []
        self.memory: dict[Sizes, list[torch.Tensor]] = {}
        self.retraced = ""
        self.asks_modes = False
        self._facts: dict[Sizes, Facts] = {}
        self._runs: dict[Sizes, Run] = {}
        self._lines: dict[Sizes, Lines | None] = {}
        self._places: dict[Sizes, dict[str, str]] = {}
        self._courses: dict[tuple[Sizes, Sizes], Course] = {}
        self._padded: dict[Sizes, PaddedRecording] = {}
        self._writing: set[Sizes] = set()
        self._said_mixing = False
        self._state = TreeState(fn, setup.selected.info.device_type, module)
        self._watches = False
        self._binder: Binder | None = None
        self._external: dict[int, torch.Tensor] = {}
        self._parameters = Parameters(roots_of(fn), every=True)

    def follow(self, fn: Callable[..., Any]) -> None:
        """Nothing is captured, and another function is run from now on."""
        device = self._setup.selected.info.device_type
        self._fn, self._watches = fn, False
        self._state = TreeState(fn, device, self._module)
        self._parameters = Parameters(roots_of(fn), every=True)

    def begin(self, binder: Binder) -> None:
        """Note what calls look like; ``binder`` is told of the inputs that are written to."""
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
        if self._watches:
            self._state.ran()

    def retrace(self, why: str) -> None:
        """Drop the graphs; sizes are captured anew at their next calls. Raises Sealed."""
        if self.replays.sealed == "error":
            raise Sealed(f"{why} after seal(); what was captured would have to be captured again")
        self.retraced = why
        self._counters.add("retraces")
        logger.info("recorded again: %s", why)
        self.free(later=True)
        self.replays.released, self._watches = False, False

    def free(self, *, later: bool = False) -> None:
        """Give all graph memory back; sizes have no graphs until they are captured anew.

        ``later``: in the middle of a call, whose inputs may lie in it.
        """
        self.replays.release(later=later)
        self._facts.clear()
        self._runs.clear()
        self._courses.clear()
        self._padded.clear()
        self._writing.clear()
        self.memory.clear()
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
            self._state.settle()
            self._watches = True
            self.asks_modes = bool(MODES & self._state.words)
        structure = self._binder.structure
        course = self._courses[captured, captured] = Course(inputs)
        noted: Run | None = None
        if self._config.padding == "capture_sizes":
            noted = self._runs[captured] = Run(inputs, user_line)

        def build(recorder: WatchingRecorder) -> Callable[..., tuple[Any, ...]]:
            def run(t: Any, b: Any, *sizes: int) -> tuple[Any, ...]:
                self._refuse_random_state()
                args, kwargs = arguments(structure, t)
                before = [dict(vars(tensor)) for tensor in t]
                result = without_handles(self._fn(*args, **kwargs))
                if [dict(vars(tensor)) for tensor in t] != before:
                    raise CaptureFailed(
                        "the function sets attributes of a tensor that it is given, which no "
                        "replay can do to a call's own tensor"
                    )
                if not recorder.capturing:
                    course.returned(result)
                if noted is not None and not recorder.capturing:
                    noted.returned(tensors_in(result, self.objects))
                if recorder.capturing:
                    self._note(captured, result, inputs, recorder)
                return tuple(tensors_in(result, self.objects))

            return run

        told = noted is not None or self._config.check == "verify"
        lines = self._lines[captured] = Lines() if told else None
        make = partial(
            WatchingRecorder, is_splitting=self._splits, course=course, run=noted, lines=lines
        )
        return Recording(build, recorder=make)

    def facts(self, captured: Sizes) -> Facts | None:
        """What the recorded run told."""
        return self._facts.get(captured)

    def padded(self, captured: Sizes, outputs: Sequence[Any]) -> PaddedCalls | None:
        """By the rules on what ran at either size, and what calls gave by themselves."""
        if captured not in self._runs or self._binder is None:
            return None
        rng = getattr(self._setup.platform.device, "rng", None)
        self._padded[captured] = PaddedRecording(
            self._runs[captured],
            captured,
            outputs,
            self._eagerly,
            self._refuse,
            self._binder.raw,
            self.objects,
            rng,
            writes=captured in self._writing,
            compares=self._config.check != "off",
            follow=partial(self._follow, captured),
            line=lambda place: self.made_at(captured, f"result {place}"),
        )
        return self._padded[captured]

    def in_another_mode(self) -> bool:
        """Whether a call is made in other modes than recordings are, and the function may ask."""
        return self.asks_modes and not torch.is_inference_mode_enabled()

    def _follow(self, captured: Sizes, sizes: Sizes, inputs: Sequence[torch.Tensor]) -> Course:
        """What a run of a padded size did."""
        course = self._courses[captured, sizes] = Course(inputs)
        return course

    def course(self, captured: Sizes, served: Entry, t: Any, sizes: Sizes) -> Course | None:
        """What calls of ``sizes`` do that lie as recorded; None where graphs do not serve them.

        Where it is not known yet the size is captured, and what padding has to learn is learned
        from ``t``, a call's tensors as they should lie, by ``served``.
        """
        if self._binder is None or not self.replays.learn(self, captured, t, sizes):
            return None
        key = captured, sizes
        if key not in self._courses and captured not in self._writing:
            args, kwargs = arguments(self._binder.structure, t)
            served(t, (), sizes, args, kwargs)
            self._counters.calls["eager"] -= 1  # nobody's call
        return self._courses.get(key)

    def replays_of(self, captured: Sizes, sizes: Sizes) -> bool:
        """Whether the next call of ``sizes`` is not one that runs as it is anyway."""
        if captured not in self.replays.plans:
            return False
        padded = self._padded.get(captured)
        return sizes == captured or (padded is not None and not padded.learns(sizes))

    def made_at(self, captured: Sizes, path: str) -> str:
        """The line that makes a leaf of the result.

        "result 0" is the first of its tensors, "memory[0]" the first that is written to.
        """
        return self._places.get(captured, {}).get(path, "")

    def captured(self) -> None:
        """Look from now on at what graphs read."""
        held = [
            anchor
            for anchor in anchors_of(self._fn)
            if isinstance(anchor.value, torch.nn.Module) or id(anchor.value) in self._external
        ]
        self._parameters = Parameters(roots_of(self._fn), anchors=held, every=True)
        for tensor in self._external.values():
            self._parameters.add(tensor)
        self._parameters.settle()
        self.ran()

    def _refuse_random_state(self) -> None:
        """Raise CaptureFailed where the function may ask what state a generator is in."""
        named = sorted(RANDOM_STATE & self._state.words)
        if named:
            raise CaptureFailed(
                f"the function names {named[0]}: a replay cannot ask what state a random generator "
                "is in. Ask outside and pass the answer as an argument"
            )

    def _refuse(self, text: str) -> None:
        """Some calls are not padded; said once."""
        if not self._said_mixing:
            logger.warning("%s", text)
        self._said_mixing = True

    def _note(
        self, captured: Sizes, result: Any, views: Sequence[Any], recorder: WatchingRecorder
    ) -> None:
        """What the recorded run tells: how to rebuild its result, what it reads and writes."""
        code = result_code(result, views, self.objects)
        written = tuple(i for i, view in enumerate(views) if recorder.writes_to(view))
        if self._binder is not None:
            self._binder.mutated |= set(written)
            self._binder.expect(recorder.asked_for)
        own = {view.untyped_storage()._cdata for view in views}
        recorder.note(tensors_in(result, self.objects))
        held = tuple(t for t in recorder.external if t.untyped_storage()._cdata not in own)
        changed = tuple(i for i, tensor in enumerate(held) if recorder.writes_to(tensor))
        self.memory[captured] = [held[i] for i in changed]
        self._made_at(captured, result, [*(views[i] for i in written), *self.memory[captured]])
        self._facts[captured] = Facts(code.rebuild, code.uses_inputs, written, changed, held)
        self._external |= {id(tensor): tensor for tensor in recorder.external}
        if recorder.writes:
            self._writing.add(captured)

    def _made_at(self, captured: Sizes, result: Any, memory: Sequence[torch.Tensor]) -> None:
        """Note which lines made what a call gives, where that may be asked for."""
        lines = self._lines.pop(captured, None)
        if lines is None:
            return
        leaves = kept(result)
        leaves |= {f"memory[{i}]": tensor for i, tensor in enumerate(memory)}
        found = tensors_in(result, self.objects)
        leaves |= {f"result {i}": tensor for i, tensor in enumerate(found)}
        self._places[captured] = {
            path: lines.of(leaf) for path, leaf in leaves.items() if isinstance(leaf, torch.Tensor)
        }
