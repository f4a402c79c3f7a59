"""What a first compilation waits for is made beside a trace: whole or not at all, and it ends."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fresh_process import FreshProcesses

from piecewise_core.errors import CompilerUnavailable
from piecewise_cpu.ahead import Ahead, Commands, prove
from piecewise_cpu.platform import CpuPlatform
from piecewise_cpu.toolchain import CppToolchain
from piecewise_cpu.vector import _memo, probe_ahead, probe_vector_isas

COMPILER = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"


def writes(path: Path, text: str, code: str = COMPILER) -> list[str]:
    return [sys.executable, "-I", "-c", code, str(path), text]


class Header:
    """A header whose precompiled form is text; ``half``: its compiler fails in the middle."""

    text = "#include <all>\n"

    def __init__(self, directory: Path, half: bool = False) -> None:
        self.directory = directory
        self.half = half
        self.kernels: list[str] = []

    def preprocess(self, source: Path, stem: Path) -> list[str]:
        return writes(stem.with_suffix(".i"), source.read_text())

    def place(self, preprocessed: bytes) -> tuple[Path, Path]:
        assert preprocessed == self.text.encode()
        return self.directory / "all.h", self.directory / "all.lock"

    def made(self, header: Path) -> Path:
        return header.with_name("all.h.gch")

    def precompile(self, header: Path, out: Path) -> list[str]:
        return writes(out, "precompiled", f"{COMPILER}; sys.exit({int(self.half)})")

    def kernel(self, header: Path, source: Path, stem: Path) -> list[str]:
        # A library that every process of ours has at hand.
        self.kernels.append(source.read_text())
        code = "import _ctypes, os, sys; os.symlink(_ctypes.__file__, sys.argv[1])"
        return writes(stem.with_suffix(".so"), "", code)


def nothing() -> None:
    pass


def test_the_header_is_made_where_it_is_looked_for_and_the_program_loaded(tmp_path: Path) -> None:
    header, order = Header(tmp_path), list[bool]()

    def noting() -> None:
        order.append((tmp_path / "all.h.gch").exists())

    assert prove(header, "probe", tmp_path, noting, Commands())
    assert (tmp_path / "all.h.gch").read_text() == "precompiled"
    assert order == [False]  # beside the compiler, before its result is in its place
    assert header.kernels == ["#include <all>\nprobe"]
    assert {p.name for p in tmp_path.iterdir()} <= {"all.h.gch", "all.lock"}


def test_a_header_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "all.h.gch").write_text("older")
    assert prove(Header(tmp_path, half=True), "", tmp_path, nothing, Commands())
    assert (tmp_path / "all.h.gch").read_text() == "older"


def test_half_a_header_never_lies_in_its_place(tmp_path: Path) -> None:
    header = Header(tmp_path, half=True)
    assert not prove(header, "", tmp_path, nothing, Commands())
    assert not header.kernels
    assert {p.name for p in tmp_path.iterdir()} <= {"all.lock"}


def test_a_program_that_cannot_be_loaded_proves_nothing(tmp_path: Path) -> None:
    header = Header(tmp_path)
    header.kernel = lambda _, source, stem: writes(stem.with_suffix(".so"), "no library")
    assert not prove(header, "", tmp_path, nothing, Commands())


def test_a_compiler_that_is_not_there_is_nobody_s_error(tmp_path: Path) -> None:
    ahead, seen = Ahead(), list[str]()

    def work(commands: Commands) -> None:
        seen.append("asked")
        commands.run([str(tmp_path / "g++")], str(tmp_path))

    ahead.begin(work)
    ahead.wait()
    assert seen == ["asked"]


ENDS = """
import os, sys, time
from pathlib import Path
from piecewise_cpu.ahead import Ahead
child = f"import os, time; open({path!r}, 'w').write(str(os.getpid())); time.sleep(600)"
ahead = Ahead()
ahead.begin(lambda commands: commands.run([sys.executable, "-I", "-c", child], "/"))
while not Path({path!r}).exists() or not Path({path!r}).read_text():
    time.sleep(0.01)
{end}
"""


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise KeyboardInterrupt"])
def test_a_process_that_ends_early_takes_its_compiler_along(
    tmp_path: Path, fresh_processes: FreshProcesses, end: str
) -> None:
    path = str(tmp_path / "child")
    fresh_processes.run(ENDS.format(path=path, end=end))
    child = int(Path(path).read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_what_is_done_beside_the_compiler_and_fails_ends_it(tmp_path: Path) -> None:
    header, commands = Header(tmp_path), Commands()
    code = "import time; time.sleep(600)"
    header.precompile = lambda *_: [sys.executable, "-I", "-c", code]

    def fails() -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        prove(header, "", tmp_path, fails, commands)
    assert {p.name for p in tmp_path.iterdir()} <= {"all.lock"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_does_not_have(tmp_path: Path) -> None:
    ahead, go = Ahead(), threading.Event()
    ahead.begin(lambda commands: go.wait())
    child = os.fork()
    if not child:
        try:
            ahead.wait()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    go.set()
    ahead.wait()


FACTORS = {"compiler": "g++", "version": "12"}


@pytest.fixture
def header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Header:
    found = Header(tmp_path / "headers")
    found.directory.mkdir()
    monkeypatch.setattr("piecewise_cpu.vector._header", lambda builds: found)
    return found


def begun(directory: Path) -> Callable[[Commands], None] | None:
    return probe_ahead(directory, FACTORS, nothing)


def test_what_was_found_ahead_is_known_to_who_asks_then(tmp_path: Path, header: Header) -> None:
    work = begun(tmp_path)
    assert work is not None
    work(Commands())
    known = list[bool]()

    def ask(builds: str, answered: bool) -> bool:
        known.append(answered)
        return True

    assert probe_vector_isas(tmp_path, FACTORS, ask) == {"cpp.vec_isa_ok": True}
    assert known == [True]
    assert begun(tmp_path) is None


def test_what_failed_ahead_is_asked_again(tmp_path: Path, header: Header) -> None:
    header.half = True
    work = begun(tmp_path)
    assert work is not None
    work(Commands())
    assert probe_vector_isas(tmp_path, FACTORS, lambda builds, known: known) == {}


def test_what_another_process_finds_out_is_left_to_it(tmp_path: Path, header: Header) -> None:
    work = begun(tmp_path)
    assert work is not None
    with _memo(tmp_path, FACTORS).single_flight(0):
        work(Commands())
    assert not header.kernels


def test_a_compiler_that_is_missing_is_missed_by_who_compiles(tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "builds")}
    compiler: Any = CpuPlatform(CppToolchain(environ)).compiler
    compiler.begin()
    with pytest.raises(CompilerUnavailable):
        compiler.get_ready()


LIKE_INDUCTOR = """
import os, subprocess, sys, tempfile
from pathlib import Path
from torch._inductor import config, cpu_vec_isa
from torch._inductor.codecache import CppPythonBindingsCodeCache
from piecewise_core.torch_compat.kernelheader import kernel_header

with config.patch({"cpp.vec_isa_ok": True}):
    isa = cpu_vec_isa.pick_vec_isa()
    if not isa:
        sys.exit()
    header = kernel_header(isa)
    scratch = Path(tempfile.mkdtemp())
    (scratch / "header.hpp").write_text(header.text)
    subprocess.run(header.preprocess(scratch / "header.hpp", scratch / "header"), check=True)
    place, lock = header.place((scratch / "header.i").read_bytes())
    header.made(place).touch()
    CppPythonBindingsCodeCache.load_pybinding_async([], 'extern "C" void kernel() {}')
    found = sorted(p.name for p in place.parent.iterdir() if p.is_file())
    assert found == [place.name, header.made(place).name], found
    assert lock.parent.is_dir() and str(place) in header.kernel(place, scratch, scratch)
"""


@pytest.mark.inductor
def test_inductor_finds_the_header_where_it_was_put(
    tmp_path: Path, fresh_processes: FreshProcesses
) -> None:
    environ = {**os.environ, "TMPDIR": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = fresh_processes.run(LIKE_INDUCTOR, env=environ)
    assert done.returncode == 0, done.stderr
