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
IMAGE = torch.randn(WIDTH, 3, 1, 1)
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


def convolved(x):
    """[batch, width, 2, 2]."""
    return F.conv2d(x[:, :, :4].reshape(x.shape[0], 3, 2, 2), IMAGE)


def rows_of(image):
    """[batch, places, width], a view, as a diffusion model's transformers read images."""
    return image.permute(0, 2, 3, 1).reshape(image.shape[0], 4, WIDTH)


def view_of_an_image(x):
    hidden = rows_of(convolved(x))
    return norm(hidden + torch.cumsum(norm(hidden), 1))


def view_of_a_sequence(x):
    hidden = F.conv1d(x, KERNEL, padding=1).transpose(1, 2)
    return norm(hidden + torch.cumsum(norm(hidden), 1))


def image_that_crosses_too(x):
    image = convolved(x)
    hidden = rows_of(image)
    return norm(hidden + torch.cumsum(norm(hidden), 1)).sum() + image.exp()


def image_that_is_read_too(x):
    image = convolved(x)
    hidden = rows_of(image)
    total = torch.cumsum(norm(hidden) + image.exp().sum(), 1)
    return norm(hidden + total)


def image_written_to(x):
    image = convolved(x)
    hidden = rows_of(image)
    total = torch.cumsum(norm(hidden), 1)
    image.mul_(2)
    return norm(hidden + total)


def view_that_is_returned(x):
    hidden = rows_of(convolved(x))
    return norm(hidden + torch.cumsum(norm(hidden), 1)), hidden


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


def read_through_views(x):
    """Views of one value in two pieces are returned: they share memory."""
    hidden = heard(x)
    total = torch.cumsum(norm(hidden), 1)
    above = hidden[:, 1:]
    again = torch.cumsum(above.exp() + total[:, 1:], 1)
    turned = hidden.transpose(1, 2)
    return above, turned, again + turned.sum()


def passed_on_through_a_view(x):
    hidden = heard(x)
    turned = hidden.transpose(1, 2)
    total = torch.cumsum(norm(hidden), 1)
    return (turned * 2).transpose(1, 2) + hidden + total


def convolved_again(x):
    """The piece behind the cut wants it as it lies."""
    hidden = heard(x)
    total = torch.cumsum(norm(hidden), 1).sum()
    return F.conv1d(hidden.transpose(1, 2), KERNEL[:, :1].expand(WIDTH, WIDTH, 3)) + total


def differentiated(x):
    hidden = heard(x)
    total = torch.cumsum(norm(hidden), 1)
    return torch.func.grad(lambda t: (t * hidden).sum())(total) + 1, hidden.exp()


@torch.library.custom_op("contiguous_crossings::lying", mutates_args=())
def lying(x: torch.Tensor) -> torch.Tensor:
    return (x + 1).contiguous()


@lying.register_fake
def _(x):
    return (x + 1).transpose(1, 2).contiguous().transpose(1, 2)


def behind_a_lie(x):
    hidden = torch.ops.contiguous_crossings.lying(x.transpose(1, 2)) * 2
    return hidden + torch.cumsum(hidden.exp(), 1)


def shorter(x):
    """The length follows from a dim, and may be 0."""
    hidden = (F.conv1d(x, KERNEL, padding=1)[:, :, 2:] * 2).permute(0, 2, 1) * 2
    return torch.cumsum(norm(hidden), 1) + hidden


BATCH = {"x": {0: pw.Dim("batch", 0, 4)}}


def session(fn, *, on, platform="cpu", cut=("aten::cumsum",), dynamic=BATCH, **config):
    config = pw.Config(
        dynamic=dynamic,
        splitting_ops=cut,
        compiler="eager",
        **config,
    )
    setup = prepare(config, platform, None)
    change = lambda g, t: order_crossings(g.graph, t)  # noqa: E731
    ordered = GraphRewrite(CROSSINGS, "program", "1", change, of_layouts=True)
    listed = (*setup.rewrites.listed, *([ListedRewrite(ordered)] if on else []))
    return Session(fn, replace(setup, rewrites=Rewrites(listed)))


def scattered(made):
    """How many tensors cross from piece to compiled piece with their last dim apart in memory."""
    program = made.regions[0].program
    read = {n for piece in program.compilable for n in piece.inputs}
    crossing = [n for piece in program.compilable for n in piece.outputs if n in read]
    values = [n.meta["example_value"] for n in crossing]
    return sum(v.dim() > 1 and v.stride(-1) != 1 for v in values)


CROSS = [
    *((residual, 3), (through_dropout, 1), (read_two_cuts_later, 1), (sum_of_sizes, 1)),
    *((view_of_an_image, 1), (view_of_a_sequence, 1)),
]
BY_CAPTURE = (residual, read_two_cuts_later, view_of_an_image)
"""Which are captured in every run: several rows, rows of another graph's piece, a view."""


@pytest.mark.parametrize(
    ("fn", "before", "captured"),
    [
        pytest.param(
            *(fn, before, captured),
            marks=[pytest.mark.slow] * (captured and fn not in BY_CAPTURE),
        )
        for fn, before in CROSS
        for captured in (False, True)
    ],
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
    [
        *(written_later, given_to_the_cut, returned, a_view, heads, image),
        *(read_through_views, passed_on_through_a_view, convolved_again),
        *(image_that_crosses_too, image_that_is_read_too, image_written_to, view_that_is_returned),
    ],
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


def test_a_length_that_follows_from_a_dim():
    with torch.inference_mode():
        made = session(shorter, on=True, dynamic={"x": {2: pw.Dim("length", 2, 16)}})
        for length in (5, 3, 2):
            x = torch.randn(3, 3, length)
            got, want = made(x), shorter(x)
            assert torch.equal(got, want)
            assert got.stride() == want.stride() or length == 2
    assert scattered(made) == 0


def test_results_that_share_memory_still_do():
    with torch.inference_mode():
        first, second, _ = session(read_through_views, on=True)(torch.randn(3, 3, LENGTH))
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def test_real_strides_of_a_splitting_operator_decide():
    with torch.inference_mode():
        x = torch.randn(3, 3, LENGTH)
        cut = ("aten::cumsum", "contiguous_crossings::lying")
        got, want = session(behind_a_lie, on=True, cut=cut)(x), behind_a_lie(x)
    assert torch.equal(got, want)
    assert got.stride() == want.stride()


@pytest.mark.parametrize("name", ["aten::clone", "aten::permute"])
def test_the_copies_are_no_cuts(name):
    def fn(x):
        return residual(x).clone().permute(0, 2, 1)

    with torch.inference_mode():
        x = torch.randn(3, 3, LENGTH)
        made = {on: session(fn, on=on, cut=("aten::cumsum", name)) for on in (True, False)}
        for ours in made.values():
            assert torch.equal(ours(x), fn(x))
    pieces = {on: len(ours.regions[0].program.pieces) for on, ours in made.items()}
    assert pieces[True] == pieces[False]


def test_readers_inside_of_grad_get_it_from_outside():
    with torch.inference_mode():
        x = torch.randn(3, 3, LENGTH)
        made = session(differentiated, on=True)
        for got, want in zip(made(x), differentiated(x), strict=True):
            assert torch.equal(got, want)
    graph = made.regions[0].program.traced.graph.graph
    names = [getattr(n.target, "__name__", n.target) for n in graph.nodes]
    level = names.index("_grad_increment_nesting"), names.index("_grad_decrement_nesting")
    assert "clone" in names
    assert "permute" not in names[level[0] : level[1]]


def test_nothing_is_asked_of_sizes():
    with torch.inference_mode():
        traced = session(residual, on=False)
        traced(torch.randn(3, 3, LENGTH))
        graph = traced.regions[0].program.traced.graph.graph
        (env,) = {
            v.fake_mode.shape_env
            for v in (n.meta.get("example_value") for n in graph.nodes)
            if hasattr(v, "fake_mode")
        }
        before = len(env.guards), len(graph.nodes)
        order_crossings(graph, lambda node: node.target in ("cumsum", torch.cumsum))
    assert len(env.guards) == before[0]
    assert len(graph.nodes) > before[1]


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
