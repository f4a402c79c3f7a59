"""What the runs of one captured size showed of a recorded function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.capture.calls import user_line
from piecewise_core.capture.collectives import without_handles
from piecewise_core.capture.course import Course
from piecewise_core.capture.lines import Lines
from piecewise_core.capture.watching import WatchingRecorder
from piecewise_core.errors import CaptureFailed, UnsupportedSideEffect
from piecewise_core.frontend.results import named_arguments, result_code, spread, tensors_in
from piecewise_core.graph.binder import Binder
from piecewise_core.graph.input_mutation import changeable, refuse_changed
from piecewise_core.graph.padding.runs import Run
from piecewise_core.ranges import Sizes
from piecewise_core.replay.replayable import Facts, PaddedCalls, Recording
from piecewise_core.runtime.compared import kept
from piecewise_core.torch_compat.storages import memory_key

__all__ = ["RecordedRun"]


class RecordedRun:
    """Runs ``fn`` on ``inputs``, what graphs will read, and notes what it does.

    ``binder``: of the calls, ``objects`` their constants. ``pads``: whether padding is asked for;
    ``keeps_lines``: whether somebody may ask for the line that made a result.

    ``facts``: for replays, once it is captured. ``memory``: what it writes to besides inputs.
    ``external``: every tensor that it read and did not make. ``writes``: whether it wrote to memory
    that it did not make. ``derived``: the memory of inputs, and of what it computed from them.
    ``courses``: what calls do, by their sizes. ``run``: its operators, for padding. ``padded``:
    what calls of other sizes go to.
    """

    def __init__(
        self,
        captured: Sizes,
        inputs: Sequence[torch.Tensor],
        binder: Binder,
        objects: list[Any],
        *,
        pads: bool,
        keeps_lines: bool,
    ) -> None:
        self._inputs = inputs
        self.binder = binder
        self.objects = objects
        self._lines = Lines() if keeps_lines else None
        self._places: dict[str, str] = {}
        self._own = Course(inputs)
        self.courses = {captured: self._own}
        self.run = Run(inputs, user_line) if pads else None
        self.facts: Facts | None = None
        self.memory: list[torch.Tensor] = []
        self.external: tuple[torch.Tensor, ...] = ()
        self.writes = False
        self.derived: frozenset[int] = frozenset()
        self.padded: PaddedCalls | None = None

    def recording(
        self, fn: Callable[..., Any], splits: Callable[[Any], bool], check: Callable[[], None]
    ) -> Recording:
        """What to record. ``check()`` raises CaptureFailed where ``fn`` cannot be."""

        def build(recorder: WatchingRecorder) -> Callable[..., tuple[Any, ...]]:
            def run(t: Any, b: Any, *sizes: int) -> tuple[Any, ...]:
                check()
                recorder.memory.given(t)
                result = self._called(fn, t)
                if recorder.capturing:
                    self._note(result, recorder)
                else:
                    self._own.returned(result)
                    if self.run is not None:
                        self.run.returned(tensors_in(result, self.objects))
                return tuple(tensors_in(result, self.objects))

            return run

        make = partial(
            WatchingRecorder,
            is_splitting=splits,
            course=self._own,
            run=self.run,
            lines=self._lines,
        )
        return Recording(build, recorder=make)

    def follow(self, sizes: Sizes, inputs: Sequence[torch.Tensor]) -> Course:
        """What a run of a padded size does, from now on."""
        self.courses[sizes] = Course(inputs)
        return self.courses[sizes]

    def made_at(self, path: str) -> str:
        """The line that makes a leaf of the result.

        "result 0" is the first of its tensors, "memory[0]" the first that is written to.
        """
        return self._places.get(path, "")

    def _called(self, fn: Callable[..., Any], t: Sequence[torch.Tensor]) -> Any:
        structure = self.binder.structure
        named = named_arguments(structure, t)
        args, kwargs = spread(structure, named)
        before = [dict(vars(tensor)) for tensor in t]
        result = without_handles(fn(*args, **kwargs))
        if [dict(vars(tensor)) for tensor in t] != before:
            raise CaptureFailed(
                "the function sets attributes of a tensor that it is given, which no replay can do "
                "to a call's own tensor"
            )
        try:
            refuse_changed(structure, [named[name] for name in changeable(structure)], t)
        except UnsupportedSideEffect as error:
            raise CaptureFailed(f"{error}; no replay does that to a call's own") from None
        return result

    def _note(self, result: Any, recorder: WatchingRecorder) -> None:
        """What the recorded run shows: how to rebuild its result, what it reads and writes."""
        views = self._inputs
        code = result_code(result, views, self.objects)
        written = tuple(i for i, view in enumerate(views) if recorder.memory.writes_to(view))
        self.binder.mutated |= set(written)
        self.binder.expect(recorder.asked_for)
        own = {memory_key(view) for view in views}
        recorder.memory.read(tensors_in(result, self.objects))
        self.external = recorder.external
        held = tuple(t for t in self.external if memory_key(t) not in own)
        changed = tuple(i for i, tensor in enumerate(held) if recorder.memory.writes_to(tensor))
        self.memory = [held[i] for i in changed]
        self.facts = Facts(code.rebuild, code.uses_inputs, written, changed, held)
        self.writes = bool(recorder.memory.writes)
        self.derived = recorder.memory.derived
        self._note_places(result, [*(views[i] for i in written), *self.memory])

    def _note_places(self, result: Any, memory: Sequence[torch.Tensor]) -> None:
        """Note which lines made what a call gives, where that may be asked for."""
        lines, self._lines = self._lines, None
        if lines is None:
            return
        leaves = kept(result)
        leaves |= {f"memory[{i}]": tensor for i, tensor in enumerate(memory)}
        found = tensors_in(result, self.objects)
        leaves |= {f"result {i}": tensor for i, tensor in enumerate(found)}
        self._places = {
            path: lines.of(leaf) for path, leaf in leaves.items() if isinstance(leaf, torch.Tensor)
        }
