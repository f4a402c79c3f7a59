"""Records any callable: modes watch it run, and end a capture at every splitting op.

No tracer and no compiler: Python runs once per captured size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch

from piecewise_core.capture.calls import ValueRead, only_views, tensors, where, written
from piecewise_core.capture.collectives import InPlace, in_place
from piecewise_core.capture.course import Course
from piecewise_core.capture.effects import Effects
from piecewise_core.capture.hostdata import Call
from piecewise_core.capture.lines import Lines
from piecewise_core.capture.modes import Functions, Operators
from piecewise_core.capture.opsteps import allocate, another_path
from piecewise_core.capture.questions import Questions
from piecewise_core.capture.recorder import Recorder
from piecewise_core.capture.valuereads import is_read, looked_into, values_read
from piecewise_core.errors import CaptureFailed
from piecewise_core.graph.padding.runs import Run
from piecewise_core.plugins import Declared
from piecewise_core.torch_compat.graphs import as_when_traced, without_dynamo
from piecewise_core.torch_compat.operators import HigherOrderOperator

__all__ = ["WatchingRecorder"]


class WatchingRecorder(Recorder):
    """Captures what runs between splitting ops.

    ``is_splitting(node)``: as a Matcher; given stand-ins for graph nodes. ``memory``: what the last
    run made, read and wrote. ``run``: follows every operator of the first run, and so does
    ``course``, which begins with the inputs. ``lines``: follows where operators run.
    """

    strict, lasting = True, False  # no fake kernel has promised what operators return

    def __init__(
        self,
        platform: Declared,
        pool: Any,
        stream: Any,
        *,
        is_splitting: Callable[[Any], bool],
        course: Course | None = None,
        run: Run | None = None,
        lines: Lines | None = None,
    ) -> None:
        super().__init__(platform, pool, stream)
        self.current = "the recorded function"
        self._is_splitting = is_splitting
        self._lines = lines
        course = Course(()) if course is None else course
        self._followers: list[Course | Run] = [course] if run is None else [course, run]
        self._questions = Questions(course)
        self._around: Callable[[], AbstractContextManager[None]] = nullcontext
        self._segment = 0
        self._open: Any = None
        self.busy = False
        self._seen_inside = False
        self._operators = Operators(self)
        self._start()

    def _start(self) -> None:
        """Know of nothing that ran."""
        self._works = [False]
        self._effects = Effects(self.device_type, self._add_step, self._lines)
        self.memory = self._effects.memory

    # The two runs ----------------------------------------------------------------------

    def rehearse(self, run: Callable[[], Any]) -> None:
        """Notes the layout of every operator's results and which stretches have any work.

        A run that reads a tensor's value is made once more as under a tracer, for which much code
        has a way without: a recording fixes what it reads as a trace does.
        """
        try:
            self._watch(run)
        except ValueRead as error:
            self.put_back()
            self._unsee()
            self._start()
            for follower in self._followers:
                follower.forget()
            self._around = as_when_traced
            try:
                self._watch(run)
            except CaptureFailed as again:  # of two reads, the one that has no way without
                raise (again if isinstance(again, ValueRead) else error) from None

    def _watch(self, run: Callable[[], Any]) -> None:
        draws, data = self._effects.draws, self._effects.data
        draws.begin((torch.default_generator, self.generator))
        with self._watched():
            data.apart(tensors(run()))
            self.draws = draws.check()
        for value in data.fresh:
            for segment in data.segments[value]:
                self._works[segment] = True  # replays make it anew

    def record(self, run: Callable[[], Any]) -> Any:
        """Captures each stretch that has work."""
        self._effects.begin_again()
        self._segment = 0
        self._begin()
        with self._watched():
            result = run()
        self._end()
        if self._seen != len(self._results) or self._effects.ends_otherwise(tensors(result)):
            raise CaptureFailed(another_path(self.current))
        return result

    @property
    def asked_for(self) -> frozenset[str]:
        """What was asked of tensors besides values, as a binder knows it."""
        return self._questions.names

    @property
    def external(self) -> tuple[torch.Tensor, ...]:
        """As said of the class."""
        return self.memory.outside

    def put_back(self) -> None:
        """Restore what the runs wrote to memory that they did not make, and random state."""
        self._effects.put_back()

    def forget(self) -> None:
        """Let go of every tensor."""
        super().forget()
        self._effects.forget()

    def _begin(self) -> None:
        if self._segment < len(self._works) and self._works[self._segment]:
            self._open = self._begin_graph()

    def _end(self) -> None:
        following = self._results[self._seen] if self._seen < len(self._results) else []
        if self._open is not None:
            self._next += [allocate(layout) for layout in following]
            self._capture_end(self._open)
            self._effects.host.fill()
            self._platform.graphs.replay(self._open)
            self.sequence.append(self._open)
            self._open = None
        self._segment += 1

    # What the modes report -------------------------------------------------------------

    def asked(self, fn: Any, args: Any) -> None:
        """A torch function, method or property is called."""
        self._questions.asked(fn, args)

    def split_at(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a splitting op between two captures."""
        self._effects.called(fn, args, kwargs, splits=True)
        if self.capturing:
            self._end()
        else:
            self._works.append(False)
            self._effects.draws.before(fn, args, kwargs)
        self._effects.writes(fn, args, kwargs, self.current)
        self.memory.read(tensors((args, kwargs)))
        self.busy, self._seen_inside = True, False
        try:
            if in_place(fn):
                step = InPlace(fn)
                self.op(step)(*args, **kwargs)
                result = step.take_result()
            else:
                result = self.op(fn)(*args, **kwargs)
        finally:
            self.busy = False
        if not self._seen_inside:
            self._tell(fn, args, kwargs, result)
        self._effects.made(result, (args, kwargs))
        if not self.capturing and not in_place(fn):
            self._questions.kept(result, self._results[-1])
        if self.capturing:
            self._begin()
        else:
            self._effects.draws.drawn()
        return result

    def split_at_function(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """As ``split_at``, from the function mode, where the dispatch mode is still in place."""
        if not self.capturing and not isinstance(fn, HigherOrderOperator):
            # A torch function says nothing of its writes: its operators do, in this run.
            return self.split_at(fn, args, kwargs)
        with self._operators.left():
            return self.split_at(fn, args, kwargs)

    def inside(self, fn: Any, args: Any, kwargs: Any) -> Any:
        """An operator runs within a splitting op; only its writes count."""
        self._effects.writes(fn, args, kwargs, self.current)
        result = fn(*args, **kwargs)
        self._seen_inside = True
        self._tell(fn, args, kwargs, result)
        self._effects.made(result, (args, kwargs))
        return result

    def _tell(self, fn: Any, args: Any, kwargs: Any, result: Any) -> None:
        for follower in () if self.capturing else self._followers:
            follower.note(fn, args, kwargs, result)

    def saw(self, fn: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An ordinary operator ran."""
        views = only_views(result, args, kwargs, written(fn, args, kwargs))
        if not views and not self._effects.host.runs_there(fn, args, kwargs):
            if not self.capturing:
                self._works[-1] = True
            elif self._open is None:
                raise CaptureFailed(another_path(self.current))
        self._tell(fn, args, kwargs, result)
        self._effects.ran(fn, args, kwargs, result)

    def before(self, fn: Any, args: Any, kwargs: Any) -> Call:
        """An ordinary operator is about to run; returns what runs in its place."""
        if not all(map(self._effects.data.holds, values_read(fn, args, kwargs))):
            raise ValueRead("a tensor's value" if is_read(fn) else f"what {fn} tells of values")
        self.reshaping |= self._effects.called(fn, args, kwargs)
        self._questions.reach(fn, args, kwargs)
        if self.capturing:
            self.current = f"the recorded function{where()}"  # for what the driver refuses
        return self._effects.before(fn, args, kwargs, self.current, len(self._works) - 1)

    def looked_into(self, fn: Any) -> Any:
        """What runs for an operator: itself, seen through in the first run."""
        return fn if self.capturing else looked_into(fn, self._effects.data.holds)

    def may_be_read(self, tensor: Any) -> bool:
        """Whether Python may have a tensor's value: it is Python's own."""
        return isinstance(tensor, torch.Tensor) and self._effects.data.holds(tensor)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        with without_dynamo(), Functions(self), self._operators, self._around():
            yield

    def is_splitting(self, op: str, target: Any, args: Any, kwargs: Any) -> bool:
        """Whether a function, method or operator ends a capture."""
        call = SimpleNamespace(op=op, target=target, args=args, kwargs=kwargs, all_input_nodes=())
        return not self.busy and self._is_splitting(call)
