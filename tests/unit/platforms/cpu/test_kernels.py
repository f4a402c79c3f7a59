"""A generated function's kernel calls, noted down; anything else is refused."""

from __future__ import annotations

import pytest
import torch

from piecewise_cpu.arena import Arena
from piecewise_cpu.kernels import NotFlat, flat_call


class Extern:
    mm = staticmethod(torch.mm)
    sort = staticmethod(torch.sort)


def cpp_add(a: torch.Tensor, b: torch.Tensor, n: int) -> None:
    b.copy_(a + n)


def generated(text: str):
    """The function ``call`` of a module as Inductor writes them."""
    names = {
        "torch": torch,
        "empty_strided_cpu": torch.empty_strided,
        "reinterpret_tensor": lambda t, size, stride, offset: t.as_strided(size, stride, offset),
        "extern_kernels": Extern(),
        "cpp_add": cpp_add,
        "aten": torch.ops.aten,
    }
    exec(text, names)
    return names["call"]


CALL = """
def call(args):
    x, w = args
    args.clear()
    rows = max(x.size(0), 1)
    buf0 = empty_strided_cpu((rows, 4), (4, 1), torch.float32)
    extern_kernels.mm(x, reinterpret_tensor(w, (4, 4), (1, 4), 0), out=buf0)
    buf1 = empty_strided_cpu((rows, 4), (4, 1), torch.float32)
    cpp_add(buf0, buf1, 3)
    del buf0
    return (buf1,)
"""


def test_the_kernel_calls_repeat_what_the_function_does():
    x, w = torch.randn(3, 4), torch.randn(4, 4)
    steps = []
    (out,) = flat_call(generated(CALL), Arena(), steps)([x, w])
    torch.testing.assert_close(out, x @ w.t() + 3)
    assert len(steps) == 2
    x.normal_()
    for step in steps:
        step()
    torch.testing.assert_close(out, x @ w.t() + 3)


def test_a_method_is_as_good_as_a_function():
    runner = type("Runner", (), {"call": lambda self, args: None})
    inner = generated(CALL.replace("def call(args)", "def call(self, args)"))
    runner.call = inner
    steps = []
    flat_call(runner().call, Arena(), steps)([torch.randn(3, 4), torch.randn(4, 4)])
    assert len(steps) == 2


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("buf1 = aten.relu(buf1)", "aten"),
        ("buf1 = torch.ops.aten.relu.default(buf1)", "torch.ops"),
        ("buf1 = (lambda t: t)(buf1)", "defines functions"),
        ("unknown(buf1)", "unknown"),
    ],
)
def test_what_a_list_of_calls_would_not_repeat_is_refused(line, why):
    text = CALL.replace("    return", f"    {line}\n    return")
    with pytest.raises(NotFlat, match=why):
        flat_call(generated(text), Arena(), [])([torch.randn(3, 4), torch.randn(4, 4)])


def test_a_library_call_that_returns_new_memory_is_refused():
    text = CALL.replace("    return", "    extern_kernels.sort(buf1)\n    return")
    with pytest.raises(NotFlat, match="sort returns new memory"):
        flat_call(generated(text), Arena(), [])([torch.randn(3, 4), torch.randn(4, 4)])
