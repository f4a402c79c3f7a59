"""Native pieces: made, saved, and loaded where there is no compiler."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import zipfile
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch

import piecewise_core as pw
from piecewise_core.compile.examples import make_job
from piecewise_core.compile.inductor import InductorCompiler
from piecewise_core.compile.native_code import from_bytes, from_module, is_archive
from piecewise_core.compile.native_piece import NativePiece
from piecewise_core.compile.wrapper_source import NotPortable
from piecewise_core.ranges import Box, Range

ROWS = pw.Dim("rows", 0, 64)

LOADS = """
import os, sys
import torch  # builds for GPUs start ldconfig when they are imported
started = []
sys.addaudithook(lambda event, args: started.append(event) if event in (
    "subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec", "os.system") else None)
from piecewise_core.compile.inductor import InductorCompiler
heavy = {"torch._inductor.codecache", "torch._inductor.select_algorithm"}
for path in sys.argv[1:]:
    run = InductorCompiler().load(open(path, "rb").read()).run
    with torch.inference_mode():
        for rows in (0, 1, 5, 64):
            x, kept = torch.randn(rows, 8), torch.zeros(())
            y = torch.nn.functional.gelu(x)
            outs = run(rows, x, kept)
            torch.testing.assert_close(outs[0], y.softmax(-1), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(kept, y.sum(), rtol=1e-4, atol=1e-5)
            if len(outs) > 1:
                assert outs[1].data_ptr() == x.data_ptr() or not rows
    print(len(outs), started, sorted(heavy & set(sys.modules)))
"""


def gelu(x, kept):
    y = torch.nn.functional.gelu(x)
    kept.add_(y.sum())
    return torch.softmax(y, -1)


def gelu_and_view(x, kept):
    return gelu(x, kept), x.view(-1)


def compiled(pieces_of, fn, *examples):
    made = pieces_of(fn, *examples, dynamic={"x": {0: ROWS}})
    job = make_job(made.compilable[0], made.symbols, Box((Range(0, 64),)))
    with torch.inference_mode(), job.context():
        return InductorCompiler().compile(job.graph, job.inputs, key="k-[0]", config=made.config)


@pytest.mark.inductor
def test_pieces_load_in_a_process_that_has_no_compiler_and_start_none(pieces_of, tmp_path):
    handles = []
    for fn in (gelu, gelu_and_view):  # in this order: what the second needs is not yet imported
        made = compiled(pieces_of, fn, torch.randn(3, 8), torch.zeros(()))
        assert isinstance(made.run, NativePiece)
        handles.append(made.handle())
        assert is_archive(handles[-1])
        assert bool(from_bytes(handles[-1]).wrappers) is (fn is gelu_and_view)
    paths = [tmp_path / "bare", tmp_path / "wrapped"]
    for path, handle in zip(paths, handles, strict=True):
        path.write_bytes(handle)
    # An interpreter of its own: what others are forked from has a compiler imported.
    done = subprocess.run(
        [sys.executable, "-c", LOADS, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        env={
            "PATH": "",
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        },
    )
    assert done.returncode == 0, done.stderr
    bare, wrapped = done.stdout.splitlines()
    assert bare == "1 [] []"  # no compiler is imported either
    assert wrapped.startswith("2 [] ")
    assert not list(tmp_path.glob("piecewise-*"))  # nothing is left behind


@pytest.mark.inductor
def test_a_loaded_piece_can_be_saved_again(pieces_of):
    handle = compiled(pieces_of, gelu, torch.randn(3, 8), torch.zeros(())).handle()
    assert InductorCompiler().load(handle).handle() == handle


def test_what_library_was_chosen_is_kept_with_the_code():
    from piecewise_core.compile.native_code import NativeCode, to_bytes

    code = NativeCode("def call(args): return extern_kernels.mm(args)", {}, ("mm",), chosen="mine")
    assert from_bytes(to_bytes(code)) == code


def test_equal_code_is_equal_bytes_whenever_it_is_made(monkeypatch):
    from piecewise_core.compile.native_code import NativeCode, to_bytes

    code = NativeCode("def call(args): return args", {}, ())
    made = to_bytes(code)
    monkeypatch.setattr("time.localtime", lambda *_: (2031, 5, 7, 11, 13, 17, 2, 127, 0))
    assert to_bytes(code) == made


def test_another_format_is_refused():
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("piece.json", '{"format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        from_bytes(buffer.getvalue())


def test_a_kernel_without_a_library_and_foreign_library_calls_are_not_portable():
    source = (
        'k = async_compile.cpp_pybinding([], "")\n'
        "def call(args):\n k(args)\n return extern_kernels.mine(args)\n"
    )
    with pytest.raises(NotPortable, match="kernel k"):
        from_module(source, SimpleNamespace(k=lambda: None))
    module = SimpleNamespace(extern_kernels=SimpleNamespace(mine=len))
    with pytest.raises(NotPortable, match=r"extern_kernels\.mine"):
        from_module(source.partition("\n")[2].replace(" k(args)\n", ""), module)


def test_kernels_that_no_directory_can_hold_are_an_error_that_says_so(monkeypatch, tmp_path):
    from piecewise_core.compile.native_code import NativeCode

    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path / "none"))
    code = NativeCode("def call(args): return k(args)", {"k": b"no library"}, ())
    with pytest.raises(ImportError, match="TMPDIR"):
        code.call()


@pytest.mark.inductor
def test_a_torch_with_other_private_parts_runs_its_code_and_keeps_none(
    pieces_of, monkeypatch, caplog
):
    def other(artifact):
        raise AttributeError("no inner_fn")

    adaptor = importlib.import_module("piecewise_core.compile.inductor")
    monkeypatch.setattr(adaptor, "native_code", other)
    made = compiled(pieces_of, gelu, torch.randn(3, 8), torch.zeros(()))
    with torch.inference_mode():
        x = torch.randn(5, 8)
        found = made.run(5, x, torch.zeros(()))[0]
        torch.testing.assert_close(found, torch.nn.functional.gelu(x).softmax(-1))
    with pytest.raises(NotPortable, match="no inner_fn"):
        made.handle()
    assert "another form" in caplog.text
