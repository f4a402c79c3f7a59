"""A job on its way to a worker: inputs that share memory share it there too."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.compile.examples import make_job
from piecewise_core.compile.portable import pack, unpack
from piecewise_core.ranges import Box, Range


def parts(x):
    """Both inputs of the second piece are views of one tensor."""
    shift, scale = torch.stack([x.sin(), x.cos()]).unbind()
    y = torch.nn.functional.softmax(x, -1)  # a cut
    return y * shift[1:].sum() + scale


def bits(x):
    """One memory, read as two dtypes."""
    made = x.sin()
    whole = made.view(torch.int32)
    y = torch.nn.functional.softmax(x, -1)  # a cut
    return y * made + whole.abs()


def described(inputs):
    tensors = [t for t in inputs if isinstance(t, torch.Tensor)]
    keys = [t.untyped_storage()._cdata for t in tensors]
    shapes = [
        [str(v) for v in (*t.shape, *t.stride(), t.storage_offset(), t.dtype, t.device)]
        for t in tensors
    ]
    return shapes, [keys.index(key) for key in keys]


@pytest.mark.parametrize("box", [Box((Range(2, 64),)), Box.single((7,))], ids=str)
@pytest.mark.parametrize("model", [parts, bits])
def test_a_job_arrives_as_it_left(pieces_of, box, model):
    made = pieces_of(
        model,
        torch.randn(3, 8),
        dynamic={"x": {0: pw.Dim("rows", 2, 64)}},
    )
    shared = False
    for piece in made.compilable:
        job = make_job(piece, made.symbols, box)
        shapes, memories = described(job.inputs)
        shared |= len(set(memories)) < len(memories)
        arrived = unpack(pack(job))
        assert described(arrived.inputs) == (shapes, memories)
        assert arrived.box == box
    assert shared
