"""Which calls are compared."""

from __future__ import annotations

import pytest

from piecewise_core.frontend.comparing import Turns


def compared(turns: Turns, calls: int) -> list[int]:
    found = []
    for call in range(calls):
        if turns.left:
            turns.left -= 1
        else:
            found.append(call)
            turns.begin()
    return found


@pytest.mark.parametrize("rate", [1.0, 0.7, 0.5, 0.3, 0.1, 0.07, 0.01, 1 / 3, 0.003])
def test_a_share_of_calls_is_compared_and_they_lie_evenly(rate: float) -> None:
    calls = 10_000
    found = compared(Turns(rate), calls)
    assert abs(len(found) - calls * rate) < 1
    gaps = [b - a for a, b in zip([-1, *found], found, strict=False)]
    assert max(gaps) - min(gaps) <= 1
    assert abs(gaps[0] - 1 / rate) < 1, "the first call of a target is not compared"


@pytest.mark.parametrize("rate", [1e-12, 5e-324])
def test_the_smallest_share_is_one(rate: float) -> None:
    turns = Turns(rate)
    assert turns.left > 10**11
    assert compared(turns, 100) == []


def test_what_was_ended_is_compared_no_more() -> None:
    turns = Turns(0.5)
    turns.end()
    assert compared(turns, 10) == []
