"""Files of Triton's cache: found in one process, put back for another."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import sys
from hashlib import sha256
from types import SimpleNamespace

import pytest

from piecewise_core.compile import private_caches
from piecewise_cuda import triton_files, triton_private
from piecewise_cuda.triton_files import brought, collect, keep, put_back

GROUP = "__grp__stage_kernel.json"
KERNEL = {
    "KEY/stage_kernel.cubin": b"cubin",
    "KEY/stage_kernel.json": b"{}",
    f"KEY/{GROUP}": json.dumps(
        {"child_paths": {n: n for n in ("stage_kernel.cubin", "stage_kernel.json")}}
    ).encode(),
}


def function_of(path):
    return SimpleNamespace(__self__=SimpleNamespace(__file__=str(path)))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def files_in(directory):
    found = (p for p in directory.rglob("*") if p.is_file())
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in found}


def use_driver(monkeypatch, driver):
    config = SimpleNamespace(_default=driver, _active=None)
    monkeypatch.setitem(sys.modules, "triton.runtime.driver", SimpleNamespace(driver=config))


@pytest.fixture(autouse=True)
def new_process(monkeypatch, tmp_path):
    """No kernel was kept and nothing said; no driver is active, whatever ran before."""
    monkeypatch.setattr(triton_files, "_kernels", {})
    monkeypatch.setattr(triton_files, "_refusing", set())
    monkeypatch.setattr(triton_files, "_filled", set())
    monkeypatch.setattr(private_caches, "private_directory", lambda: tmp_path / "private")
    use_driver(monkeypatch, None)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where files are put back."""
    directory = tmp_path / "cache"
    monkeypatch.setattr(triton_private, "cache_directories", lambda: [directory])
    return directory


@pytest.fixture
def kernel(tmp_path):
    """A kernel like Triton's, in a cache of its own."""
    folder = tmp_path / "made" / "KEY"
    names = ("stage_kernel.ptx", "stage_kernel.cubin", "stage_kernel.json")
    group = {n: str(write(folder / n, KERNEL.get(f"KEY/{n}", b"text"))) for n in names}
    library = write(tmp_path / "made" / "LAUNCHER" / "launcher.so", b"launcher")
    run = SimpleNamespace(launch=function_of(library))
    return SimpleNamespace(metadata_group=group, run=run)


# Collecting -------------------------------------------------------------------------


def test_the_library_of_a_driver_that_is_active_is_collected(tmp_path, monkeypatch):
    library = write(tmp_path / "KEY" / "cuda_utils.so", b"library")
    driver = SimpleNamespace(utils=SimpleNamespace(load_binary=function_of(library)))
    use_driver(monkeypatch, driver)
    assert collect() == {"KEY/cuda_utils.so": b"library"}


def test_a_driver_that_is_not_active_is_not_made():
    assert collect() == {}


@pytest.mark.parametrize(
    "module",
    [
        None,
        SimpleNamespace(),
        SimpleNamespace(driver=SimpleNamespace(active=1)),
        SimpleNamespace(driver=SimpleNamespace(_active=SimpleNamespace(utils=None))),
        SimpleNamespace(
            driver=SimpleNamespace(_active=SimpleNamespace(utils=SimpleNamespace(load_binary=len)))
        ),
    ],
)
def test_of_another_triton_nothing_is_collected_and_nothing_raised(module, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton.runtime.driver", module)
    keep(SimpleNamespace())
    keep(SimpleNamespace(metadata_group=["a.json"], run=None))
    keep(SimpleNamespace(metadata_group={"a.json": "/nowhere/KEY/a.json"}))
    assert collect() == {}


def test_a_kernel_is_collected_with_its_launcher_and_without_what_it_was_made_from(kernel):
    keep(kernel)
    keep(kernel)
    assert collect() == {**KERNEL, "LAUNCHER/launcher.so": b"launcher"}


def test_nothing_that_is_collected_names_a_place(kernel, tmp_path):
    keep(kernel)
    assert not any(str(tmp_path).encode() in content for content in collect().values())


def test_what_was_removed_from_the_cache_is_not_collected(kernel, tmp_path):
    keep(kernel)
    (tmp_path / "made" / "KEY" / "stage_kernel.cubin").unlink()
    (tmp_path / "made" / "LAUNCHER" / "launcher.so").unlink()
    assert collect() == {}


def test_a_library_is_collected_for_machines_with_and_without_the_program_file(
    tmp_path, monkeypatch
):
    def key(linkage):
        digest = sha256(f"int x;x86_64,Linux,64bit,{linkage}".encode()).digest()
        return base64.b32encode(digest).decode().rstrip("=")

    write(tmp_path / "nvidia" / "driver.c", b"int x;")
    nvidia = SimpleNamespace(__file__=str(tmp_path / "nvidia" / "driver.py"))
    monkeypatch.setitem(sys.modules, "triton.backends.nvidia.driver", nvidia)
    build = SimpleNamespace(platform_key=lambda: "x86_64,Linux,64bit,")
    monkeypatch.setitem(sys.modules, "triton.runtime.build", build)
    library = write(tmp_path / key("") / "cuda_utils.so", b"library")
    driver = SimpleNamespace(utils=SimpleNamespace(load_binary=function_of(library)))
    use_driver(monkeypatch, driver)
    assert collect() == {f"{key(linkage)}/cuda_utils.so": b"library" for linkage in ("", "ELF")}
    write(tmp_path / "nvidia" / "driver.c", b"another version's keys")
    assert collect() == {f"{key('')}/cuda_utils.so": b"library"}


# Putting back -----------------------------------------------------------------------


def test_files_are_put_into_an_empty_cache_and_a_second_time_change_nothing(cache):
    for _ in range(2):
        put_back({**KERNEL, "LIB/a.so": b"library"})
        found = files_in(cache)
        paths = json.loads(found.pop(f"KEY/{GROUP}"))["child_paths"]
        assert paths == {
            name: str(cache / "KEY" / name) for name in ("stage_kernel.cubin", "stage_kernel.json")
        }
        assert found == {
            "KEY/stage_kernel.cubin": b"cubin",
            "KEY/stage_kernel.json": b"{}",
            "LIB/a.so": b"library",
        }


def test_what_is_there_is_not_overwritten(cache):
    there = {"KEY/stage_kernel.cubin": b"another", f"KEY/{GROUP}": b"another"}
    for name, content in there.items():
        write(cache / name, content)
    put_back(KERNEL)
    assert files_in(cache) == {**there, "KEY/stage_kernel.json": b"{}"}


@pytest.mark.parametrize(
    "name",
    [
        "../a.so",
        "KEY/../a.so",
        "KEY/..",
        "./a.so",
        "/tmp/a.so",
        "//a.so",
        "a.so",
        "KEY/",
        "/a.so",
        "KEY/sub/a.so",
        "KEY/.hidden",
        "KEY\\a.so",
        "KEY/a b.so",
        "KEY/a.so\n",
        "KEY/a\0.so",
        "KEY/\u00e4.so",
        "",
    ],
)
def test_a_name_that_is_not_a_key_and_a_file_is_refused(name, cache, tmp_path, caplog):
    before = files_in(tmp_path)
    put_back({name: b"", "KEY/good.so": b""})
    assert files_in(tmp_path) == {**before, "cache/KEY/good.so": b""}
    assert "for its name" in caplog.text


def test_a_cache_that_cannot_be_written_is_told_of_once_and_nothing_is_raised(cache, caplog):
    cache.write_bytes(b"no directory")
    with caplog.at_level(logging.INFO):
        put_back(KERNEL)
        put_back(KERNEL)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "set TRITON_CACHE_DIR to a writable directory" in record.getMessage()


def test_one_cache_that_cannot_be_written_does_not_keep_files_from_the_other(
    cache, tmp_path, monkeypatch
):
    cache.write_bytes(b"no directory")
    other = tmp_path / "other"
    monkeypatch.setattr(triton_private, "cache_directories", lambda: [cache, other])
    put_back(KERNEL)
    assert files_in(other).keys() == KERNEL.keys()


@pytest.mark.parametrize("group", [b"", b"[]", b"{}", b'{"child_paths": []}', b"\xff\xfe"])
def test_a_group_that_is_none_is_left_out(group, cache):
    put_back({**KERNEL, f"KEY/{GROUP}": group})
    assert files_in(cache).keys() == KERNEL.keys() - {f"KEY/{GROUP}"}


def test_a_group_appears_only_with_all_of_its_files(cache):
    put_back({name: data for name, data in KERNEL.items() if not name.endswith(".cubin")})
    assert files_in(cache).keys() == {"KEY/stage_kernel.json"}


def test_a_write_that_fails_leaves_nothing_behind(cache, monkeypatch):
    def full(source, target):
        raise OSError("no space left on device")

    monkeypatch.setattr(triton_files.os, "replace", full)
    put_back(KERNEL)
    assert files_in(cache) == {}


# With Triton itself -----------------------------------------------------------------


def test_files_go_where_no_other_program_looks_and_triton_does_inside(tmp_path, monkeypatch):
    knobs = pytest.importorskip("triton", reason="Triton is not installed").knobs
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    put_back({**KERNEL, "LIB/a.so": b""})
    assert files_in(tmp_path).keys() == {f"private/triton/{name}" for name in (*KERNEL, "LIB/a.so")}
    with brought():
        assert knobs.cache.dir == str(tmp_path / "private" / "triton")
    assert knobs.cache.dir != str(tmp_path / "private" / "triton")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")


def test_triton_looks_in_the_user_s_cache_where_nothing_was_put_back(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/told")
    with brought():
        assert os.environ["TRITON_CACHE_DIR"] == "/told"


def test_triton_looks_in_the_user_s_cache_for_a_kernel_that_an_entry_of_the_store_does_not_bring(
    monkeypatch,
):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/told")
    put_back({"LIB/a.so": b""})
    with brought():
        assert os.environ["TRITON_CACHE_DIR"] == "/told"


def test_triton_makes_no_directory_of_its_own_where_there_is_no_home(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with brought():
        assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "private" / "triton")
    assert "TRITON_CACHE_DIR" not in os.environ


def test_without_triton_nothing_is_put_back_and_nothing_raised(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert triton_private.cache_directories() == []
    put_back(KERNEL)


def test_triton_finds_a_kernel_that_was_put_back(tmp_path, monkeypatch):
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from piecewise_cuda.kernel import BLOCK, stage_kernel

    if not hasattr(stage_kernel, "warmup"):
        pytest.skip("Triton interprets kernels here")
    found = []
    monkeypatch.setattr(
        triton.knobs.compilation, "listener", lambda **told: found.append(told["cache_hit"])
    )
    signature = {"table": "*i64", "sources": ("i64",) * 2, "given": ("i64",) * 2}
    constants = {"count": 2, "block": BLOCK}
    source = ASTSource(
        stage_kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants
    )

    def compiled(cache):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
        return triton.compile(source, target=GPUTarget("cuda", 90, 32))

    made = compiled(tmp_path / "made")
    keep(SimpleNamespace(metadata_group=made.metadata_group))
    files = collect()
    shutil.rmtree(tmp_path / "made")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "new"))
    put_back(files)
    with brought():
        again = compiled(os.environ["TRITON_CACHE_DIR"])
    assert found == [False, True]
    assert again.asm["cubin"] == made.asm["cubin"]
    assert again.metadata == made.metadata


MODULE = """
#include <Python.h>
static PyObject *load_binary(PyObject *self, PyObject *args) { return PyLong_FromLong(7); }
static PyMethodDef METHODS[] = {{"load_binary", load_binary, METH_NOARGS, ""}, {NULL}};
static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "cuda_utils", NULL, -1, METHODS};
PyMODINIT_FUNC PyInit_cuda_utils(void) { return PyModule_Create(&MODULE); }
"""


@pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("clang")), reason="no C compiler")
@pytest.mark.parametrize(("here", "there"), [("", "ELF"), ("ELF", ""), ("", ""), ("ELF", "ELF")])
def test_triton_builds_no_library_that_was_put_back(here, there, tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    from triton import knobs
    from triton.runtime import build

    if hasattr(build, "_get_cache_manager"):
        pytest.skip("this Triton finds libraries by their flags too, and builds them again")

    def made(cache, linkage):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
        monkeypatch.setattr(build, "platform_key", lambda: f"machine,Linux,64bit,{linkage}")
        return build.compile_module_from_src(MODULE, "cuda_utils").load_binary

    def refuse(*args):
        pytest.fail("a compiler was started")

    write(tmp_path / "driver.c", MODULE.encode())
    nvidia = SimpleNamespace(__file__=str(tmp_path / "driver.py"))
    monkeypatch.setitem(sys.modules, "triton.backends.nvidia.driver", nvidia)
    utils = SimpleNamespace(load_binary=made(tmp_path / "made", here))
    use_driver(monkeypatch, SimpleNamespace(utils=utils))
    files = collect()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "new"))
    put_back({**KERNEL, **files})
    monkeypatch.setattr(knobs.build, "impl", refuse)
    with brought():
        assert made(os.environ["TRITON_CACHE_DIR"], there)() == 7
