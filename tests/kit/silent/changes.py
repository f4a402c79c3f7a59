"""Lists that are replaced and attributes that change, behind what was traced or recorded."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from silent.base import CUT, SIZE, Mutant, Program, calls

__all__ = ["CHANGES"]

CAPTURED = {**CUT, "capture_sizes": (SIZE,), "capture_max": False}


class Model(nn.Module):
    """Reads one value of its state: ``read(self)``."""

    def __init__(self, read: Callable[[Any], Any], **state: Any) -> None:
        super().__init__()
        self.read = read
        for name, value in state.items():
            setattr(self, name, value)

    def forward(self, x):
        return torch.softmax(x * 2, -1) * self.read(self)


def changing(read: Callable[[Any], Any], change: Callable[[Any], Any], **state: Any) -> Any:
    """A program whose state, made anew by ``state``'s functions, changes between calls."""

    def program():
        model = Model(read, **{name: make() for name, make in state.items()})
        return Program(model, [*calls(4, 4, 6), lambda: change(model), *calls(4, 4, 6)])

    return program


@dataclasses.dataclass
class Options:
    gain: float = 2.0


@dataclasses.dataclass(frozen=True)
class Frozen:
    gain: float = 2.0


class Kind(enum.Enum):
    LOUD = 5.0
    PLAIN = 2.0


class Box:
    """Items of its own, in a slot."""

    __slots__ = ("_items",)

    def __init__(self):
        self._items = [1.0, 2.0]

    def __getitem__(self, place):
        return self._items[place]

    @property
    def last(self):
        return self._items[-1]

    def put(self, value):
        self._items = [1.0, value]


class Inner(nn.Module):
    gain = 2.0

    def forward(self, x):
        return x * self.gain


LISTS = {
    "a list of numbers is replaced": changing(
        lambda m: m.gains[1], lambda m: setattr(m, "gains", [1.0, 5.0]), gains=lambda: [1.0, 2.0]
    ),
    "an item of a list is replaced": changing(
        lambda m: m.gains[1], lambda m: m.gains.__setitem__(1, 5.0), gains=lambda: [1.0, 2.0]
    ),
    "a list grows": changing(
        lambda m: sum(m.gains), lambda m: m.gains.append(5.0), gains=lambda: [1.0, 2.0]
    ),
    "a list is turned around in place": changing(
        lambda m: m.gains[0], lambda m: m.gains.reverse(), gains=lambda: [1.0, 2.0]
    ),
    "a list in a dict in a list": changing(
        lambda m: m.held[0]["a"][1],
        lambda m: m.held[0]["a"].__setitem__(1, 5.0),
        held=lambda: [{"a": [1.0, 2.0]}],
    ),
    "a queue is turned": changing(
        lambda m: m.queue[0],
        lambda m: m.queue.rotate(1),
        queue=lambda: collections.deque([2.0, 5.0]),
    ),
    "a list behind an object's own items": changing(
        lambda m: m.box[1], lambda m: m.box.put(5.0), box=Box
    ),
    "a dict of options is emptied": changing(
        lambda m: m.options.get("gain", 5.0), lambda m: m.options.clear(),
        options=lambda: {"gain": 2.0},
    ),
    "a set of names grows": changing(
        lambda m: 5.0 if "loud" in m.names else 2.0, lambda m: m.names.add("loud"), names=set
    ),
}  # fmt: skip


ATTRIBUTES = {
    "a float": changing(
        lambda m: m.gain, lambda m: setattr(m, "gain", 5.0), gain=lambda: 2.0
    ),
    "a flag": changing(
        lambda m: 5.0 if m.training else 2.0, lambda m: m.train(not m.training)
    ),
    "a name of a mode": changing(
        lambda m: {"loud": 5.0, "plain": 2.0}[m.mode], lambda m: setattr(m, "mode", "loud"),
        mode=lambda: "plain",
    ),
    "a field of options": changing(
        lambda m: m.options.gain, lambda m: setattr(m.options, "gain", 5.0), options=Options
    ),
    "options that cannot change are replaced": changing(
        lambda m: m.options.gain, lambda m: setattr(m, "options", Frozen(5.0)), options=Frozen
    ),
    "a member of an enum": changing(
        lambda m: m.kind.value, lambda m: setattr(m, "kind", Kind.LOUD), kind=lambda: Kind.PLAIN
    ),
    "a property of an object with slots": changing(
        lambda m: m.box.last, lambda m: m.box.put(5.0), box=Box
    ),
    "an attribute of a namespace": changing(
        lambda m: m.held.gain, lambda m: setattr(m.held, "gain", 5.0),
        held=lambda: types.SimpleNamespace(gain=2.0),
    ),
    "a module's own attribute over its class's": changing(
        lambda m: m.inner(torch.ones(8)), lambda m: setattr(m.inner, "gain", 5.0), inner=Inner
    ),
    "what a partial function was given": changing(
        lambda m: m.call(3.0), lambda m: m.call.keywords.update(gain=5.0),
        call=lambda: functools.partial(lambda x, gain: x * gain, gain=2.0),
    ),
    "a method of the instance": changing(
        lambda m: m.read_gain(), lambda m: setattr(m, "read_gain", lambda: 5.0),
        read_gain=lambda: lambda: 2.0,
    ),
}  # fmt: skip


def in_a_cell():
    gain = 2.0

    def model(x):
        return torch.softmax(x, -1) * gain

    def change():
        nonlocal gain
        gain = 5.0

    return Program(model, [*calls(4, 4), change, *calls(4, 4)])


def in_defaults():
    def scaled(x, gain=2.0):
        return x * gain

    def model(x):
        return scaled(torch.softmax(x, -1))

    def change():
        scaled.__defaults__ = (5.0,)

    return Program(model, [*calls(4, 4), change, *calls(4, 4)])


def in_a_hook():
    model = Model(lambda m: m.inner(torch.ones(8)), inner=Inner())

    def change():
        model.inner.register_forward_hook(lambda module, args, out: out * 3)

    return Program(model, [*calls(4, 4), change, *calls(4, 4)])


def in_a_class():
    class Own(nn.Module):
        gain = 2.0

        def forward(self, x):
            return torch.softmax(x, -1) * self.gain

    return Program(Own(), [*calls(4, 4), lambda: setattr(Own, "gain", 5.0), *calls(4, 4)])


def in_code():
    def scaled(x):
        return x * 2

    def louder(x):
        return x * 5

    def model(x):
        return scaled(torch.softmax(x, -1))

    def change():
        scaled.__code__ = louder.__code__

    return Program(model, [*calls(4, 4), change, *calls(4, 4)])


ELSEWHERE = {
    "a closure's cell": in_a_cell,
    "a function's defaults": in_defaults,
    "a hook that comes later": in_a_hook,
    "an attribute of the class": in_a_class,
    "a function's code": in_code,
}


def _mutants():
    for kind, table in (
        ("replaced list", LISTS),
        ("changed attribute", {**ATTRIBUTES, **ELSEWHERE}),
    ):
        for place, (what, program) in enumerate(table.items()):
            # Ways take turns: each kind of change meets one, each way a third of them.
            way = place % 3
            front = "record" if way == 2 else "compile"
            name = f"{what}{('', ', captured', ', recorded')[way]}"
            settings = CAPTURED if way else CUT
            yield Mutant(kind, name, program, front=front, settings=settings, blind=True)


CHANGES = tuple(_mutants())
