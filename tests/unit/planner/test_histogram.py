"""Histograms: what they hold, what they refuse, and that a file gives back what was written."""

from __future__ import annotations

import pytest

import piecewise_core as pw
from piecewise_core.planner.histogram import Histogram
from piecewise_core.planner.reading import read_histogram


def test_sizes_are_in_order_and_those_never_called_are_left_out():
    found = Histogram(("rows",), {(9,): 2, (1,): 3, (4,): 0})
    assert list(found.calls.items()) == [((1,), 3), ((9,), 2)]
    assert (found.total, found.rows) == (5, 21)


@pytest.mark.parametrize(
    ("given", "calls"),
    [
        ({8: 2, 3: 1}, {(3,): 1, (8,): 2}),
        ([8, 3, 8], {(3,): 1, (8,): 2}),
        ({(4, 128): 2}, {(4, 128): 2}),
        ([(4, 128), [4, 128]], {(4, 128): 2}),
        ({}, {}),
    ],
)
def test_plain_data_makes_a_histogram(given, calls):
    assert Histogram.of(given).calls == calls


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({-1: 2}, "-1 is not a size"),
        ({4: -2}, "-2 is not a number of calls"),
        ({2.5: 1}, "2.5 is not a size"),
        ({"eight": 1}, "'eight' is not a size"),
        ({True: 1}, "True is not a size"),
        ({4: float("nan")}, "nan is not a number of calls"),
        ({4: 1, (4, 8): 1}, "has 2 dims, and others have 1"),
        ({"x" * 5000: 1}, "..."),
    ],
)
def test_what_is_no_histogram_is_refused_by_its_value(given, says):
    with pytest.raises(pw.errors.PlanError) as caught:
        Histogram.of(given)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 200


def test_histograms_add_up_and_keep_what_was_measured():
    one = Histogram(("rows",), {(1,): 1}, 4096, 2.0)
    two = Histogram(("rows",), {(1,): 2, (2,): 5})
    assert (one + two).calls == {(1,): 3, (2,): 5}
    assert ((one + two).graph_bytes, (two + one).row_bytes) == (4096, 2.0)


def test_a_saved_histogram_is_read_back(tmp_path):
    one = Histogram(("batch", "length"), {(4, 128): 3, (0, 1): 1}, 4096, 2.5)
    one.save(tmp_path / "traffic.json")
    assert read_histogram(tmp_path / "traffic.json") == one


def test_text_lists_the_most_frequent_sizes():
    text = str(Histogram(("rows",), {(n,): n for n in range(1, 15)}))
    assert text.splitlines()[0] == "105 calls of 14 sizes (rows)"
    assert text.splitlines()[1] == "  14: 14 (13.3%)"
    assert text.splitlines()[-1] == "  and 4 more sizes"
    assert str(Histogram(("rows",))) == "0 calls of 0 sizes (rows)"
