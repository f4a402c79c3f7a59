"""Conditions over sizes that hold for a whole box, and those that do not."""

from __future__ import annotations

import pytest
import sympy
from torch.utils._sympy.functions import FloorDiv, Mod

from piecewise_core.graph.conditions import evaluator, implied
from piecewise_core.ranges import Box, Range

A, B = sympy.symbols("a b", integer=True, positive=True)
SYMBOLS = {A: 0, B: 1}
FEW = Box((Range(1, 12), Range(1, 12)))
MANY = Box((Range(1, 4096), Range(1, 4096)))


@pytest.mark.parametrize("box", [FEW, MANY])
@pytest.mark.parametrize(
    "condition",
    [
        A + B >= 2,
        sympy.Eq(4 * B * A * FloorDiv(A**2, A), 4 * B * A**2),
        sympy.Eq(FloorDiv(FloorDiv(A**2, A) * B, B), A),
        sympy.Eq(Mod(6 * A * B, 3 * B), 0),
        A * B + B >= B,
    ],
    ids=str,
)
def test_what_always_holds_is_known_to_hold(condition, box):
    assert implied(condition, SYMBOLS, box)


@pytest.mark.parametrize("box", [FEW, MANY])
@pytest.mark.parametrize(
    "condition",
    [
        sympy.Eq(A, B),
        sympy.Eq(FloorDiv(A, 2) * 2, A),
        sympy.Eq(Mod(A * B, 2), 0),
        sympy.Ne(A, B),
        A * B < 12 * 12,
    ],
    ids=str,
)
def test_what_fails_for_some_sizes_is_not(condition, box):
    assert not implied(condition, SYMBOLS, box)


def test_what_nothing_proves_is_tried_where_there_are_few_sizes():
    square = A**2 + B**2 >= 2 * A * B
    assert implied(square, SYMBOLS, FEW)
    assert not implied(square, SYMBOLS, MANY)


def test_a_division_by_a_size_that_may_be_0_is_not_worked_out():
    free = sympy.Symbol("n", integer=True)
    condition = sympy.Eq(FloorDiv(free**2, free), free)
    assert not implied(condition, {free: 0}, Box((Range(0, 5),)))
    assert implied(condition, {free: 0}, Box((Range(1, 5),)))


def test_a_condition_over_a_size_that_is_no_dims_is_not_known():
    assert not implied(A <= 12, {B: 1}, FEW)


def test_a_condition_is_computed_for_given_sizes():
    holds = evaluator(sympy.Eq(Mod(A, 3), FloorDiv(B, 2)), [A, B])
    assert holds(4, 2)
    assert not holds(4, 4)
