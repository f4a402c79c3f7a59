"""A compilation job as bytes, for another process of this machine.

Torch has a pickler for graphs with fake tensors and symbols. It holds the interpreter, and every
call of the model waits meanwhile, so nothing goes twice. Only a process's own worker reads these
bytes; they are never stored.
"""

from __future__ import annotations

import io
from typing import Any

from torch.fx.experimental.symbolic_shapes import ShapeEnv

from piecewise_core.compile.examples import Job
from piecewise_core.ranges import Box, Range
from piecewise_core.torch_compat import dynamo
from piecewise_core.torch_compat.fakes import FakeTensorMode
from piecewise_core.torch_compat.pickler import GraphPickler, Options

__all__ = ["pack", "unpack"]

_ALL_OPS = Options(ops_filter=None)


def pack(job: Job) -> bytes:
    """The job as bytes; it is of no use any more. Raises whatever the pickler raises."""
    for node in job.graph.graph.nodes:
        node.meta.pop("stack_trace", None)
        if node.op == "placeholder":
            node.meta = {}  # ``inputs`` has it
    box = [r.plain for r in job.box.ranges]
    held = (job.graph, list(job.inputs), box, list(job.dims), job.sizes)
    data = GraphPickler.dumps(held, _ALL_OPS)
    return bytes(data)


def unpack(data: bytes) -> Job:
    """The job again, in a fake mode of its own."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    with dynamo.oblivious_sizes():
        found: Any = GraphPickler.loads(io.BytesIO(data).getvalue(), mode)
    graph, inputs, box, dims, sizes = found
    placeholders = (node for node in graph.graph.nodes if node.op == "placeholder")
    for node, value in zip(placeholders, inputs, strict=True):
        node.meta = {"example_value": value}
    graph.recompile()
    ranges = Box(tuple(map(Range.read, box)))
    return Job(graph, tuple(inputs), mode, ranges, tuple(dims), sizes)
