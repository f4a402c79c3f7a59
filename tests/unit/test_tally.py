"""Calls by their sizes: exact totals, bounded memory, from any thread, and when owners go."""

from __future__ import annotations

import gc
import threading

import pytest

from piecewise_core import tally as tallies
from piecewise_core.counters import Counters
from piecewise_core.tally import Books, Counted


def test_a_tally_knows_calls_rows_and_padding_of_each_size():
    tally = Books().open().of("replayed", (8, 4))
    for sizes in ((8, 4), (5, 4), (5, 4), (0, 4)):
        tally[sizes] += 1
    assert tally.by_sizes() == {
        (8, 4): Counted(1, 32, 0),
        (5, 4): Counted(2, 40, 24),
        (0, 4): Counted(1, 0, 32),
    }
    assert tally.total() == Counted(4, 72, 56)


def test_calls_of_a_model_without_dims_have_one_row():
    tally = Books().open().of("compiled_range", None)
    tally[()] += 1
    assert tally.total() == Counted(1, 1, 0)


def test_too_many_sizes_are_rounded_up_and_totals_stay_exact(monkeypatch):
    monkeypatch.setattr(tallies, "_MOST", 100)
    tally = Books().open().of("replayed", (4096,))
    sizes = list(range(1, 2001))
    for size in sizes:
        tally[(size,)] += 1
    found = tally.by_sizes()
    assert tally.total() == Counted(2000, sum(sizes), 2000 * 4096 - sum(sizes))
    assert len(tally) <= 100
    assert len(found) < 300
    kept = [size for (size,) in found if (size,) not in tally]
    assert kept
    assert all(size <= 32 or size % (1 << size.bit_length() - 5) == 0 for size in kept)


def test_a_reader_never_sees_a_call_twice_while_sizes_are_rounded(monkeypatch):
    monkeypatch.setattr(tallies, "_MOST", 16)
    tally = Books().open().of("general")
    done, seen = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            seen.append(tally.total().calls)

    reader = threading.Thread(target=read)
    reader.start()
    for size in range(20_000):
        tally[(size,)] += 1
    done.set()
    reader.join()
    assert seen == sorted(seen)
    assert seen[-1] <= 20_000
    assert tally.total().calls == 20_000


@pytest.mark.parametrize(("kind", "where"), [("replayed", (64,)), ("compiled_range", "a box")])
def test_what_an_owner_counted_stays_when_it_is_gone(kind, where):
    counters = Counters()
    for turn in range(50):
        mine = counters.tallies()
        mine.of(kind, where)[(turn + 1,)] += 1
        del mine
    gc.collect()
    assert counters.stats().calls[kind] == 50
    assert counters.by_sizes() == {(turn + 1,): 1 for turn in range(50)}
    added = 50 * 64 - sum(range(1, 51))
    assert counters.stats().padded_rows == (added if kind == "replayed" else 0)
    assert len(counters._books._made) <= 2


def test_calls_of_unknown_sizes_count_and_are_in_no_histogram():
    counters = Counters()
    counters.unsized["eager"] += 2
    counters.tallies().of("eager")[(3,)] += 1
    assert counters.calls["eager"] == 3
    assert counters.by_sizes() == {(3,): 1}
