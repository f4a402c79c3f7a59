"""Sizes, ranges, boxes and the look-up table, against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecewise_core.errors import ConfigError
from piecewise_core.ranges import NO_BOUND, Box, Range, Sizes, cut
from piecewise_core.table import TargetTable
from piecewise_core.targets import Target, plan_targets

FAR = 1 << 20
"""A span too long for a dense table, so that look-ups bisect."""


@st.composite
def ranges(draw: st.DrawFn, lo: int = 0, hi: int = 12) -> Range:
    start = draw(st.integers(lo, hi))
    return Range(start, draw(st.integers(start, hi)))


@st.composite
def tables(draw: st.DrawFn, dims: int) -> tuple[Box, list[Target]]:
    """Bounds and overlapping targets, some of them partly or wholly outside the bounds."""
    bounds = Box(tuple(draw(ranges(2, 10)) for _ in range(dims)))
    boxes = draw(st.lists(st.tuples(*[ranges()] * dims), max_size=6))
    return bounds, [Target("compiled_range", Box(box)) for box in boxes]


def brute_force(bounds: Box, targets: Sequence[Target], sizes: Sizes) -> int:
    """The first target that holds the sizes, found one by one."""
    if sizes not in bounds:
        return TargetTable.miss
    return next((i for i, t in enumerate(targets) if sizes in t.box), TargetTable.miss)


def one_dim(bounds: Range, endpoints: Sequence[int], sizes: Sequence[int]) -> tuple[Target, ...]:
    return plan_targets(Box((bounds,)), [endpoints], [(s,) for s in sizes])


# Range and Box ----------------------------------------------------------------------


def test_a_range_holds_both_its_ends_and_nothing_beyond() -> None:
    assert [n for n in range(8) if n in Range(2, 5)] == [2, 3, 4, 5]
    assert "3" not in Range(2, 5)
    assert 3.0 not in Range(2, 5)


def test_a_range_that_starts_above_its_end_is_refused_with_both_values() -> None:
    with pytest.raises(ConfigError, match=r"Range\(5, 2\)"):
        Range(5, 2)


def test_a_single_size_is_known_as_such() -> None:
    assert Range(3, 3).is_single_size()
    assert not Range(3, 4).is_single_size()
    assert Box.single((3, 4)).is_single_size()
    assert not Box((Range(3, 3), Range(1, 2))).is_single_size()


def test_ranges_and_boxes_print_as_they_are_written_in_the_documents() -> None:
    assert str(Range(1, 8)) == "[1, 8]"
    assert str(Box((Range(1, 8), Range(0, 3)))) == "[1, 8] x [0, 3]"
    assert str(Box(())) == "(no dynamic dims)"
    assert str(Target("compiled_size", Box.single((4,)))) == "compiled_size [4, 4]"


def test_a_box_holds_only_tuples_of_its_own_length() -> None:
    box = Box((Range(1, 4), Range(1, 4)))
    assert (2, 2) in box
    assert (2,) not in box
    assert (2, 2, 2) not in box
    assert 2 not in box
    assert () in Box(())


@given(st.data(), st.integers(1, 3))
def test_the_intersection_of_two_boxes_holds_exactly_what_both_hold(
    data: st.DataObject, dims: int
) -> None:
    small = ranges(0, 4)
    a, b = (Box(tuple(data.draw(small) for _ in range(dims))) for _ in range(2))
    both = a.intersect(b)
    for sizes in itertools.product(range(6), repeat=dims):
        assert (both is not None and sizes in both) == (sizes in a and sizes in b)


# cut --------------------------------------------------------------------------------


def test_endpoints_are_the_inclusive_ends_of_ranges() -> None:
    assert cut(Range(1, 8192), [8, 32]) == (Range(1, 8), Range(9, 32), Range(33, 8192))


def test_without_endpoints_the_bounds_are_the_one_range() -> None:
    assert cut(Range(1, 8192), []) == (Range(1, 8192),)


def test_endpoints_that_cut_nothing_are_left_out() -> None:
    assert cut(Range(2, 8), [0, 1, 8, 9, 100]) == (Range(2, 8),)


def test_an_endpoint_at_the_lower_bound_leaves_a_range_of_one_size() -> None:
    assert cut(Range(0, 8), [0]) == (Range(0, 0), Range(1, 8))


@given(ranges(0, 60), st.lists(st.integers(-5, 70)))
def test_a_cut_partitions_the_bounds(bounds: Range, endpoints: list[int]) -> None:
    parts = cut(bounds, endpoints)
    held = [size for part in parts for size in range(part.start, part.end + 1)]
    assert held == list(range(bounds.start, bounds.end + 1))


@given(ranges(0, 60), st.lists(st.integers(-5, 70)))
def test_a_cut_ends_a_range_at_every_endpoint_in_bounds_and_nowhere_else(
    bounds: Range, endpoints: list[int]
) -> None:
    wanted = {e for e in endpoints if e in bounds} | {bounds.end}
    assert {part.end for part in cut(bounds, endpoints)} == wanted


# plan_targets -----------------------------------------------------------------------


@given(st.data(), st.integers(1, 3))
def test_every_size_in_bounds_has_one_target_and_exact_sizes_win_over_ranges(
    data: st.DataObject, dims: int
) -> None:
    bounds = Box(tuple(data.draw(ranges(0, 6)) for _ in range(dims)))
    endpoints = [data.draw(st.lists(st.integers(-1, 8), max_size=3)) for _ in range(dims)]
    size = st.tuples(*[st.integers(-1, 8)] * dims)
    exact = data.draw(st.lists(size, max_size=4))
    targets = plan_targets(bounds, endpoints, exact)
    table = TargetTable(bounds, targets)
    for sizes in itertools.product(range(-1, 9), repeat=dims):
        if sizes not in bounds:
            assert table.find(*sizes) == TargetTable.miss
            continue
        target = targets[table.find(*sizes)]
        assert target.kind == ("compiled_size" if sizes in exact else "compiled_range")
        of_kind = [t for t in targets if t.kind == target.kind and sizes in t.box]
        assert of_kind == [target]


def test_sizes_outside_the_bounds_make_no_target() -> None:
    assert one_dim(Range(2, 8), [], [1, 9]) == one_dim(Range(2, 8), [], [])


def test_sizes_given_twice_make_one_target() -> None:
    kinds = [t.kind for t in one_dim(Range(1, 8), [], [4, 4])]
    assert kinds == ["compiled_size", "compiled_range"]


def test_a_range_of_one_size_that_is_also_an_exact_size_is_the_exact_size() -> None:
    targets = one_dim(Range(0, 8), [0], [0])
    assert [str(t) for t in targets] == ["compiled_size [0, 0]", "compiled_range [1, 8]"]


def test_a_model_without_dims_has_one_target() -> None:
    (target,) = plan_targets(Box(()), [], [])
    assert TargetTable(Box(()), [target]).find() == 0


def test_no_dims_and_no_targets_is_a_miss() -> None:
    assert TargetTable(Box(()), []).find() == TargetTable.miss


# TargetTable ------------------------------------------------------------------------


@given(st.data(), st.integers(1, 3))
def test_the_table_finds_what_a_search_finds(data: st.DataObject, dims: int) -> None:
    bounds, targets = data.draw(tables(dims))
    table = TargetTable(bounds, targets)
    for sizes in itertools.product(range(14), repeat=dims):
        assert table.find(*sizes) == brute_force(bounds, targets, sizes)


@given(st.data(), st.integers(1, 3))
def test_bisection_finds_what_a_search_finds(data: st.DataObject, dims: int) -> None:
    """The same small targets in bounds too long for a table, first dim only for two and three."""
    small, targets = data.draw(tables(dims))
    bounds = Box((Range(small.ranges[0].start, FAR), *small.ranges[1:]))
    table = TargetTable(bounds, targets)
    far = (FAR - 1, FAR, FAR + 1)
    for sizes in itertools.product((*range(14), *far), *[range(14)] * (dims - 1)):
        assert table.find(*sizes) == brute_force(bounds, targets, sizes)


@given(st.lists(st.integers(1, FAR), max_size=40), st.lists(st.integers(1, FAR), max_size=40))
def test_bisection_changes_its_answer_exactly_at_the_ends(
    endpoints: list[int], exact: list[int]
) -> None:
    bounds = Range(1, FAR)
    targets = one_dim(bounds, endpoints, exact)
    table = TargetTable(Box((bounds,)), targets)
    near = {0, 1, FAR, FAR + 1}
    near |= {n + step for n in (*endpoints, *exact) for step in (-1, 0, 1)}
    for size in near:
        assert table.find(size) == brute_force(Box((bounds,)), targets, (size,))


def test_earlier_targets_win_where_boxes_overlap() -> None:
    wide, narrow = (Target("general", Box((Range(*r),))) for r in ((1, 9), (4, 5)))
    bounds = Box((Range(1, 9),))
    assert TargetTable(bounds, [narrow, wide]).find(4) == 0
    assert TargetTable(bounds, [wide, narrow]).find(4) == 0
    assert TargetTable(bounds, [narrow, wide]).find(6) == 1


@pytest.mark.parametrize("outside", [Range(0, 1), Range(20, 30)])
def test_a_target_outside_the_bounds_is_never_found(outside: Range) -> None:
    table = TargetTable(Box((Range(2, 10),)), [Target("compiled_range", Box((outside,)))])
    assert {table.find(size) for size in range(32)} == {TargetTable.miss}


def test_a_thousand_ranges_and_sizes_are_all_found() -> None:
    bounds = Range(1, 10_000)
    targets = one_dim(bounds, range(10, 10_000, 10), range(5, 10_000, 10))
    table = TargetTable(Box((bounds,)), targets)
    assert len(targets) == 2_000
    assert {table.find(size) for size in range(1, 10_001)} == set(range(2_000))


def test_too_many_cells_are_refused_with_their_number_and_what_to_change() -> None:
    bounds = Box((Range(1, 4_000), Range(1, 4_000)))
    targets = [Target("compiled_size", Box.single((n, n))) for n in range(2, 4_000, 2)]
    with pytest.raises(ConfigError, match=r"1999 ranges and sizes over 2 dims.*list fewer"):
        TargetTable(bounds, targets)


def test_a_look_up_with_the_wrong_number_of_sizes_fails() -> None:
    bounds = Box((Range(1, 4), Range(1, 4)))
    with pytest.raises(ValueError, match="zip"):
        TargetTable(bounds, []).find(1)


def test_a_range_without_an_upper_end_says_so():
    assert str(Range(3, NO_BOUND)) == "[3, no bound]"
    assert str(Range(3, NO_BOUND - 1)) == f"[3, {NO_BOUND - 1}]"


@given(st.data(), st.integers(1, 2))
def test_ranges_with_gaps_are_told_apart_in_bounds_too_large_to_list(
    data: st.DataObject, dims: int
) -> None:
    gaps = st.builds(
        lambda start, length, modulus, rest: Range(
            start, start + length + modulus, modulus, 1 << rest % modulus
        ),
        *(st.integers(0, 6), st.integers(0, 9), st.integers(1, 4), st.integers(0, 3)),
    )
    boxes = data.draw(st.lists(st.tuples(*[gaps] * dims), min_size=1, max_size=5))
    targets = [Target("compiled_range", Box(box)) for box in boxes]
    bounds = Box((Range(0, FAR), *[Range(0, 14)] * (dims - 1)))
    table = TargetTable(bounds, targets)
    for sizes in itertools.product((*range(18), FAR), *[range(14)] * (dims - 1)):
        assert table.find(*sizes) == brute_force(bounds, targets, sizes)
