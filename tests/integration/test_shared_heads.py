"""Attention that is cut at gets key and value heads as they are, where the model repeats them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import piecewise_core as pw
from piecewise_core.rewrites import shared_heads
from piecewise_core.testing import SimulatedPlatform

ATTENTION = ("torch.nn.functional.scaled_dot_product_attention",)
ROWS, LENGTH = pw.Dim("rows", 0, 8), pw.Dim("length", 1, 32)
HEADS, GROUPS, WIDTH = 6, 2, 4
EACH = HEADS // GROUPS


def by_expanding(x):
    rows, groups, length, width = x.shape
    wide = x[:, :, None, :, :].expand(rows, groups, EACH, length, width)
    return wide.reshape(rows, groups * EACH, length, width)


def by_unsqueezing(x):
    return x.unsqueeze(2).expand(-1, -1, EACH, -1, -1).contiguous().flatten(1, 2)


def short_of_axes(x):
    wide = torch.unsqueeze(x, -3).expand(-1, -1, EACH, -1, -1).clone()
    return wide.contiguous().view(x.shape[0], HEADS, x.shape[2], WIDTH)


def with_an_ellipsis(x):
    wide = x[:, :, None, ...].expand(-1, -1, EACH, -1, -1)
    return torch.reshape(wide, (x.shape[0], HEADS, *x.shape[2:]))


def interleaved(x):
    return torch.repeat_interleave(x, EACH, dim=1)


def interleaved_by_method(x):
    return x.repeat_interleave(repeats=EACH, dim=-3)


class Grouped(nn.Module):
    """Layers of attention whose query heads share key heads, repeated in some ``way``."""

    def __init__(self, way, layers: int = 2, **settings) -> None:
        super().__init__()
        self.way, self.settings = way, settings
        self.inner = nn.ModuleList(
            nn.Linear(HEADS * WIDTH, (HEADS + 2 * GROUPS) * WIDTH) for _ in range(layers)
        )

    def attend(self, q, k, v, mask):
        return F.scaled_dot_product_attention(
            q, self.way(k), self.way(v), attn_mask=mask, **self.settings
        )

    def forward(self, x, mask):
        """``x``: [rows, length, HEADS * WIDTH]. ``mask``: [length, length], or None."""
        for layer in self.inner:
            heads = layer(x).view(*x.shape[:2], HEADS + 2 * GROUPS, WIDTH).transpose(1, 2)
            q, k, v = heads.split([HEADS, GROUPS, GROUPS], dim=1)
            x = x + self.attend(q, k, v, mask).transpose(1, 2).reshape(x.shape)
        return x


def compiled(model, platform="cpu", **config):
    settings = {
        "dynamic": {"x": {0: ROWS, 1: LENGTH}, "mask": {0: LENGTH, 1: LENGTH}},
        "splitting_ops": ATTENTION,
        "compiler": "eager",
        **config,
    }
    return pw.compile(model, pw.Config(**settings), platform)


def inputs(rows: int, length: int, dtype: torch.dtype = torch.float32, *, masked: bool = True):
    mask = torch.rand(length, length) > 0.4
    mask[:, 0] = True
    return torch.randn(rows, length, HEADS * WIDTH, dtype=dtype), mask if masked else None


def check(fast, model, dtype: torch.dtype = torch.float32, *, masked: bool = True) -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        for rows, length in ((2, 5), (1, 1), (8, 32), (3, 1), (1, 7), (0, 4)):
            given = inputs(rows, length, dtype, masked=masked)
            torch.testing.assert_close(fast(*given), model(*given))


def calls(fast):
    """(heads of the key, heads of the value, enable_gqa) of each attention in the first region."""
    program = fast._pw_session.regions[0].program
    found = [n for p in program.pieces if p.splitting for n in p.nodes]
    asked = [n for n in found if n.target is F.scaled_dot_product_attention]
    heads = [[a.meta["example_value"].shape[1] for a in n.args[1:3]] for n in asked]
    return [(*h, n.kwargs.get("enable_gqa", False)) for h, n in zip(heads, asked, strict=True)]


def repeated(fast) -> bool:
    """Whether a compiled piece still makes tensors of repeated heads."""
    program = fast._pw_session.regions[0].program
    names = {name.rpartition(".")[2] for piece in program.compilable for name in piece.ops}
    return bool(names & {"expand", "repeat_interleave"})


WAYS = [
    by_expanding,
    by_unsqueezing,
    short_of_axes,
    with_an_ellipsis,
    interleaved,
    interleaved_by_method,
]
SHARED, AS_WRITTEN = (GROUPS, GROUPS, True), (HEADS, HEADS, False)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_heads_that_are_repeated_are_shared_instead(way, masked):
    model = Grouped(way).eval()
    fast = compiled(model)
    check(fast, model, masked=masked)
    assert calls(fast) == [SHARED] * 2
    assert not repeated(fast)


def test_each_head_may_have_a_mask_of_its_own():
    class PerHead(Grouped):
        def attend(self, q, k, v, mask):
            bias = torch.arange(HEADS, dtype=q.dtype)[:, None, None] * mask
            return super().attend(q, k, v, bias.expand(q.shape[0], *bias.shape))

    model = PerHead(by_expanding).eval()
    fast = compiled(model)
    check(fast, model)
    assert calls(fast) == [SHARED] * 2


def test_queries_do_not_see_later_keys():
    model = Grouped(by_expanding, is_causal=True, scale=0.3).eval()
    fast = compiled(model)
    check(fast, model, masked=False)
    assert calls(fast) == [SHARED] * 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    model = Grouped(by_expanding).to(dtype).eval()
    fast = compiled(model)
    check(fast, model, dtype)
    assert calls(fast) == [SHARED] * 2


@pytest.mark.inductor
def test_compiled_pieces_hand_them_over_at_every_size():
    model = Grouped(by_expanding).eval()
    fast = compiled(model, compiler="inductor")
    check(fast, model)
    assert calls(fast) == [SHARED] * 2


@pytest.mark.parametrize("mode", ["piecewise", "full"])
def test_graphs_read_them_where_they_lie(mode):
    model = Grouped(by_expanding).eval()
    fast = compiled(model, SimulatedPlatform(), graph_mode=mode, capture_sizes=((2, 5), (8, 32)))
    with torch.inference_mode():
        for _ in range(3):
            for size in ((2, 5), (8, 32)):
                given = inputs(*size)
                torch.testing.assert_close(fast(*given), model(*given))
    assert calls(fast) == [SHARED] * 2
    assert fast.stats().calls["replayed"] == 6


def as_it_is(x):
    return x


def tiled(x):
    return x.repeat(1, EACH, 1, 1)


def unevenly(x):
    return torch.repeat_interleave(x, torch.tensor([1, HEADS - 1]), dim=1, output_size=HEADS)


def changed_between(x):
    wide = x[:, :, None].expand(-1, -1, EACH, -1, -1).reshape(x.shape[0], HEADS, *x.shape[2:])
    x.mul_(2)
    return wide


def changed_after(x):
    wide = x[:, :, None].expand(-1, -1, EACH, -1, -1).clone()
    flat = wide.flatten(1, 2)
    wide.mul_(2)
    return flat


def another_axis(x):
    wide = x[:, None].expand(-1, EACH, -1, -1, -1)
    return wide.reshape(x.shape[0], HEADS, *x.shape[2:])


@pytest.mark.parametrize("way", [tiled, unevenly, changed_between, changed_after, another_axis])
def test_what_attention_would_not_share_in_the_same_way_stays_as_written(way):
    model = Grouped(way).eval()
    fast = compiled(model)
    check(fast, model)
    assert calls(fast) == [AS_WRITTEN] * 2


def test_the_same_memory_may_be_written_before_and_after():
    class Cached(Grouped):
        def __init__(self) -> None:
            super().__init__(by_expanding, layers=1)
            self.register_buffer("cache", torch.zeros(8, GROUPS, 32, WIDTH))

        def forward(self, x, mask):
            heads = self.inner[0](x).view(*x.shape[:2], HEADS + 2 * GROUPS, WIDTH).transpose(1, 2)
            q, k, v = heads.split([HEADS, GROUPS, GROUPS], dim=1)
            cache = self.cache[: x.shape[0]]
            cache.index_copy_(2, torch.arange(x.shape[1]), k + v)
            y = self.attend(q, cache, cache * 2, None)
            cache.zero_()
            return y.transpose(1, 2).reshape(x.shape) + cache.sum()

    model = Cached().eval()
    fast = compiled(model)
    check(fast, model)
    assert calls(fast) == [SHARED]


def test_keys_alone_are_not_shared():
    class Half(Grouped):
        def attend(self, q, k, v, mask):
            return F.scaled_dot_product_attention(q, self.way(k), tiled(v), attn_mask=mask)

    model = Half(by_expanding).eval()
    fast = compiled(model)
    check(fast, model)
    assert calls(fast) == [AS_WRITTEN] * 2


def test_attention_that_already_shares_is_left_alone():
    model = Grouped(as_it_is, enable_gqa=True).eval()
    fast = compiled(model)
    check(fast, model)
    assert calls(fast) == [SHARED] * 2


def test_attention_inside_a_piece_is_the_compilers():
    model = Grouped(by_expanding).eval()
    fast = compiled(model, splitting_ops=())
    check(fast, model)
    assert repeated(fast)


def test_without_a_kernel_for_shared_heads_they_stay_repeated():
    # Dropped weights are what the CPU's kernel cannot do, so torch's general way would come.
    model = Grouped(by_expanding, dropout_p=1e-12).eval()
    fast = compiled(model)
    with torch.inference_mode():
        fast(*inputs(2, 5))
    assert calls(fast) == [AS_WRITTEN] * 2


def test_torchs_general_way_serves_shared_heads_too():
    model = Grouped(by_expanding).eval()
    fast = compiled(model)
    check(fast, model)
    assert calls(fast) == [SHARED] * 2
    with sdpa_kernel(SDPBackend.MATH):
        check(fast, model)


def test_asking_torch_for_a_kernel_takes_no_room_for_a_whole_batch(monkeypatch):
    asked = []
    real = torch._fused_sdp_choice

    def noting(query, key, value, mask=None, *rest, **named):
        asked.append([t.shape[0] for t in (query, key, value)])
        return real(query, key, value, mask, *rest, **named)

    monkeypatch.setattr(shared_heads, "fused_attention", noting)
    model = Grouped(by_expanding).eval()
    fast = compiled(model)
    check(fast, model)
    assert calls(fast) == [SHARED] * 2
    assert asked
    assert max(rows for each in asked for rows in each) == 1
