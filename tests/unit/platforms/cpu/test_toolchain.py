from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from piecewise_core.errors import CompilerUnavailable
from piecewise_cpu.toolchain import CppToolchain

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="compilers here are shell scripts")

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and not os.environ.get("CXX"), reason="needs a C++ compiler"
)


class Bench:
    """A private build directory, cache and PATH, and compilers that are shell scripts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir()
        self.build = root / "build"
        self.calls = root / "calls"
        self.environ = {
            "PATH": str(self.bin),
            "PIECEWISE_CACHE_DIR": str(root / "cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.build),
        }

    def compiler(self, name: str, body: str) -> None:
        """A compiler that answers --version and else runs ``body``, and counts its compilations."""
        script = self.bin / name
        script.write_text(
            "#!/bin/sh\nPATH=/usr/local/bin:/usr/bin:/bin\n"
            'if [ "$1" = --version ]; then echo "fake 1.0"; exit 0; fi\n'
            f"echo run >> {self.calls}\n{body}\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    def real(self, name: str = "g++") -> None:
        """A compiler that passes on to the machine's own."""
        self.compiler(name, f'exec {shutil.which(os.environ.get("CXX") or "g++")} "$@"')

    def compilations(self) -> int:
        return len(self.calls.read_text().split()) if self.calls.exists() else 0

    def toolchain(self, **options) -> CppToolchain:
        return CppToolchain(self.environ, **options)

    def refused(self, **options) -> str:
        with pytest.raises(CompilerUnavailable) as caught:
            self.toolchain(**options).require()
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith("Inductor cannot compile C++ here: ")
        assert message.endswith('or use compiler="eager"')
        return message


@pytest.fixture
def bench(tmp_path, monkeypatch):
    # Inductor's own configuration read the CXX of this process; these tests set their own.
    monkeypatch.delitem(sys.modules, "torch._inductor.config", raising=False)
    return Bench(tmp_path)


# What works -----------------------------------------------------------------------


@needs_compiler
def test_three_lines_are_really_compiled_loaded_and_cleared_away(bench):
    bench.real()
    found = bench.toolchain().check()

    assert found.compiler.path == str(bench.bin / "g++")
    assert found.directory == str(bench.build)
    assert bench.compilations() == 1
    assert list(bench.build.iterdir()) == []


@needs_compiler
def test_a_good_answer_is_found_once_per_process_and_once_per_machine(bench):
    bench.real()
    toolchain = bench.toolchain()
    toolchain.require()
    toolchain.require()
    bench.toolchain().require()

    assert bench.compilations() == 1


@needs_compiler
def test_another_compiler_version_directory_or_damaged_record_is_checked_afresh(bench):
    bench.real()
    bench.toolchain().require()

    os.utime(bench.bin / "g++", (1, 1))
    bench.toolchain().require()
    assert bench.compilations() == 2

    bench.environ["TORCHINDUCTOR_CACHE_DIR"] = str(bench.root / "elsewhere")
    bench.toolchain().require()
    assert bench.compilations() == 3

    for record in (bench.root / "cache" / "toolchain").glob("*.json"):
        record.write_text(record.read_text()[:10])
    bench.toolchain().require()
    assert bench.compilations() == 4


@needs_compiler
def test_a_cache_that_cannot_be_written_costs_only_the_memory_of_it(bench):
    bench.real()
    (bench.root / "cache").write_text("a file where a directory should be")
    bench.toolchain().require()
    bench.toolchain().require()
    assert bench.compilations() == 2


@needs_compiler
def test_processes_that_check_at_once_compile_once(bench, fresh_processes):
    bench.real()
    script = "from piecewise_cpu.toolchain import CppToolchain; CppToolchain().require()"
    done = fresh_processes.run_at_once(script, "abc", env={**os.environ, **bench.environ})
    assert done.returncode == 0, done.stderr
    assert bench.compilations() == 1


@needs_compiler
def test_cxx_is_obeyed(bench):
    bench.compiler("g++", "exit 1")
    bench.real("my-c++")
    bench.environ["CXX"] = "my-c++"
    assert bench.toolchain().check().compiler.path == str(bench.bin / "my-c++")


# What is missing ------------------------------------------------------------------


def test_without_a_compiler_the_message_says_what_to_install(bench):
    message = bench.refused()
    assert "there is no C++ compiler: 'g++' is not an executable on PATH (CXX is unset)" in message
    assert "install g++" in message


def test_a_compiler_that_inductor_would_not_look_for_is_proposed(bench):
    bench.compiler("clang++", "exit 1")
    assert f"such as CXX={bench.bin / 'clang++'}" in bench.refused()


@pytest.mark.parametrize("cxx", ["nvc++", "ccache g++", "/nowhere/g++"])
def test_a_cxx_that_is_no_executable_is_named(bench, cxx):
    bench.compiler("g++", "exit 1")
    bench.environ["CXX"] = cxx
    assert f"{cxx!r} is not an executable on PATH (CXX={cxx})" in bench.refused()


@pytest.mark.parametrize(
    ("complaint", "remedy"),
    [
        ("check.cpp:1:10: fatal error: Python.h: No such file or directory", "python3-dev"),
        ("check.cpp:2:10: fatal error: 'omp.h' file not found", "libomp-dev"),
        ("/usr/bin/ld: error: cannot find -lgomp", "install libgomp"),
        ("fatal error: error writing to /tmp/x.s: No space left on device", "free some space"),
        ("internal compiler error: Segmentation fault", "set CXX to another compiler"),
    ],
)
def test_what_the_compiler_complains_of_is_quoted_with_its_remedy(bench, complaint, remedy):
    bench.compiler("g++", f'echo "In file included from x" >&2; echo "{complaint}" >&2; exit 1')
    message = bench.refused()
    assert complaint in message
    assert remedy in message


def test_a_compiler_that_hangs_is_given_up(bench):
    bench.compiler("g++", "exec sleep 60")
    assert "did not compile three lines in 0.5 seconds" in bench.refused(timeout=0.5)


def test_a_library_that_cannot_be_loaded_is_told_from_one_that_cannot_be_built(bench):
    bench.compiler("g++", 'while [ "$1" != -o ]; do shift; done; echo junk > "$2"')
    message = bench.refused()
    assert f"builds in {bench.build} cannot be used" in message
    assert "set TORCHINDUCTOR_CACHE_DIR" in message


@needs_compiler
def test_wrong_code_is_noticed(bench):
    bench.real()
    assert "41 + 1 gave 43" in bench.refused(load=lambda library: 43)


def test_a_build_directory_that_is_a_file_is_named(bench):
    bench.build.write_text("")
    message = bench.refused()
    assert f"{bench.build} cannot be made" in message
    assert "set TORCHINDUCTOR_CACHE_DIR" in message


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_build_directory_that_cannot_be_written_to_is_named(bench):
    bench.build.mkdir(mode=0o500)
    assert f"{bench.build} cannot be written to" in bench.refused()


def test_a_noexec_build_directory_is_named(bench):
    """On a real noexec mount, in a mount namespace that ends with the process."""
    bench.build.mkdir()
    script = "from piecewise_cpu.toolchain import CppToolchain; CppToolchain().require()"
    mount = f'mount -t tmpfs -o noexec none "{bench.build}" && exec "$0" -c "{script}"'
    enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or _run([*enter, mount.split("&&")[0]], {}).returncode:
        pytest.skip("needs user and mount namespaces")

    done = _run([*enter, mount, sys.executable], bench.environ)
    assert done.returncode == 1
    assert f"{bench.build} is mounted noexec; set TORCHINDUCTOR_CACHE_DIR" in done.stderr


def test_a_bad_answer_is_not_remembered(bench):
    bench.compiler("g++", "exit 1")
    toolchain = bench.toolchain(load=lambda library: 42)
    with pytest.raises(CompilerUnavailable):
        toolchain.require()
    bench.compiler("g++", "exit 0")
    toolchain.require()


def _run(command: list[str], extra: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **extra, "PATH": os.environ["PATH"]}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
