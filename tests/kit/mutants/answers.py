"""L1: compilers that compile less than they were asked for, or lay results otherwise."""

from __future__ import annotations

import torch

from mutants.base import device
from mutants.compilers import _range, _Wrong
from piecewise_core.errors import PieceDeclined
from piecewise_core.protocols import Box, CompiledGraph, Range

__all__ = ["ANSWERS"]


class DeclinesAll(_Wrong):
    def compile(self, graph, example_inputs, *, key, config):
        raise PieceDeclined("on principle")


class DeclinesProducts(_Wrong):
    def compile(self, graph, example_inputs, *, key, config):
        calls = str(graph.graph)
        if "mul" in calls and "linear" in calls:
            raise PieceDeclined("a product behind a layer")
        return super().compile(graph, example_inputs, key=key, config=config)


class DeclinesExactSizes(_Wrong):
    def compile(self, graph, example_inputs, *, key, config):
        if "linear" in str(graph.graph) and _range(example_inputs) is None:
            raise PieceDeclined("an exact size")
        return super().compile(graph, example_inputs, key=key, config=config)


class Fixes(_Wrong):
    def compile(self, graph, example_inputs, *, key, config):
        made = super().compile(graph, example_inputs, key=key, config=config)
        for value in example_inputs:
            if isinstance(value, torch.SymInt):
                int(value)
        return made


class Guards(_Wrong):
    def compile(self, graph, example_inputs, *, key, config):
        sizes = [v for v in example_inputs if isinstance(v, torch.SymInt)]
        if sizes and sizes[0] > 16:
            pass
        return super().compile(graph, example_inputs, key=key, config=config)


class Narrows(_Wrong):
    def compile(self, graph, example_inputs, *, key, config):
        made = super().compile(graph, example_inputs, key=key, config=config)
        sizes = [v for v in example_inputs if not isinstance(v, torch.Tensor)]
        return CompiledGraph(made.run, serves=Box((Range(0, 30),) * len(sizes)))


class _Relays(_Wrong):
    def change(self, run, sizes, args):
        return tuple(o.contiguous() if self.moves(o) else o for o in run(*args))


class RelaysTransposed(_Relays):
    def moves(self, out):
        return out.dim() == 2 and 0 < out.stride(0) < out.stride(1)


class RelaysChunks(_Relays):
    def moves(self, out):
        return out.dim() == 2 and out.stride(0) > out.shape[1] > 0 and out.stride(1) == 1


class RelaysExpanded(_Relays):
    def moves(self, out):
        return 0 in out.stride()


class Kept(_Wrong):
    """Hands its code over as the graph's source."""

    def compile(self, graph, example_inputs, *, key, config):
        source = graph.graph.python_code("self").src
        return CompiledGraph(graph.forward, lambda: source.encode())

    def load(self, handle):
        scope = {"torch": torch, "device": torch.device}
        exec(handle.decode(), scope)
        return CompiledGraph(lambda *args: scope["forward"](None, *args), lambda: handle)


class LoadsForOneSize(Kept):
    def load(self, handle):
        run = super().load(handle).run
        return CompiledGraph(lambda *args: [o * (args[0] != 32) for o in run(*args)])


class LoadsNothingWithSizes(Kept):
    def load(self, handle):
        if b"linear" in handle:
            raise ValueError("this code has layers")
        return super().load(handle)


class BuildsIn(_Wrong):
    """Builds weights in, and gives ``built`` of what the graph is called with and has built in."""

    def compile(self, graph, example_inputs, *, key, config):
        made = super().compile(graph, example_inputs, key=key, config=config)
        known = {}

        def freeze(values):
            constants = self.built(values, known)
            return lambda *args: made.run(*(constants.get(i, a) for i, a in enumerate(args)))

        return CompiledGraph(made.run, freezes=range(len(example_inputs)), freeze=freeze)


class BuildsInOnce(BuildsIn):
    def built(self, values, known):
        return known or known.update(values) or values


class BuildsInRounded(BuildsIn):
    def built(self, values, known):
        return {place: value.bfloat16().to(value.dtype) for place, value in values.items()}


_COMPILED = "test_ordinary_pieces_are_compiled"
_SERVES = "test_code_for_a_range_serves_the_range"
_INSIDE = "test_sizes_inside_a_range_are_as_eager"
_KEPT = "test_kept_code_serves_a_second_model"

ANSWERS = (
    device("a compiler that declines every piece", _COMPILED, compiler=DeclinesAll),
    device("a compiler that declines one piece", _COMPILED, compiler=DeclinesProducts),
    device("a compiler that declines exact sizes", _COMPILED, compiler=DeclinesExactSizes),
    device("a compiler that fixes sizes", _SERVES, compiler=Fixes),
    device("a compiler that branches on a size", _SERVES, compiler=Guards),
    device("code for less than its range, and it says so", _SERVES, compiler=Narrows),
    device(
        "transposed results that are made contiguous",
        "test_transposed_results_lie_as_eager_s",
        compiler=RelaysTransposed,
    ),
    device(
        "parts of one tensor that are copied apart",
        "test_chunked_results_lie_as_eager_s",
        compiler=RelaysChunks,
    ),
    device(
        "expanded results that are written out",
        "test_expanded_results_lie_as_eager_s",
        compiler=RelaysExpanded,
    ),
    device("weights built in that are an equal piece's", _INSIDE, compiler=BuildsInOnce),
    device("weights built in with fewer bits", _INSIDE, compiler=BuildsInRounded),
    device("loaded code that is wrong at one size", _KEPT, compiler=LoadsForOneSize),
    device("load() that refuses real pieces", _KEPT, compiler=LoadsNothingWithSizes),
)
