"""Products of few rows by our own loop: torch's numbers, for whatever it is given."""

from __future__ import annotations

import shutil

import pytest
import torch

from piecewise_core.compile.native_code import NativeCode, to_bytes
from piecewise_cpu.driver import CpuGraphDriver
from piecewise_cpu.few_rows import FEW_ROWS, Product, few_rows_products
from piecewise_cpu.inductor import CpuInductor
from piecewise_cpu.linear import bound, library_function
from piecewise_cpu.native import Native

XEON = "vendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx512f\n"
CPUS = {
    XEON: True,
    XEON.replace("avx512f", "fma"): False,
    XEON.replace("GenuineIntel", "AuthenticAMD"): False,
    "CPU implementer\t: 0x41\n": False,
    "": False,
}


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    compiler, made = shutil.which("g++"), Native()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        if compiler:
            made.build(compiler)
    if not made.take_along():
        pytest.skip("our native code cannot be built here")
    return made


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("cpuinfo", CPUS)
def test_the_rewrite_names_them_on_processors_that_were_measured(cpuinfo, tmp_path):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    rewrite, graph = (
        few_rows_products(tmp_path / "cpuinfo"),
        torch.fx.symbolic_trace(torch.nn.ReLU()),
    )
    rewrite.apply(graph, lambda node: False)
    assert graph.meta.get("library") == (FEW_ROWS if CPUS[cpuinfo] else None)
    assert rewrite.key == str(CPUS[cpuinfo])


@pytest.mark.parametrize("rows", [*range(1, 9), 13, 32])
@pytest.mark.parametrize(("width", "inner"), [(72, 48), (5, 33), (1, 16), (3, 7), (130, 1537)])
def test_products_are_those_of_torch_and_a_step_s_are_the_same_bits(native, rows, width, inner):
    x, weight, bias = torch.randn(rows, inner), torch.randn(width, inner), torch.randn(width)
    for name, given in (("addmm", (bias, x, weight.t())), ("mm", (x, weight.t()))):
        product = library_function(FEW_ROWS, name, native)
        out = torch.empty(rows, width)
        assert product(*given, out=out) is out
        exact = getattr(torch, name)(*(one.double() for one in given))
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5 * inner**0.5)
        again = torch.empty(rows, width)
        (step,) = native.together([bound(product, *given, out=again)])
        step()
        assert torch.equal(again, out)
        weight.mul_(2)  # what is bound reads what is there
        step()
        product(*given, out=out)
        assert torch.equal(again, out)


def test_a_row_is_the_same_bits_whatever_rows_stand_beside_it(native):
    x, weight = torch.randn(32, 100), torch.randn(50, 100).t()
    product, all_rows, one_row = Product("mm", native), torch.empty(32, 50), torch.empty(1, 50)
    product(x, weight, out=all_rows)
    for row in range(32):
        product(x[row : row + 1], weight, out=one_row)
        assert torch.equal(one_row[0], all_rows[row])


def others():
    x, weight, bias = torch.randn(4, 48), torch.randn(72, 48), torch.randn(72)
    plain = (bias, x, weight.t())
    yield "many rows", (bias, torch.randn(33, 48), weight.t()), {}
    yield "scaled", plain, {"alpha": 2}
    yield "bias scaled", plain, {"beta": 0}
    yield "a bias for each row", (torch.randn(4, 72), x, weight.t()), {}
    yield "one number as bias", (torch.randn(1), x, weight.t()), {}
    yield "bias with gaps", (torch.randn(144)[::2], x, weight.t()), {}
    yield "rows with gaps", (bias, torch.randn(4, 96)[:, ::2], weight.t()), {}
    yield "columns in order", (bias, torch.randn(48, 4).t(), weight.t()), {}
    yield "weight the other way", (bias, x, weight.t().contiguous()), {}
    yield "weight with gaps", (bias, x, torch.randn(72, 96)[:, ::2].t()), {}
    yield "double", tuple(one.double() for one in plain), {}
    yield "half", tuple(one.bfloat16() for one in plain), {}
    yield "no rows", (bias, x[:0], weight.t()), {}
    yield "nothing inside", (bias, x[:, :0].contiguous(), weight[:, :0].contiguous().t()), {}


@pytest.mark.parametrize("case", range(14))
def test_anything_else_stays_with_torch(native, case):
    name, given, factors = list(others())[case]
    wanted = torch.addmm(*given, **factors)
    product = Product("addmm", native)
    for run in (product, lambda *a, **k: bound(product, *a, **k)()):
        out = torch.full_like(wanted, 7)
        run(*given, **factors, out=out)
        assert torch.equal(out, wanted), name


def test_results_with_gaps_stay_with_torch(native):
    x, weight = torch.randn(4, 48), torch.randn(72, 48)
    out, torchs = torch.zeros(72, 4).t(), torch.zeros(72, 4).t()
    Product("mm", native)(x, weight.t(), out=out)
    # A library of products may round otherwise where it writes columns.
    assert torch.equal(out, torch.mm(x, weight.t(), out=torchs))


def test_without_native_code_torch_computes(native):
    x, weight, out = torch.randn(4, 48), torch.randn(72, 48), torch.empty(4, 72)
    Product("mm", Native())(x, weight.t(), out=out)
    assert torch.equal(out, torch.mm(x, weight.t()))


def test_it_is_brought_along_by_name_and_a_damaged_or_another_one_is_left_alone(
    native, tmp_path, monkeypatch
):
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path))
    for files in (
        {},
        {"native-of-another-machine.so": native.take_along},
        {native.name: lambda: b"no library"},
    ):
        brought = Native()
        brought.bring(files)
        assert not brought
    brought = Native()
    brought.bring({native.name: native.take_along})
    assert brought
    assert brought.take_along() == native.take_along()
    assert not [*tmp_path.rglob("*.so")]  # it is no other program's


def test_compiled_pieces_bring_it_along(native, tmp_path, monkeypatch):
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path))
    kept = to_bytes(NativeCode("def call(args): return args", {}, ()))
    with_it = CpuInductor(CpuGraphDriver(native), dict, native)._with_native(kept)
    assert with_it == CpuInductor(CpuGraphDriver(native), dict, native)._with_native(kept)
    for handle in (kept, with_it):
        there = Native()
        piece = CpuInductor(CpuGraphDriver(there), dict, there).load(handle)
        assert piece.run(3) == [3]
        assert bool(there) == (handle is with_it)
    assert CpuInductor(CpuGraphDriver(), dict, Native())._with_native(kept) == kept
