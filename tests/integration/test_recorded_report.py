"""What is to be known of a recorded function beside its calls: an estimate, a page, advice."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import ConfigError, NotTraced, ReportError
from piecewise_core.testing import SimulatedPlatform

PLATFORMS = pytest.mark.parametrize("platform", ["cpu", SimulatedPlatform()], ids=["cpu", "sim"])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, mask=None):
        self.calls.add_(1)
        y = self.down(torch.softmax(self.up(x), -1))
        return y if mask is None else y * mask


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def made(platform, model=None, **config):
    settings = {
        "dynamic": {0: {0: pw.Dim("rows", max=64)}},
        "splitting_ops": ("torch.softmax",),
        "capture_sizes": (1, 2, 4, 8),
        "capture_max": False,
        **config,
    }
    return pw.record(model or Block(), pw.Config(**settings), platform)


@PLATFORMS
@pytest.mark.parametrize("forms", [1, 2])
def test_what_is_estimated_is_what_a_recorded_function_takes(platform, forms):
    model = Block()
    fast = made(platform, model)
    x = torch.randn(3, 8)
    examples = [(x,), (x, torch.ones(8))][:forms]
    for example in examples:
        fast(*example)
    before, process = fast.stats(), pw.counters.captures
    found = fast.estimate()
    assert (found.error_bytes, found.dropped) == (0, ())
    assert (fast.stats(), pw.counters.captures) == (before, process)  # nothing of it is left
    assert float(model.calls) == forms
    assert {size.form for size in found.sizes} == set(range(forms))
    for example in examples:
        fast.warmup(*example)
    stats = fast.stats()
    assert (found.pool_bytes, found.driver_bytes) == (stats.pool_bytes, stats.driver_bytes)
    torch.testing.assert_close(fast(x[:2]), model(x[:2]))
    assert fast.stats().calls["replayed"] == 1
    again = fast.estimate([16])
    assert [size.sizes for size in again.sizes] == [(16,)] * forms
    torch.testing.assert_close(fast(x[:2]), model(x[:2]))
    assert fast.stats().calls["replayed"] == 2


def test_an_estimate_needs_a_call_and_sizes_in_bounds():
    fast = made(SimulatedPlatform())
    with pytest.raises(NotTraced, match="estimate"):
        fast.estimate()
    fast(torch.randn(3, 8))
    with pytest.raises(ConfigError, match="capture_sizes"):
        fast.estimate([65])


@PLATFORMS
def test_a_recorded_function_has_a_page_of_its_own(platform, tmp_path):
    fast = made(platform, padding="capture_sizes")
    assert "not ready" in fast.explain().to_html()
    fast.warmup(torch.randn(3, 8))
    for rows in (1, 2, 2, 3, 8, 9):
        fast(torch.randn(rows, 8))
    found = fast.explain()
    page = found.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    assert "<h1>Block</h1>" in page
    assert "Recorded: calls of captured sizes are replays" in page
    assert "Nothing is traced yet" not in page
    assert page.count("<td>replayed</td>") == 4
    assert "captured (4)" in page  # of the time line
    assert "srcdoc" in found._repr_html_()
    told = json.loads(found.to_json())
    assert told["status"]["ready"] is True
    assert told["captured"] == [[1], [2], [4], [8]]
    with pytest.raises(ReportError, match="cannot be written"):
        found.to_html(tmp_path / "no" / "page.html")


@pytest.mark.parametrize("make", [pw.compile, pw.record])
def test_advice_stands_in_explain_and_on_the_page(make):
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", 1, 256)}},
        capture_sizes=(8, 256),
        padding="capture_sizes",
        max_padding_factor=None,
        compiler="eager" if make is pw.compile else None,
    )
    fast = make(lambda x: x * 2, config, SimulatedPlatform())
    fast.warmup(torch.ones(8, 2), progress=False)
    assert "advice" not in str(fast.explain())
    for _ in range(1001):
        fast(torch.ones(20, 2))
    found = fast.explain()
    assert "advice: padding added" in " ".join(str(found).split())
    assert "as many other capture sizes would add" in found.to_html()
