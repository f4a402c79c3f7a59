"""Values that lie in another order of dims are contiguous where they cross cuts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import piecewise_core as pw
from piecewise_core.frontend.session import Session
from piecewise_core.frontend.setup import prepare
from piecewise_core.rewrites import GraphRewrite, ListedRewrite
from piecewise_core.rewrites.contiguous_crossings import CROSSINGS, order_crossings
from piecewise_core.rewrites.listing import Rewrites
from piecewise_core.testing import SimulatedPlatform

WIDTH, LENGTH = 6, 5
KERNEL, TABLE, WEIGHT = torch.randn(WIDTH, 3, 3), torch.randn(LENGTH, WIDTH), torch.randn(WIDTH, 6)


def heard(x):
    """[batch, length, width], in memory [batch, width, length]."""
    return F.gelu(F.conv1d(x, KERNEL, padding=1)).permute(0, 2, 1) + TABLE


def norm(x):
    return F.layer_norm(x, (WIDTH,))


def residual(x):
    hidden = heard(x)
    for _ in range(3):
        hidden = hidden + torch.cumsum(norm(hidden) @ WEIGHT, 1) * 2
    return norm(hidden)


def through_dropout(x):
    hidden = F.dropout(heard(x), 0.1, training=False)
    return norm(hidden + torch.cumsum(norm(hidden), 1) * 2)


def read_two_cuts_later(x):
    first = heard(x)
    second = torch.cumsum(first @ WEIGHT, 1) + 1
    return norm(torch.cumsum(second, 1) * first) + norm(first)


def sum_of_sizes(x):
    hidden = heard(x)
    return norm(torch.cumsum(norm(hidden), 1) + hidden * hidden.shape[0])


def written_later(x):
    hidden = heard(x)
    total = torch.cumsum(norm(hidden), 1) + 1
    hidden.add_(1)
    return norm(total + hidden)


def given_to_the_cut(x):
    hidden = heard(x)
    return torch.cumsum(hidden, 1) + hidden


def returned(x):
    hidden = heard(x)
    return torch.cumsum(norm(hidden), 1) + hidden, hidden


def a_view(x):
    turned = (torch.relu(x) + 1).transpose(1, 2)
    return torch.cumsum(x, 1).transpose(1, 2) + turned.exp()


def heads(x):
    """[batch, heads, length, width]: rows lie together, and a copy would be one for nothing."""
    apart = (x.reshape(x.shape[0], LENGTH, 3, 1) * 2).transpose(1, 2) * torch.ones(2)
    return torch.cumsum(x, 1).sum() + apart.exp()


def image(x):
    kept = x.reshape(x.shape[0], LENGTH, 3, 1).permute(0, 2, 1, 3) * 1.5
    image = F.conv2d(kept, torch.ones(4, 3, 1, 1)).contiguous(memory_format=torch.channels_last) * 2
    return torch.cumsum(x, 1).sum() + image.exp()


def session(fn, *, on, platform="cpu", **config):
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("batch", 0, 4)}},
        splitting_ops=("aten::cumsum",),
        compiler="eager",
        **config,
    )
    setup = prepare(config, platform, None)
    ordered = GraphRewrite(CROSSINGS, "program", "1", lambda g, t: order_crossings(g.graph, t))
    listed = (*setup.rewrites.listed, *([ListedRewrite(ordered)] if on else []))
    return Session(fn, replace(setup, rewrites=Rewrites(listed)))


def scattered(made):
    """How many tensors cross from piece to compiled piece with their last dim apart in memory."""
    program = made.regions[0].program
    read = {n for piece in program.compilable for n in piece.inputs}
    crossing = [n for piece in program.compilable for n in piece.outputs if n in read]
    values = [n.meta["example_value"] for n in crossing]
    return sum(v.dim() > 1 and v.stride(-1) != 1 for v in values)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize(
    ("fn", "before"),
    [(residual, 3), (through_dropout, 1), (read_two_cuts_later, 1), (sum_of_sizes, 1)],
)
def test_rows_lie_together_where_they_cross_and_numbers_and_results_stay(fn, before, captured):
    more = {"capture_sizes": (2, 4)} if captured else {}
    with torch.inference_mode():
        made = {
            on: session(fn, on=on, platform=SimulatedPlatform() if captured else "cpu", **more)
            for on in (True, False)
        }
        for batch in (3, 1, 2, 4):
            x = torch.randn(batch, 3, LENGTH)
            want = fn(x)
            for ours in made.values():
                for _ in range(2):
                    got = ours(x)
                    assert torch.equal(got, want)
                    assert got.stride() == want.stride()
    assert (scattered(made[True]), scattered(made[False])) == (0, before)


@pytest.mark.parametrize(
    "fn",
    [written_later, given_to_the_cut, returned, a_view, heads, image],
    ids=lambda f: f.__name__,
)
def test_others_stay_as_they_are(fn):
    rows = fn in (a_view, heads, image)
    with torch.inference_mode():
        made = {on: session(fn, on=on) for on in (True, False)}
        for batch in (3, 1, 2):
            x = torch.randn(batch, LENGTH, 3) if rows else torch.randn(batch, 3, LENGTH)
            want = fn(x.clone())
            for ours in made.values():
                torch.testing.assert_close(ours(x.clone()), want, rtol=0, atol=0)
    texts = [str(made[on].regions[0].program.traced.graph.code) for on in (True, False)]
    assert texts[0] == texts[1]


@pytest.mark.inductor
def test_the_default_compiler_has_it_and_it_can_be_switched_off():
    config = pw.Config(dynamic={"x": {0: pw.Dim("batch", 1, 4)}}, splitting_ops=("aten::cumsum",))
    with torch.inference_mode():
        for off in ((), (CROSSINGS,)):
            fast = pw.compile(residual, config.replace(rewrites_off=off))
            for batch in (3, 1):
                x = torch.randn(batch, 3, LENGTH)
                torch.testing.assert_close(fast(x), residual(x), rtol=1e-4, atol=1e-5)
            listed = {r.name: r.off for r in fast.explain().rewrites}
            assert bool(listed[CROSSINGS]) == bool(off)
