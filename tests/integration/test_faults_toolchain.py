"""FAULTS 36: no C++ compiler, or a directory that nothing can be run from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.compile.inductor import InductorCompiler
from piecewise_core.errors import CompilerUnavailable
from piecewise_core.protocols import Capabilities
from piecewise_cpu.platform import CpuPlatform
from piecewise_cpu.toolchain import CppToolchain

SPLIT = ("torch.nn.functional.softmax",)
DYNAMIC = {"x": {0: pw.Dim("rows", 0, 64)}}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


class Model(nn.Module):
    """Two different pieces around a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(8, 16)
        self.after = nn.Linear(16, 8)

    def forward(self, x):
        return self.after(nn.functional.softmax(self.before(x), -1)).relu()


class Runtime:
    def current_stream(self): ...
    def new_stream(self): ...
    def stream(self, stream):
        return nullcontext()

    def synchronize(self): ...


class Missing:
    """A toolchain that is not there; counts how often it is looked for."""

    def __init__(self) -> None:
        self.looked = 0

    def __call__(self) -> None:
        self.looked += 1
        raise CompilerUnavailable("No C++ compiler (g++) was found. Install one, or set CXX.")


def platform(prepare) -> SimpleNamespace:
    return SimpleNamespace(
        device=Runtime(),
        graphs=None,
        compiler=InductorCompiler(prepare=prepare),
        capabilities=Capabilities(),
    )


def compiled(model, place, **config):
    settings = {"dynamic": DYNAMIC, "splitting_ops": SPLIT, "compiler": "inductor", **config}
    return pw.compile(model, pw.Config(**settings), place)


def test_a_missing_toolchain_degrades_to_eager_with_one_warning_for_all_pieces_and_sizes():
    """FAULTS 36."""
    model, prepare = Model(), Missing()
    fast = compiled(model, platform(prepare), compile_ranges_endpoints=(8,), compile_sizes=(4,))
    inputs = [torch.randn(size, 8) for size in (5, 5, 4, 20, 0, 1)]
    with pytest.warns(RuntimeWarning) as warned:
        outputs = [fast(x) for x in inputs]
    torch.testing.assert_close(outputs, [model(x) for x in inputs])
    assert len(warned) == 1
    assert str(warned[0].message) == (
        "No C++ compiler (g++) was found. Install one, or set CXX. Until then this model runs "
        "uncompiled."
    )
    assert prepare.looked == 1


def test_warm_up_without_a_toolchain_says_which_pieces_run_as_written():
    """FAULTS 36."""
    model = Model()
    fast = compiled(model, platform(Missing()))
    with pytest.warns(RuntimeWarning, match="No C\\+\\+ compiler"):
        report = fast.warmup(torch.randn(5, 8), progress=False)
    assert len(report.as_written) == 2
    assert "No C++ compiler" in report.as_written[0]
    assert "No C++ compiler" in str(fast.explain())
    fast.seal()
    x = torch.randn(7, 8)
    torch.testing.assert_close(fast(x), model(x))


def test_a_warning_made_an_error_leaves_a_model_that_serves():
    """FAULTS 36."""
    model = Model()
    fast = compiled(model, platform(Missing()))
    x = torch.randn(5, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="No C\\+\\+ compiler"):
            fast(x)
        torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize("how", ["call", "warm-up"])
def test_strict_refuses_a_missing_toolchain(how):
    """FAULTS 36."""
    fast = compiled(Model(), platform(Missing()), check="strict")
    use = fast if how == "call" else partial(fast.warmup, progress=False)
    for _ in range(2):
        with pytest.raises(CompilerUnavailable, match="Install one, or set CXX"):
            use(torch.randn(5, 8))


def test_the_eager_compiler_never_looks_for_a_toolchain():
    """FAULTS 36."""
    prepare = Missing()
    fast = compiled(Model(), platform(prepare), compiler="eager", check="strict")
    assert fast(torch.randn(5, 8)).shape == (5, 8)
    assert prepare.looked == 0


def test_the_cpu_platform_without_a_compiler_degrades_naming_what_to_install(tmp_path: Path):
    """FAULTS 36."""
    environ = {"PATH": str(tmp_path), "PIECEWISE_CACHE_DIR": str(tmp_path / "cache")}
    model = Model()
    fast = compiled(model, CpuPlatform(CppToolchain(environ)), compiler=None)
    x = torch.randn(5, 8)
    with pytest.warns(RuntimeWarning) as warned:
        torch.testing.assert_close(fast(x), model(x))
    assert len(warned) == 1
    for part in ("g++", "CXX", "uncompiled"):
        assert part in str(warned[0].message)


def test_the_cpu_platform_with_a_directory_that_nothing_runs_from_degrades_naming_it(
    tmp_path: Path,
):
    """FAULTS 36: a noexec mount refuses to load what was built in it."""

    def refuse(path: str) -> int:
        raise OSError(f"{path}: failed to map segment from shared object")

    build = tmp_path / "build"
    environ = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PIECEWISE_CACHE_DIR": str(tmp_path / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(build),
    }
    fast = compiled(Model(), CpuPlatform(CppToolchain(environ, load=refuse)), check="strict")
    with pytest.raises(CompilerUnavailable) as caught:
        fast(torch.randn(5, 8))
    assert str(build) in str(caught.value)
    assert "TORCHINDUCTOR_CACHE_DIR" in str(caught.value)
