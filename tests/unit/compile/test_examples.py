"""The fake inputs that a compiler is given for one piece and one box of sizes."""

from __future__ import annotations

import torch
from torch.nn.functional import softmax

import piecewise_core as pw
from piecewise_core.compile.examples import make_job
from piecewise_core.ranges import Box, Range

ROWS = pw.Dim("rows", 0, 64)
COLS = pw.Dim("cols", 1, 32)
R = Range


def span(size: torch.SymInt) -> tuple[int, int]:
    found = size.node.shape_env.bound_sympy(size.node.expr)
    return int(found.lower), int(found.upper)


def test_sizes_are_symbols_with_the_ranges_of_the_box_0_and_1_included(pieces_of):
    made = pieces_of(lambda x: x * 2, torch.randn(3, 8), dynamic={"x": {0: ROWS}})
    (piece,) = made.compilable
    for box in (Box((R(0, 8),)), Box((R(9, 64),)), Box((R(0, 1),))):
        job = make_job(piece, made.symbols, box)
        size, x = job.inputs
        assert isinstance(size, torch.SymInt)
        assert span(size) == (box.ranges[0].start, box.ranges[0].end)
        assert x.shape[0].node.expr == size.node.expr
        assert tuple(x.shape[1:]) == (8,)
        assert job.box == box
        assert not job.mode.shape_env.guards


def test_a_box_of_one_size_gives_plain_ints(pieces_of):
    made = pieces_of(lambda x: x * 2, torch.randn(3, 8), dynamic={"x": {0: ROWS}})
    for size in (0, 1, 7):
        job = make_job(made.compilable[0], made.symbols, Box.single((size,)))
        assert job.inputs[0] == size
        assert type(job.inputs[0]) is int
        assert tuple(job.inputs[1].shape) == (size, 8)
        assert not any(isinstance(s, torch.SymInt) for s in job.inputs[1].shape)


def test_inputs_are_fake_of_the_traced_dtype_strides_and_offset(pieces_of):
    made = pieces_of(
        lambda x: x[1:, :4] * 2, torch.randn(8, 6).t().double(), dynamic={"x": {0: ROWS}}
    )
    job = make_job(made.compilable[0], made.symbols, Box((R(2, 64),)))
    x = job.inputs[1]
    assert isinstance(x, torch._subclasses.FakeTensor)
    assert x.dtype is torch.float64
    assert x.stride()[0] == 1
    assert x.stride()[1].node.expr == job.inputs[0].node.expr


def test_sizes_derived_from_dims_stay_derived_from_them(pieces_of):
    def fn(x):
        return softmax(torch.cat([x, x, x[:1]]), -1) + 1

    made = pieces_of(fn, torch.randn(3, 8), dynamic={"x": {0: pw.Dim("rows", 1, 64)}})
    job = make_job(made.compilable[1], made.symbols, Box((R(2, 16),)))
    (attended,) = job.inputs[1:]
    assert span(attended.shape[0]) == (5, 33)
    assert str(attended.shape[0].node.expr).startswith("2*")


def test_a_piece_gets_one_size_per_dim_and_is_compiled_for_its_own_dims_only(pieces_of):
    def fn(x, y):
        return softmax(x * 2, -1), softmax(y + 1, -1)

    dynamic = {"x": {0: ROWS}, "y": {0: COLS}}
    made = pieces_of(fn, torch.randn(3, 8), torch.randn(4, 8), dynamic=dynamic)
    first, second = made.compilable
    assert (first.dims, second.dims) == ((0,), (1,))
    job = make_job(second, made.symbols, Box((R(2, 9),)))
    assert len(job.inputs) == 3
    assert span(job.inputs[1]) == (2, 9)
    assert job.dims == (1,)


def test_inputs_that_share_memory_share_it(pieces_of):
    def fn(x):
        y = softmax(x, -1)
        left = y[:, :4]
        z = softmax(left, -1)
        return left + z, y * 2

    made = pieces_of(fn, torch.randn(3, 8), dynamic={"x": {0: ROWS}})
    job = make_job(made.compilable[-1], made.symbols, Box((R(2, 64),)))
    tensors = [t for t in job.inputs if isinstance(t, torch.Tensor)]
    memory = [t.untyped_storage()._cdata for t in tensors]
    assert len(tensors) == 3
    assert len(set(memory)) == 2


def test_the_compiler_may_change_its_graph_the_piece_keeps_its_own(pieces_of):
    made = pieces_of(lambda x: (x * 2).relu(), torch.randn(3, 8), dynamic={"x": {0: ROWS}})
    (piece,) = made.compilable
    before = [str(n.target) for n in piece.graph.graph.nodes]
    job = make_job(piece, made.symbols, Box((R(0, 64),)))
    for node in list(job.graph.graph.nodes):
        if str(node.target) == "relu":
            node.replace_all_uses_with(node.args[0])
            job.graph.graph.erase_node(node)
    job.graph.recompile()
    assert [str(n.target) for n in piece.graph.graph.nodes] == before
    x = torch.randn(3, 8)
    assert torch.equal(job.graph(3, x)[0], x * 2)
    assert torch.equal(piece.graph(3, x)[0], (x * 2).relu())


def test_every_placeholder_tells_its_example_value(pieces_of):
    made = pieces_of(lambda x, y: x @ y, torch.randn(3, 8), torch.randn(8, 4),
                     dynamic={"x": {0: ROWS}})  # fmt: skip
    job = make_job(made.compilable[0], made.symbols, Box((R(0, 64),)))
    placeholders = [n for n in job.graph.graph.nodes if n.op == "placeholder"]
    assert [
        n.meta["example_value"] is v for n, v in zip(placeholders, job.inputs, strict=True)
    ] == ([True, True, True])
