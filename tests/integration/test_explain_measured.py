"""``explain(measure=True)``: where the time of a replay goes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform
from piecewise_cpu.platform import CpuPlatform


@torch.library.custom_op("pwtimed::mix", mutates_args=())
def mix(x: torch.Tensor) -> torch.Tensor:
    return x.cumsum(-1)


@mix.register_fake
def _(x):
    return torch.empty_like(x)


class Model(nn.Module):
    """An embedding, a product, an operator, and a piece that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(100, 8), nn.Linear(8, 16)
        self.register_buffer("seen", torch.zeros(16))

    def forward(self, x):
        hidden = mix(self.inner(self.table(x)).relu())
        self.seen += 1
        return hidden * self.seen


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def compiled(model, platform, **settings):
    known = {
        "dynamic": {"x": {0: pw.Dim("rows", 1, 16)}},
        "capture_sizes": (4, 16),
        "splitting_ops": ("pwtimed::mix",),
        "compiler": "eager",
        **settings,
    }
    fast = pw.compile(model, pw.Config(**known), platform=platform)
    fast.warmup(torch.zeros(3, dtype=torch.long), progress=False)
    return fast


def timed(platform):
    """``platform`` with a timer by which each run takes as many microseconds as it is the n-th."""
    platform.ticks = 0

    def elapsed(run):
        run()
        platform.ticks += 1
        return platform.ticks * 1e-6

    platform.device.elapsed = elapsed
    return platform


@pytest.mark.parametrize("make", [SimulatedPlatform, CpuPlatform])
def test_each_piece_of_each_captured_size_is_timed_and_nothing_changes(make):
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    fast = compiled(model, make())
    x = torch.randint(100, (4,))
    torch.testing.assert_close(fast(x), twin(x))
    before = fast.stats()
    explained = fast.explain(measure=True)
    assert torch.equal(model.seen, twin.seen)
    assert fast.stats() == before
    assert {times.sizes for times in explained.times} == {"rows 4", "rows 16"}
    for times in explained.times:
        assert times.by == "the host's clock"
        names = [piece.name for piece in times.pieces]
        assert names[:3] == ["piece 0", "piece 1, pwtimed::mix", "piece 2"]
        assert all(piece.microseconds >= 0 for piece in times.pieces)
        assert times.bandwidth > 0
    for rows in (4, 16, 3, 4):
        x = torch.randint(100, (rows,))
        torch.testing.assert_close(fast(x), twin(x))


def test_bytes_are_what_a_piece_must_move_and_a_table_is_not():
    fast = compiled(Model(), timed(SimulatedPlatform()), capture_sizes=(4,), capture_max=False)
    (times,) = fast.explain(measure=True).times
    assert times.by == "the device's timer"
    first, mixed, last = times.pieces[:3]
    # Indices of 8 bytes, weight and bias, and the result, all of float32.
    assert first.bytes == 4 * 8 + 4 * (8 * 16 + 16 + 4 * 16)
    assert mixed.bytes == 0
    assert last.bytes >= 4 * (4 * 16 + 16 + 4 * 16)
    assert first.share == pytest.approx(
        first.bytes / times.bandwidth / (first.microseconds * 1e-6), abs=1e-2
    )


def test_one_graph_of_the_whole_forward_is_timed_as_one():
    fast = compiled(Model(), SimulatedPlatform(), graph_mode="full")
    for times in fast.explain(measure=True).times:
        assert times.pieces[0].name == "the whole forward"


def test_text_json_and_page_show_the_times():
    fast = compiled(Model(), timed(SimulatedPlatform()))
    assert fast.explain().times == ()
    assert "replay of" not in str(fast.explain())
    explained = fast.explain(measure=True)
    text = str(explained)
    assert "replay of rows 4:" in text
    assert "of the limit" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    data = json.loads(explained.to_json())
    assert {times["sizes"] for times in data["times"]} == {"rows 4", "rows 16"}
    page = explained.to_html()
    assert 'id="pieces"' in page
    assert "piece 1, pwtimed::mix" in page


def test_what_is_not_captured_or_may_not_be_replayed_alone_is_not_timed():
    def writes(x, out):
        out.copy_(x)
        return mix(out) * 2

    settings = {
        "dynamic": {n: {0: pw.Dim("rows", 1, 16)} for n in ("x", "out")},
        "capture_sizes": (4,),
        "capture_max": False,
        "splitting_ops": ("pwtimed::mix",),
        "compiler": "eager",
    }
    uncaptured = pw.compile(writes, pw.Config(**settings, graph_mode="none"), platform="cpu")
    uncaptured(torch.zeros(4, 2), torch.zeros(4, 2))
    assert uncaptured.explain(measure=True).times == ()
    static = pw.compile(
        writes, pw.Config(**settings, inputs="static"), platform=SimulatedPlatform()
    )
    given = torch.ones(4, 2), torch.zeros(4, 2)
    for _ in range(2):
        static(*given)
    given[1].fill_(7)
    (times,) = static.explain(measure=True).times
    assert 'inputs="static"' in times.why
    assert "not measured" in str(static.explain(measure=True))
    assert torch.equal(given[1], torch.full((4, 2), 7.0))
