from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from piecewise_cpu.compiler import build_directory, find_compiler, wanted_compilers


@pytest.fixture
def without_inductor(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._inductor.config", raising=False)


def test_cxx_names_the_compiler(without_inductor):
    assert wanted_compilers({"CXX": "my-c++"}) == ("my-c++",)


def test_without_cxx_it_is_the_platform_s_usual_one(without_inductor):
    usual = "clang++" if sys.platform == "darwin" else "g++"
    assert wanted_compilers({}) == wanted_compilers({"CXX": ""}) == (usual,)


@pytest.mark.parametrize(
    ("cxx", "wanted"), [((None, "g++-13"), ("g++-13",)), ("icpx", ("icpx",)), ((None,), ())]
)
def test_what_inductor_is_configured_with_wins(monkeypatch, cxx, wanted):
    config = SimpleNamespace(cpp=SimpleNamespace(cxx=cxx))
    monkeypatch.setitem(sys.modules, "torch._inductor.config", config)
    assert wanted_compilers({"CXX": "my-c++"}) == wanted


def test_a_compiler_that_does_not_answer_is_passed_over(tmp_path):
    for name, body in (("mute", "exit 1"), ("good", 'echo "good 3"; echo more')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)

    found = find_compiler(("gone", "mute", "good"), {"PATH": str(tmp_path)}, timeout=60)
    assert found is not None
    assert (found.path, found.version) == (str(tmp_path / "good"), "good 3")
    assert find_compiler(("gone", "mute"), {"PATH": str(tmp_path)}, timeout=60) is None


def test_the_build_directory_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert build_directory({"TORCHINDUCTOR_CACHE_DIR": "here"}) == str(tmp_path / "here")


@pytest.mark.inductor
def test_the_compiler_and_the_build_directory_are_those_of_torch(tmp_path):
    """In a process of its own, as torch writes the directory it chose into the environment."""
    script = (
        "import os\n"
        "from piecewise_cpu.compiler import build_directory, find_compiler, wanted_compilers\n"
        "mine = build_directory(os.environ), wanted_compilers(os.environ)\n"
        "from torch._inductor.cpp_builder import get_cpp_compiler\n"
        "from torch._inductor.runtime.cache_dir_utils import default_cache_dir\n"
        "assert mine[0] == default_cache_dir(), (mine, default_cache_dir())\n"
        "assert mine[1] == wanted_compilers(os.environ)\n"
        "assert mine[1] == (get_cpp_compiler(),), (mine, get_cpp_compiler())\n"
    )
    environ = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    environ["TMPDIR"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", script], check=True, env=environ)
