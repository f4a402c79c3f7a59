"""What a recorded run does besides computing: memory, Python data, random state, reshaping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakValueDictionary

import torch

from piecewise_core.capture.calls import refuse_in_backward, reshapes, tensors, written
from piecewise_core.capture.collectives import refuse_unrecorded
from piecewise_core.capture.draws import Draws
from piecewise_core.capture.hostdata import Call, HostData, is_lift
from piecewise_core.capture.hostinputs import AddStep, HostInputs
from piecewise_core.capture.lines import Lines
from piecewise_core.capture.opsteps import another_path
from piecewise_core.capture.runmemory import RunMemory
from piecewise_core.capture.script import Script
from piecewise_core.errors import CaptureFailed
from piecewise_core.torch_compat.storages import memory_key

__all__ = ["Effects"]


class Effects:
    """Follows both runs of a recording, operator by operator; the second may be given other ones.

    ``step``: as HostInputs takes it. ``lines``: is told where operators run. ``memory``: what the
    last run made, read and wrote. ``data``, ``host``: what it made of Python data, and of tensors
    of the CPU.
    """

    def __init__(self, device_type: str, step: AddStep, lines: Lines | None) -> None:
        self._device_type = device_type
        self._step = step
        self._lines = lines
        self._made: WeakValueDictionary[int, torch.Tensor] = WeakValueDictionary()
        self._script = Script()
        self._second = False
        self.draws = Draws()
        self.memory = RunMemory()
        self._start()

    def _start(self) -> None:
        self.data = HostData()
        self.host = HostInputs(self._device_type, self.data.is_constant, self._step)

    def begin_again(self) -> None:
        """The second run begins."""
        self._second = True
        self.memory.begin_again()
        self.data.begin()
        self._script.begin()

    def put_back(self) -> None:
        """Restore what the runs wrote to memory that they did not make, and random state."""
        self.draws.put_back()
        self.memory.put_back()

    def forget(self) -> None:
        """Let go of every tensor."""
        self.memory.forget()
        self._start()

    def called(self, fn: Any, args: Any, kwargs: Any, *, splits: bool = False) -> bool:
        """An operator, or a splitting op, is about to run; whether it reshapes a tensor object.

        Raises CaptureFailed for what no recording can hold.
        """
        if splits:
            refuse_in_backward(fn)
        reshapes = self._reshapes(fn, args, anyway=splits)
        refuse_unrecorded(fn, args, kwargs)
        self._script.note(fn, args, kwargs)
        return reshapes

    def before(self, fn: Any, args: Any, kwargs: Any, current: str, segment: int) -> Call:
        """What runs in place of an operator: itself in the first run, which is in ``segment``."""
        if is_lift(fn) and not self._second:
            self.data.lifted(args[0], segment)
            self.made(args[0], ())
        self.writes(fn, args, kwargs, current)
        self.memory.read(tensors((args, kwargs)))
        if not self._second:
            self.draws.before(fn, args, kwargs)
            self.host.met(fn, args, kwargs)
            return fn, args, kwargs
        self.draws.again(fn, args, kwargs)
        call = self.data.instead(fn, args, kwargs)
        call = call if call[0] is not fn else self.host.instead(*call)
        self.memory.read(tensors(call[1:]))
        return call

    def ran(self, fn: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An operator ran."""
        self.made(result, (args, kwargs))
        self.data.saw(fn, args, kwargs, result)
        if not self._second:
            self.draws.after(fn)
            self.data.brought(fn, args, kwargs, result)

    def made(self, result: Any, given: Any) -> None:
        """New memory among the results; a view of what was given is no new memory."""
        found = list(tensors(result))
        if self._lines is not None:
            self._lines.saw(found)
        self._made.update({id(tensor): tensor for tensor in found})
        self.memory.made(found, tensors(given), self._script.step)

    def writes(self, fn: Any, args: Any, kwargs: Any, current: str) -> None:
        """Keep a copy of memory that is about to be written and that the run did not make.

        What the second run finds to be written beyond the first's was made by the first: there is
        nothing to go back to. Raises CaptureFailed, naming ``current``, where it writes to data
        that the first only read.
        """
        found = written(fn, args, kwargs)
        if self._lines is not None:
            self._lines.saw(found)
        if self._second and self._is_given(found):
            raise CaptureFailed(another_path(current))
        self.data.apart(found)
        self.memory.about_to_write(found, tensors((args, kwargs)), keep=not self._second)

    def ends_otherwise(self, results: list[torch.Tensor]) -> bool:
        """Whether the second run gives data that the first did not give.

        Raises CaptureFailed where it goes on from what the first left and leaves it anew.
        """
        self.memory.read(results)
        if self.memory.carried and self.memory.carried & self._script.repeated():
            raise CaptureFailed(
                "the function goes on from a tensor that its run before made and put into an "
                "attribute, a list or the like, and puts another one in its place: no replay does. "
                "Write to one tensor in place (self.state.copy_(new)), or such calls run as written"
            )
        return self._is_given(results)

    def _is_given(self, found: Iterable[torch.Tensor]) -> bool:
        """Whether one of ``found`` is data that the first run neither wrote to nor returned."""
        return any(memory_key(t) in self.data.given for t in found)

    def _reshapes(self, fn: Any, args: Any, *, anyway: bool) -> bool:
        """Whether sizes or strides change of a tensor object, which must be one that the run made.

        A replay changes no tensor object, only memory. ``anyway``: refuse it whoever made it.
        """
        if reshapes(fn) and (anyway or self._made.get(id(args[0])) is not args[0]):
            raise CaptureFailed(
                f"{fn} changes sizes or strides in place of a tensor that was given to the "
                "recorded function, or in a splitting op; a replay cannot. Use the function "
                "without the underscore, which returns a view"
            )
        return reshapes(fn)
