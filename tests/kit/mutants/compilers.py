"""L1: compilers and runtimes that are wrong at one size, or with one kind of memory."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import torch

from mutants.base import device
from piecewise_core.backend import PiecewiseBackend
from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.protocols import CompiledGraph
from piecewise_core.testing.simulated.runtime import SimulatedRuntime

__all__ = ["COMPILERS"]

_TICKS = itertools.count()


class _Wrong(EagerCompiler):
    """``change(run, sizes, args)`` is called in place of ``run(*args)``.

    ``sizes``: (smallest, largest) of the range compiled for, None for an exact size.
    """

    name = "mutant"

    def compile(self, graph, example_inputs, *, key, config):
        run, sizes = graph.forward, _range(example_inputs)
        return CompiledGraph(lambda *args: self.change(run, sizes, args))

    def change(self, run, sizes, args):
        return run(*args)


def _range(inputs: Any) -> tuple[int, float] | None:
    if not inputs or not isinstance(inputs[0], torch.SymInt):
        return None
    node = inputs[0].node
    found = node.shape_env.var_to_range[node.expr]
    return int(found.lower), float(found.upper)


def _spoiled(outs):
    return tuple(o * 0 - 1 if o.is_floating_point() else o for o in outs)


class UpperEnd(_Wrong):
    def change(self, run, sizes, args):
        outs = run(*args)
        return _spoiled(outs) if sizes and args[0] == sizes[1] else outs


class LowerEnd(_Wrong):
    def change(self, run, sizes, args):
        outs = run(*args)
        return _spoiled(outs) if sizes and args[0] == sizes[0] > 1 else outs


class Empty(_Wrong):
    def change(self, run, sizes, args):
        if args[0] == 0:
            raise RuntimeError("invalid launch: the grid is empty")
        return run(*args)


class One(_Wrong):
    def change(self, run, sizes, args):
        outs = run(*args)
        return _spoiled(outs) if args[0] == 1 else outs


class Exact(_Wrong):
    def change(self, run, sizes, args):
        outs = run(*args)
        return outs if sizes else _spoiled(outs)


class Everywhere(_Wrong):
    def change(self, run, sizes, args):
        return _spoiled(run(*args)) if sizes and sizes[1] < 100 else run(*args)


class Bounded(_Wrong):
    def change(self, run, sizes, args):
        if sizes and sizes[1] > 1000:
            raise RuntimeError("this code was compiled for at most 32 rows")
        return run(*args)


class Scribbles(_Wrong):
    def change(self, run, sizes, args):
        outs = run(*args)
        for tensor in args:
            # Weights are 8 x 8: a call with 8 rows would leave them changed for the next.
            if isinstance(tensor, torch.Tensor) and tensor.shape == (args[0], 8) != (8, 8):
                tensor.add_(1)
        return outs


class KeepsResults(_Wrong):
    def __init__(self):
        self.kept = {}

    def change(self, run, sizes, args):
        outs = run(*args)
        for place, out in enumerate(outs):
            key = run, place, out.shape
            if key in self.kept:
                self.kept[key].copy_(out)
        return tuple(self.kept.setdefault((run, p, o.shape), o) for p, o in enumerate(outs))


class Functional(_Wrong):
    def change(self, run, sizes, args):
        return run(*(a.clone() if isinstance(a, torch.Tensor) else a for a in args))


class Aligned(_Wrong):
    def change(self, run, sizes, args):
        outs = run(*args)
        odd = any(isinstance(a, torch.Tensor) and a.data_ptr() % 16 for a in args)
        return _spoiled(outs) if odd else outs


class Widens(_Wrong):
    def change(self, run, sizes, args):
        return tuple(o.long() if o.dtype is torch.int32 else o for o in run(*args))


class WidensHalves(_Wrong):
    def change(self, run, sizes, args):
        return tuple(o.float() if o.dtype is torch.float16 else o for o in run(*args))


class CountsBooleans(_Wrong):
    def change(self, run, sizes, args):
        return tuple(o.to(torch.uint8) if o.dtype is torch.bool else o for o in run(*args))


class DropsTheRow(_Wrong):
    def change(self, run, sizes, args):
        outs = run(*args)
        return tuple(o.squeeze(0) for o in outs) if args[0] == 1 else outs


class LongFactors(EagerCompiler):
    name = "mutant"

    def hash_factors(self):
        return {"settings": "x" * 5000}


class Restless(EagerCompiler):
    name = "mutant"

    def hash_factors(self):
        return {"started": str(next(_TICKS))}


class LoadsWrong(EagerCompiler):
    name = "mutant"

    def compile(self, graph, example_inputs, *, key, config):
        return CompiledGraph(graph.forward, lambda: b"artifact")

    def load(self, handle):
        return CompiledGraph(lambda *args: (args[-1] * 0,))


class Eager(PiecewiseBackend):
    """Compiles the general graph of every piece, wanted or not."""

    def runnable(self, box):
        self.compiled_graph_for_general_shape()
        return super().runnable(box)


class Forgets(SimulatedRuntime):
    @contextlib.contextmanager
    def stream(self, stream):
        before = self._device.stream
        self._device._current.stream = stream
        yield stream
        self._device._current.stream = before


class Overfull(SimulatedRuntime):
    def memory_info(self):
        free, total = super().memory_info()
        return total, free - 1


class OwnGenerator(SimulatedRuntime):
    def rng(self):
        return torch.Generator()


COMPILERS = (
    device(
        "code that is wrong everywhere in a range",
        "test_sizes_inside_a_range_are_as_eager",
        compiler=Everywhere,
    ),
    device(
        "an off-by-one at the upper end of a range",
        "test_the_upper_end_of_a_range_is_as_eager",
        compiler=UpperEnd,
    ),
    device(
        "an off-by-one at the lower end of a range",
        "test_the_lower_end_of_a_range_is_as_eager",
        compiler=LowerEnd,
    ),
    device("empty grids that do not launch", "test_size_zero_is_as_eager", compiler=Empty),
    device("one row taken for a broadcast", "test_size_one_is_as_eager", compiler=One),
    device("wrong code for exact sizes", "test_an_exact_size_is_as_eager", compiler=Exact),
    device(
        "a piece backend that also compiles what is not asked for",
        "test_one_compilation_per_distinct_piece_and_range",
        backend=Eager,
    ),
    device(
        "a general graph with an upper bound",
        "test_a_size_above_the_bounds_runs_the_general_graph",
        compiler=Bounded,
    ),
    device(
        "code that writes to its inputs", "test_inputs_are_left_as_they_are", compiler=Scribbles
    ),
    device(
        "code that returns the same memory at every call",
        "test_results_of_two_calls_share_no_memory",
        compiler=KeepsResults,
    ),
    device(
        "code that writes to copies of buffers",
        "test_writes_in_place_are_seen",
        compiler=Functional,
    ),
    device(
        "an alignment that is needed and not declared",
        "test_inputs_that_start_anywhere_are_as_eager",
        compiler=Aligned,
    ),
    device("whole numbers that grow wider", "test_dtypes_are_as_eager_s", compiler=Widens),
    device("half floats that grow wider", "test_dtypes_are_as_eager_s", compiler=WidensHalves),
    device("booleans as bytes", "test_dtypes_are_as_eager_s", compiler=CountsBooleans),
    device("one row that loses its dim", "test_size_one_is_as_eager", compiler=DropsTheRow),
    device("hash factors pages long", "test_hash_factors_are_short_strings", compiler=LongFactors),
    device(
        "hash factors that vary", "test_hash_factors_are_the_same_every_time", compiler=Restless
    ),
    device(
        "a loaded artifact that is another",
        "test_a_loaded_artifact_is_as_the_compiled_one",
        compiler=LoadsWrong,
    ),
    device(
        "a stream that stays current behind an error",
        "test_streams_nest_and_come_back",
        runtime=Forgets,
    ),
    device(
        "more memory free than there is", "test_memory_info_is_free_and_total", runtime=Overfull
    ),
    device(
        "a generator that nothing draws from",
        "test_the_generator_is_the_device_s",
        runtime=OwnGenerator,
    ),
)
