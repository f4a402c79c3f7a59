"""Regions that a model marks for torch.compile to trace once."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw


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
