"""A recording fixes no value of a tensor: operators that read one are found, however they do."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

ROWS = {0: pw.Dim("rows", min=1, max=16)}
DEVICES = pytest.mark.parametrize("device", ["cpu", "simulated"])


def recorded(fn, device, **changes):
    config = pw.Config(dynamic={"x": ROWS}, capture_sizes=(4,), capture_max=False, **changes)
    return pw.record(fn, config, platform=SimulatedPlatform() if device == "simulated" else device)


@torch.library.custom_op("pwvalues::many", mutates_args=())
def many(x: torch.Tensor) -> int:
    return int(x.sum())


READS = {
    "repr": lambda x, i: x * sum(map(ord, repr(i))),
    "str": lambda x, i: x * sum(map(ord, str(x.sum()))),
    "an f-string of several": lambda x, i: x * sum(map(ord, f"{i}")),
    "a percent": lambda x, i: x * sum(map(ord, "%s" % i[0])),  # noqa: UP031
    "tensor of a list": lambda x, i: x + torch.tensor([i[0], i[0] + 1]).sum(),
    "tensor of nested lists": lambda x, i: x + torch.tensor([[x[0, 0]], [x[0, 1]]]).sum(),
    "as_tensor of a list": lambda x, i: x + torch.as_tensor([x[0, 0], 2.0]).sum(),
    "asarray of a tuple": lambda x, i: x + torch.asarray((x[0, 0], x[0, 1])).sum(),
    "new_tensor of a list": lambda x, i: x + x.new_tensor([x[0, 0], x[0, 1]]).sum(),
    "tensor_split": lambda x, i: torch.tensor_split(x, i, 1)[0],
    "tensor_split, further used": lambda x, i: torch.tensor_split(x, i, 1)[0].sum(),
    "narrow": lambda x, i: torch.narrow(x, 1, i[0], 2),
    "where": lambda x, i: torch.where(i > 1),
    "nonzero, as a tuple": lambda x, i: (i > 1).nonzero(as_tuple=True),
    "is_nonzero": lambda x, i: x + 1 if torch.is_nonzero(i[0] - 1) else x - 1,
    "equal": lambda x, i: x + 1 if torch.equal(i[:1], i[1:]) else x - 1,
    "allclose": lambda x, i: x + 1 if torch.allclose(i[:1], i[1:]) else x - 1,
    "one_hot": lambda x, i: torch.nn.functional.one_hot(i),
    "an operator that returns a number": lambda x, i: x * many(i),
}
TRACED_LIKE = {
    "tensor_split of constants": lambda x, i: torch.tensor_split(x, torch.tensor([1, 3]), 1)[1],
    "narrow by a constant": lambda x, i: torch.narrow(x, 1, torch.tensor(2), 2),
    "combinations": lambda x, i: torch.combinations(i),
    "quantile": lambda x, i: torch.quantile(x, i / 10, dim=1),
}


def same(fast, fn):
    for given in ([1, 2], [2, 3], [1, 1], [3, 1], [1, 2]):
        x, i = torch.randn(4, 6), torch.tensor(given)
        torch.testing.assert_close(fast(x, i), fn(x, i))


@DEVICES
@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("name", READS)
def test_what_reads_a_value_is_not_captured(name, inference, device):
    fast = recorded(READS[name], device)
    with torch.inference_mode(inference), torch.no_grad():
        same(fast, READS[name])
    assert fast.stats().calls["replayed"] == 0


@pytest.mark.parametrize("name", TRACED_LIKE)
def test_what_reads_nothing_that_changes_is_captured(name):
    fast = recorded(TRACED_LIKE[name], "cpu")
    same(fast, TRACED_LIKE[name])
    assert fast.stats().calls["replayed"] == 5


def test_the_log_names_the_operator_and_the_place(caplog):
    fast = recorded(READS["narrow"], "cpu")
    same(fast, READS["narrow"])
    assert "aten.narrow.Tensor reads by aten.item.default, is read by Python at" in caplog.text
    assert "torch.narrow(x, 1, i[0], 2)" in caplog.text


SIZED = {
    "nonzero": lambda x: len(x.nonzero()) * x,
    "a mask": lambda x: x[x > 0].numel() * x,
    "masked_select": lambda x: x.masked_select(x > 0).numel() * x,
    "unique": lambda x: x.long().unique().numel() * x,
}


@DEVICES
@pytest.mark.parametrize("name", SIZED)
def test_what_is_as_large_as_values_say_is_named_with_the_line_of_the_model(name, device):
    fast, fn = recorded(SIZED[name], device), SIZED[name]
    x = torch.randn(4, 3)
    torch.testing.assert_close(fast(x), fn(x))
    assert fast.stats().calls["replayed"] == 0
    assert f"test_recorded_values.py:{fn.__code__.co_firstlineno}" in str(fast.explain())


# Autograd inside ------------------------------------------------------------------------


def grad(x, i):
    return torch.func.grad(lambda t: (t**2).sum())(x)


def backward(x, i):
    with torch.inference_mode(False), torch.enable_grad():
        y = x.clone().requires_grad_(True)
        (y**2).sum().backward()
        return y.grad


@DEVICES
@pytest.mark.parametrize("splits", [(), ("aten::mul",)])
@pytest.mark.parametrize("fn", [grad, backward])
def test_a_backward_pass_is_served_right_and_leaves_no_capture_behind(fn, splits, device):
    fast = recorded(fn, device, splitting_ops=splits)
    same(fast, fn)
    assert bool(fast.stats().calls["replayed"]) is (not splits)
    x = torch.ones(2, 2)
    assert torch.equal(x + 1, x * 2)


def strided(x):
    return x * torch.empty((*x.shape, 2), device="meta").stride()[0]


def summed(x):
    return x * torch.empty((*x.shape, 2), device="meta").expand(3, -1, -1, -1).sum(0).shape[1]


@pytest.mark.parametrize("asks", [strided, summed])
@DEVICES
def test_layouts_that_are_asked_of_tensors_without_data_are_no_work(device, asks):
    fast = recorded(asks, device)
    for turn in range(3):
        x = torch.rand(4, 2) + turn
        assert torch.equal(fast(x), asks(x))
    assert fast.stats().calls["replayed"] == 3
