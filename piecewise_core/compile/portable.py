"""A compilation job as bytes, for another process of this machine.

Torch has a pickler for graphs with fake tensors and symbols. It holds the interpreter, and every
call of the model waits meanwhile, so nothing goes twice. Only a process's own worker reads these
bytes; they are never stored.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from piecewise_core.compile.examples import Fakes, Job, Layout
from piecewise_core.ranges import Box, Range
from piecewise_core.torch_compat import dynamo
from piecewise_core.torch_compat.fakes import FakeTensorMode
from piecewise_core.torch_compat.pickler import GraphPickler, Options
from piecewise_core.torch_compat.storages import memory_key

__all__ = ["pack", "unpack"]

_ALL_OPS = Options(ops_filter=None)


def pack(job: Job) -> bytes:
    """The job as bytes; it is of no use any more. Raises whatever the pickler raises."""
    for node in job.graph.graph.nodes:
        node.meta.pop("stack_trace", None)
        if node.op == "placeholder":
            node.meta = {}  # ``inputs`` has it
    box = [r.plain for r in job.box.ranges]
    given = [_layout(v) if isinstance(v, torch.Tensor) else v for v in job.inputs]
    held = (job.graph, given, box, list(job.dims), job.sizes)
    data = GraphPickler.dumps(held, _ALL_OPS)
    return bytes(data)


def unpack(data: bytes) -> Job:
    """The job again, in a fake mode of its own."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    with dynamo.oblivious_sizes():
        found: Any = GraphPickler.loads(io.BytesIO(data).getvalue(), mode)
    graph, given, box, dims, sizes = found
    fakes = Fakes(mode)
    with dynamo.oblivious_sizes():
        inputs = [fakes.tensor(Layout(*v)) if isinstance(v, tuple) else v for v in given]
    placeholders = (node for node in graph.graph.nodes if node.op == "placeholder")
    for node, value in zip(placeholders, inputs, strict=True):
        node.meta = {"example_value": value}
    graph.recompile()
    ranges = Box(tuple(map(Range.read, box)))
    return Job(graph, tuple(inputs), mode, ranges, tuple(dims), sizes)


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    """A tensor's Layout, as a tuple; torch 2.11 pickles no fake tensor that is a view."""
    size, stride = tuple(tensor.shape), tuple(tensor.stride())
    where = tensor.dtype, tensor.device, memory_key(tensor)
    return (size, stride, tensor.storage_offset(), *where)
