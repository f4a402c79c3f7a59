"""Where inputs are put before a replay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import piecewise_core as pw
from piecewise_core.capture.buffers import FixedInputs, OwnedInputs
from piecewise_core.errors import AddressChanged
from piecewise_core.graph.describe import describe_call
from piecewise_core.testing import SimulatedPlatform

B, S = pw.Dim("b", 1, 8), pw.Dim("s", 1, 8)


def structure(*tensors):
    def fn(x, y):
        return x

    config = pw.Config(dynamic={"x": {0: B, 1: S}, "y": {0: B}})
    return describe_call(fn, tensors, {}, config)


def both(b, s):
    return torch.randn(b, s, 3), torch.randn(2, b).t()


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 7), st.integers(0, 7))
def test_a_call_is_copied_and_the_rest_becomes_zeros(b, s, below_b, below_s):
    owned = OwnedInputs(structure(*both(2, 2)), [(8, 8)])
    views = owned.views((b, s))
    for view in views:
        view.fill_(float("nan"))
    own = (max(b - below_b, 1), max(s - below_s, 1))
    x, y = both(*own)
    owned.stage((b, s))([x, y], own)
    assert views[0].shape == (b, s, 3)
    assert torch.equal(views[0][: own[0], : own[1]], x)
    assert torch.equal(views[1][: own[0]], y)
    assert float(views[0].abs().sum()) == pytest.approx(float(x.abs().sum()), rel=1e-4)
    assert float(views[1].abs().sum()) == pytest.approx(float(y.abs().sum()), rel=1e-4)


def test_layouts_are_those_of_the_traced_call_and_memory_is_shared_by_sizes():
    owned = OwnedInputs(structure(*both(2, 2)), [(8, 8), (1, 8)])
    large, small = owned.views((8, 8)), owned.views((2, 3))
    for ours, theirs in zip(small, both(2, 3), strict=True):
        assert ours.stride() == theirs.stride()
    for a, b in zip(large, small, strict=True):
        assert a.data_ptr() == b.data_ptr()


def test_fixed_inputs_are_the_callers_and_checked():
    x, y = both(2, 2)
    fixed = FixedInputs(structure(x, y), [x, y])
    assert fixed.views((2, 2)) == (x, y)
    stage = fixed.stage((2, 2))
    stage([x, y], (2, 2))
    moved = y.clone()
    with pytest.raises(AddressChanged) as info:
        stage([x, moved], (2, 2))
    text = str(info.value)
    assert '"y"' in text
    assert '"x"' not in text
    assert hex(y.data_ptr()) in text
    assert hex(moved.data_ptr()) in text


class Launches:
    """A driver that copies in one launch, and counts."""

    def __init__(self):
        self.count = 0

    def stager(self, buffers):
        copy = SimulatedPlatform().graphs.stager(buffers)

        def stage(tensors):
            self.count += 1
            copy(tensors)

        return stage


ROWS = pw.Config(dynamic={"x": {0: B}, "y": {1: B}})
"""Rows of x, and columns of a transposed y: the outermost dim in memory of both."""


@given(st.integers(1, 8), st.integers(0, 7))
def test_a_driver_that_can_copies_and_fills_in_one_launch(b, below):
    driver, own = Launches(), max(b - below, 1)
    x, y = torch.randn(own, 1, 3), torch.randn(own, 2).t()
    layout = describe_call(lambda x, y: x, (torch.randn(2, 1, 3), torch.randn(2, 2).t()), {}, ROWS)
    owned = OwnedInputs(layout, [(8,)], driver.stager)
    views = owned.views((b,))
    for view in views:
        view.fill_(float("nan"))
    owned.stage((b,))([x, y], (own,))
    assert driver.count == 1
    assert torch.equal(views[0][:own], x)
    assert torch.equal(views[1][:, :own], y)
    assert not views[0][own:].any()
    assert not views[1][:, own:].any()


def test_rows_that_end_inside_a_buffer_are_filled_one_by_one():
    driver = Launches()
    owned = OwnedInputs(structure(*both(2, 2)), [(8, 8)], driver.stager)
    views, stage = owned.views((4, 4)), owned.stage((4, 4))
    for view in views:
        view.fill_(float("nan"))
    x, y = both(3, 2)
    stage([x, y], (3, 2))
    assert driver.count == 0
    assert torch.equal(views[0][:3, :2], x)
    assert not views[0][:, 2:].any()
    x, y = both(4, 4)
    stage([x, y], (4, 4))
    assert driver.count == 1
    assert torch.equal(views[0], x)
    assert torch.equal(views[1], y)
