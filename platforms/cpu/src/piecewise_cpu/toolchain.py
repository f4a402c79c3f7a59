"""Whether Inductor can compile C++ here, found out by compiling and loading three lines of it."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from piecewise_core.building_blocks import cache_directory, foreign
from piecewise_core.errors import CompilerUnavailable
from piecewise_cpu.compiler import Compiler, build_directory, find_compiler, wanted_compilers
from piecewise_cpu.memo import Memo

__all__ = ["CppToolchain", "Toolchain", "factors"]

# Inductor's kernels include both headers, and both are packages of their own on many systems.
_SOURCE = """\
#include <Python.h>
#include <omp.h>
extern "C" int piecewise_check(int x) { return x + (omp_get_max_threads() > 0); }
"""
_FLAGS = ("-shared", "-fPIC", "-std=c++17", "-fopenmp")
# On macOS Inductor finds OpenMP in places of its own; leave that to it.
_SOURCE_DARWIN = 'extern "C" int piecewise_check(int x) { return x + 1; }\n'
_FLAGS_DARWIN = ("-shared", "-fPIC", "-std=c++17")

_LIBOMP = "install OpenMP for this compiler (clang: apt-get install libomp-dev), or set CXX=g++"
_HINTS = {
    "Python.h": "install the headers of this Python (Debian, Ubuntu: apt-get install python3-dev)",
    "omp.h": _LIBOMP,
    "-lomp": _LIBOMP,
    "-lgomp": "install libgomp, the OpenMP library of g++",
    "No space left": "free some space, or set TORCHINDUCTOR_CACHE_DIR to another directory",
}
_ELSEWHERE = (
    "set TORCHINDUCTOR_CACHE_DIR to a directory that you can write to and run programs from"
)


@dataclass(frozen=True)
class Toolchain:
    """A compiler that works, and the directory that it was proved in."""

    compiler: Compiler
    directory: str


class CppToolchain:
    """The C++ compiler that Inductor would use and the directory that it builds in.

    A good answer is kept in this object and, per machine, under the user's cache directory; a
    bad one is not kept, so that mending the cause is enough. ``environ``: in place of
    ``os.environ``. ``timeout``: seconds that the compiler may take. ``load``: opens a shared
    library and returns what ``piecewise_check(41)`` gives; raises OSError where it cannot.
    """

    def __init__(
        self,
        environ: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        load: Callable[[str], int] | None = None,
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._timeout = timeout
        self._load = load or _load
        self._good: dict[tuple[tuple[str, ...], str], Toolchain] = {}

    def require(self) -> None:
        """Raise CompilerUnavailable, saying what is missing and what to do, if anything is."""
        self.check()

    def check(self) -> Toolchain:
        """Find the compiler and prove it. Raises CompilerUnavailable as ``require`` does."""
        names, directory = wanted_compilers(self._environ), build_directory(self._environ)
        _check_directory(directory)
        known = self._good.get((names, directory))
        if known is None:
            compiler = find_compiler(names, self._environ, self._timeout)
            if compiler is None:
                raise _no_compiler(names, self._environ)
            known = Toolchain(compiler, directory)
            self._prove_once(known)
            self._good[names, directory] = known
        return known

    def _prove_once(self, toolchain: Toolchain) -> None:
        """Prove unless another process on this machine did."""
        memo = Memo(cache_directory(self._environ) / "toolchain", factors(toolchain))
        if memo.known():
            return
        with memo.single_flight(2 * self._timeout):
            if not memo.known():
                self._prove(toolchain)
                memo.record()

    def _prove(self, toolchain: Toolchain) -> None:
        """Compile, load and call the three lines."""
        where = toolchain.directory
        try:
            with tempfile.TemporaryDirectory(dir=where, prefix="piecewise-check-") as scratch:
                library = os.path.join(scratch, "check.so")
                self._compile(toolchain.compiler.path, Path(scratch, "check.cpp"), library)
                answer = self._load(library)
        except (OSError, AttributeError) as exc:
            what = f"what {toolchain.compiler.path} builds in {where} cannot be used ({exc})"
            raise _unavailable(what, _ELSEWHERE) from exc
        if answer != 42:
            raise _unavailable(
                f"{toolchain.compiler.path} builds wrong code (41 + 1 gave {answer})",
                "set CXX to another compiler",
            )

    def _compile(self, compiler: str, source: Path, library: str) -> None:
        darwin = sys.platform == "darwin"
        source.write_text(_SOURCE_DARWIN if darwin else _SOURCE, encoding="utf-8")
        flags = _FLAGS_DARWIN if darwin else _FLAGS
        headers = f"-I{sysconfig.get_path('include')}"
        try:
            done = subprocess.run(
                [compiler, str(source), *flags, headers, "-o", library],
                capture_output=True,
                check=False,
                env={**self._environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                timeout=self._timeout,
            )
        except subprocess.TimeoutExpired as exc:
            what = f"{compiler} did not compile three lines in {self._timeout:g} seconds"
            raise _unavailable(what, "set CXX to another compiler") from exc
        if done.returncode != 0:
            raise _failed(compiler, done.stderr.decode(errors="replace").strip())


def _check_directory(directory: str) -> None:
    """Refuse what needs no compiler to see: not a directory, not ours alone, noexec."""
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        flags = os.statvfs(directory).f_flag
        others = foreign(directory, group=False)  # torch makes it group-writable for some
    except OSError as exc:
        what = f"Inductor's directory {directory} cannot be made ({exc})"
        raise _unavailable(what, _ELSEWHERE) from exc
    if not os.access(directory, os.W_OK | os.X_OK):
        raise _unavailable(f"Inductor's directory {directory} cannot be written to", _ELSEWHERE)
    if flags & getattr(os, "ST_NOEXEC", 0):
        raise _unavailable(f"Inductor's directory {directory} is mounted noexec", _ELSEWHERE)
    if others is not None:
        raise _unavailable(f"what Inductor builds is loaded from there, and {others}", _ELSEWHERE)


def factors(toolchain: Toolchain) -> dict[str, str]:
    """All that the answer depends on; the host too, as home directories may be shared."""
    return {
        "check": "1",
        "compiler": toolchain.compiler.path,
        "version": toolchain.compiler.version,
        "mtime_ns": str(toolchain.compiler.mtime_ns),
        "directory": toolchain.directory,
        "python headers": str(sysconfig.get_path("include")),
        "host": platform.node(),
        "machine": platform.machine(),
    }


def _load(library: str) -> int:
    return int(ctypes.CDLL(library).piecewise_check(41))


def _no_compiler(names: tuple[str, ...], environ: Mapping[str, str]) -> CompilerUnavailable:
    listed = ", ".join(map(repr, names)) or "(none)"
    origin = f"CXX={environ['CXX']}" if environ.get("CXX") else "CXX is unset"
    other = shutil.which("clang++", path=environ.get("PATH"))
    return _unavailable(
        f"there is no C++ compiler: {listed} is not an executable on PATH ({origin})",
        "install g++ (Debian, Ubuntu: apt-get install g++), or set CXX to a compiler's path, "
        "without arguments" + (f", such as CXX={other}" if other else ""),
    )


def _failed(compiler: str, output: str) -> CompilerUnavailable:
    """The compiler's complaint, with the remedy where it is known."""
    remedy = next((hint for sign, hint in _HINTS.items() if sign in output), None)
    errors = [line for line in output.splitlines() if "error" in line] or output.splitlines()
    said = errors[0] if errors else "it says nothing"
    return _unavailable(
        f"{compiler} cannot compile three lines of C++: {said}",
        remedy or "mend it, or set CXX to another compiler",
    )


def _unavailable(what: str, remedy: str) -> CompilerUnavailable:
    return CompilerUnavailable(
        f'Inductor cannot compile C++ here: {what}; {remedy}, or use compiler="eager"'
    )
