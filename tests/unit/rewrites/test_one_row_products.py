"""Products of one row become sums; everything else stays a product."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from piecewise_core.rewrites.one_row_products import single_rows_to_sums

ATEN = torch.ops.aten
PRODUCTS = (ATEN.mm.default, ATEN.addmm.default)


def linear(x, w, b):
    return torch.nn.functional.linear(x, w)


def with_bias(x, w, b):
    return torch.nn.functional.linear(x, w, b)


def one_activation_for_two(x, w, b):
    x = x.sin()
    return torch.nn.functional.linear(x, w), torch.nn.functional.linear(x, w, b).cos()


def three_axes(x, w, b):
    return torch.nn.functional.linear(x[None], w, b)


def computed_weight(x, w, b):
    return x @ (w * 0.5).t()


def scaled(x, w, b):
    return torch.addmm(b, x, w.t(), alpha=2)


def as_conv1d_keeps_it(x, w, b):
    return x @ w.t().contiguous()


def products(graph):
    return [n for n in graph.nodes if n.target in PRODUCTS]


def traced(fn, rows=1, dtype=torch.float32, symbolic=False):
    torch.manual_seed(0)
    given = [torch.randn(s, dtype=torch.float64).to(dtype) for s in ((rows, 64), (32, 64), (32,))]
    mode = "symbolic" if symbolic else "fake"
    return make_fx(fn, tracing_mode=mode)(*given), given


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("fn", "count"),
    [(linear, 1), (with_bias, 1), (one_activation_for_two, 2), (three_axes, 1),
     (computed_weight, 1)],
)  # fmt: skip
def test_a_row_times_a_weight_becomes_a_sum_of_the_same_value(fn, count, dtype):
    module, given = traced(fn, dtype=dtype)
    before = [n.meta["val"] for n in products(module.graph)]
    assert len(before) == count
    assert single_rows_to_sums(module.graph) == count
    module.graph.lint()
    module.recompile()
    assert not products(module.graph)
    wanted, found = fn(*given), module(*given)
    torch.testing.assert_close(found, wanted)
    assert single_rows_to_sums(module.graph) == 0


def test_a_sum_is_rounded_once():
    module, (x, w, b) = traced(with_bias, dtype=torch.bfloat16)
    single_rows_to_sums(module.graph)
    module.recompile()
    exact = (x.double() @ w.double().t() + b.double()).bfloat16()
    torch.testing.assert_close(module(x, w, b), exact, rtol=2**-8, atol=0)


def test_what_makes_the_row_is_computed_once_for_all_weights():
    module, _ = traced(one_activation_for_two)
    single_rows_to_sums(module.graph)
    (kept,) = (n for n in module.graph.nodes if "force_stride" in str(n.target))
    (made,) = kept.all_input_nodes
    assert made.target is ATEN.sin.default
    assert len(kept.users) == 2


@pytest.mark.parametrize(
    ("fn", "ways"),
    [
        (linear, {"rows": 2}), (with_bias, {"rows": 3, "symbolic": True}), (scaled, {}),
        (as_conv1d_keeps_it, {}), (linear, {"dtype": torch.float64}),
    ],
)  # fmt: skip
def test_other_products_stay_the_librarys(fn, ways):
    module, _ = traced(fn, **ways)
    before = module.code
    assert single_rows_to_sums(module.graph) == 0
    module.recompile()
    assert module.code == before


def test_every_new_node_has_an_example_of_its_value():
    module, _ = traced(with_bias, dtype=torch.bfloat16)
    (product,) = products(module.graph)
    wanted = product.meta["val"]
    single_rows_to_sums(module.graph)
    (output,) = module.graph.find_nodes(op="output")
    (result,) = output.all_input_nodes
    for node in module.graph.nodes:
        assert node.op == "output" or isinstance(node.meta["val"], torch.Tensor), node
    assert result.meta["val"].dtype is wanted.dtype
    assert result.meta["val"].shape == wanted.shape
