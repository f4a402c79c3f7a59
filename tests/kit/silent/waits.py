"""Waits that are dropped or moved: results are read before they are there."""

from __future__ import annotations

import torch
from torch.library import custom_op

from piecewise_core.testing.simulated.device import Device
from piecewise_core.testing.simulated.recording import Operation
from silent.base import CUT, SIZE, Mutant, Program, calls, platform
from silent.parts import Compiler, Driver

__all__ = ["WAITS"]

CAPTURED = {"capture_sizes": (SIZE,), "capture_max": False}
PENDING: dict[int, torch.Tensor] = {}
"""What was started and not waited for, by the address of where it goes to."""


def _pending(place: int, x: torch.Tensor) -> torch.Tensor:
    """What was started there; ``x`` where that was for somebody else, who never waited."""
    found = PENDING.pop(place, x)
    return found if (found.shape, found.dtype) == (x.shape, x.dtype) else x


@custom_op("silent::start", mutates_args=())
def start(x: torch.Tensor) -> torch.Tensor:
    """As a collective: the result is there behind ``wait``; before it is what memory held."""
    out = torch.full_like(x, -1)
    PENDING[out.data_ptr()] = x * 2
    return out


@custom_op("silent::wait", mutates_args={"x"})
def wait(x: torch.Tensor) -> None:
    x.copy_(_pending(x.data_ptr(), x))


@custom_op("silent::fetch", mutates_args=())
def fetch(x: torch.Tensor, slot: int) -> torch.Tensor:
    """As a copy on a stream of its own, into one of two slots."""
    PENDING[slot] = x + 1
    return torch.zeros_like(x)


@custom_op("silent::arrived", mutates_args=())
def arrived(x: torch.Tensor, slot: int) -> torch.Tensor:
    return _pending(slot, x).clone()


start.register_fake(torch.empty_like)
wait.register_fake(lambda x: None)
fetch.register_fake(lambda x, slot: torch.empty_like(x))
arrived.register_fake(lambda x, slot: torch.empty_like(x))


def without(graph, name):
    """``graph`` with the calls of ``name`` taken out: what they return is what they were given."""
    for node in list(graph.nodes):
        if name in str(node.target):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    return graph


class DropsWaits(Compiler):
    """Takes a wait for something without effect, as dead code is taken."""

    name_of = "silent.wait"

    def compile(self, graph, example_inputs, *, key, config):
        if self.name_of in str(graph.graph):
            graph = torch.fx.GraphModule(graph, without(graph.graph, self.name_of))
        return super().compile(graph, example_inputs, key=key, config=config)


class DropsArrivals(DropsWaits):
    name_of = "silent.arrived"


class WaitsLate(Compiler):
    """Moves every wait behind all else in its piece."""

    def compile(self, graph, example_inputs, *, key, config):
        for node in [n for n in graph.graph.nodes if "silent.wait" in str(n.target)]:
            list(graph.graph.nodes)[-2].append(node)
        graph.recompile()
        return super().compile(graph, example_inputs, key=key, config=config)


class GraphsDropWaits(Driver):
    """A device that records no wait."""

    def alter(self, graph, operations):
        steps = graph.recording.steps
        steps[:] = [s for s in steps if not _is_wait(s)]


def _is_wait(step):
    return isinstance(step, Operation) and step.function._schema.name == "silent::wait"


class Queue(Device):
    """A device whose replays are done a replay later, unless somebody waits."""

    def __init__(self, memory_bytes):
        super().__init__(memory_bytes)
        self.waiting = []


class ReplaysLate(Driver):
    """Starts a replay, and does what the one before it was to do."""

    def replay(self, graph):
        self._device.waiting.append(graph.recording)
        while len(self._device.waiting) > 1:
            self._device.waiting.pop(0).run()

    def replayer(self, graph):
        return lambda: self.replay(graph)


class SkipsTheLast(Driver):
    """A graph whose last kernel is started and not waited for."""

    def alter(self, graph, operations):
        if len(operations) > 1:
            graph.recording.steps.remove(operations[-1])


def reduced(dtype):
    def model(x):
        y = torch.ops.silent.start(x + 1)
        z = torch.softmax(x, -1)
        torch.ops.silent.wait(y)
        return {"sum": y + z, "shape": x.shape[1]}

    return lambda: Program(model, calls(4, 4, 6, dtype=dtype))


def reduced_twice():
    def model(x):
        first = torch.ops.silent.start(x)
        second = torch.ops.silent.start(x * 3)
        torch.ops.silent.wait(second)
        torch.ops.silent.wait(first)
        return first - torch.softmax(second, -1)

    return Program(model, calls(4, 4, 6))


def fetched():
    def model(x):
        y = torch.ops.silent.fetch(x, slot=1)
        z = torch.ops.silent.fetch(x * 2, slot=2)
        return torch.softmax(torch.ops.silent.arrived(y, 1), -1) + torch.ops.silent.arrived(z, 2)

    return Program(model, calls(4, 4, 6))


def chained():
    def model(x):
        return torch.softmax(torch.softmax(x * 2, -1) + x.sin(), -1) * 3

    return Program(model, calls(4, 4, 4, 6))


def _mutants():
    kind = "dropped wait"
    for what, program, part, settings in (
        ("a compiler drops it", reduced(torch.float32), DropsWaits, {}),
        ("a compiler drops it, bfloat16, captured", reduced(torch.bfloat16), DropsWaits, CAPTURED),
        ("a compiler drops one of two", reduced_twice, DropsWaits, {}),
        ("a compiler drops it, cut between", reduced(torch.float32), DropsWaits, CUT),
        ("a compiler takes a copy's slot for what arrived", fetched, DropsArrivals, CAPTURED),
        ("a compiler waits late", reduced(torch.float32), WaitsLate, {}),
        ("a compiler waits late, two in flight", reduced_twice, WaitsLate, CAPTURED),
    ):
        yield Mutant(kind, what, program, platform(compiler=part), settings=settings)
    yield Mutant(
        kind, "a compiler drops it, at torch.compile's door", reduced(torch.float32),
        platform(compiler=DropsWaits), front="door",
    )  # fmt: skip
    for front in ("compile", "record"):
        for what, program, part in (
            ("a device records none", reduced(torch.float32), GraphsDropWaits),
            ("a graph's last kernel", chained, SkipsTheLast),
            ("a replay is done late", chained, ReplaysLate),
        ):
            parts = {"driver": part, **({"device": Queue} if part is ReplaysLate else {})}
            name = f"{what}, {front.rstrip('e')}ed"
            settings = {**CUT, **CAPTURED} if program is chained else CAPTURED
            yield Mutant(kind, name, program, platform(**parts), front, settings)


WAITS = tuple(_mutants())
