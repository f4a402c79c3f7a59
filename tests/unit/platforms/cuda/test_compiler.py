"""What a piece of CUDA's compiler brings with it, by stand-ins for Inductor and Triton."""

from __future__ import annotations

import sys
import time
import zipfile
from types import SimpleNamespace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import piecewise_core as pw
from piecewise_core.compile.inductor import InductorCompiler
from piecewise_core.compile.native_code import NativeCode, to_bytes
from piecewise_core.protocols import CompiledGraph
from piecewise_core.rewrites.residual_sums import keep_sums_fusable
from piecewise_cuda import compiler
from piecewise_cuda.compiler import CudaInductor
from piecewise_cuda.parcel import pack, unpack
from piecewise_cuda.plugin import piecewise_rewrites


def run(*args):
    return args


@pytest.fixture
def made(monkeypatch):
    """``made(handle)`` is what the compiler gives where Inductor gives ``handle``."""

    def piece(handle):
        monkeypatch.setattr(
            InductorCompiler,
            "compile",
            lambda self, graph, inputs, *, key, config: CompiledGraph(run, handle),
        )
        return CudaInductor().compile(None, [], key="k", config=None)

    return piece


@pytest.fixture
def files(monkeypatch):
    """What this process rests on."""
    found: dict[str, bytes] = {}
    monkeypatch.setattr(compiler, "collect", lambda: dict(found))
    return found


@pytest.fixture(autouse=True)
def loads(monkeypatch):
    """What happened in the order of events: files put back, pieces loaded."""
    events = []

    def load(self, handle):
        if handle == b"damaged":
            raise RuntimeError("no artifact")
        events.append(("load", handle))
        return CompiledGraph(run, lambda: handle)

    monkeypatch.setattr(InductorCompiler, "load", load)
    monkeypatch.setattr(compiler, "put_back", lambda given: events.append(("put", dict(given))))
    return events


def test_files_are_collected_when_the_bytes_are_asked_for(made, files):
    piece = made(lambda: b"artifact")
    files["KEY/a.so"] = b"made by a capture"
    assert piece.run is run
    assert unpack(piece.handle()) == (b"artifact", {"KEY/a.so": b"made by a capture"})


def test_without_files_a_piece_is_what_inductor_gives(made, files):
    assert made(lambda: b"artifact").handle() == b"artifact"


def test_native_code_of_a_cpu_is_left_alone(made, files):
    files["KEY/a.so"] = b""
    native = to_bytes(NativeCode("", {}, ()))
    assert made(lambda: native).handle() == native


def test_a_piece_that_cannot_be_persisted_stays_so(made, files):
    assert made(None).handle is None

    def refuse():
        raise ValueError("not portable")

    with pytest.raises(ValueError, match="not portable"):
        made(refuse).handle()


def test_files_are_put_back_before_the_piece_is_loaded(loads):
    CudaInductor().load(pack(b"artifact", {"KEY/a.so": b"a"}))
    assert loads == [("put", {"KEY/a.so": b"a"}), ("load", b"artifact")]


def test_tritons_files_are_hashed_beside_other_work_and_before_a_piece_is_loaded(
    loads, monkeypatch
):
    def triton_key():
        while not loads:  # until the files were put back
            time.sleep(0.001)
        time.sleep(0.01)
        loads.append("hashed")

    cache = SimpleNamespace(triton_key=triton_key)
    monkeypatch.setitem(sys.modules, "triton.runtime.cache", cache)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "one")
    inductor = CudaInductor()
    for _ in range(2):
        inductor.hash_factors()
    inductor.load(pack(b"artifact", {}))
    assert loads == [("put", {}), "hashed", ("load", b"artifact")]


def test_a_loaded_piece_hands_on_what_it_brought_and_what_came_since(files):
    loaded = CudaInductor().load(pack(b"artifact", {"KEY/a.so": b"a"}))
    files["KEY/b.so"] = b"b"
    assert unpack(loaded.handle()) == (b"artifact", {"KEY/a.so": b"a", "KEY/b.so": b"b"})


@pytest.mark.parametrize(
    "plain", [b"artifact", to_bytes(NativeCode("", {}, ()))], ids=["of torch", "native"]
)
def test_a_piece_without_a_wrapper_loads(plain, files, loads):
    loaded = CudaInductor().load(plain)
    assert loads[-1] == ("load", plain)
    assert loaded.handle() == plain


def test_a_damaged_piece_is_an_error_wherever_the_damage_is():
    with pytest.raises(RuntimeError, match="no artifact"):
        CudaInductor().load(pack(b"damaged", {}))
    with pytest.raises(zipfile.BadZipFile):
        CudaInductor().load(pack(b"artifact", {})[:-4])


def test_products_of_one_row_are_sums_and_residual_sums_stay_fusable():
    def piece(row, rows, weight):
        total = rows + rows @ weight
        return row @ weight.t(), total, total.sin()

    module = make_fx(piece, tracing_mode="fake")(
        torch.randn(1, 8), torch.randn(2, 8), torch.randn(8, 8)
    )
    for rewrite in piecewise_rewrites(None, pw.Config(compiler="inductor")):
        rewrite.apply(module, lambda node: False)
    graph = module.graph
    assert keep_sums_fusable(graph) == 1
    aten = torch.ops.aten
    assert len(graph.find_nodes(op="call_function", target=aten.mm.default)) == 1
    assert len(graph.find_nodes(op="call_function", target=aten.sum.dim_IntList)) == 1
    assert len(graph.find_nodes(op="call_function", target=aten.add.Tensor)) == 2
