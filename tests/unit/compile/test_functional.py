"""lower() gives compilers a functional graph, and puts writes and layouts right around them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import piecewise_core as pw
from piecewise_core.errors import PieceDeclined
from piecewise_core.protocols import Capabilities, CompiledGraph
from piecewise_core.protocols.lowering import Layout, Results, lower


class Runtime:
    def current_stream(self): ...
    def new_stream(self): ...
    def stream(self, stream):
        return nullcontext()

    def synchronize(self): ...


class Functional:
    """Knows neither views' memory nor writes: results are new, dense, and lie in reverse."""

    name = "functional"

    def __init__(self):
        self.lowered = []

    def compile(self, graph, example_inputs, *, key, config):
        lowered = lower(graph, example_inputs)
        self.lowered.append(lowered)

        def compute(*inputs):
            before = [i.clone() if isinstance(i, torch.Tensor) else i for i in inputs]
            found = [_reversed(out) for out in lowered.graph(*inputs)]
            for old, now in zip(before, inputs, strict=True):
                assert not isinstance(old, torch.Tensor) or torch.equal(old, now)
            return found

        return CompiledGraph(Results.from_json(lowered.results.to_json()).around(compute))

    def hash_factors(self):
        return {}


def _reversed(out):
    dims = tuple(reversed(range(out.dim())))
    return out.permute(dims).contiguous().permute(dims)


def compiled(model, rows=(0, 32), **config):
    compiler = Functional()
    place = SimpleNamespace(
        device=Runtime(), graphs=None, compiler=compiler, capabilities=Capabilities()
    )
    dynamic = {"x": {0: pw.Dim("rows", *rows)}}
    return pw.compile(model, pw.Config(dynamic=dynamic, **config), place), compiler


def chunks(x):
    one, other = (x + 1).chunk(2, -1)
    return one, other, (x * 2).t(), x.sum(1, keepdim=True).expand(-1, 8)


def shared(x):
    y = F.relu(x)
    return y, y.view(-1), y[1:], y.t()


def heads(x):
    return (x @ x.new_ones(8, 8)).view(-1, 2, 4).transpose(0, 1), x.unflatten(1, (2, 4)).mean(-1)


def dtypes(x):
    return x > 0, (x * 10).to(torch.int64), x.to(torch.float16).t(), x.to(torch.bfloat16)


def layers(x):
    return F.layer_norm(F.gelu(F.linear(x, torch.eye(8))), (8,)).softmax(-1)


def in_place(x):
    y = x * 2
    y.add_(1)
    y[:, 0].mul_(3)
    return y.relu_()


def sizes(x):
    return x.sum(0) / (x.shape[0] + 1), x.new_zeros(x.shape[0] * 2, 3), x.repeat(2, 1)


@pytest.mark.parametrize(
    "model", [chunks, shared, heads, dtypes, layers, in_place, sizes], ids=lambda m: m.__name__
)
def test_a_functional_compiler_gives_what_eager_gives_and_where(model):
    fast, compiler = compiled(model, (1, 32))
    with torch.inference_mode():
        for rows in (1, 2, 5, 32):
            x = torch.randn(rows, 8)
            got, expected = fast(x), model(x)
            pairs = (
                [(got, expected)]
                if isinstance(got, torch.Tensor)
                else zip(got, expected, strict=True)
            )
            for one, other in pairs:
                torch.testing.assert_close(one, other)
                assert one.stride() == other.stride() or rows == 1
    assert (fast.stats().relaid, fast.stats().declined) == (0, 0)
    assert len(compiler.lowered) == fast.stats().compilations


def blocks(x, weight):
    y = F.dropout(F.linear(x, weight, weight[0]), 0.1, training=False)
    return F.scaled_dot_product_attention(F.layer_norm(y, (8,)), y, x) @ weight.t()


def test_no_size_is_fixed_where_several_vary():
    compiler = Functional()
    place = SimpleNamespace(
        device=Runtime(), graphs=None, compiler=compiler, capabilities=Capabilities()
    )
    dims = {0: pw.Dim("rows", 1, 64), 1: pw.Dim("columns", 1, 512)}
    fast = pw.compile(blocks, pw.Config(dynamic={"x": dims}), place)
    with torch.inference_mode():
        for sizes in ((3, 5), (1, 1), (4, 512)):
            given = torch.randn(*sizes, 8), torch.randn(8, 8)
            torch.testing.assert_close(fast(*given), blocks(*given))
    assert (fast.stats().declined, fast.stats().compilations) == (0, len(compiler.lowered))


def test_every_value_is_told_of_where_a_size_is_fixed_too():
    fast, compiler = compiled(layers, compile_sizes=(4,))
    with torch.inference_mode():
        fast.warmup(torch.randn(4, 8), progress=False)
    given = [list(one.graph.graph.find_nodes(op="placeholder")) for one in compiler.lowered]
    (fixed,) = ([n.meta["val"] for n in nodes] for nodes in given if nodes[0].meta["val"] == 4)
    assert fixed[1].shape == (4, 8)


def test_an_empty_batch_is_an_ordinary_size():
    fast, _ = compiled(chunks)
    with torch.inference_mode():
        for one, other in zip(fast(torch.randn(0, 8)), chunks(torch.randn(0, 8)), strict=True):
            assert (one.shape, one.stride()) == (other.shape, other.stride())


class Writes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(8))
        self.register_buffer("last", torch.zeros(2, 8))

    def forward(self, x):
        self.seen.add_(x.sum(0))
        self.last[1:].copy_(x.mean(0, keepdim=True))
        return x * 2, self.seen * 1


def test_writes_to_buffers_are_made_once_and_behind_the_computation():
    model, mirror = Writes(), Writes()
    fast, compiler = compiled(model)
    with torch.inference_mode():
        for rows in (3, 5):
            x = torch.randn(rows, 8)
            for one, other in zip(fast(x), mirror(x), strict=True):
                torch.testing.assert_close(one, other)
            torch.testing.assert_close(model.seen, mirror.seen)
            torch.testing.assert_close(model.last, mirror.last)
    (lowered,) = compiler.lowered
    assert len(lowered.results.written) == 2
    assert not [n for n in lowered.graph.graph.nodes if "copy_." in str(n.target)]


def test_a_result_that_is_a_view_of_an_input_shares_its_memory():
    results = Results(
        (Layout("float32", ("n", "2"), ("4", "1"), "2", input=1),), (), {"n": (0, -1)}
    )
    memory = torch.arange(13.0)
    x = memory[1:].view(3, 4)
    (view,) = results.around(lambda n, x: [x[:, 2:].clone()])(3, x)
    assert torch.equal(view, x[:, 2:])
    view.zero_()
    assert x[0, 2] == 0


def test_results_that_share_memory_do_so_again():
    fast, compiler = compiled(shared, (2, 32))
    with torch.inference_mode():
        fast(torch.randn(4, 8))
    layouts = compiler.lowered[0].results.layouts
    assert {one.shared for one in layouts} == {0}
    run = compiler.lowered[0].results.around(lambda n, x: shared(x.clone()))
    one, flat, rest, turned = run(4, torch.randn(4, 8))
    one.zero_()
    assert not flat.any()
    assert not rest.any()
    assert not turned.any()


def test_the_wrong_number_of_results_is_an_error_with_the_right_one():
    run = Results((Layout("float32", ("n",), ("1",)),), (0,), {"n": (0, 0)}).around(lambda x: [x])
    with pytest.raises(ValueError, match="returned 1 results; the lowered graph has 1, and 1 new"):
        run(torch.ones(2))


def test_what_cannot_be_written_so_is_declined_and_runs_as_written():
    class Refuses(Functional):
        def compile(self, graph, example_inputs, *, key, config):
            with pytest.raises(PieceDeclined, match="cannot be written in functional operators"):
                lower(lambda *args: 1 / 0, example_inputs)
            raise PieceDeclined("as said")

    place = SimpleNamespace(
        device=Runtime(), graphs=None, compiler=Refuses(), capabilities=Capabilities()
    )
    config = pw.Config(dynamic={"x": {0: pw.Dim("rows", 1, 8)}})
    fast = pw.compile(lambda x: x + 1, config, place)
    with torch.inference_mode():
        assert torch.equal(fast(torch.ones(2, 8)), torch.full((2, 8), 2.0))
    assert fast.stats().declined == 1


def test_outside_of_compile_it_says_where_it_belongs():
    with pytest.raises(ValueError, match="inside of compile"):
        lower(torch.fx.symbolic_trace(torch.nn.ReLU()), [torch.ones(2)])


def test_importing_it_imports_no_torch():
    code = "import sys, piecewise_core.protocols.lowering as l\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
