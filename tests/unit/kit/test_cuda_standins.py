"""Stand-ins: what asks for a library that is not there loads, and is answered "no device"."""

from __future__ import annotations

import shutil
import subprocess
import sys

import cuda_standins
import pytest

needs_tools = pytest.mark.skipif(
    sys.platform != "linux" or not all(map(shutil.which, ("cc", "nm", "readelf"))),
    reason="needs a C compiler and binutils on Linux",
)


def build(library, code, *options):
    command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library)]
    subprocess.run([*command, "-xc", "-", *options], input=code, text=True, check=True)


def answer(library):
    """What ``library`` answers in a process of its own: a loaded name is not loaded again."""
    code = f"import ctypes; print(ctypes.CDLL({str(library)!r}).both())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.fixture
def user(tmp_path):
    """A library that asks two others, one of them by version, and the others are gone."""
    (tmp_path / "map").write_text("libcublas.so.99 { global: cublasTry; };")
    versioned = tmp_path / "libcublas.so.99"
    build(versioned, "int cublasTry(void){return 1;}", f"-Wl,--version-script={tmp_path}/map")
    plain = tmp_path / "libnccl.so.9"
    build(plain, "int ncclTry(void){return 1;}")
    library = tmp_path / "libuser.so"
    code = "int cublasTry(void),ncclTry(void);int both(void){return cublasTry()+ncclTry();}"
    links = ["-xnone", str(versioned), str(plain), "-Wl,-rpath,$ORIGIN"]
    build(library, code, *links)
    versioned.unlink()
    plain.unlink()
    return library


@needs_tools
def test_a_library_loads_on_stand_ins_that_say_there_is_no_device(user):
    assert "libcublas.so.99: cannot open shared object" in answer(user).stderr
    assert cuda_standins.make(user.parent) == ["libcublas.so.99", "libnccl.so.9"]
    assert int(answer(user).stdout) == 2 * cuda_standins.NO_DEVICE


@needs_tools
def test_a_library_that_is_there_is_left_alone(user):
    nccl = user.parent / "libnccl.so.9"
    build(nccl, "int ncclTry(void){return 7;}")
    assert cuda_standins.make(user.parent) == ["libcublas.so.99"]
    assert int(answer(user).stdout) == 7 + cuda_standins.NO_DEVICE
