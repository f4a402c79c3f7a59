"""Objects of a call that count in a Python int, as static caches of sliding windows do."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform


class Tally:
    """``count`` goes up by the rows it saw, ``last`` is what it was, ``kept`` holds sums."""

    def __init__(self, count=0, parts=1):
        self.count, self.last = count, 0
        self.kept = torch.zeros(4)
        self.parts = [Tally(count, 0) for _ in range(parts)]


class Window(torch.nn.Module):
    """Goes another way while a tally becomes full, and once it is."""

    full = 4

    def forward(self, x, tally):
        for part in tally.parts:
            before = part.last = part.count
            part.count += x.shape[0]
            if before >= self.full:
                part.kept.copy_(part.kept.roll(-1))
                x = x - part.kept
            elif before + x.shape[0] > self.full:
                part.kept.mul_(2)
                x = x * 3
            else:
                part.kept.add_(x.sum(0))
                x = x + part.kept
        return x


def compiled(model, platform="cpu", **config):
    return pw.compile(model, pw.Config(compiler="eager", **config), platform)


def pair(*args):
    return Tally(*args), Tally(*args)


def same(fast, model, tallies, rows=1):
    """One call of each, with a tally of its own; both end alike."""
    x = torch.randn(rows, 4)
    with torch.no_grad():
        got, wanted = fast(x, tallies[0]), model(x, tallies[1])
    torch.testing.assert_close(got, wanted)
    for a, b in zip(tallies[0].parts, tallies[1].parts, strict=True):
        assert (a.count, a.last) == (b.count, b.last)
        assert type(a.count) is type(b.count) is int
        torch.testing.assert_close(a.kept, b.kept)


def test_each_way_is_traced_once_whatever_was_counted_and_replayed():
    model = Window()
    fast = compiled(model, SimulatedPlatform(), graph_mode="full")
    for start in (0, 3, 9):
        tallies = pair(start, 2)
        for _ in range(6):
            same(fast, model, tallies)
    stats = fast.stats()
    assert (stats.calls["replayed"], stats.graphs, stats.retraces) == (18, 2, 0)
    assert "parts[0].count < 4 at" in str(fast.explain())


def test_what_is_asked_of_a_count_may_depend_on_a_named_size():
    model = Window()
    fast = compiled(model, dynamic={"x": {0: pw.Dim("rows", max=8)}})
    for sizes in ((1, 1, 1, 1, 1, 1), (3, 1, 1, 2), (5, 1, 7), (2, 3, 1), (4, 4, 1), (8, 8)):
        tallies = pair()
        for rows in sizes:
            same(fast, model, tallies, rows)
    stats = fast.stats()
    assert (stats.calls["compiled_range"], stats.retraces) == (21, 0)


def test_calls_above_the_bounds_and_of_captured_sizes_count_once():
    model, rows = Window(), {"x": {0: pw.Dim("rows", max=4)}}
    beyond = compiled(model, dynamic=rows, out_of_range="general")
    sizes = {"capture_sizes": [1, 4], "padding": "capture_sizes"}
    captured = compiled(model, SimulatedPlatform(), dynamic=rows, **sizes)
    for fast, called in ((beyond, (6, 1, 5, 2)), (captured, (3, 1, 4, 2))):
        for start in (0, 2, 9):
            tallies = pair(start)
            for size in called:
                same(fast, model, tallies, size)
    assert beyond.stats().calls["general"] == captured.stats().calls["replayed"] == 6


def test_what_a_user_sets_counts_at_the_next_call():
    model = Window()
    fast = compiled(model)
    tallies = pair()
    for count in (0, 9, 3, 4, 0, 100, 2):
        for tally in tallies:
            tally.parts[0].count = count
        same(fast, model, tallies)
    assert fast.stats().retraces == 0
    for tally in tallies:
        tally.parts[0] = Tally(5, 0)
    same(fast, model, tallies)
    for tally in tallies:
        tally.parts[0].count = True  # no int, though it is counted on like one
    same(fast, model, tallies)


def test_two_tallies_taken_in_turns_keep_their_own_counts():
    model = Window()
    fast = compiled(model)
    both = pair(), pair(3)
    for _ in range(6):
        for tallies in both:
            same(fast, model, tallies)
    assert fast.stats().graphs == 2


def test_a_call_that_is_verified_counts_once():
    model = Window()
    fast = compiled(model, check="verify", verify_rate=1.0)
    tallies = pair()
    for _ in range(8):
        same(fast, model, tallies)
    assert (fast.stats().verified, fast.stats().wrong) == (8, 0)
    before = [part.count for part in tallies[0].parts]
    fast.bisect(torch.randn(1, 4), tallies[0])
    assert [part.count for part in tallies[0].parts] == before


def test_after_seal_a_way_that_was_not_traced_is_refused():
    model = Window()
    fast = compiled(model)
    tallies = pair(2)
    same(fast, model, tallies)
    fast.seal()
    same(fast, model, tallies)
    with torch.no_grad(), pytest.raises(pw.errors.Sealed, match=r"count < 4 at .*after seal"):
        fast(torch.randn(1, 4), tallies[0])


SERVED = {
    "parity": lambda x, n: (x if n % 2 else -x, n + 1),
    "halves": lambda x, n: (x if n // 2 > 1 else -x, n * 2 + 1),
    "resets": lambda x, n: (x + 1, 0 if n > 3 else n + 1),
    "floats": lambda x, n: (x if n**0.5 == 2 else -x, n + 1),
}
WRITTEN = {
    "computes": lambda x, n: (x * n, n + 1),
    "slices": lambda x, n: (x[:, : n % 3 + 1], n + 1),
    "returns": lambda x, n: ((x, n), n + 1),
    "nests": lambda x, n: ((x, slice(0, n)), n + 1),
    "words": lambda x, n: (x if f"{n}" == "4" else -x, n + 1),
    "rounds": lambda x, n: (x if round(n, -1) == 10 else -x, n * 2 + 1),
    "loops": lambda x, n: (sum((x for _ in range(n)), x), n + 1),
    "floats_kept": lambda x, n: (x + 1, n + 1.0),
}


@pytest.mark.parametrize("name", [*SERVED, *WRITTEN])
def test_a_count_that_reaches_results_is_never_that_of_the_trace(name):
    use = {**SERVED, **WRITTEN}[name]

    class Uses(torch.nn.Module):
        def forward(self, x, tally):
            out, tally.count = use(x, tally.count)
            return out

    model = Uses()
    fast = compiled(model)
    ours, theirs = pair(0, 0)
    with torch.no_grad():
        for _ in range(8):
            x = torch.randn(3, 4)
            wanted = model(x, theirs)
            assert str(fast(x, ours)) == str(wanted)
            assert (ours.count, type(ours.count)) == (theirs.count, type(theirs.count))
    calls = fast.stats().calls
    assert calls["eager"] == 0 if name in SERVED else calls["eager"] >= 4
