"""Steps called from C, one after the other, and what they throw."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

from piecewise_cpu.native import Native, NativeSequence, NativeStep, kernel_step

KERNEL = """
#include <cstdint>
#include <stdexcept>
extern "C" void kernel(const float *x, float *y, const int64_t *index, const int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    if (index[i] >= n) throw std::runtime_error("index out of bounds");
    y[i] += x[index[i]];
  }
}
extern "C" void many(float *y, P15, int64_t n) { y[0] += n; }
"""

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no g++")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """What Inductor would have built, and a Python function over it."""
    folder = tmp_path_factory.mktemp("kernel")
    fifteen = ", ".join(f"int64_t p{i}" for i in range(15))
    (folder / "kernel.cpp").write_text(KERNEL.replace("P15", fifteen))
    command = ["g++", "-shared", "-fPIC", str(folder / "kernel.cpp"), "-o", str(folder / "k.so")]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(folder / "k.so"))
    (folder / "k.so").unlink()  # as a kept piece's kernels are, once they are loaded
    return loaded, folder / "k.so"


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    made = Native()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        made.build(str(shutil.which("g++")))
    return made or pytest.skip("our native code cannot be built here")


class Kernel:
    """As a function of one of Inductor's extension modules."""

    def __init__(self, path):
        self.__self__ = SimpleNamespace(__file__=str(path))

    def __call__(self, *args):
        raise AssertionError("called from Python")


@needs_compiler
def test_kernels_are_called_in_one_sequence_and_what_stays_in_python_between(native, library):
    x, y, index = torch.arange(3.0), torch.zeros(3), torch.tensor([2, 0, 1])
    x = torch.nn.Parameter(x)
    kernel = Kernel(library[1])
    step = kernel_step(kernel, (x, y, index, 3))
    assert isinstance(step, NativeStep)
    steps = native.together([step, step, functools.partial(y.mul_, 10), step])
    assert [type(one) for one in steps] == [NativeSequence, functools.partial, NativeSequence]
    for one in steps:
        one()
    assert y.tolist() == [42.0, 0.0, 21.0]


@needs_compiler
def test_what_a_kernel_throws_is_raised_and_the_rest_is_not_run(native, library):
    x, y, index = torch.arange(3.0), torch.zeros(3), torch.tensor([2, 3, 1])
    step = kernel_step(Kernel(library[1]), (x, y, index, 3))
    (both,) = native.together([step, step])
    with pytest.raises(RuntimeError, match="index out of bounds"):
        both()
    assert y.tolist() == [2.0, 0.0, 0.0]
    index.zero_()
    both()


@needs_compiler
def test_a_function_of_many_arguments_gets_all_of_them(native, library):
    y = torch.zeros(1)
    address = ctypes.cast(library[0].many, ctypes.c_void_p).value
    step = NativeStep(address, (y.data_ptr(), *range(15), 7), lambda: None)
    for one in native.together([step, step]):
        one()
    assert y.item() == 14


@needs_compiler
def test_without_a_library_and_for_other_arguments_python_calls(library):
    called = []
    kernel = Kernel(library[1])
    for args in ((1.5,), ("a",), (torch.nn.Buffer(torch.ones(1)), None), (1,) * 33, (True,)):
        assert not isinstance(kernel_step(kernel, args), NativeStep)
    gone = Kernel("/no/such/library.so")
    assert not isinstance(kernel_step(gone, (1,)), NativeStep)
    step = NativeStep(1, (), lambda: called.append(1))
    assert Native().together([step, step]) == (step, step)
    step()
    assert called == [1]


@needs_compiler
def test_memory_that_a_step_reads_stays_when_its_tensor_gets_another(native, library):
    weight, y, index = (
        torch.nn.Parameter(torch.full((1000,), 3.0)),
        torch.zeros(1),
        torch.tensor([0]),
    )
    address = weight.data_ptr()
    with torch.no_grad():
        (step,) = native.together([kernel_step(Kernel(library[1]), (weight, y, index, 1))])
        weight.data = torch.zeros(1000)
        others = [torch.full((1000,), 5.0) for _ in range(50)]
    assert address not in [one.data_ptr() for one in others]
    step()
    assert y.item() == 3
