"""Core's own rewrites of programs, each switched off by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import piecewise_core as pw
from piecewise_core.errors import ConfigError, TraceFailed
from piecewise_core.rewrites import GraphRewrite, ListedRewrite
from piecewise_core.testing import SimulatedPlatform

SDPA = "torch.nn.functional.scaled_dot_product_attention"


def attend(x, mask):
    heads = x.view(x.shape[0], 4, 2, 8)[:, :, :, :].transpose(1, 2) + 1
    shared = heads[:, :1].expand(-1, 2, -1, -1).reshape(x.shape[0], 2, 4, 8)
    return F.scaled_dot_product_attention(heads, shared, shared, mask & mask) * 2


def arguments(rows):
    keep = torch.ones(rows, 1, 4, 4, dtype=torch.bool).tril()
    return torch.randn(rows, 64), keep


@pytest.mark.parametrize("platform", ["cpu", "simulated"])
@pytest.mark.parametrize(
    "off", [(), ("mask_terms",), ("shared_heads",), ("mask_terms", "shared_heads")][1:]
)
def test_numbers_are_right_with_and_without(platform, off):
    rows = pw.Dim("rows", min=1, max=8)
    config = pw.Config(
        dynamic={"x": {0: rows}, "mask": {0: rows}},
        splitting_ops=(SDPA,),
        capture_sizes=(8,),
        compiler="eager",
        rewrites_off=off,
    )
    fast = pw.compile(attend, config, platform=SimulatedPlatform() if platform != "cpu" else "cpu")
    with torch.inference_mode():
        for size in (8, 3, 1):
            given = arguments(size)
            torch.testing.assert_close(fast(*given), attend(*given), rtol=1e-6, atol=1e-6)
    pieces = fast.explain().regions[0].pieces
    made = {op for piece in pieces for op in piece.ops}
    assert any("where" in op for op in made) == ("mask_terms" not in off)
    assert {r.name for r in fast.explain().rewrites if r.off} == set(off)


def test_names_of_all_our_platforms_are_known_on_each():
    names = "one_row_products", "onednn_products", "few_rows_products", "residual_sums"
    config = pw.Config(rewrites_off=names)
    assert pw.compile(torch.relu, config, platform="cpu")(torch.ones(2)).tolist() == [1, 1]


@pytest.mark.parametrize("given", ["mask_terms", 3, ("",), (3,)])
def test_what_is_no_list_of_names_is_refused(given):
    with pytest.raises(ConfigError, match=r"Config\.rewrites_off: "):
        pw.Config(rewrites_off=given)


def test_the_environment_names_rewrites_too():
    found = pw.Config().with_env({"PIECEWISE_REWRITES_OFF": "mask_terms,shared_heads"})
    assert found.rewrites_off == ("mask_terms", "shared_heads")


def test_a_rewrite_of_core_s_own_that_raises_names_itself():
    def fail(graph, is_splitting):
        raise KeyError("example_value")

    listed = ListedRewrite(GraphRewrite("shared_heads", "program", "1", fail))
    with pytest.raises(TraceFailed, match=r"piecewise-core: its rewrite 'shared_heads' .*KeyError"):
        listed(torch.fx.symbolic_trace(torch.nn.ReLU()))
