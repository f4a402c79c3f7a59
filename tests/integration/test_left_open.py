"""An error inside of what a model opens, vmap or autocast say, leaves nothing open."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import embedding, scaled_dot_product_attention

import piecewise_core as pw
from piecewise_core.torch_compat.state import torch_state

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")
# torch's own, when it first differentiates forward.

TABLE = torch.arange(30.0).reshape(10, 3)


def in_vmap(x, places):
    return torch.vmap(lambda row, place: row + TABLE.index_select(0, place[None])[0])(x, places)


def in_jvp(x, places):
    return torch.func.jvp(lambda y: y * embedding(places, TABLE), (x,), (torch.ones_like(x),))[1]


def in_autocast(x, places):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return embedding(places, TABLE) @ x.t()


def in_kernels(x, places):
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(x[None], x[None], embedding(places, TABLE)[None])


def door(fn):
    return torch.compile(fn, backend="piecewise", options={"compiler": "eager"})


def compiled(fn):
    rows = {0: pw.Dim("n", max=8)}
    config = pw.Config(dynamic={"x": rows, "places": rows}, compiler="eager")
    return pw.compile(fn, config, "cpu")


@pytest.mark.parametrize("fn", [in_vmap, in_jvp, in_autocast, in_kernels])
@pytest.mark.parametrize("front", [compiled, door])
def test_calls_after_a_failed_one_are_right(fn, front):
    torch._dynamo.reset()
    x, good, bad = torch.randn(4, 3), torch.arange(4), torch.full((4,), 99)
    before = torch_state()
    with torch.no_grad():
        fast, want = front(fn), fn(x, good)
        for _ in range(2):
            torch.testing.assert_close(fast(x, good), want)
            with pytest.raises((IndexError, RuntimeError)):
                fast(x, bad)
            assert torch_state() == before
            torch.testing.assert_close(fn(x, good), want)


def test_tangents_are_kept_or_refused():
    model = torch.nn.Linear(3, 3).requires_grad_(False)
    forward_ad = torch.autograd.forward_ad
    config = pw.Config(dynamic={"input": {0: pw.Dim("n", max=8)}}, compiler="eager")
    fast, at_the_door = pw.compile(model, config, "cpu"), door(model)
    x, tangent = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(fast(x), at_the_door(x))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        torch.testing.assert_close(
            forward_ad.unpack_dual(fast(dual)).tangent, tangent @ model.weight.t()
        )
        with pytest.raises(pw.errors.GradNeeded, match="forward-mode"):
            at_the_door(dual)
    torch.testing.assert_close(fast(x), at_the_door(x))
