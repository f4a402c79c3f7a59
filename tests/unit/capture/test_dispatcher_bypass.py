"""The kernel behind an operator, and when there is none to be called."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from piecewise_core.capture import dispatcher_bypass
from piecewise_core.capture.dispatcher_bypass import kernel_of, modes_active


@torch.library.custom_op("pwdirect::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@torch.library.custom_op("pwdirect::there", mutates_args=(), device_types="cuda")
def there(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@torch.library.custom_op("pwdirect::scaled", mutates_args=())
def scaled(
    x: torch.Tensor, by: float, more: list[float], rest: float | None = None
) -> torch.Tensor:
    return x * by + sum(more) + (rest or 0)


@torch.library.custom_op("pwdirect::overridden", mutates_args=())
def overridden(x: torch.Tensor) -> torch.Tensor:
    return x * 2


X = torch.ones(3)


def test_the_kernel_of_a_custom_operator_is_the_function_that_was_written():
    x = torch.randn(3)
    for op in (torch.ops.pwdirect.twice, torch.ops.pwdirect.twice.default):
        kernel = kernel_of(op, (x,), {})
        assert kernel is not None
        assert kernel.__code__.co_name == "twice"
        torch.testing.assert_close(kernel(x), x * 2)


def test_builtin_operators_and_functions_have_none():
    assert kernel_of(torch.ops.aten.add.Tensor, (X, X), {}) is None
    assert kernel_of(torch.nn.functional.softmax, (X, -1), {}) is None
    assert kernel_of(torch.softmax, (X, -1), {}) is None


def test_an_operator_without_a_kernel_for_the_device_has_none():
    assert kernel_of(torch.ops.pwdirect.there, (X,), {}) is None
    # Its kernel for fake tensors is none of those that were written.
    assert kernel_of(torch.ops.pwdirect.twice, (torch.empty(3, device="meta"),), {}) is None


@pytest.mark.parametrize(
    ("args", "kwargs", "as_given"),
    [
        ((X, 2.0, [1.0]), {}, True),
        ((X, 2.0), {"more": [], "rest": None}, True),
        ((X, 2, [1.0]), {}, False),
        ((X, 2.0, [1]), {}, False),
        ((X, 2.0, (1.0,)), {}, False),
        ((X, 2.0, [1.0]), {"rest": 1}, False),
        ((X, 2.0, [1.0], 1.0), {}, True),
    ],
)
def test_arguments_that_the_dispatcher_would_change_go_through_it(args, kwargs, as_given):
    found = kernel_of(torch.ops.pwdirect.scaled.default, args, kwargs)
    assert (found is not None) == as_given


def test_a_kernel_registered_over_the_custom_operators_own_is_not_passed_by():
    assert kernel_of(torch.ops.pwdirect.overridden, (X,), {}) is not None
    library = torch.library.Library("pwdirect", "FRAGMENT")
    try:
        library.impl("overridden", lambda x: x * 5, "CPU")
        assert kernel_of(torch.ops.pwdirect.overridden, (X,), {}) is None
    finally:
        library._destroy()


def test_a_kernel_that_is_disabled_is_not_called():
    with twice.set_kernel_enabled("cpu", enabled=False):
        assert kernel_of(torch.ops.pwdirect.twice, (X,), {}) is None
    assert kernel_of(torch.ops.pwdirect.twice, (X,), {}) is not None


def test_modes_are_seen():
    assert not modes_active()
    with TorchDispatchMode():
        assert modes_active()
    assert not modes_active()


def test_a_kernel_is_looked_for_once_for_calls_alike_and_anew_for_others(monkeypatch):
    asked = []

    def look(fn, args, kwargs):
        asked.append(args)
        return len(asked)

    monkeypatch.setattr(dispatcher_bypass, "kernel_of", look)
    kernels, x = dispatcher_bypass.Kernels(), torch.zeros(2)
    same = [kernels(len, (x, 1), {}), kernels(len, (torch.ones(3), 2), {})]
    assert same == [1, 1]
    # A float where an int was, another operator, a list, whose contents matter, a keyword.
    others = [(len, (x, 1.0), {}), (max, (x, 1), {}), (len, ([x],), {}), (len, (x, 1), {"k": 1})]
    assert [kernels(*other) for other in others] == [2, 3, 4, 5]
    assert kernels(len, ([1],), {}) == 6
