"""Which names code reads for anything but to count them up."""

from __future__ import annotations

import pytest

from piecewise_core.runtime.readback import names_read


class Noted:
    calls = tokens = 0

    def counts(self, x):
        self.calls += 1
        self.tokens += x.shape[0] * 2

    def compares(self, x):
        self.calls += 1
        return self.calls > len(x)

    def adds(self):
        self.calls = self.calls + 1

    def keeps_the_largest(self, x):
        self.calls = max(self.calls, x)

    def chooses(self, x):
        self.calls += 1 if self.tokens else 2

    def another(self):
        self.tokens += self.calls

    def sets(self, x):
        self.calls = x.shape[0]


def items(held, x):
    held["calls"] += 1
    held["tokens"] = x


def asks_items(held):
    held["calls"] += 1
    return held.get("tokens"), held["calls"]


def outer():
    calls = 0

    def inner():
        nonlocal calls
        calls += 1

    return inner


@pytest.mark.parametrize(
    ("function", "read"),
    [
        (Noted.counts, set()),
        (Noted.compares, {"calls"}),
        (Noted.adds, {"calls"}),
        (Noted.keeps_the_largest, {"calls"}),
        (Noted.another, {"calls"}),
        (Noted.sets, set()),
        (items, set()),
        (asks_items, {"calls", "tokens"}),
        (outer(), set()),
    ],
)
def test_names_are_read_unless_they_are_only_set_or_counted_up(function, read):
    assert names_read([[function.__code__]], {"calls", "tokens"}) == read


def test_what_a_condition_reads_on_the_way_is_read():
    assert "tokens" in names_read([[Noted.chooses.__code__]], {"tokens"})


def test_only_what_is_asked_for_is_told():
    assert names_read([[asks_items.__code__]], {"tokens"}) == {"tokens"}
    assert names_read([[asks_items.__code__]], {"held"}) == set()
    assert names_read([[asks_items.__code__]], ()) == set()
