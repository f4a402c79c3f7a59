"""Guards decide where a trace holds; what tensor data decides is refused by name."""

from __future__ import annotations

import pytest
import sympy

import piecewise_core as pw
from piecewise_core.errors import SizeBranch, TraceFailed
from piecewise_core.graph.guards import Guard, region
from piecewise_core.ranges import Box, Range

ROWS = (pw.Dim("rows", 2, 64),)


def _held(*exprs):
    s, u = sympy.Symbol("s0", integer=True), sympy.Symbol("u1", integer=True)
    made = [Guard(each(s, u), "model.py:3") for each in exprs]
    return region(made, {s: 0}, Box((Range(2, 64),)), (8,), ROWS, None)


@pytest.mark.parametrize(
    "relation", [lambda s, u: s <= u, lambda s, u: sympy.Eq(s * 2, u), lambda s, u: u < s + 1]
)
def test_a_comparison_with_a_size_that_data_decides_is_refused_by_name(relation):
    with pytest.raises(TraceFailed, match=r"sizes \['u1'\] depend on tensor data.*model\.py:3"):
        _held(relation)


def test_what_holds_whatever_the_data_is_no_branch():
    assert _held(lambda s, u: sympy.Or(u >= 0, u < 0)).box == Box((Range(2, 64),))


def test_a_threshold_cuts():
    assert _held(lambda s, u: s <= 16).box == Box((Range(2, 16),))
    with pytest.raises(SizeBranch):
        region(
            [Guard(sympy.Symbol("s0", integer=True) <= 16, "model.py:3")],
            {sympy.Symbol("s0", integer=True): 0}, Box((Range(2, 64),)), (8,), ROWS, [()],
        )  # fmt: skip
