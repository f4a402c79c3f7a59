"""Calls inside torch's modes and transforms, which see or change operators as they run."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import piecewise_core as pw
from piecewise_core.errors import CaptureFailed, InputMismatch
from piecewise_core.testing import SimulatedPlatform


class Functions(TorchFunctionMode):
    """Doubles sines where they are called."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * 2 if func is torch.sin else result


class Operators(TorchDispatchMode):
    """Doubles sines where they run."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * 2 if func is torch.ops.aten.sin.default else result


def model(x):
    return torch.sin(x) + 1


def served(front, **settings):
    config = pw.Config(dynamic={"x": {0: pw.Dim("n", 0, 8)}}, compiler="eager", **settings)
    return front(model, config, SimulatedPlatform())


FRONTS = pytest.mark.parametrize("front", [pw.compile, pw.record])


@FRONTS
@pytest.mark.parametrize("mode", [Functions, Operators])
@pytest.mark.parametrize("first_inside", [True, False])
def test_a_mode_sees_the_calls_inside_of_it_and_no_others(front, mode, first_inside):
    fast = served(front, capture_sizes=(4,))
    with torch.inference_mode():
        for inside in (first_inside, not first_inside) * 2:
            x = torch.randn(4, 3)
            if inside:
                with mode():
                    torch.testing.assert_close(fast(x), model(x))
            else:
                torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().calls["eager"] == 2
    assert fast.stats().calls["replayed"] == 2


@FRONTS
def test_calls_inside_a_transform_run_as_written(front):
    fast = served(front, capture_sizes=(4,))
    with torch.no_grad():
        for _ in range(2):
            x = torch.randn(4, 3, 2)
            torch.testing.assert_close(torch.vmap(fast, in_dims=1)(x), torch.vmap(model, 1)(x))
            torch.testing.assert_close(fast(x[:, 0]), model(x[:, 0]))


@FRONTS
def test_nothing_is_warmed_up_inside_a_mode(front):
    fast = served(front, capture_sizes=(4,))
    with torch.inference_mode(), Functions(), pytest.raises(InputMismatch, match="Functions"):
        fast.warmup(torch.randn(4, 3))


@FRONTS
def test_a_default_device_is_no_such_mode(front):
    fast = served(front, capture_sizes=(4,))
    with torch.inference_mode(), torch.device("cpu"):
        for _ in range(2):
            x = torch.randn(4, 3)
            torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 2


def placed(x):
    return x.sum(), torch.ones(4).device.type


@FRONTS
def test_a_device_as_a_context_is_what_tensors_are_made_on_inside(front):
    config = pw.Config(dynamic={"x": {0: pw.Dim("rows", max=8)}}, capture_sizes=(4,))
    config = config if front is pw.record else config.replace(compiler="eager")
    fast = front(placed, config, platform="cpu")
    with torch.inference_mode():
        for _ in range(3):
            assert fast(torch.ones(4, 3))[1] == "cpu"
            with torch.device("meta"):
                assert fast(x := torch.ones(4, 3, device="cpu"))[1] == placed(x)[1] == "meta"
        with torch.device("meta"), pytest.raises(InputMismatch, match=r'torch\.device\("meta"\)'):
            fast.warmup(torch.ones(4, 3, device="cpu"))


@FRONTS
def test_in_a_capture_of_the_driver_s_a_warm_up_has_the_capture_s_own_refusal(front):
    platform = SimulatedPlatform()
    config = pw.Config(dynamic={"x": {0: pw.Dim("rows", max=8)}}, capture_sizes=(4,))
    config = config if front is pw.record else config.replace(compiler="eager")
    fast = front(placed, config, platform=platform)
    graph, pool = platform.graphs.new_graph(), platform.graphs.new_pool()
    x = torch.ones(4, 3)
    with torch.inference_mode(), platform.device.stream(platform.device.new_stream()):
        platform.graphs.capture_begin(graph, pool, platform.device.current_stream())
        try:
            with pytest.raises(CaptureFailed):
                fast.warmup(x)
        finally:
            platform.graphs.capture_end(graph)
