"""L1: compilers whose code takes memory for its own, or leaves the process changed."""

from __future__ import annotations

import itertools
import time

import torch

from mutants.base import device
from mutants.compilers import _Wrong
from piecewise_core.protocols import CompiledGraph

__all__ = ["OWNERSHIP"]


class Ring(_Wrong):
    """Returns results from a ring of buffers."""

    def __init__(self):
        self.kept, self.calls = {}, itertools.count()

    def change(self, run, sizes, args):
        turn = next(self.calls) % 12
        return tuple(self.buffer((run, place, turn), o) for place, o in enumerate(run(*args)))

    def buffer(self, key, out):
        kept = self.kept.setdefault((*key, out.shape), out)
        return kept if kept is out else kept.copy_(out)


class _Alike(_Wrong):
    """Returns in place of a result an equal tensor of ``among``."""

    def change(self, run, sizes, args):
        outs = list(run(*args))
        for place, out in enumerate(outs):
            others = self.among(args, outs[:place])
            same = (o for o in others if _alike(o, out) and torch.equal(o, out))
            outs[place] = next(same, out)
        return tuple(outs)


def _alike(a, b):
    kinds = [(t.dtype, t.shape, t.stride()) for t in (a, b) if isinstance(t, torch.Tensor)]
    return len(kinds) == 2 and kinds[0] == kinds[1]


class ReturnsInputs(_Alike):
    def among(self, args, before):
        return args


class SharesResults(_Alike):
    def among(self, args, before):
        return before


class CopiesViews(_Wrong):
    def change(self, run, sizes, args):
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        return tuple(
            o.clone() if o.untyped_storage().data_ptr() in given else o for o in run(*args)
        )


class WritesToCopies(_Wrong):
    """Makes rows of inputs that do not lie as rows, and writes to those."""

    def change(self, run, sizes, args):
        return run(*(a.contiguous() if isinstance(a, torch.Tensor) else a for a in args))


class PacksWeights(_Wrong):
    """Keeps a weight as it was when its address was first seen."""

    def __init__(self):
        self.packed = {}

    def compile(self, graph, example_inputs, *, key, config):
        nodes = graph.graph.find_nodes(op="placeholder")
        weights = {place for place, node in enumerate(nodes) if "weight" in node.name}

        def run(*args):
            return graph.forward(*(self.pack(a) if i in weights else a for i, a in enumerate(args)))

        return CompiledGraph(run)

    def pack(self, weight):
        # The tensor is kept, so that no other gets its address.
        return self.packed.setdefault(weight.data_ptr(), (weight, weight.clone()))[1]


class SetsThreads(_Wrong):
    def compile(self, graph, example_inputs, *, key, config):
        torch.set_num_threads(1)
        return super().compile(graph, example_inputs, key=key, config=config)


class Draws(_Wrong):
    def compile(self, graph, example_inputs, *, key, config):
        torch.rand(1)
        return super().compile(graph, example_inputs, key=key, config=config)


class OneRequest(_Wrong):
    """All code of the compiler has one set of inputs."""

    def change(self, run, sizes, args):
        self.inputs = args
        time.sleep(0.001)
        return run(*self.inputs)


_OWN = "test_results_are_no_input_and_no_other_result"
_LEAVES = "test_compiling_leaves_the_process_as_it_was"

OWNERSHIP = (
    device(
        "results from a ring of buffers", "test_results_of_two_calls_share_no_memory", compiler=Ring
    ),
    device("a result that is an input with the same numbers", _OWN, compiler=ReturnsInputs),
    device("two results with the same numbers in one memory", _OWN, compiler=SharesResults),
    device(
        "copies where the graph returns views",
        "test_results_that_view_an_input_view_it",
        compiler=CopiesViews,
    ),
    device(
        "writes to rows that were made of an input",
        "test_writes_through_views_are_seen",
        compiler=WritesToCopies,
    ),
    device("weights packed once per address", "test_weights_are_read_anew", compiler=PacksWeights),
    device("a compiler that sets torch's threads", _LEAVES, compiler=SetsThreads),
    device("a compiler that draws random numbers", _LEAVES, compiler=Draws),
    device(
        "one set of inputs for all code", "test_two_models_run_in_two_threads", compiler=OneRequest
    ),
)
