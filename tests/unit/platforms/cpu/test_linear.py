"""Products with weights: oneDNN's where they are faster, and torch's numbers everywhere."""

from __future__ import annotations

import pytest
import torch

from piecewise_cpu import linear
from piecewise_cpu.native import Native

ONEDNN = linear.onednn_products().name

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch has no oneDNN",
)


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture
def chosen(monkeypatch):
    """As on a processor whose products go to oneDNN; tells how many did."""
    calls = []
    real = linear._linear

    def noted(*args):
        calls.append(args[0].shape[0])
        return real(*args)

    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear, "_linear", noted)
    return calls


def asked(cpuinfo) -> bool:
    """As a fresh process would find out."""
    return linear.onednn_is_faster.__wrapped__(cpuinfo)


CPUS = {
    "vendor_id\t: AuthenticAMD\nmodel name\t: EPYC\n": True,
    "vendor_id\t: HygonGenuine\n": True,
    "vendor_id\t: GenuineIntel\n": False,
    "CPU implementer\t: 0x41\n": False,
    "": False,
}


@pytest.mark.parametrize("cpuinfo", CPUS)
def test_the_processor_s_vendor_decides(cpuinfo, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(linear, "has_mkl", True)
    found = asked(tmp_path / "cpuinfo")
    assert found == (CPUS[cpuinfo] and torch._C._get_mkldnn_enabled())


def test_without_mkl_or_with_onednn_switched_off_torch_s_own_is_called(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("vendor_id\t: AuthenticAMD\n")
    monkeypatch.setattr(linear, "has_mkl", False)
    assert not asked(tmp_path / "cpuinfo")
    monkeypatch.setattr(linear, "has_mkl", True)
    monkeypatch.setattr(linear, "mkldnn_is_on", lambda: False)
    assert not asked(tmp_path / "cpuinfo")
    monkeypatch.undo()
    assert not asked(tmp_path / "missing")


def test_a_piece_that_no_rewrite_chose_a_library_for_calls_torch(chosen):
    assert linear.library_function("", "mm", Native()) is torch.mm
    assert linear.library_function("another", "addmm", Native()) is torch.addmm


@pytest.mark.parametrize("faster", [True, False])
def test_the_rewrite_chooses_where_onednn_is_faster_and_its_key_says_so(monkeypatch, faster):
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: faster)
    rewrite, graph = linear.onednn_products(), torch.fx.symbolic_trace(torch.nn.ReLU())
    rewrite.apply(graph, lambda node: False)
    assert graph.meta.get("library") == (ONEDNN if faster else None)
    assert rewrite.key == str(faster)


def test_other_functions_are_torch_s(chosen):
    assert linear.library_function(ONEDNN, "bmm", Native()) is torch.bmm
    assert linear.library_function(ONEDNN, "convolution", Native()) is torch.convolution


@needs_onednn
@pytest.mark.parametrize("rows", [1, 2, 8, 33, 200])
@pytest.mark.parametrize("way", ["called", "bound"])
def test_products_are_those_of_torch(chosen, rows, way):
    x, weight, bias = torch.randn(rows, 48), torch.randn(72, 48), torch.randn(72)
    for name, given, extra in (
        ("addmm", (bias, x, weight.t()), {"alpha": 1, "beta": 1}),
        ("mm", (x, weight.t()), {}),
    ):
        wanted, out = getattr(torch, name)(*given, **extra), torch.empty(rows, 72)
        function = linear.library_function(ONEDNN, name, Native())
        if way == "bound":
            step = linear.bound(function, *given, **extra, out=out)
            step()
            weight.mul_(2)  # what is bound reads what is there
            wanted = getattr(torch, name)(*given, **extra)
            step()
        else:
            assert function(*given, **extra, out=out) is out
        torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)
    assert chosen == ([rows, rows] if way == "called" else [])


def odd():
    x, weight, bias = torch.randn(4, 48), torch.randn(72, 48), torch.randn(72)
    full = {"alpha": 1, "beta": 1}
    yield "addmm", (bias, x, weight.t()), {"alpha": 2, "beta": 1}
    yield "addmm", (bias, x, weight.t()), {"alpha": 1, "beta": 0}
    yield "addmm", (torch.randn(4, 72), x, weight.t()), full
    yield "addmm", (torch.randn(144)[::2], x, weight.t()), full
    yield "addmm", (bias, torch.randn(48, 4).t(), weight.t()), full
    yield "addmm", (bias, x, weight.t().contiguous()), full
    yield "addmm", (bias.double(), x.double(), weight.double().t()), full
    yield "addmm", (bias.bfloat16(), x.bfloat16(), weight.bfloat16().t()), full
    yield "addmm", (bias, torch.randn(0, 48), weight.t()), full
    yield "addmm", (bias, torch.randn(4, 0), torch.randn(72, 0).t()), full
    yield "mm", (x, weight.t().contiguous()), {}
    yield "mm", (torch.randn(0, 48), weight.t()), {}
    yield "mm", (x.double(), weight.double().t()), {}


@pytest.mark.parametrize("case", range(13))
def test_what_is_no_plain_layer_stays_with_torch(chosen, case):
    name, given, extra = list(odd())[case]
    wanted = getattr(torch, name)(*given, **extra)
    for run in (linear.library_function(ONEDNN, name, Native()), None):
        out = torch.empty_like(wanted)
        if run is None:
            linear.bound(
                linear.library_function(ONEDNN, name, Native()), *given, **extra, out=out
            )()
        else:
            run(*given, **extra, out=out)
        torch.testing.assert_close(out, wanted, rtol=0, atol=0)
    assert chosen == []
