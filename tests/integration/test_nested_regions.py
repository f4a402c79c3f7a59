"""Regions that a model marks for torch.compile to trace once."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform


@torch.compiler.nested_compile_region
def block(x, scale):
    return x.sin() * scale + 1


def twice(x):
    return block(block(x, 2.0), x.mean())


@pytest.mark.parametrize("door", [False, True])
def test_a_nested_region_is_served_at_every_size(door):
    if door:
        fast = torch.compile(
            twice, backend="piecewise", options={"compiler": "eager"}, dynamic=True
        )
    else:
        rows = {"x": {0: pw.Dim("rows", max=16)}}
        fast = pw.compile(twice, pw.Config(dynamic=rows, compiler="eager"), "cpu")
    with torch.no_grad():
        for size in (3, 1, 9):
            x = torch.randn(size, 4)
            torch.testing.assert_close(fast(x), twice(x))


def chosen(x):
    return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)) + 1


@pytest.mark.parametrize("platform", ["cpu", SimulatedPlatform()], ids=["cpu", "simulated"])
def test_where_graphs_cannot_hold_an_operator_that_runs_functions_its_name_is_said(platform):
    rows = {"x": {0: pw.Dim("rows", max=16)}}
    config = pw.Config(dynamic=rows, compiler="eager", capture_sizes=(3,), capture_max=False)
    fast = pw.compile(chosen, config, platform)
    with torch.no_grad():
        for sign in (1, -1):
            x = torch.rand(3, 4) * sign
            torch.testing.assert_close(fast(x), chosen(x))
    said = " ".join(fast.explain().dropped)
    assert "cond" in said
    assert "splitting_ops" in said
    assert "no rule registered" not in said
