"""``as_strided`` reads memory, of which graphs have copies of tensors (FAULTS 43)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.library import custom_op

import piecewise_core as pw
from piecewise_core.errors import OpContractBroken
from piecewise_core.testing import SimulatedPlatform

WIDTH = 5


def _padded(x: torch.Tensor) -> torch.Tensor:
    return F.pad(x * 2, (0, 8 - WIDTH), value=7.0)[:, :WIDTH]


def _behind(x: torch.Tensor) -> torch.Tensor:
    return F.pad(x * 2, (3, 0), value=7.0)[:, 3:]


def _rows(x: torch.Tensor) -> torch.Tensor:
    return F.pad(x * 2, (0, 0, 0, -len(x) % 8 + 8), value=7.0)[: len(x)]


def _turned(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(WIDTH, len(x)).t().copy_(x * 2) if len(x) < 4 else x * 2


def _plain(x: torch.Tensor) -> torch.Tensor:
    return x * 2


FAKES = {
    "padded": (_padded, lambda x: x.new_empty(x.shape[0], 8)[:, :WIDTH]),
    "behind": (_behind, lambda x: x.new_empty(x.shape[0], 8)[:, 3:]),
    "rows": (_rows, lambda x: x.new_empty((x.shape[0] + 7) // 8 * 8 + 8, WIDTH)[: x.shape[0]]),
    "turned": (_turned, torch.empty_like),
    "plain": (_plain, torch.empty_like),
}
for name, (real, fake) in FAKES.items():
    custom_op(f"addressed::{name}", real, mutates_args=()).register_fake(fake)
OPS = tuple(f"addressed::{name}" for name in FAKES)

READS = {
    "all of a row": ("padded", lambda y: y.as_strided((y.shape[0], 8), (8, 1)) + 1),
    "beyond the rows": ("rows", lambda y: y.as_strided((16,), (2,)) + y.sum()),
    "from where it begins": ("behind", lambda y: y.as_strided((y.shape[0],), (8,), 0) + 1),
    "its own elements": ("padded", lambda y: y.as_strided(y.shape, y.stride()) + 1),
    "of what is computed": ("padded", lambda y: (y * 3).as_strided((2,), (1,)) + y.sum()),
    "of all there is": ("plain", lambda y: y.as_strided((2, 2), (1, 1)) + y.sum()),
}
WAYS = ["uncaptured", "captured", "cpu plan", "recorded", "recorded on cpu"]
ROWS = {"x": {0: pw.Dim("rows", min=1, max=16)}}


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def made(fn, way):
    settings = {"dynamic": ROWS, "splitting_ops": OPS}
    if way != "uncaptured":
        settings |= {"capture_sizes": (1, 4), "capture_max": False}
    platform = SimulatedPlatform() if way in ("captured", "recorded") else "cpu"
    if way.startswith("recorded"):
        return pw.record(fn, pw.Config(**settings), platform=platform)
    return pw.compile(fn, pw.Config(compiler="eager", **settings), platform=platform)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", READS)
def test_memory_around_the_result_of_a_splitting_op_is_not_lost(name, way):
    op, read = READS[name]

    def fn(x):
        return read(getattr(torch.ops.addressed, op)(x + 1))

    fast = made(fn, way)
    for size in (4, 1, 4, 3, 1):
        x = torch.randn(size, WIDTH)
        assert torch.equal(fast(x), fn(x))
    copies = op == "plain" or name == "of what is computed"
    assert (fast.stats().calls["replayed"] > 0) == (copies and way != "uncaptured")


@pytest.mark.parametrize("way", WAYS[:3])
def test_a_result_in_another_layout_is_not_copied_where_memory_is_addressed(way):
    def fn(x):
        return torch.ops.addressed.turned(x + 1).as_strided((2,), (1,)) + 1

    fast = made(fn, way)
    for size in (16, 4, 8):
        x = torch.randn(size, WIDTH)
        assert torch.equal(fast(x), fn(x))
    with pytest.raises(OpContractBroken, match="turned"):
        fast(torch.randn(2, WIDTH))


@pytest.mark.parametrize("way", WAYS[:3])
def test_strides_of_dims_of_size_one_count_where_they_are_asked_for(way):
    def fn(x):
        y = torch.ops.addressed.turned(x + 1)
        return y + y.stride(0)

    fast = made(fn, way)
    x = torch.randn(4, WIDTH)
    assert torch.equal(fast(x), fn(x))
    with pytest.raises(OpContractBroken, match="turned"):
        fast(torch.randn(1, WIDTH))


MEMORY = torch.arange(400.0)
LAYOUTS = {
    "plain": lambda n: MEMORY[: n * WIDTH].clone().view(n, WIDTH),
    "offset": lambda n: MEMORY[15 : 15 + n * WIDTH].view(n, WIDTH),
    "gaps": lambda n: MEMORY.view(-1, 8)[:n, :WIDTH],
    "both": lambda n: MEMORY.view(-1, 8)[3 : 3 + n, 2 : 2 + WIDTH],
}
INPUTS = {
    "from the beginning": lambda x: x.as_strided((2,), (1,), 0) * 2,
    "from a place": lambda x: x.as_strided((2,), (1,), 2) * 2,
    "across gaps": lambda x: x.as_strided((5,), (1,)) * 2 + x.as_strided((2,), (4,)).sum(),
    "beyond": lambda x: x.as_strided((6,), (1,)) * 2 if x.shape[0] > 3 else x * 2,
}


@pytest.mark.parametrize("way", WAYS[1::2])
@pytest.mark.parametrize("name", INPUTS)
def test_memory_of_an_input_is_read_where_the_call_has_it(name, way):
    def fn(x):
        return INPUTS[name](x) + torch.ops.addressed.plain(x).sum()

    fast = made(fn, way)
    for layout in (*LAYOUTS, "plain"):
        for _ in range(2):
            x = LAYOUTS[layout](4)
            assert torch.equal(fast(x), fn(x)), layout


@pytest.mark.parametrize("way", ["captured", "cpu plan"])
def test_explain_says_which_line_keeps_a_size_without_graphs(way):
    def fn(x):
        y = x[1:]
        return y.as_strided((2, 3), (1, 1)) * 2 + torch.ops.addressed.plain(x).sum()

    fast = made(fn, way)
    for layout in LAYOUTS:
        x = LAYOUTS[layout](4)
        assert torch.equal(fast(x), fn(x))
    told = str(fast.explain(verbose=True))
    line = fn.__code__.co_firstlineno + 2
    assert f"as_strided is given an input of the call at {__file__}:{line}; graphs read" in told
    assert "Give as_strided a .contiguous() tensor made in between" in told
    assert fast.stats().captures == 0
