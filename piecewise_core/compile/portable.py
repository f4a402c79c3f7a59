"""A compilation job as bytes, for another process of this machine.

Torch has a pickler for graphs with fake tensors and
symbols. Only a process's own worker reads these bytes; they are never stored.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from piecewise_core.compile.examples import Job
from piecewise_core.ranges import Box, Range
from piecewise_core.torch_compat import dynamo
from piecewise_core.torch_compat.fakes import FakeTensorMode
from piecewise_core.torch_compat.pickler import GraphPickler, Options

__all__ = ["pack", "unpack"]

_ALL_OPS = Options(ops_filter=None)


def pack(job: Job) -> bytes:
    """The job as bytes. Raises whatever the pickler raises for graphs it cannot take."""
    for node in job.graph.graph.nodes:
        node.meta.pop("stack_trace", None)
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
    if isinstance(graph, torch.fx.GraphModule):
        graph.recompile()
    ranges = Box(tuple(map(Range.read, box)))
    return Job(graph, tuple(inputs), mode, ranges, tuple(dims), sizes)
