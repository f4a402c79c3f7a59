"""Records any callable: modes watch it run, and end a capture at every splitting op.

No tracer and no compiler: Python runs once per captured size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import torch

from piecewise_core.capture.calls import ValueRead, only_views, reshapes, tensors, written
from piecewise_core.capture.collectives import InPlace, in_place, refuse_unrecorded
from piecewise_core.capture.course import Course
from piecewise_core.capture.draws import Draws
from piecewise_core.capture.hostdata import Call, HostData, is_lift
from piecewise_core.capture.hostinputs import HostInputs
from piecewise_core.capture.lines import Lines
from piecewise_core.capture.modes import Functions, Operators
from piecewise_core.capture.opsteps import allocate
from piecewise_core.capture.questions import Questions
from piecewise_core.capture.recorder import Recorder, another_path
from piecewise_core.capture.runmemory import RunMemory
from piecewise_core.capture.script import Script
from piecewise_core.capture.valuereads import is_read, looked_into, values_read
from piecewise_core.errors import CaptureFailed
from piecewise_core.graph.padding.runs import Run
from piecewise_core.plugins import Declared
from piecewise_core.torch_compat.graphs import as_when_traced, in_backward, without_dynamo
from piecewise_core.torch_compat.operators import HigherOrderOperator
from piecewise_core.torch_compat.storages import memory_key

__all__ = ["WatchingRecorder"]


class WatchingRecorder(Recorder):
    """Captures what runs between splitting ops.

    ``is_splitting(node)``: as a Matcher; given stand-ins for graph nodes. ``memory``: what
    the last run made, read and wrote. ``run``: is told
    of every operator of the first run, and so is ``course``, which begins with the inputs.
    ``lines``: is told where operators run.
    """

    strict = True  # no fake kernel has promised what operators return

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
        self._run = run
        self._lines = lines
        self._course = Course(()) if course is None else course
        self._questions = Questions(self._course)
        self._around: Callable[[], AbstractContextManager[None]] = nullcontext
        self._segment = 0
        self._open: Any = None
        self._busy = False
        self._seen_inside = False
        self._operators = Operators(self)
        self._start()

    def _start(self) -> None:
        """Know of nothing that ran."""
        self.memory = RunMemory()
        self._works = [False]
        self._results_made: WeakValueDictionary[int, torch.Tensor] = WeakValueDictionary()
        self._draws = Draws()
        self._data = HostData()
        self._script = Script()
        self._host = HostInputs(self.device_type, self._data.is_constant, self._add_step)

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
            if self._run is not None:
                self._run.forget()
            self._course.forget()
            self._around = as_when_traced
            try:
                self._watch(run)
            except CaptureFailed:
                raise error from None

    def _watch(self, run: Callable[[], Any]) -> None:
        self._draws.begin((torch.default_generator, self.generator))
        with self._watched():
            self._data.apart(tensors(run()))
            self._draws.check()
        for value in self._data.fresh:
            for segment in self._data.segments[value]:
                self._works[segment] = True  # replays make it anew

    def record(self, run: Callable[[], Any]) -> Any:
        """Captures each stretch that has work."""
        self.memory.begin_again()
        self._data.begin()
        self._script.begin()
        self._segment = 0
        self._begin()
        with self._watched():
            result = run()
        self._end()
        if self._seen != len(self._results) or self._is_given(tensors(result)):
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
        self._draws.put_back()
        self.memory.put_back()

    def forget(self) -> None:
        """Let go of every tensor."""
        super().forget()
        self.memory.forget()
        self._data = HostData()
        self._host = HostInputs(self.device_type, self._data.is_constant, self._add_step)

    def _begin(self) -> None:
        if self._segment < len(self._works) and self._works[self._segment]:
            self._open = self._begin_graph()

    def _end(self) -> None:
        following = self._results[self._seen] if self._seen < len(self._results) else []
        if self._open is not None:
            self._next += [allocate(layout) for layout in following]
            self._driver.capture_end(self._open)
            self._host.fill()
            self._driver.replay(self._open)
            self.sequence.append(self._open)
            self._open = None
        self._segment += 1

    # What the modes report -------------------------------------------------------------

    def asked(self, fn: Any, args: Any) -> None:
        """A torch function, method or property is called."""
        self._questions.asked(fn, args)

    def split_at(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a splitting op between two captures."""
        if in_backward():
            # Autograd puts this thread's modes back after each node: a capture of CPU tensors that
            # ends or begins within one would be lost, or go on for good.
            raise CaptureFailed(
                f"{fn} is a splitting op and runs in a backward pass, within which no capture can "
                "end; put all that calls autograd into a splitting op"
            )
        self._refuse_reshaping(fn, args, anyway=True)
        refuse_unrecorded(fn, args, kwargs)
        self._script.note(fn, args, kwargs)
        if self.capturing:
            self._end()
        else:
            self._works.append(False)
            self._draws.before(fn, args, kwargs)
        self._note_writes(fn, args, kwargs)
        self.memory.read(tensors((args, kwargs)))
        self._busy, self._seen_inside = True, False
        try:
            if in_place(fn):
                step = InPlace(fn)
                self.op(step)(*args, **kwargs)
                result = step.told()
            else:
                result = self.op(fn)(*args, **kwargs)
        finally:
            self._busy = False
        if not self._seen_inside:
            self._tell(fn, args, kwargs, result)
        self._note_made(result, (args, kwargs))
        if not self.capturing and not in_place(fn):
            self._questions.kept(result, self._results[-1])
        if self.capturing:
            self._begin()
        else:
            self._draws.drawn()
        return result

    def split_at_function(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """As ``split_at``, from the function mode, where the dispatch mode is still in place."""
        if not self.capturing and not isinstance(fn, HigherOrderOperator):
            # A torch function says nothing of its writes: its operators do, in this run.
            return self.split_at(fn, args, kwargs)
        with self._below_operators():
            return self.split_at(fn, args, kwargs)

    def inside(self, fn: Any, args: Any, kwargs: Any) -> Any:
        """An operator runs within a splitting op; only its writes count."""
        self._note_writes(fn, args, kwargs)
        result = fn(*args, **kwargs)
        self._seen_inside = True
        self._tell(fn, args, kwargs, result)
        self._note_made(result, (args, kwargs))
        return result

    def _tell(self, fn: Any, args: Any, kwargs: Any, result: Any) -> None:
        if self.capturing:
            return
        self._course.note(fn, args, kwargs, result)
        if self._run is not None:
            self._run.note(fn, args, kwargs, result)

    def saw(self, fn: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An ordinary operator ran."""
        views = only_views(result, args, kwargs, written(fn, args, kwargs))
        if not views and not self._host.runs_there(fn, args, kwargs):
            if not self.capturing:
                self._works[-1] = True
            elif self._open is None:
                raise CaptureFailed(another_path(self.current))
        self._tell(fn, args, kwargs, result)
        self._note_made(result, (args, kwargs))
        self._data.saw(fn, args, kwargs, result)
        if not self.capturing:
            self._draws.after(fn)
            self._data.brought(fn, args, kwargs, result)

    def _note_made(self, result: Any, given: Any) -> None:
        """New memory among the results; a view of what was given is no new memory."""
        found = list(tensors(result))
        if self._lines is not None:
            self._lines.saw(found)
        self._results_made.update({id(tensor): tensor for tensor in found})
        self.memory.made(found, tensors(given))

    def before(self, fn: Any, args: Any, kwargs: Any) -> Call:
        """An ordinary operator is about to run; returns what runs in its place."""
        if not all(map(self._data.holds, values_read(fn, args, kwargs))):
            raise ValueRead("a tensor's value" if is_read(fn) else f"what {fn} tells of values")
        self._refuse_reshaping(fn, args)
        refuse_unrecorded(fn, args, kwargs)
        self._questions.reach(fn, args, kwargs)
        self._script.note(fn, args, kwargs)
        if not self.capturing and is_lift(fn):
            self._data.lifted(args[0], len(self._works) - 1)
            self._note_made(args[0], ())
        self._note_writes(fn, args, kwargs)
        self.memory.read(tensors((args, kwargs)))
        if not self.capturing:
            self._draws.before(fn, args, kwargs)
            self._host.met(fn, args, kwargs)
            return fn, args, kwargs
        self._draws.again(fn, args, kwargs)
        call = self._data.instead(fn, args, kwargs)
        call = call if call[0] is not fn else self._host.instead(*call)
        self.memory.read(tensors(call[1:]))
        return call

    def looked_into(self, fn: Any) -> Any:
        """What runs for an operator: itself, seen through in the first run."""
        return fn if self.capturing else looked_into(fn, self._data.holds)

    def may_be_read(self, tensor: Any) -> bool:
        """Whether Python may have a tensor's value: it is Python's own."""
        return isinstance(tensor, torch.Tensor) and self._data.holds(tensor)

    def _refuse_reshaping(self, fn: Any, args: Any, *, anyway: bool = False) -> None:
        """Raise CaptureFailed where sizes or strides change of a tensor that the run did not make.

        A replay changes no tensor object, only memory. ``anyway``: whoever made it.
        """
        if not reshapes(fn):
            return
        self.reshaping = True
        if anyway or self._results_made.get(id(args[0])) is not args[0]:
            raise CaptureFailed(
                f"{fn} changes sizes or strides in place of a tensor that was given to the "
                "recorded function, or in a splitting op; a replay cannot. Use the function "
                "without the underscore, which returns a view"
            )

    def _is_given(self, found: Iterable[torch.Tensor]) -> bool:
        """Whether one of ``found`` is data that the first run neither wrote to nor returned."""
        return any(memory_key(t) in self._data.given for t in found)

    def _note_writes(self, fn: Any, args: Any, kwargs: Any) -> None:
        """Keep a copy of memory that is about to be written and that the run did not make.

        What the second run finds to be written beyond the first's was made by the first: there is
        nothing to go back to.
        """
        found = written(fn, args, kwargs)
        if self._lines is not None:
            self._lines.saw(found)
        if self.capturing and self._is_given(found):
            raise CaptureFailed(another_path(self.current))
        self._data.apart(found)
        self.memory.about_to_write(found, keep=not self.capturing)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        with without_dynamo(), Functions(self), self._operators, self._around():
            yield

    @contextmanager
    def _below_operators(self) -> Iterator[None]:
        """Step out of the dispatch mode: a driver may keep a mode of its own beneath it."""
        self._operators.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            self._operators.__enter__()  # type: ignore[no-untyped-call]

    def is_splitting(self, op: str, target: Any, args: Any, kwargs: Any) -> bool:
        """Whether a function, method or operator ends a capture."""
        call = SimpleNamespace(op=op, target=target, args=args, kwargs=kwargs, all_input_nodes=())
        return not self._busy and self._is_splitting(call)

    @property
    def busy(self) -> bool:
        """Whether a splitting op is running, into which nobody looks."""
        return self._busy
