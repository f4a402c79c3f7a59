"""Code that was compiled under one switch of torch is not served under another, at any door."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import InputMismatch

ROWS = {"x": {0: pw.Dim("rows", 1, 16)}}
pytestmark = pytest.mark.inductor


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    torch._dynamo.reset()
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


class Mixed(nn.Module):
    """A product under the caller's autocast, and a convolution outside of any."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Linear(8, 8)
        self.convolution = nn.Conv1d(1, 1, 3)

    def forward(self, x):
        x = self.product(x)
        with torch.autocast("cpu", enabled=False):
            return self.convolution(x.float()[:, None]), x


@pytest.mark.parametrize("order", [(False, True), (True, False)], ids=["off, on", "on, off"])
def test_torch_compile_inside_autocast_and_outside_share_nothing(order):
    model, x = Mixed().eval(), torch.randn(5, 8)
    for enabled in order:
        torch._dynamo.reset()
        fast = torch.compile(model, backend="piecewise", dynamic=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            got, want = fast(x), model(x)
            again = fast(x)
        for one, other in (*zip(got, want, strict=True), *zip(again, want, strict=True)):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def made_inside(x):
    return x + torch.ones(8) / 3, torch.full((8,), 0.1).dtype.itemsize


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_the_default_dtype_is_in_the_key(compiler):
    x = torch.ones(3, 8, dtype=torch.float32)
    config = pw.Config(dynamic=ROWS, compiler=compiler)
    for dtype in (torch.float32, torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            got, want = pw.compile(made_inside, config, "cpu")(x), made_inside(x)
        finally:
            torch.set_default_dtype(torch.float32)
        torch.testing.assert_close(got, want)


def test_nothing_is_compiled_ahead_inside_autocast():
    fast = pw.compile(nn.Linear(8, 8), pw.Config(dynamic={"input": ROWS["x"]}), "cpu")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputMismatch, match="autocast"):
        fast.warmup(torch.ones(3, 8), progress=False)
