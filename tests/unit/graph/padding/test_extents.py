"""Dims as products of factors, regrouped by views."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from piecewise_core.graph.padding.extents import Varies, axes_of, extent, regroup, total, varies

N = Varies((3, 8))


def test_numbers_that_are_equal_everywhere_do_not_vary():
    assert extent([4, 4]) == 4
    assert extent([4, 5]) == Varies((4, 5))
    assert extent([float("nan"), float("nan")]) != Varies((4, 5))
    assert not varies(extent([True, True]))


def test_a_dim_that_varies_is_moved_whole_or_not_at_all():
    axes = axes_of((N, 6, 8))
    assert regroup(axes, (N, 48)) == ((N,), (48,))
    flat = regroup(axes, (Varies((18, 48)), 8))
    assert flat == ((N, 6), (8,))
    assert regroup(flat, (N, 2, 3, 8)) == ((N,), (2,), (3,), (8,))
    assert regroup(flat, (6, N, 8)) is None
    assert regroup(axes, (2, Varies((9, 24)), 8)) is None
    assert regroup(axes_of((4, N)), (2, Varies((6, 16)))) == ((2,), (2, N))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
def test_the_same_elements_have_the_same_places_as_in_torch(shape, data):
    """A view is allowed only where a call's own elements come out at the same places."""
    at = data.draw(st.integers(0, len(shape) - 1))
    sizes = [list(shape), [*shape[:at], shape[at] + 3, *shape[at + 1 :]]]
    small, large = (torch.arange(torch.Size(s).numel()).reshape(s) for s in sizes)
    cut = data.draw(st.integers(0, len(shape)))
    views = [[*s[:cut], torch.Size(s[cut:]).numel()] for s in sizes]
    wanted = [extent(pair) for pair in zip(*views, strict=True)]
    axes = regroup(axes_of([extent(p) for p in zip(*sizes, strict=True)]), wanted)
    assert axes is not None
    assert tuple(map(total, axes)) == tuple(wanted)
    for axis, own in zip(axes, views[0], strict=True):
        if len(axis) == 1 and varies(axis):
            assert axis[0][0] == own
    mark = torch.zeros(sizes[1]).index_fill_(at, torch.arange(shape[at]), 1.0)
    kept = large.reshape(views[1])[mark.reshape(views[1]).bool()]
    assert kept.numel() == small.numel()
