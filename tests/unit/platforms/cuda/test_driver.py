"""Inputs are copied one by one wherever the staging kernel cannot be had."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from piecewise_cuda.driver import CudaGraphDriver

BUFFER = SimpleNamespace(device=torch.device("cuda"))


class Stager:
    """Stands in for Triton's. ``made``: how many buffers each had. ``fails``: when -> an error."""

    made: ClassVar[list[int]] = []
    fails: ClassVar[dict[str, BaseException]] = {}

    def __init__(self, buffers):
        Stager.made.append(len(buffers))
        self._fail("made")

    def copier(self):
        def copy(tensors):
            self._fail("launched")
            copy.calls.append(list(tensors))

        copy.calls = []
        return copy

    def _fail(self, when):
        if when in Stager.fails:
            raise Stager.fails[when]


@pytest.fixture(autouse=True)
def staging(monkeypatch):
    monkeypatch.setattr(Stager, "made", [])
    monkeypatch.setattr(Stager, "fails", {})
    monkeypatch.setitem(sys.modules, "piecewise_cuda.staging", SimpleNamespace(Stager=Stager))


def test_a_stager_is_tried_on_the_buffers_themselves():
    buffers = [BUFFER, BUFFER]
    assert CudaGraphDriver().stager(buffers).calls == [buffers]


@pytest.mark.parametrize("when", ["made", "launched"])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
        ImportError("failed to map segment from shared object"),
        TypeError("function takes exactly 13 arguments (17 given)"),
        AttributeError("'CompiledKernel' object has no attribute 'function'"),
    ],
)
def test_a_kernel_that_triton_cannot_make_or_launch_costs_one_warning(when, error, caplog):
    Stager.fails[when] = error
    driver = CudaGraphDriver()
    with caplog.at_level(logging.INFO):
        assert driver.stager([BUFFER]) is None
        assert driver.stager([BUFFER, BUFFER]) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(error) in record.getMessage()
    assert "install a C compiler" in record.getMessage()


def test_a_kernel_that_failed_is_not_tried_for_every_size():
    Stager.fails["made"] = RuntimeError()
    driver = CudaGraphDriver()
    for _ in range(3):
        assert driver.stager([BUFFER]) is None
    assert Stager.made == [1]
    Stager.fails.clear()
    assert driver.stager([BUFFER]) is None
    assert driver.stager([BUFFER, BUFFER]) is not None


def test_too_little_memory_for_a_stager_is_the_capture_s_to_tell():
    Stager.fails["made"] = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        CudaGraphDriver().stager([BUFFER])


def test_without_triton_there_is_no_stager_and_no_warning(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "piecewise_cuda.staging", None)
    with caplog.at_level(logging.WARNING):
        assert CudaGraphDriver().stager([BUFFER]) is None
    assert not caplog.records
