"""Inductor's generated module, cut down to what its call needs."""

from __future__ import annotations

import pytest

from piecewise_core.compile.wrapper_source import NotPortable, cut_down

MODULE = '''
r"""
async_compile = AsyncCompile()
"""
from ctypes import c_void_p
import torch
import math
import math
from torch._inductor.select_algorithm import extern_kernels
from torch._inductor.async_compile import AsyncCompile

aten = torch.ops.aten
empty_strided_cpu = torch._C._dynamo.guards._empty_strided_cpu
unused = torch._C._distributed_c10d._SymmetricMemory.empty_strided_p2p
async_compile = AsyncCompile()

cpp_fused_0 = async_compile.cpp_pybinding(["float*"], """int kernel() {}""")
cpp_fused_1 = async_compile.cpp_pybinding(["float*"], """int kernel() {}""")

async_compile.wait(globals())
del async_compile

class Runner:
    def call(self, args):
        x, = args
        args.clear()
        buf = empty_strided_cpu((math.floor(2.5),), (1,), torch.float32)
        extern_kernels.mm(x, x, out=buf)
        cpp_fused_0(buf)
        return (buf, )

runner = Runner()
call = runner.call

def benchmark(times=10):
    return call(list(times))

if __name__ == "__main__":
    benchmark()
'''


def test_what_the_call_reaches_is_kept_and_nothing_else():
    found = cut_down(MODULE)
    assert found.kernels == ("cpp_fused_0",)
    assert found.library == ("mm",)
    lines = found.text.splitlines()
    assert lines[:3] == [
        "import torch",
        "import math",
        "empty_strided_cpu = torch._C._dynamo.guards._empty_strided_cpu",
    ]
    for gone in ("AsyncCompile", "cpp_pybinding", "benchmark", "select_algorithm", "unused"):
        assert gone not in found.text
    names = {"extern_kernels": None, "cpp_fused_0": None}
    exec(found.text, names)
    assert callable(names["call"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("cpp_fused_0(buf)", "async_compile.later(buf)"), "more than C\\+\\+ kernels"),
        (("extern_kernels.mm(x, x, out=buf)", "f = extern_kernels"), "around"),
        (("aten = torch.ops.aten", "math = 3"), "math twice"),
        (("aten = torch.ops.aten", "torch.x = 3"), "assigns to torch.x"),
        (("call = runner.call", "run = runner.call"), "no call"),
        (
            (
                'cpp_fused_0 = async_compile.cpp_pybinding(["float*"]',
                "cpp_fused_0 = async_compile.cpp((0",
            ),
            "more than",
        ),
    ],
)
def test_what_text_and_kernels_cannot_repeat_is_refused(change, why):
    changed = MODULE.replace(*change)
    assert changed != MODULE
    if "cpp((0" in changed:
        changed = changed.replace("cpp((0, ", "cpp(0, ")
    with pytest.raises(NotPortable, match=why):
        cut_down(changed)
