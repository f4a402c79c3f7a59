"""Results that are views of each other, of arguments or of weights: what is done to one is done to
the others, as eager has it, whoever serves the call.
"""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

N = pw.Dim("n", 1, 8)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def served(fn, front, **more):
    config = {"dynamic": {"x": {0: N}}, "capture_sizes": (4, 8), **more}
    if front == "recorded":
        return pw.record(fn, pw.Config(**config), SimulatedPlatform())
    return pw.compile(fn, pw.Config(compiler="eager", **config), SimulatedPlatform())


FRONTS = pytest.mark.parametrize("front", ["compiled", "recorded"])
WAYS = pytest.mark.parametrize("more", [{}, {"clone_outputs": True}, {"padding": "capture_sizes"}])


def same_after_writes(fast, fn, make, writes):
    for n in (4, 4, 8, 5, 5, 4):
        twins = [make(n), make(n)]
        results = [call(*given) for call, given in zip((fast, fn), twins, strict=True)]
        for write in (None, *writes):
            for given, result in zip(twins, results, strict=True):
                if write is not None:
                    write(given, result)
            torch.testing.assert_close(results[0], results[1])
            torch.testing.assert_close(twins[0], twins[1])


def numbers(n):
    return torch.arange(n * 3.0).reshape(n, 3)


@FRONTS
@WAYS
def test_results_share_memory_with_arguments_and_each_other(front, more):
    def fn(x):
        made = x * 2
        return x[1:], x.view(torch.int32), x.t(), made, made[:, 0], x

    writes = [
        lambda given, result: result[0].add_(100),
        lambda given, result: given[0].mul_(3),
        lambda given, result: result[4].zero_(),
        lambda given, result: result[1].zero_(),
    ]
    same_after_writes(served(fn, front, **more), fn, lambda n: (numbers(n),), writes)


@FRONTS
def test_an_argument_in_another_layout_is_shared_too(front):
    def fn(x):
        return x[1:], x * 2

    def make(n):
        return (torch.arange(n * 6.0).reshape(n, 6)[:, ::2],)

    fast = served(fn, front)
    same_after_writes(fast, fn, lambda n: (numbers(n),), [lambda g, r: r[0].add_(1)])
    same_after_writes(fast, fn, make, [lambda g, r: r[0].add_(1), lambda g, r: g[0].zero_()])


@FRONTS
def test_parts_of_complex_arguments_are_shared(front):
    def fn(x):
        return x.conj(), x.imag, x.conj().imag, x.real

    writes = [lambda g, r: r[3].zero_(), lambda g, r: g[0].mul_(2), lambda g, r: r[2].add_(1)]
    same_after_writes(
        served(fn, front), fn, lambda n: (torch.complex(numbers(n), numbers(n) + 1),), writes
    )


@FRONTS
@WAYS
def test_a_result_that_is_a_view_of_a_weight_is_no_copy(front, more):
    model = nn.Linear(3, 3, bias=False).requires_grad_(False)
    fast = served(lambda x: (model(x), model.weight[0]), front, **more)
    for n in (4, 4, 8, 5, 5):
        fast(numbers(n))[1].add_(1)
        torch.testing.assert_close(fast(numbers(n))[0], model(numbers(n)))
    assert model.weight[0].mean() > 4


def test_results_that_are_views_are_not_padded_and_it_is_said(caplog):
    fast = served(lambda x: (x * 2, x[1:]), "compiled", padding="capture_sizes")
    with caplog.at_level(logging.INFO):
        fast(numbers(4)), fast(numbers(5))
    assert fast.stats().padded_rows == 0
    assert "a view of an argument" in caplog.text


def test_results_computed_from_sizes_come_with_padded_ones():
    fast = served(lambda x: (x * 2, x.shape[0] / 2, x.shape[0] > 4), "compiled",
                  padding="capture_sizes")  # fmt: skip
    for n in (8, 5, 3):
        assert fast(numbers(n))[1:] == (n / 2, n > 4)
    assert fast.stats().padded_rows == 4


def test_a_padded_call_may_be_the_one_that_is_captured():
    """On zeros the index would be out of bounds: a device's context would end there."""
    table = torch.randn(10, 3)
    fast = served(lambda x: nn.functional.embedding(x - 1, table), "recorded",
                  padding="capture_sizes")  # fmt: skip
    for n in (3, 4, 3):
        places = torch.arange(1, n + 1)
        torch.testing.assert_close(fast(places), table[:n])
    assert fast.stats().captures == 1
