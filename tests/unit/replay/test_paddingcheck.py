"""Padded calls compared with unpadded ones, by zeros and by large values behind their rows."""

from __future__ import annotations

import pytest
import torch

from piecewise_core.replay.paddingcheck import PaddingCheck, disturb


class Graph:
    """One buffer of eight rows, and ``fn`` of it."""

    def __init__(self, fn):
        self.fn = fn
        self.buffer = torch.zeros(8, 3)
        self.replays = 0

    def stage(self, tensors, sizes):
        self.buffer.zero_()
        self.buffer[: sizes[0]] = tensors[0]

    def replay(self):
        self.replays += 1
        self.out = self.fn(self.buffer)

    def check(self):
        return PaddingCheck(
            [self.buffer], self.stage, self.replay, lambda sizes: [self.out[: sizes[0]]], wild=True
        )


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x + x.sum(0),  # zeros hide it
        lambda x: x + x.amax(0),  # so they do for positive rows
        lambda x: (x > x.mean(0)).long(),
        lambda x: x - x.flip(0).cumsum(0).flip(0).clamp_min(1e3),
    ],
)
def test_what_zeros_hide_large_values_show(fn):
    graph = Graph(fn)
    x = torch.rand(5, 3) + 1
    assert graph.check()([x], (5,), [fn(x)]) is not None


def test_rows_that_are_alone_pass():
    graph = Graph(lambda x: x * 2)
    check = graph.check()
    for size in (5, 3):
        x = torch.randn(size, 3)
        assert check([x], (size,), [x * 2]) is None
    assert graph.replays == 4


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16, torch.complex64])
def test_only_what_is_behind_a_call_is_disturbed_and_whole_numbers_stay_its_own(dtype):
    own = torch.arange(6).reshape(2, 3).to(dtype)
    buffer = torch.zeros(4, 5, dtype=dtype)
    buffer[:2, :3] = own
    before = torch.get_rng_state()
    disturb([buffer], [own], wild=True)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(buffer[:2, :3], own)
    behind = buffer[2:]
    assert behind.abs().float().isfinite().all() if dtype != torch.bool else True
    if dtype == torch.int64:
        assert set(buffer.flatten().tolist()) <= set(own.flatten().tolist())
    if dtype == torch.float16:
        assert behind.abs().max() > 100


def test_floats_that_may_become_indices_stay_a_calls_own_too():
    own, buffer = torch.tensor([[1.0, 2.0]]), torch.zeros(4, 2)
    disturb([buffer], [own], wild=False)
    assert set(buffer[1:].flatten().tolist()) <= {1.0, 2.0}


def test_calls_without_elements_leave_zeros():
    buffer = torch.ones(4, dtype=torch.int64)
    disturb([buffer], [torch.zeros(0, dtype=torch.int64)], wild=True)
    assert not buffer.any()
