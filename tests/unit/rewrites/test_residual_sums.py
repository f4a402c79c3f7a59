"""Sums of products that leave a piece are given to the output apart."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from piecewise_core.rewrites.residual_sums import keep_sums_fusable

X, W, B = torch.randn(3, 4), torch.randn(4, 4), torch.randn(4)


def norm(x):
    return x * x.pow(2).mean(-1, keepdim=True).rsqrt()


def residual(x, w):
    total = x + x @ w
    return total, norm(total)


def residual_on_the_right(x, w):
    total = x @ w + x
    return norm(total), [total]


def two(x, w):
    first = x + x @ w
    second = first + norm(first) @ w
    return first, second, norm(second)


def inner_only(x, w):
    return norm(x + x @ w)


def output_only(x, w):
    return x + x @ w


def bias(x, w):
    total = x @ w + B
    return total, norm(total)


def scaled(x, w):
    total = torch.add(x, x @ w, alpha=2)
    return total, norm(total)


def product_read_twice(x, w):
    product = x @ w
    total = x + product
    return total, norm(total), product.sin()


@pytest.mark.parametrize(
    ("fn", "copied"),
    [
        (residual, 1), (residual_on_the_right, 1), (two, 2), (inner_only, 0), (output_only, 0),
        (bias, 0), (scaled, 0), (product_read_twice, 0),
    ],
)  # fmt: skip
def test_a_sum_that_is_read_inside_and_outside_becomes_two(fn, copied):
    module = make_fx(fn)(X, W)
    assert keep_sums_fusable(module.graph) == copied
    module.recompile()
    module.graph.lint()
    torch.testing.assert_close(module(X, W), fn(X, W), rtol=0, atol=0)
    if copied:
        # The product has two readers now, which the pattern refuses.
        (product, *_) = module.graph.find_nodes(
            op="call_function", target=torch.ops.aten.mm.default
        )
        assert len(product.users) == 2
        assert keep_sums_fusable(module.graph) == 0
