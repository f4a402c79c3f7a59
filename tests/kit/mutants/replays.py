"""L2: graphs that replay something else than was captured."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import torch

from mutants.base import device
from piecewise_core.testing.simulated.device import Device, Stream
from piecewise_core.testing.simulated.driver import SimulatedDriver
from piecewise_core.testing.simulated.frozen import Frozen, unseen
from piecewise_core.testing.simulated.recording import Operation
from piecewise_core.testing.simulated.runtime import SimulatedRuntime
from piecewise_core.testing.simulated.shadows import is_written

__all__ = ["REPLAYS"]


class DropsTheLast(SimulatedDriver):
    def capture_end(self, graph):
        super().capture_end(graph)
        steps = graph.recording.steps
        last = [s for s in steps if isinstance(s, Operation)][-1:]
        graph.recording.steps[:] = [s for s in steps if s not in last]


def _fix(graph, wanted):
    """Replace memory that operators read by copies, where ``wanted(frozen)``."""
    for step in graph.recording.steps:
        if not isinstance(step, Operation):
            continue
        for place, argument in enumerate(step.function._schema.arguments):
            given = step.args[place] if place < len(step.args) else None
            if isinstance(given, Frozen) and not is_written(argument) and wanted(given):
                with torch.inference_mode(), unseen():
                    given._fixed = given.thaw().clone()


class Stale(SimulatedDriver):
    def capture_end(self, graph):
        super().capture_end(graph)
        _fix(graph, lambda frozen: frozen._owner is not None)


class StaleNeighbours(SimulatedDriver):
    """Reads what other graphs write from copies made at the capture."""

    def capture_end(self, graph):
        super().capture_end(graph)
        steps = [s for s in graph.recording.steps if isinstance(s, Operation)]
        own = {block.address for step in steps for block in step.results.values()}
        _fix(graph, lambda frozen: frozen._owner is None and frozen.address not in own)


class Once(SimulatedDriver):
    def replay(self, graph):
        if not getattr(graph, "replayed", False):
            super().replay(graph)
        graph.replayed = True


class Twice(SimulatedDriver):
    def replay(self, graph):
        super().replay(graph)
        super().replay(graph)


class Elsewhere(Device):
    """A device with a second queue, which only synchronize waits for."""

    def __init__(self, memory_bytes):
        super().__init__(memory_bytes)
        self.queue = []


class OtherStream(SimulatedDriver):
    def replay(self, graph):
        self._device.queue.append(graph.recording)

    def replayer(self, graph):
        return functools.partial(self.replay, graph)


class Waiting(SimulatedRuntime):
    def synchronize(self):
        super().synchronize()
        while self._device.queue:
            self._device.queue.pop(0).run()


class _Late(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self, graph, memory):
        super().__init__()
        self.graph, self.memory = graph, memory

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.add_.Tensor and self.graph.recording is not None:
            frozen = tuple(
                Frozen(a, self.memory) if isinstance(a, torch.Tensor) else a for a in args
            )
            self.graph.recording.steps.append(Operation(func, frozen, {}, {}))
            self.graph = type(self.graph)(None)
        return func(*args, **(kwargs or {}))


class EndsLate(SimulatedDriver):
    late = None

    def capture_end(self, graph):
        super().capture_end(graph)
        self.late = _Late(graph, self._device.memory)
        self.late.__enter__()

    def _leave(self):
        if self.late is not None:
            self.late.__exit__(None, None, None)
            self.late = None

    def replay(self, graph):
        self._leave()
        super().replay(graph)

    def reset(self, graph):
        self._leave()
        super().reset(graph)

    def capture_begin(self, graph, pool, stream):
        self._leave()
        super().capture_begin(graph, pool, stream)

    def replayer(self, graph):
        self._leave()
        return super().replayer(graph)


class NothingFails(SimulatedDriver):
    def replay(self, graph):
        if not graph.recording.steps:
            raise RuntimeError("the graph is empty")
        super().replay(graph)


class RunsInSilence(SimulatedDriver):
    runs_captures = False

    def capture_end(self, graph):
        super().capture_end(graph)
        graph.recording.run()


class LeavesAStream(SimulatedDriver):
    def capture_end(self, graph):
        super().capture_end(graph)
        self._device._current.stream = Stream(99, self._device)


class LastReplayer(SimulatedDriver):
    last = None

    def replayer(self, graph):
        self.last = graph
        return lambda: self.last.replay()


class Unregistered(SimulatedDriver):
    """Built with ``generators=False``: replays draw the same numbers again."""

    def register_generator(self, graph, generator):
        pass


class OwnDraws(SimulatedDriver):
    """Replays draw from a state of their own."""

    state = None

    def replay(self, graph):
        before = torch.default_generator.get_state()
        torch.default_generator.set_state(before if self.state is None else self.state)
        super().replay(graph)
        self.state = torch.default_generator.get_state()
        torch.default_generator.set_state(before)


class Swallowing(SimulatedDriver):
    def capture_context(self):
        return contextlib.suppress(Exception)


class EmptyDump(SimulatedDriver):
    def dump(self, graph, path):
        Path(path).write_text("", encoding="utf-8")


class Updated(SimulatedDriver):
    """A device whose graphs must be told the call's sizes on the host before every replay."""

    runs_captures = False

    def before_replay(self, graph, call):
        graph.told = call.sizes

    def replay(self, graph):
        if getattr(graph, "told", None) is None:
            raise RuntimeError("before_replay was not called for this graph")
        graph.told = None
        super().replay(graph)

    def replayer(self, graph):
        return functools.partial(self.replay, graph)


class UpdatedOnce(Updated):
    """Keeps the sizes of the first call, and computes nothing for others."""

    def before_replay(self, graph, call):
        graph.first = getattr(graph, "first", call.sizes)
        graph.told = call.sizes
        graph.wrong = bool(call.sizes) and graph.first != call.sizes

    def replay(self, graph):
        if graph.wrong:
            graph.told = None
            return
        super().replay(graph)


REPLAYS = (
    device(
        "a replay that leaves the last operator out",
        "test_a_replay_equals_the_uncaptured_run",
        driver=DropsTheLast,
    ),
    device("stale input", "test_a_replay_reads_its_inputs_anew", driver=Stale),
    device(
        "a second replay that does nothing",
        "test_every_replay_writes_the_same_addresses",
        driver=Once,
    ),
    device(
        "a replay on the wrong stream",
        "test_a_replay_is_in_the_order_of_its_stream",
        driver=OtherStream,
        runtime=Waiting,
        parent=Elsewhere,
    ),
    device("a replay that happens twice", "test_a_replay_happens_once", driver=Twice),
    device(
        "a capture that ends one operator late",
        "test_what_comes_behind_a_capture_is_not_in_it",
        driver=EndsLate,
    ),
    device(
        "a graph that copies what another graph will write",
        "test_graphs_read_what_others_wrote",
        driver=StaleNeighbours,
    ),
    device(
        "an empty graph that does not replay", "test_an_empty_graph_replays", driver=NothingFails
    ),
    device("a capture that runs, undeclared", "test_a_capture_runs_nothing", driver=RunsInSilence),
    device(
        "a capture that leaves its own stream current",
        "test_the_current_stream_stays",
        driver=LeavesAStream,
    ),
    device(
        "a replayer of whichever graph came last",
        "test_a_replayer_replays_its_own_graph",
        driver=LastReplayer,
    ),
    device(
        "a generator that is not registered",
        "test_replays_draw_new_random_numbers",
        driver=Unregistered,
        generators=False,
    ),
    device(
        "replays that draw from a state of their own",
        "test_a_seed_repeats_what_replays_draw",
        driver=OwnDraws,
    ),
    device(
        "a capture context that swallows errors",
        "test_the_capture_context_lets_errors_out",
        driver=Swallowing,
    ),
    device("a dump of nothing", "test_a_dump_is_a_file_or_a_reason", driver=EmptyDump),
    device(
        "graphs that keep the sizes of their first call",
        "test_graphs_are_right_behind_before_replay",
        driver=UpdatedOnce,
    ),
)
