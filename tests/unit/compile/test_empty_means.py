"""Inductor's variance and mean of no numbers are eager's."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import piecewise_core as pw
from piecewise_core.compile.empty_means import nothing_is_nan

pytestmark = pytest.mark.filterwarnings("ignore:.*degrees of freedom is <= 0")


def _all(x):
    var, mean = torch.var_mean(x)
    kept = torch.std_mean(x, dim=(0, 1), keepdim=True)
    negative = torch.var_mean(x, dim=0, correction=-5)
    return (
        var, mean, *kept, *negative, torch.var(x, correction=-2), torch.std(x, 0, correction=-1),
        *torch.var_mean(x, dim=1),
    )  # fmt: skip


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_the_rewritten_graph_says_what_the_model_says(rows):
    x = torch.arange(rows * 4.0).view(rows, 4)
    graph = make_fx(_all, tracing_mode="fake")(x)
    assert nothing_is_nan(graph.graph) == (rows == 0)
    graph.graph.lint()
    graph.recompile()
    torch.testing.assert_close(graph(x), _all(x), equal_nan=True)


def test_a_reduction_that_is_never_of_nothing_stays():
    graph = make_fx(lambda x: torch.var_mean(x, dim=-1), tracing_mode="symbolic")(torch.ones(3, 4))
    before = str(graph.graph)
    assert not nothing_is_nan(graph.graph)
    assert str(graph.graph) == before


@pytest.mark.inductor
def test_inductor_at_every_size(tmp_path):
    fast = pw.compile(
        _all,
        pw.Config(
            dynamic={"x": {0: pw.Dim("rows", 0, 8)}}, compiler="inductor", cache_dir=str(tmp_path)
        ),
        platform="cpu",
    )
    for rows in (3, 0, 1, 8):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(fast(x), _all(x), equal_nan=True)
