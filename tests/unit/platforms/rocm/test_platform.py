"""Never run on AMD hardware: HIP's part is held to stand-ins, the driver's to tests/gpu."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import torch._inductor.config as inductor

import piecewise_core as pw
from piecewise_core.errors import CompilerUnavailable, PlatformError
from piecewise_core.plugins.contract import check_platform
from piecewise_core.testing import SimulatedPlatform
from piecewise_rocm import compiler, driver
from piecewise_rocm.compiler import RocmInductor
from piecewise_rocm.driver import RocmGraphDriver, use_libraries
from piecewise_rocm.ops import UNSAFE
from piecewise_rocm.platform import RocmPlatform


def test_the_platform_keeps_the_contract():
    check_platform(RocmPlatform(), "piecewise-rocm")


def test_making_the_platform_initialises_nothing(fresh_processes):
    script = (
        "import torch; from piecewise_rocm.plugin import create\n"
        "create(); assert not torch.cuda.is_initialized()"
    )
    done = fresh_processes.run(script)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.version.hip is not None, reason="this torch is a ROCm build")
def test_another_build_of_torch_fails_the_self_check_with_a_remedy():
    with pytest.raises(PlatformError, match="built without ROCm; install"):
        RocmPlatform().self_check()


def test_inductor_s_own_graphs_are_off_by_settings_that_exist():
    with inductor.patch(RocmInductor()._settings):
        assert inductor.triton.cudagraphs is False


def test_without_triton_inductor_is_unavailable_with_a_remedy(monkeypatch):
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CompilerUnavailable, match="pytorch-triton-rocm"):
        compiler.require_triton()


@pytest.mark.parametrize("name", UNSAFE)
def test_every_unsafe_operator_exists(name):
    namespace, _, rest = name.partition("::")
    op, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), op)
    assert not overload or overload in packet.overloads()


class Module:
    """``torch.cuda`` of a ROCm build, as far as the warm-up needs it, for CPU tensors."""

    __name__ = "fake.cpu"
    CPUGraph = graph_pool_handle = stream = SimpleNamespace

    def __init__(self):
        self.number, self.waits = 1, 0

    def current_stream(self):
        return SimpleNamespace(stream_id=self.number)

    def synchronize(self):
        self.waits += 1


def test_libraries_are_used_once_per_stream_before_its_first_capture(monkeypatch):
    used, module = [], Module()
    monkeypatch.setattr(driver, "use_libraries", used.append)
    graphs = RocmGraphDriver(module)
    for _ in range(3):
        with graphs.capture_context():
            assert used == ["cpu"]
    module.number = 2
    with graphs.capture_context():
        assert (used, module.waits) == (["cpu", "cpu"], 2)


def test_the_warm_up_reaches_every_library_in_every_dtype():
    seen = set()

    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.update((func._schema.name, a.dtype) for a in args if isinstance(a, torch.Tensor))
            return func(*args, **(kwargs or {}))

    with Names():
        use_libraries("cpu")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        named = {name for name, of in seen if of == dtype}
        assert named & {"aten::linear", "aten::addmm"}
        assert "aten::bmm" in named
        assert any("conv" in name for name in named)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("HIPBLAS_STATUS_NOT_INITIALIZED when calling `hipblasCreate(handle)`", "hipBLASLt"),
        ("miopenStatusUnknownError", "MIOpen looks for an algorithm"),
        ("HIP error: operation not permitted when stream is capturing", "splitting_ops"),
        ("hipErrorStreamCaptureUnsupported", "splitting_ops"),
        ("HIP out of memory. Tried to allocate 2.00 GiB.", "capture_sizes"),
    ],
)
def test_an_error_of_hip_gets_advice(text, advice):
    assert advice in RocmGraphDriver(Module()).explain(RuntimeError(text))


def test_the_warm_up_comes_before_a_capture_wherever_graphs_are_captured():
    platform = SimulatedPlatform()
    order = []

    @contextmanager
    def ready():
        order.append("ready")
        yield

    graphs = platform.graphs
    begin = graphs.capture_begin
    graphs.capture_context = ready
    graphs.capture_begin = lambda *what: (order.append("begin"), begin(*what))[1]
    model = torch.nn.Linear(4, 4).eval()
    config = pw.Config(
        dynamic={"input": {0: pw.Dim("n", 1, 8)}}, compiler="eager", capture_sizes=(8,)
    )
    compiled = pw.compile(model, config, platform=platform)
    with torch.inference_mode():
        compiled(torch.ones(8, 4))
    assert order[:2] == ["ready", "begin"]
