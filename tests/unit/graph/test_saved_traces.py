"""Traces as data, and back over symbols of their own."""

import torch

from piecewise_core.graph.memory import memory_of
from piecewise_core.graph.saved.traces import read_trace, write_trace
from piecewise_core.graph.sizes import SizeWriter


def tensors(traced):
    """Those of the trace, in order."""
    values = (n.meta.get("example_value") for n in traced.graph.graph.nodes)
    return [v for v in values if isinstance(v, torch.Tensor)]


def lying(traced):
    """How each lies over the dims, and which is the first in its memory."""
    text = SizeWriter(traced.symbols)
    memory = [memory_of(t) for t in tensors(traced)]
    for value, key in zip(tensors(traced), memory, strict=True):
        yield text(value.shape), text(value.stride()), value.dtype, memory.index(key)


def model(x):
    once = x.relu()
    twice = once.sigmoid()  # alike, in memory of its own
    twice[:, 1:].mul_(2.0)
    return once.t(), twice.double().neg(), twice.sum(1), torch.ones(3)


def test_tensors_that_are_read_back_lie_and_share_memory_as_they_did(traced):
    before = traced(model, torch.ones(5, 4))
    after = read_trace(write_trace(before), None)
    assert list(lying(after)) == list(lying(before))


def test_memory_that_is_read_back_is_as_large_as_what_lies_in_it(traced):
    after = read_trace(write_trace(traced(model, torch.ones(5, 4))), None)
    text, known = SizeWriter(after.symbols), set()
    for value in tensors(after):
        if memory_of(value) not in known:
            known.add(memory_of(value))
            like = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device="meta"
            )
            sizes = (t.untyped_storage().nbytes() for t in (value, like))
            assert len({*map(text, sizes)}) == 1
    assert len(known) > 4
