"""Cutting padding off, where it can be cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import piecewise_core as pw
from piecewise_core.frontend.session import Session
from piecewise_core.frontend.setup import prepare
from piecewise_core.replay.cutback import can_cut, cut_back

B, S = pw.Dim("b", 1, 8), pw.Dim("s", 1, 8)


def program(fn):
    config = pw.Config(dynamic={"x": {0: B, 1: S}}, compiler="eager")
    session = Session(fn, prepare(config, "cpu", None))
    with torch.inference_mode():
        session(torch.randn(2, 3, 4))
    return session.regions[0].program


def several(x):
    return x.sin(), x.transpose(0, 1) * 2, x.sum((1, 2)), x.shape[0] * x.shape[1], x.sum()


@pytest.fixture(scope="module")
def traced():
    return program(several)


@given(st.integers(1, 8), st.integers(1, 8))
def test_outputs_become_those_of_the_calls_own_sizes(traced, b, s):
    cut = cut_back(traced, (8, 8))
    x = torch.zeros(8, 8, 4)
    x[:b, :s] = torch.randn(b, s, 4)
    outs = [x.sin(), x.transpose(0, 1) * 2, x.sum((1, 2)), 64, x.sum()]
    assert traced.traced.output.used == (0, 1, 2, 3, 4)
    # What else the graph gives, the call's result does not hold.
    got = cut([*outs, *[None] * (len(traced.values) - 5)], (b, s))[:5]
    for ours, theirs in zip(got, several(x[:b, :s]), strict=True):
        if isinstance(theirs, torch.Tensor):
            torch.testing.assert_close(ours, theirs)
        else:
            assert ours == theirs


def test_rows_at_the_end_of_their_own_dim_can_be_cut(traced):
    assert can_cut(traced)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: torch.cat([x, x]),
        lambda x: x.sin().reshape(-1, 4),
        lambda x: torch.cat([x, x.new_ones(1, x.shape[1], 4)]),
    ],
)
def test_rows_of_a_computed_dim_cannot(fn):
    assert not can_cut(program(fn))
