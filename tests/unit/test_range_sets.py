"""Ranges that hold some of their sizes, against sets of ints."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecewise_core.errors import ConfigError
from piecewise_core.ranges import Box, Range
from piecewise_core.table import TargetTable
from piecewise_core.targets import Target

TOP = 40
BY_NAME = st.sets(st.integers(0, TOP), min_size=1)
BY_RESIDUE = st.builds(
    lambda low, step, rest: {s for s in range(low, TOP + 1) if s % step in rest} or {low},
    st.integers(0, TOP),
    st.integers(1, 9),
    st.sets(st.integers(0, 8), min_size=1),
)
SETS = st.one_of(BY_NAME, BY_RESIDUE)


def of(sizes: set[int]) -> Range:
    found = Range.of(sizes)
    assert found is not None
    return found


def sizes_of(found: Range | None) -> set[int]:
    return set() if found is None else set(found)


@given(SETS)
def test_a_range_holds_what_it_was_made_of_and_there_is_one_way_to_write_it(sizes):
    found = of(sizes)
    assert {s for s in range(-1, TOP + 3) if s in found} == set(found) == sizes
    assert (found.start, found.end) == (min(sizes), max(sizes))
    assert Range.read(found.plain) == found
    assert Range(found.start, found.end, found.modulus, found.residues) == found


@given(SETS, SETS)
def test_ranges_are_cut_with_each_other_as_sets_are(one, other):
    a, b = of(one), of(other)
    assert a.intersect(b) == Range.of(one & other)
    assert a.without(b) == Range.of(one - other)
    assert (str(a) == str(b)) == (one == other)


@given(SETS, st.integers(0, TOP), st.integers(0, TOP))
def test_a_clipped_range_holds_what_lies_between(sizes, low, high):
    assert of(sizes).clip(low, high) == Range.of(s for s in sizes if low <= s <= high)
    assert of(sizes).nearest(low) == min((s for s in sizes if s >= low), default=max(sizes))


@given(SETS, SETS, st.lists(st.tuples(SETS, SETS), max_size=5))
def test_the_table_finds_the_first_target_that_holds_the_sizes(rows, cols, targets):
    bounds = Box((of(rows), of(cols)))
    made = [Target("compiled_range", Box((of(a), of(b)))) for a, b in targets]
    table = TargetTable(bounds, made)
    for sizes in itertools.product((0, 1, 7, 8, 20, 33, TOP, TOP + 1), range(0, TOP + 1, 3)):
        inside = sizes in bounds
        first = next((i for i, t in enumerate(made) if inside and sizes in t.box), table.miss)
        assert table.find(*sizes) == first


def test_a_range_of_multiples_may_be_longer_than_can_be_listed():
    found = Range(3, 2**62, 8, 1)
    assert (found.start, found.end) == (8, 2**62)
    assert found.clip(20, 100) == Range(24, 96, 8, 1)
    assert found.intersect(Range(0, 2**61, 6, 1)) == Range(24, 2**61 - 8, 24, 1)


def test_a_range_without_a_size_is_refused():
    with pytest.raises(ConfigError, match="no size is in it"):
        Range(9, 15, 8, 1)
