"""Boolean masks of a splitting attention become a term of its scores once, in a compiled piece."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import piecewise_core as pw

ATTENTION = ("torch.nn.functional.scaled_dot_product_attention",)
ROWS, LENGTH = pw.Dim("rows", 0, 8), pw.Dim("length", 1, 32)


class Attends(nn.Module):
    """``layers`` layers of self-attention under one mask. ``way``: how the mask comes to be."""

    def __init__(self, way, layers: int = 3, first: nn.Module | None = None) -> None:
        super().__init__()
        self.way = way
        self.layers = nn.ModuleList(nn.Linear(8, 24) for _ in range(layers))

    def forward(self, x, keep):
        """``x``: [rows, length, 8]. ``keep``: [rows, length], bool."""
        mask = self.way(keep)
        for layer in self.layers:
            q, k, v = layer(x).view(*x.shape[:2], 2, 12).transpose(1, 2).chunk(3, dim=-1)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + y.transpose(1, 2).reshape(x.shape)
        return x


def expanded(keep):
    return keep[:, None, None, :].expand(keep.shape[0], 1, keep.shape[1], keep.shape[1])


def as_term(keep):
    return torch.zeros(keep.shape).masked_fill(~keep, float("-inf"))[:, None, None, :]


def compiled(model, names=("x", "keep"), **config):
    dynamic = {name: {0: ROWS, 1: LENGTH} for name in names}
    settings = {"dynamic": dynamic, "splitting_ops": ATTENTION, "compiler": "eager", **config}
    return pw.compile(model, pw.Config(**settings), "cpu")


def inputs(rows: int, length: int, dtype: torch.dtype = torch.float32):
    keep = torch.rand(rows, length) > 0.4
    keep[::2, 0] = True  # of the others some rows see nothing at all
    return torch.randn(rows, length, 8, dtype=dtype), keep


def check(fast, model, dtype: torch.dtype = torch.float32) -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        for rows, length in ((2, 5), (1, 1), (8, 32), (3, 1), (1, 7), (0, 4)):
            given = inputs(rows, length, dtype)
            torch.testing.assert_close(fast(*given), model(*given), equal_nan=True)


def masks(fast) -> list[torch.dtype | None]:
    """The dtype of the mask that each attention of the first region is given."""
    program = fast._pw_session.regions[0].program
    found = [n for p in program.pieces if p.splitting for n in p.nodes]
    asked = [n for n in found if n.target is F.scaled_dot_product_attention]
    given = [n.args[3] if len(n.args) > 3 else n.kwargs.get("attn_mask") for n in asked]
    return [None if m is None else m.meta["example_value"].dtype for m in given]


def made(fast) -> int:
    """How often a term is made of a mask."""
    program = fast._pw_session.regions[0].program
    return sum(n.target is torch.where for p in program.compilable for n in p.nodes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_mask_of_many_layers_becomes_a_term_once(dtype):
    model = Attends(expanded).to(dtype).eval()
    fast = compiled(model)
    check(fast, model, dtype)
    assert masks(fast) == [dtype] * 3
    assert made(fast) == 1


@pytest.mark.inductor
def test_a_compiler_makes_it_at_every_size():
    model = Attends(expanded, layers=2).eval()
    fast = compiled(model, compiler="inductor")
    check(fast, model)
    assert "run as written" not in str(fast.explain())


def test_each_dtype_of_scores_has_a_term_of_its_own():
    class Mixed(nn.Module):
        def forward(self, x, keep):
            mask = expanded(keep) | (x.sum() > 1e9)
            q = (x * 2)[:, None]
            first = F.scaled_dot_product_attention(q, q, q, mask)
            q = first.double() + 1
            return F.scaled_dot_product_attention(q, q, q, mask)

    fast = compiled(Mixed())
    check(fast, Mixed())
    assert masks(fast) == [torch.float32, torch.float64]
    assert made(fast) == 2


def test_a_mask_that_is_an_argument_becomes_a_term_in_the_first_piece():
    class Given(nn.Module):
        def forward(self, x, keep):
            q = (x + 1)[:, None]
            return F.scaled_dot_product_attention(q, q, q, keep[:, None, None, :]) * 2

    fast = compiled(Given())
    check(fast, Given())
    assert masks(fast) == [torch.float32]


@pytest.mark.parametrize("cut", [True, False])
def test_no_piece_is_made_for_it(cut):
    class First(nn.Module):
        def forward(self, q, keep):
            y = F.scaled_dot_product_attention(q, q, q, keep)
            return F.scaled_dot_product_attention(y, y, y, keep) if cut else y

    dynamic = {"q": {1: LENGTH}, "keep": {0: LENGTH, 1: LENGTH}}
    fast = compiled(First(), dynamic=dynamic)
    with torch.inference_mode():
        for length in (3, 1, 32):
            q, keep = torch.randn(2, length, 4), torch.rand(length, length) > 0.3
            torch.testing.assert_close(fast(q, keep), First()(q, keep), equal_nan=True)
    assert masks(fast) == [torch.bool] * (1 + cut)
    assert fast.stats().compilable_pieces == 0


def test_a_mask_that_changes_on_the_way_stays_a_mask():
    class Changes(nn.Module):
        def forward(self, x, keep):
            mask = keep[:, None, None, :].clone()
            q = (x + 1)[:, None]
            y = F.scaled_dot_product_attention(q, q, q, mask)
            mask.logical_not_()
            return F.scaled_dot_product_attention(y * 2, q, q, mask)

    fast = compiled(Changes())
    check(fast, Changes())
    assert masks(fast) == [torch.bool] * 2


@pytest.mark.parametrize("way", [as_term, lambda keep: None])
def test_other_masks_stay_as_they_are(way):
    model = Attends(way).eval()
    fast = compiled(model)
    check(fast, model)
    assert made(fast) == 0


def test_attention_that_no_cut_is_made_at_keeps_its_mask():
    model = Attends(expanded).eval()
    fast = compiled(model, splitting_ops=())
    check(fast, model)
    assert made(fast) == 0


def test_under_autocast_attention_computes_what_it_did():
    class Autocasts(Attends):
        def forward(self, x, keep):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x, keep)

    model = Autocasts(expanded).eval()
    fast = compiled(model)
    check(fast, model)
    assert masks(fast) == [torch.bfloat16] * 3


def test_a_bundle_and_the_store_bring_the_term_along(tmp_path, monkeypatch):
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path / "store"))
    model = Attends(expanded).eval()
    fast = compiled(model)
    check(fast, model)
    fast.save(tmp_path / "model.pwb")
    for again in (compiled(model), pw.load(tmp_path / "model.pwb", model)):
        check(again, model)
        assert again.stats().graphs == 0
        assert masks(again) == [torch.float32] * 3
