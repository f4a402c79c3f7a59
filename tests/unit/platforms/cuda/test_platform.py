from __future__ import annotations

import pytest
import torch
import torch._inductor.config as inductor

from piecewise_core.errors import CompilerUnavailable, PlatformError
from piecewise_core.plugins.contract import check_platform
from piecewise_cuda import compiler
from piecewise_cuda.compiler import CudaInductor
from piecewise_cuda.driver import CudaGraphDriver
from piecewise_cuda.ops import UNSAFE
from piecewise_cuda.platform import CudaPlatform

without_device = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def test_the_platform_keeps_the_contract():
    check_platform(CudaPlatform(), "piecewise-cuda")


def test_making_the_platform_initialises_nothing(fresh_processes):
    script = (
        "import torch; from piecewise_cuda.plugin import create\n"
        "platform = create(); platform.graphs.explain(KeyError())\n"
        "assert not torch.cuda.is_initialized()"
    )
    done = fresh_processes.run(script)
    assert done.returncode == 0, done.stderr


@without_device
def test_without_a_device_the_self_check_says_why():
    with pytest.raises(PlatformError, match="torch cannot use the CUDA device"):
        CudaPlatform().self_check()


def test_inductor_s_own_graphs_are_off_by_settings_that_exist():
    settings = CudaInductor()._settings
    assert settings["triton.cudagraphs"] is False
    with inductor.patch(settings):
        assert inductor.triton.cudagraphs is False
        assert inductor.graph_partition is False


def test_without_triton_inductor_is_unavailable_with_a_remedy(monkeypatch):
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CompilerUnavailable, match='compiler="eager"'):
        compiler.require_triton()


@pytest.mark.parametrize("name", UNSAFE)
def test_every_unsafe_operator_exists(name):
    namespace, _, rest = name.partition("::")
    op, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), op)
    assert not overload or overload in packet.overloads()


def test_buffers_elsewhere_are_not_staged():
    driver = CudaGraphDriver()
    assert driver.stager([]) is None
    assert driver.stager([torch.ones(3)]) is None
