"""The kernel behind an operator, and when there is none to be called."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from piecewise_core.capture.direct import kernel_of, modes_active


@torch.library.custom_op("pwdirect::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@torch.library.custom_op("pwdirect::there", mutates_args=(), device_types="cuda")
def there(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_the_kernel_of_a_custom_operator_is_the_function_that_was_written():
    x = torch.randn(3)
    for op in (torch.ops.pwdirect.twice, torch.ops.pwdirect.twice.default):
        kernel = kernel_of(op, "cpu")
        assert kernel is not None
        assert kernel.__code__.co_name == "twice"
        torch.testing.assert_close(kernel(x), x * 2)


def test_builtin_operators_and_functions_have_none():
    assert kernel_of(torch.ops.aten.add.Tensor, "cpu") is None
    assert kernel_of(torch.nn.functional.softmax, "cpu") is None
    assert kernel_of(torch.softmax, "cpu") is None


def test_an_operator_without_a_kernel_for_the_device_has_none():
    assert kernel_of(torch.ops.pwdirect.there, "cpu") is None
    assert kernel_of(torch.ops.pwdirect.there, "cuda") is not None


def test_a_kernel_that_is_disabled_is_not_called():
    with twice.set_kernel_enabled("cpu", enabled=False):
        assert kernel_of(torch.ops.pwdirect.twice, "cpu") is None
    assert kernel_of(torch.ops.pwdirect.twice, "cpu") is not None


def test_modes_are_seen():
    assert not modes_active()
    with TorchDispatchMode():
        assert modes_active()
    assert not modes_active()
