"""Regions: traced when first needed, each over all sizes that take its path, none twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import piecewise_core as pw
from piecewise_core.errors import SizeBranch

ROWS, COLS = pw.Dim("rows", 1, 12), pw.Dim("cols", 1, 12)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def branching(thresholds: dict[int, list[int]]):
    """A function that computes something else on each side of each threshold of its two dims."""

    def fn(x):
        out = x + 1
        for dim, ends in thresholds.items():
            for end in ends:
                if x.shape[dim] > end:
                    out = out * (end + 2)
        return out

    return fn


def compiled(fn, ends: dict[str, list[int]], **config):
    dynamic = {0: {0: ROWS, 1: COLS}}
    settings = {"dynamic": dynamic, "compile_ranges_endpoints": ends, "compiler": "eager"}
    return pw.compile(fn, pw.Config(**settings, **config), "cpu")


def boxes(fast):
    return [region.box for region in fast._pw_session.regions]


def assert_partition(fast) -> None:
    """Every size in bounds is in exactly one region."""
    for sizes in itertools.product(range(1, 13), range(1, 13)):
        assert sum(sizes in box for box in boxes(fast)) == 1, sizes


ENDS = st.lists(st.integers(1, 11), max_size=2, unique=True).map(sorted)


@settings(max_examples=12)
@given(rows=ENDS, cols=ENDS, order=st.randoms(use_true_random=False))
def test_whatever_comes_first_regions_partition_the_bounds_and_serve_as_eager(rows, cols, order):
    fn = branching({0: rows, 1: cols})
    fast = compiled(fn, {"rows": rows, "cols": cols})
    shapes = list(itertools.product((1, 2, 3, 6, 11, 12), (1, 2, 7, 12)))
    order.shuffle(shapes)
    for shape in shapes[:10]:
        x = torch.randn(shape)
        torch.testing.assert_close(fast(x), fn(x))
    fast.warmup(progress=False)
    assert_partition(fast)
    assert fast.stats().graphs == (len(rows) + 1) * (len(cols) + 1)
    fast.seal()
    for shape in shapes:
        x = torch.randn(shape)
        torch.testing.assert_close(fast(x), fn(x))


def test_a_region_is_traced_when_a_call_first_needs_it():
    fn = branching({0: [4]})
    fast = compiled(fn, {"rows": [4]})
    for rows, graphs in ((9, 1), (12, 1), (2, 2), (1, 2), (7, 2)):
        fast(torch.randn(rows, 5))
        assert fast.stats().graphs == graphs


def test_ranges_never_straddle_regions():
    fast = compiled(branching({0: [4]}), {"rows": [2, 4, 8]})
    fast.warmup(torch.randn(2, 3), progress=False)
    spans = [
        [(t.box.ranges[0].start, t.box.ranges[0].end) for t in region.targets]
        for region in fast._pw_session.regions
    ]
    assert sorted(spans) == [[(1, 2), (3, 4)], [(5, 8), (9, 12)]]


def test_a_threshold_that_is_not_listed_is_refused_in_each_dim():
    fn = branching({0: [4], 1: [6]})
    for ends, refused in ({"rows": [4]}, 'dim "cols".*6 '), ({"cols": [6]}, 'dim "rows".*4 '):
        fast = compiled(fn, ends, regions="declared")
        with pytest.raises(SizeBranch, match=refused.replace("*", "*endpoint ")):
            fast.warmup(torch.randn(2, 3), progress=False)


def test_a_refused_region_leaves_the_others_serving():
    def fn(x):
        if x.shape[0] > 8:
            return x * 2 if x.shape[0] > 10 else x * 3
        return x * 4

    fast = compiled(fn, {"rows": [8]}, regions="declared")
    x = torch.randn(2, 3)
    torch.testing.assert_close(fast(x), fn(x))
    with pytest.raises(SizeBranch, match="endpoint 10 "):
        fast(torch.randn(9, 3))
    torch.testing.assert_close(fast(x), fn(x))


def test_sizes_out_of_bounds_have_regions_of_their_own_with_out_of_range_general():
    fn = branching({0: [4]})
    fast = compiled(fn, {"rows": [4]}, out_of_range="general")
    for shape in ((2, 3), (9, 5), (40, 5), (3, 90), (400, 1)):
        x = torch.randn(shape)
        torch.testing.assert_close(fast(x), fn(x))
    assert fast.stats().graphs == 2
