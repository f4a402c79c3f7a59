from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from piecewise_core.config import Config
from piecewise_core.errors import CompilerUnavailable
from piecewise_core.plugins import discover, select
from piecewise_core.plugins.contract import check_platform
from piecewise_cpu.platform import CpuPlatform
from piecewise_cpu.toolchain import CppToolchain


def test_the_installed_wheel_is_discovered():
    (entry,) = [e for e in discover() if e.project == "piecewise-cpu"]
    assert (entry.name, entry.module) == ("cpu", "piecewise_cpu.plugin")


def test_it_is_selected_for_tensors_on_the_cpu_by_name_and_by_order(monkeypatch):
    monkeypatch.delenv("PIECEWISE_PLATFORM", raising=False)
    for selected in (select("cpu", "cpu"), select(None, "cpu")):
        assert isinstance(selected.platform, CpuPlatform)
        assert selected.info.device_type == "cpu"


def test_it_keeps_the_contract():
    platform = CpuPlatform()
    check_platform(platform, "piecewise-cpu")
    assert platform.compiler.name == "inductor"


def test_making_it_runs_no_compiler_and_leaves_the_threads_alone():
    class NoCheck(CppToolchain):
        def check(self):
            raise AssertionError("checked before it was needed")

    before = torch.get_num_threads(), torch.get_num_interop_threads()
    CpuPlatform(NoCheck())
    assert (torch.get_num_threads(), torch.get_num_interop_threads()) == before


@pytest.mark.inductor
def test_its_check_names_the_compiler_and_where_it_builds(tmp_path, monkeypatch):
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path))
    facts = CpuPlatform().self_check()
    assert os.path.isabs(facts["C++ compiler"].split()[0])
    assert os.path.isdir(facts["builds in"])


def test_its_check_says_what_is_missing(tmp_path):
    environ = {"PATH": "", "CXX": "no-such-c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "torch._inductor.config", raising=False)
        with pytest.raises(CompilerUnavailable, match="no-such-c"):
            CpuPlatform(CppToolchain(environ)).self_check()


@pytest.mark.inductor
def test_compiled_code_takes_inputs_that_start_at_any_address():
    """What ``Capabilities(alignment=1)`` promises; vectors are 16 to 64 bytes wide."""
    platform = CpuPlatform()
    assert platform.capabilities.alignment == 1
    graph = torch.fx.symbolic_trace(lambda x: (x * 2 + 1,))
    mode = FakeTensorMode(shape_env=ShapeEnv())
    fake = mode.from_tensor(torch.ones(1024), static_shapes=True)
    next(iter(graph.graph.nodes)).meta["example_value"] = fake
    memory = torch.arange(1024.0 + 16)
    with tracing(TracingContext(mode)), torch.inference_mode():
        run = platform.compiler.compile(graph, [fake], key="odd", config=Config()).run
        for offset in range(16):
            x = memory[offset : offset + 1024]
            assert torch.equal(run(x)[0], x * 2 + 1)


THREADS = """
import os, re, torch
from pathlib import Path
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from piecewise_core.config import Config
from piecewise_core.plugins import select

platform = select("cpu").platform

def regions():
    graph = torch.fx.symbolic_trace(lambda x: (x.sin() + 1,))
    mode = FakeTensorMode(shape_env=ShapeEnv())
    fake = mode.from_tensor(torch.ones(1024, 1024), static_shapes=True)
    next(iter(graph.graph.nodes)).meta["example_value"] = fake
    with tracing(TracingContext(mode)), torch.inference_mode():
        platform.compiler.compile(graph, [fake], key="sin", config=Config())
    built = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).rglob("*.cpp")
    return [r for p in built for r in re.findall(r"omp parallel.*", p.read_text())]

assert torch.get_num_threads() == 1, "OMP_NUM_THREADS=1 is obeyed"
assert regions() == [], "one thread needs no parallel region"
assert torch.get_num_threads() == 1

many = 3 if os.cpu_count() == 2 else 2  # neither one nor what Inductor would take by itself
torch.set_num_threads(many)
assert regions() == [f"omp parallel num_threads({many})"], regions()
assert torch.get_num_threads() == many
"""


@pytest.mark.inductor
def test_kernels_are_compiled_for_the_threads_in_force_which_stay_the_user_s(tmp_path):
    environ = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
    }
    done = subprocess.run(
        [sys.executable, "-c", THREADS], capture_output=True, text=True, check=False, env=environ
    )
    assert done.returncode == 0, done.stderr
