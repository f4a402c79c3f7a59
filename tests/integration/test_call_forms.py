"""Calls reach the model as they were made: by place, by keyword, left out (FAULTS 46)."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

ROWS = {"x": {0: pw.Dim("rows", min=0, max=16)}}
DOORS = pytest.mark.parametrize("door", ["eager", "captured", "recorded"])


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def made(door, fn, **changes):
    settings = {"dynamic": ROWS, **changes}
    if door == "eager":
        return pw.compile(fn, pw.Config(compiler="eager", **settings), "cpu")
    settings |= {"capture_sizes": (4,), "capture_max": False}
    if door == "recorded":
        return pw.record(fn, pw.Config(**settings), SimulatedPlatform())
    return pw.compile(fn, pw.Config(compiler="eager", **settings), SimulatedPlatform())


def looking(fn):
    """A decorator whose result says how it was called."""

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        out = fn(*args, **kwargs) * (1 + len(args))
        for place, name in enumerate(kwargs):
            out = out + {"x": 10, "flag": 20}.get(name, 40) * (place + 1)
        return out

    return wrapper


@looking
def function(x, flag=None):
    return x + (1 if flag else 2)


class Model(nn.Module):
    @looking
    def forward(self, x, flag=None):
        return x + (1 if flag else 2)


class Callable:
    @looking
    def __call__(self, x, flag=None):
        return x + (1 if flag else 2)


class Holder:
    @looking
    def method(self, x, flag=None):
        return x + (1 if flag else 2)


KINDS = {
    "function": lambda: function,
    "module": Model,
    "object": Callable,
    "method": lambda: Holder().method,
    "partial": lambda: functools.partial(function),
    "partial method": lambda: functools.partial(Holder().method),
}
CALLS = {
    "by place": lambda call, x: call(x),
    "by name": lambda call, x: call(x=x),
    "all by place": lambda call, x: call(x, True),
    "in order": lambda call, x: call(x=x, flag=True),
    "in another order": lambda call, x: call(flag=True, x=x),
    "default given": lambda call, x: call(x, flag=None),
}


@DOORS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", CALLS)
def test_a_decorator_sees_what_the_caller_wrote(door, kind, form):
    model = KINDS[kind]()
    fast, call = made(door, model), CALLS[form]
    for rows in (4, 4, 3, 1, 0):
        x = torch.randn(rows, 2)
        torch.testing.assert_close(call(fast, x), call(model, x))


@DOORS
def test_arguments_that_a_partial_holds_reach_the_decorator_with_those_of_the_call(door):
    model = functools.partial(function, flag=True)
    fast, x = made(door, model), torch.randn(4, 2)
    for _ in range(2):
        torch.testing.assert_close(fast(x), model(x))


class Outer(nn.Module):
    """Calls a decorated part by itself."""

    def __init__(self):
        super().__init__()
        self.inner = Model()

    def forward(self, x):
        return self.inner(x) + self.inner(x=x) + self.inner(x, flag=True)


@DOORS
def test_what_a_model_passes_to_its_parts_stays_as_the_model_wrote_it(door):
    model, x = Outer(), torch.randn(4, 2)
    fast = made(door, model)
    for _ in range(2):
        torch.testing.assert_close(fast(x), model(x))


@DOORS
def test_where_nobody_can_look_every_way_to_pass_an_argument_is_one_form(door):
    def model(x, flag=None, *, scale=1.0):
        return x * scale + (1 if flag else 2)

    fast, x = made(door, model), torch.randn(4, 2)
    for call in (fast(x), fast(x=x), fast(x, None), fast(flag=None, x=x), fast(x, scale=1.0)):
        torch.testing.assert_close(call, model(x))
    assert fast.stats().graphs == (0 if door == "recorded" else 1)


def test_named_tensors_of_a_decorated_model_may_be_left_out():
    class Masked(nn.Module):
        @looking
        def forward(self, x, mask=None):
            return x if mask is None else x * mask[:, None]

    length = pw.Dim("rows", min=0, max=16)
    fast = made("eager", Masked(), dynamic={"x": {0: length}, "mask": {0: length}})
    for rows in (3, 1):
        x = torch.randn(rows, 2)
        torch.testing.assert_close(fast(x), Masked()(x))


@pytest.mark.parametrize("front", [pw.compile, pw.record])
@pytest.mark.parametrize(
    "values",
    [
        (np.float32(0.0), np.float32(-0.0)),
        (np.float32("nan"), np.float32(2)),
        (np.int8(2), np.int64(2)),
        (range(2), range(0, 3, 2)),
    ],
)
def test_scalars_of_numpy_and_ranges_are_constants_by_value(front, values):
    def fn(x, s):
        return x[:, 0] * sum(s) if type(s) is range else x.exp() / s

    config = pw.Config(dynamic={"x": {0: pw.Dim("n", 0, 8)}}, compiler="eager", capture_sizes=(4,))
    fast = front(fn, config, SimulatedPlatform())
    with torch.inference_mode():
        for value in values * 5:
            x = torch.randn(4, 3)
            made = copy.deepcopy(value)  # each expression makes one anew
            got, wanted = fast(x, made), fn(x, value)
            torch.testing.assert_close(got, wanted, equal_nan=True)
            assert torch.equal(got.signbit(), wanted.signbit())
    assert fast.stats().captures == 2
