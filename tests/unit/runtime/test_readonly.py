"""Tensors that nothing is to write to, over a call that is made twice."""

from __future__ import annotations

import torch

from piecewise_core.runtime.readonly import ReadOnly


def test_what_the_second_run_writes_is_found_and_taken_back():
    x, y = torch.ones(3), torch.ones(2, dtype=torch.long)
    watched = ReadOnly([x, y])
    watched.turn()
    assert watched.changed() is None
    y[0] = 5
    assert watched.changed() == "1 elements differ in int64 of shape (2,)"
    watched.put_back()
    assert (y.tolist(), watched.changed()) == ([1, 1], None)


def test_what_both_runs_write_is_right_and_happens_once():
    x = torch.ones(3)
    watched = ReadOnly([x])
    x.add_(1)
    watched.turn()
    assert x.tolist() == [1, 1, 1]
    x.add_(1)
    assert watched.changed() is None
    watched.put_back()
    watched.leave()
    assert x.tolist() == [2, 2, 2]


def test_memory_that_nobody_wrote_to_is_not_written_to():
    x = torch.tensor([float("nan"), 1.0, 0.0])[:2].expand(4, 2)  # cannot be copied to
    watched, version = ReadOnly([x]), x._version
    watched.turn()
    watched.put_back()
    watched.leave()
    assert (x._version, watched.changed()) == (version, None)
